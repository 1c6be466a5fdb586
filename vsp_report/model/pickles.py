"""Pickles: other people's `.pt`, `.pkl` and `.pkl.gz` files -> tensors and settings, executing nothing.

A pickle is a program: it names callables and calls them. Here the only names that resolve are a short list
of our own constructors, which build tensors from bytes, and *stand-ins*: empty classes for configuration
objects and modules, which are never imported and only hold attributes. Every other name ends the reading.
What does resolve is sealed, so that a file cannot change our functions for those who come after it either.

`torch.load(weights_only=True)` is not used, as it refuses the configuration objects that half of the formats
carry, and cannot be taught them without importing the packages they come from.

Three containers are known: a torch archive (zip), the torch files of before 2020, and a bare pickle.
"""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from vsp_report.errors import CheckpointError

AGAIN = "Fetch the file again."
HOSTILE = "It was not loaded and nothing in it was run; use a file from a source you trust, or safetensors."
MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a torch file of before 2020
MAX_INFLATION = 100  # weights hardly compress; a gzip that grows more than this is not weights

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


class Refused(Exception):
    """The file asks for something that reading weights never needs."""


class Standin:
    """An object of a class that is never imported. Its attributes are what the file says they are."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Standin:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise Refused(f"an object of {type(self).__name__} has a state that is not a dictionary")
        self.__dict__.update(state)


class Table(dict):
    """An OrderedDict of a file. The attributes that torch hangs on a state_dict are dropped."""

    __slots__ = ()

    def __setstate__(self, _state: Any) -> None:
        pass


def settings_of(value: Any) -> dict[str, Any]:
    """A configuration as a dictionary, whether the file holds an object or a dictionary."""
    return dict(vars(value)) if isinstance(value, Standin) else dict(value) if isinstance(value, dict) else {}


def module_tensors(module: Standin) -> dict[str, torch.Tensor]:
    """The state_dict of a pickled torch module: parameters and buffers of it and of those inside it."""
    tensors = {}
    for group in ("_parameters", "_buffers"):
        named = vars(module).get(group, {})
        tensors |= {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    for name, child in vars(module).get("_modules", {}).items():
        if isinstance(child, Standin):
            tensors |= {f"{name}.{inner}": value for inner, value in module_tensors(child).items()}
    return tensors


def read_pickled(data: bytes, place: str) -> Any:
    """The one object of a pickled checkpoint. Raises CheckpointError for what is broken or hostile."""
    try:
        if data[:2] == b"\x1f\x8b":
            data = _gunzip(data)
        if data[:4] == b"PK\x03\x04":
            return _read_archive(data)
        return _read_stream(data)
    except Refused as error:
        raise CheckpointError(place, f"is refused: {error}", HOSTILE) from error
    except (EOFError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise CheckpointError(place, f"is cut short or damaged ({_line(error)})", AGAIN) from error
    except RecursionError as error:
        raise CheckpointError(place, "is refused: its objects are nested too deeply", HOSTILE) from error
    except (
        pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError,
        OverflowError, MemoryError, NotImplementedError,
    ) as error:  # fmt: skip
        # what a malformed pickle makes the unpickler raise; all mean the same to a reader
        raise CheckpointError(place, f"is not a readable checkpoint ({_line(error)})", AGAIN) from error


# -- the three containers ---------------------------------------------------------------------------


def _read_archive(data: bytes) -> Any:
    """torch.save since 2020: a zip, stored and not compressed, of data.pkl and one entry per storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise Refused("its archive is compressed, which torch never does")
        programs = [name for name in entries if name.split("/", 1)[-1] == "data.pkl"]
        if len(programs) != 1:
            raise Refused(f"its archive holds {len(programs)} programs; a checkpoint has one")
        if sum(entry.file_size for entry in entries.values()) > len(data):
            raise Refused("the parts of its archive overlap")
        prefix = programs[0].removesuffix("data.pkl")
        storages: dict[str, Storage] = {}

        def storage(kind: Dtype, key: str, _count: int) -> Storage:
            if key not in storages:
                entry = entries.get(f"{prefix}data/{key}")
                if entry is None:
                    raise EOFError(f"storage {key} is missing")
                storages[key] = Storage(bytearray(archive.read(entry)), kind.dtype)
            return storages[key]

        byte_order = entries.get(f"{prefix}byteorder")
        if byte_order is not None and archive.read(byte_order) != b"little":
            raise Refused("its numbers are big-endian, which is not supported")
        return _unpickle(io.BytesIO(archive.read(programs[0])), storage)


def _read_stream(data: bytes) -> Any:
    """A bare pickle, or the torch files of before 2020: five pickles, then every storage's bytes."""
    stream = io.BytesIO(data)
    first = _unpickle(stream)
    if first != MAGIC:
        return first
    _version, system = _unpickle(stream), _unpickle(stream)
    if not settings_of(system).get("little_endian", True):
        raise Refused("its numbers are big-endian, which is not supported")
    storages: dict[str, Storage] = {}

    def storage(kind: Dtype, key: str, count: int) -> Storage:
        if key not in storages:
            # together no larger than the file, whose bytes are to fill them
            size = count * kind.dtype.itemsize
            if not 0 <= size <= len(data) - sum(len(storage.data) for storage in storages.values()):
                raise EOFError(f"storage {key} is longer than the file")
            storages[key] = Storage(bytearray(size), kind.dtype)
        return storages[key]

    result = _unpickle(stream, storage)
    for key in _unpickle(stream):
        (count,) = struct.unpack("<q", stream.read(8))
        if key not in storages or count * storages[key].dtype.itemsize != len(storages[key].data):
            raise EOFError(f"storage {key} has another length than was announced")
        if stream.readinto(storages[key].data) != len(storages[key].data):
            raise EOFError(f"storage {key} ends early")
    return result


