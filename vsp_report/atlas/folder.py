"""Folder: an atlas on disk, whole or absent; and the sheets of small pictures that atlases share."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsp_report.atlas.parts import KINDS, SCHEMA, Arrays, Atlas
from vsp_report.errors import InputError
from vsp_report.recording import sha
from vsp_report.recording.folder import write_folder
from vsp_report.recording.plain import from_plain, to_plain

ATLAS, ARRAYS = "atlas.json", "arrays.npz"
REMEDY = "Make the atlas again: `vsp-report atlas`."
MAX_JSON_BYTES = 256 * 2**20
MAX_ARRAY_BYTES = 2 * 2**30
IDLE_SECONDS = 24 * 3600
"""What no atlas names stays so long after somebody has last touched it."""
_SHEET = re.compile(r"\d{3,5}\.webp")
_SHEETS = re.compile(r"pictures-[0-9a-f]{12}")
_KIND = {f.name: np.dtype(KINDS[kind]) for f, kind in zip(fields(Arrays), (
    "float32 float32 float32 float32 float32 int64 float32 float32 float32 int32 float32 int64 uint16 uint8 uint16 "
    "int32 float32 float32 float32 int32 int32 float32"
).split(), strict=True)}  # fmt: skip


@dataclass(frozen=True)
class _Written:
    """atlas.json: the atlas, and what lies beside it."""

    atlas: Atlas
    files: dict[str, str]
    """the SHA-256 of each other file, sheets by their folder's name and theirs"""


# --- to disk -----------------------------------------------------------------------------------------------------


def save_sheets(parent: str | Path, sheets: Sequence[bytes]) -> str:
    """Write sheets of small pictures, WebP each, into the folder of all atlases; says what their folder is called."""
    name = f"pictures-{sheet_sha(sheets)[:12]}"
    folder = Path(parent) / name
    contents = {f"{number:03}.webp": data for number, data in enumerate(sheets)}
    if contents and all((folder / file).is_file() for file in contents):
        os.utime(folder)  # somebody is at work with it
    else:
        write_folder(folder, contents)
    return name


def sheets_named(folders: Iterable[Path]) -> set[str]:
    """What the sheets' folders of these atlases are called; of those that are there and can be read."""
    found = set()
    for folder in folders:
        with suppress(InputError, KeyError, TypeError):
            found.add(str(_read_json(folder / ATLAS)["sheets"]["folder"]))
    return found


def sweep_sheets(parent: str | Path, replaced: Collection[str] = ()) -> list[Path]:
    """Clear sheets that no atlas names any more: at once those of atlases that were `replaced`, others when nobody has
    touched them for a day, because the atlas that names them may be about to be written. Where an atlas cannot be read,
    nothing is known, and all stay."""
    try:
        named = {_read_json(folder / ATLAS)["sheets"]["folder"] for folder in atlases_in(parent)}
    except (InputError, KeyError, TypeError):
        return []
    loose = [p for p in Path(parent).iterdir() if _SHEETS.fullmatch(p.name) and p.name not in named and p.is_dir()]
    swept = [p for p in loose if p.name in replaced or _idle(p)]
    for folder in swept:
        shutil.rmtree(folder, ignore_errors=True)
    return swept


def _idle(folder: Path) -> bool:
    with suppress(FileNotFoundError):  # another command cleared it
        return time.time() - folder.stat().st_mtime > IDLE_SECONDS
    return False


def sheet_sha(sheets: Sequence[bytes]) -> str:
    return sha("".join(map(sha, sheets)))


def save_atlas(parent: str | Path, atlas: Atlas) -> Path:
    """Write an atlas into the folder of all atlases, after its sheets."""
    parent = Path(parent)
    if atlas.schema != SCHEMA:
        raise InputError("atlas.schema", f"is {atlas.schema}", f"Write {SCHEMA}.")
    arrays = Arrays(**{name: np.ascontiguousarray(array, _KIND[name]) for name, array in atlas.arrays.items()})
    replace(atlas, arrays=arrays).check("atlas")
    packed = _npz(arrays)
    beside = {f"{atlas.sheets.folder}/{file}": parent / atlas.sheets.folder / file for file in atlas.sheets.files}
    hashes = {ARRAYS: sha(packed), **{name: sha(path.read_bytes()) for name, path in beside.items()}}
    data = to_plain(_Written(atlas, hashes))
    from_plain(_Written, data, "atlas")  # what cannot be read is not written
    folder, files = parent / atlas.slug, {ARRAYS: packed, ATLAS: _json({**data["atlas"], "files": data["files"]})}
    if not all((folder / name).is_file() and (folder / name).read_bytes() == made for name, made in files.items()):
        write_folder(folder, files)  # otherwise its pages, which go with a folder, are still its pages
    return folder


def _json(data: dict[str, Any]) -> bytes:
    """A line for each name: the pictures alone, line by line, would be ten thousand."""
    compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
    lines = (f'"{name}":{compact(value)}' for name, value in data.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _npz(arrays: Arrays) -> bytes:
    """As numpy writes it, but with the same bytes at any hour."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


# --- from disk ---------------------------------------------------------------------------------------------------


def load_atlas(folder: str | Path, *, verify: bool = False) -> Atlas:
    """An atlas. `verify`: compare its files, and its sheets, with their hashes."""
    folder = Path(folder)
    place = folder / ATLAS
    data = _read_json(place)
    version = data.get("schema") if isinstance(data, dict) else None
    if version != SCHEMA:
        raise InputError(str(place), f"has schema {version!r}; this is {SCHEMA}", REMEDY)
    files = data.pop("files", None)
    try:
        written: _Written = from_plain(_Written, {"atlas": data, "files": files}, str(place))
    except InputError as error:
        raise InputError(error.place, error.fault.replace("atlas.", "", 1), REMEDY) from error
    atlas = written.atlas
    if not _SHEETS.fullmatch(atlas.sheets.folder) or not all(map(_SHEET.fullmatch, atlas.sheets.files)):
        raise InputError(str(place), "names sheets that are none of an atlas", REMEDY)
    if verify:
        for name, wanted in written.files.items():
            path = folder / name if name == ARRAYS else folder.parent / name
            if name != ARRAYS and name not in {f"{atlas.sheets.folder}/{file}" for file in atlas.sheets.files}:
                raise InputError(str(place), f"lists {name[:80]!r}, which is no file of an atlas", REMEDY)
            if not path.is_file() or sha(path.read_bytes()) != wanted:
                raise InputError(str(path), "is missing, or was changed after it was made", REMEDY)
    atlas = replace(atlas, arrays=_read_arrays(folder / ARRAYS))
    atlas.check(str(folder / ARRAYS))
    return atlas


def atlas_sha(folder: str | Path) -> str:
    """Of atlas.json, which has the hash of every other file."""
    return sha((Path(folder) / ATLAS).read_bytes())


def atlases_in(parent: str | Path) -> list[Path]:
    """The folders of all atlases, by name."""
    if not Path(parent).is_dir():
        return []
    return sorted(p for p in Path(parent).iterdir() if p.name[0] != "." and (p / ATLAS).is_file())


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(str(path), f"is over {MAX_JSON_BYTES // 2**20} MiB", REMEDY)
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON ({str(error)[:100]})", REMEDY) from error
    except FileNotFoundError as error:
        raise InputError(str(path.parent), "holds no whole atlas", "`vsp-report atlas` makes one.") from error
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", REMEDY) from error


def _not_finite(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _read_arrays(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_ARRAY_BYTES:
                raise InputError(str(path), f"unpacks to over {MAX_ARRAY_BYTES // 2**30} GiB", REMEDY)
        with np.load(path, allow_pickle=False) as archive:
            found: Mapping[str, np.ndarray] = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise InputError(str(path), f"cannot be read ({str(error)[:100]})", REMEDY) from error
    for name in found.keys() ^ _KIND.keys():
        raise InputError(str(path), f"{'lacks' if name in _KIND else 'has an unknown'} {name}", REMEDY)
    for name, array in found.items():
        if array.dtype != _KIND[name] or array.ndim == 0:
            raise InputError(str(path), f"{name} is of {array.dtype}, not {_KIND[name]}", REMEDY)
        array.setflags(write=False)
    return Arrays(**found)