def _gunzip(data: bytes) -> bytes:
    limit = MAX_INFLATION * len(data)
    with gzip.open(io.BytesIO(data)) as stream:
        plain = stream.read(limit + 1)
    if len(plain) > limit:
        raise Refused(f"it unpacks to more than {MAX_INFLATION} times its size")
    return plain


# -- the restricted unpickler -----------------------------------------------------------------------


class Storage:
    """Bytes of a tensor, and the type that the file gives them."""

    __slots__ = ("data", "dtype")

    def __init__(self, data: bytearray, dtype: torch.dtype) -> None:
        self.data, self.dtype = data, dtype

    def __setstate__(self, state: Any) -> NoReturn:
        raise Refused("it tries to change a storage")


class Dtype:
    """What a storage class or a dtype in a file resolves to."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> NoReturn:
        raise Refused("it tries to change a type")

    def __str__(self) -> str:
        return str(self.dtype)


class Maker:
    """A callable that a pickle may call. Sealed, so that a pickle cannot set attributes on our functions."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise Refused("it tries to change a function")


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_ignored: Any) -> torch.Tensor:
    if not isinstance(storage, Storage):
        raise Refused("a tensor is built of something that is not a storage")
    flat = torch.frombuffer(storage.data, dtype=storage.dtype) if storage.data else torch.empty(0)
    count = 1
    for length in size:
        count *= length
    if count > flat.numel() or offset < 0 or min((*size, *stride, 0)) < 0:
        raise Refused("a tensor is larger than its storage")  # an expanded view could fill the memory
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _storage_from_bytes(data: bytes) -> Storage:
    """A bare pickle keeps each storage as a torch file in bytes: read by these rules too, not by torch's."""
    storage = _read_archive(data) if data[:4] == b"PK\x03\x04" else _read_stream(data)
    if not isinstance(storage, Storage):
        raise Refused("a storage holds something that is not a storage")
    return storage


def _encode(text: str, encoding: str) -> bytes:
    """How pickles before protocol 3 spell bytes."""
    if encoding != "latin1":
        raise Refused(f"it encodes text as {encoding}")
    return text.encode("latin1")


def _object(cls: type, *_ignored: Any) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, Standin)):
        raise Refused("it makes an object of something that is not a configuration")
    return cls()


def _path(*parts: str) -> str:
    return "/".join(str(part) for part in parts)


MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): lambda *_: Table(),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch.storage", "_load_from_bytes"): _storage_from_bytes,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch", "device"): lambda *parts: ":".join(str(part) for part in parts),
    ("copyreg", "_reconstructor"): _object,
    ("copy_reg", "_reconstructor"): _object,
    ("_codecs", "encode"): _encode,
    ("builtins", "set"): lambda items=(): set(items),
    ("__builtin__", "set"): lambda items=(): set(items),
    ("pathlib", "PosixPath"): _path,
    ("pathlib", "PurePosixPath"): _path,
    ("pathlib", "WindowsPath"): _path,
    ("pathlib._local", "PosixPath"): _path,
}


def _resolve(module: str, name: str) -> Any:
    """What a name in a pickle means here. Nothing is imported, ever."""
    if (module, name) in MAKERS:
        return Maker(MAKERS[module, name])
    if module in ("torch", "torch.storage") and name in STORAGES:
        return Dtype(STORAGES[name])
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return Dtype(getattr(torch, name))
    if (module, name) in (("builtins", "object"), ("__builtin__", "object")):
        return Standin  # the base that protocol 0 and 1 name beside the class of an object
    if "." not in name and (
        name.endswith("Config") or module.startswith(("overcomplete.", "torch.nn.modules."))
    ):
        return type(name, (Standin,), {"__module__": module})
    raise Refused(f"it names {module}.{name}, which weights do not need")


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, storage: Callable[[Dtype, str, int], Storage] | None) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        return _resolve(module, name)

    def persistent_load(self, reference: Any) -> Storage:
        if self.storage is None or not isinstance(reference, tuple) or len(reference) < 5:
            raise Refused("it refers to something outside of itself")
        _, kind, key, _, count = reference[:5]
        if not isinstance(kind, Dtype):
            raise Refused("a storage is of no known type")
        return self.storage(kind, str(key), int(count))


def _unpickle(stream: io.BytesIO, storage: Callable[[Dtype, str, int], Storage] | None = None) -> Any:
    start, size = stream.tell(), len(stream.getbuffer())
    for opcode, argument, _position in pickletools.genops(stream):
        # the C unpickler makes a memo as long as its highest number, whatever the file's length
        if opcode.name.endswith("PUT") and argument > size - start:
            raise Refused("its memo is larger than the file")
    stream.seek(start)
    return _Unpickler(stream, storage).load()


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
