"""Folder: a recording on disk, whole or absent.

    recording.json   everything but the arrays; schema version first
    arrays.npz       numpy arrays, no pickles
    images/          the picture, and whatever else pages show
    notebook.ipynb   the executed notebook
    manifest.json    hash and size of each file, written last

It is written into a hidden sibling, which is locked while its writer lives, and renamed. An older recording is
renamed away first; a writer that is killed between the two renames leaves it as a hidden sibling too, and the next
`sweep` puts it back. A killed writer's lock is gone, which is how `sweep` knows what to delete.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vsp_report.case import Case
from vsp_report.errors import InputError, VspError
from vsp_report.recording.keys import sha, sha_of
from vsp_report.recording.parts import SCHEMA, VARYING, Arrays, Recording
from vsp_report.recording.plain import REMEDY, from_plain, to_plain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RECORDING, ARRAYS, MANIFEST, NOTEBOOK, IMAGES = (
    "recording.json",
    "arrays.npz",
    "manifest.json",
    "notebook.ipynb",
    "images",
)
MAX_JSON_BYTES = 64 * 2**20
MAX_ARRAY_BYTES = 2 * 2**30
HELD = -1
STALE_SECONDS = 24 * 3600
"""Where a lock says nothing, a sibling this old is a killed writer's."""
_FILE = re.compile(r"images/[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(png|jpg|jpeg|webp|svg|gif)|notebook\.ipynb|case\.yaml")
_LEFTOVER = re.compile(r"\.(?P<name>[^/]+)\.[0-9a-f]{32}\.(?P<state>partial|old)")


# --- to disk -----------------------------------------------------------------------------------------------------


def save_recording(folder: str | Path, recording: Recording, files: Mapping[str, bytes | Path] | None = None) -> Path:
    """Write a recording with its files ("images/input.png", "notebook.ipynb": bytes, or where they are)."""
    contents = _contents(recording, files or {})
    return write_folder(folder, contents | {MANIFEST: _json(_manifest(contents))})


def write_folder(folder: str | Path, contents: Mapping[str, bytes]) -> Path:
    """A folder with these files and nothing else, whole or absent; what comes last is written last."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    with _sibling(folder) as partial:
        for name, data in contents.items():
            _write(partial / name, data)
        for inner in {(partial / name).parent for name in contents} | {partial}:
            _sync(inner)
        _publish(partial, folder)
    return folder


def restate(folder: str | Path, case: Case) -> Path:
    """Give a recording the case's present title, story, tags and expectations. Its figures stay."""
    folder = Path(folder)
    recording = load_recording(folder)
    if case.computed() != recording.asked().computed():
        raise InputError(str(folder), "was made with another question", REMEDY)
    kept = {name: folder / name for name in _manifested(folder) if name not in (RECORDING, ARRAYS)}
    words = case.resolved()
    told = replace(recording.provenance, case_sha=sha_of(words))
    return save_recording(folder, replace(recording, case=words, provenance=told), kept)


def _contents(recording: Recording, files: Mapping[str, bytes | Path]) -> dict[str, bytes]:
    if recording.schema != SCHEMA:
        raise InputError("recording.schema", f"is {recording.schema}", f"Write {SCHEMA}.")
    recording.check("recording")
    for name in files:
        if not _FILE.fullmatch(name):
            raise InputError(name, "is no file of a recording", "Write images/NAME.png, notebook.ipynb or case.yaml.")
    data = to_plain(recording)
    from_plain(Recording, data, "recording")  # what cannot be read is not written
    contents = {RECORDING: _json(data), ARRAYS: _npz(recording.arrays)}
    return contents | {name: f if isinstance(f, bytes) else Path(f).read_bytes() for name, f in sorted(files.items())}


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _npz(arrays: Arrays) -> bytes:
    """As numpy writes it, but with the same bytes at any hour."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def _manifest(contents: Mapping[str, bytes]) -> dict[str, Any]:
    listed = {name: {"bytes": len(data), "sha256": sha(data)} for name, data in sorted(contents.items())}
    return {"schema": SCHEMA, "files": listed}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _sibling(folder: Path) -> Iterator[Path]:
    """A locked, hidden, empty folder beside this one; gone afterwards unless it was renamed."""
    for attempt in range(20):
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
        partial.mkdir()
        lock = _locked(partial)
        # A sweep may come between the two: then another. Some shared disks know no locks: then without, at last.
        if partial.is_dir() and (lock not in (None, HELD) or fcntl is None or attempt > 10):
            break
        _unlock(lock)
        with contextlib.suppress(OSError):
            partial.rmdir()
    else:
        raise VspError(str(folder.parent), "what is written there is deleted at once", "See who else cleans it up.")
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _unlock(lock)


@contextlib.contextmanager
def scratch(parent: str | Path) -> Iterator[Path]:
    """A folder beside the recordings for what is not one yet. `sweep` clears it when its maker was killed."""
    with _sibling(Path(os.path.abspath(parent)) / "run") as folder:
        yield folder


def _publish(partial: Path, folder: Path) -> None:
    for _ in range(20):
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, old)
        try:
            os.rename(partial, folder)
        except OSError as error:
            # Somebody else's came between the two renames: theirs goes the way of the older one.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                shutil.rmtree(old, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):
                os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
        _sync(folder.parent)
        return
    raise VspError(str(folder), "is being written by others all the time", "Let one run write to one site.")


def _locked(folder: Path) -> int | None:
    """A lock that ends with this process; `HELD` where somebody has it; None where there is none to be had."""
    if fcntl is None:
        return None
    try:
        opened = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(opened)
        return HELD if error.errno == errno.EWOULDBLOCK else None
    return opened


def _unlock(lock: int | None) -> None:
    if lock not in (None, HELD):
        os.close(lock)


def sweep(parent: str | Path) -> list[Path]:
    """Clear what killed writers left in a folder of recordings; an old recording without a new one is put back."""
    swept = []
    for entry in sorted(Path(parent).iterdir()) if Path(parent).is_dir() else []:
        match = _LEFTOVER.fullmatch(entry.name)
        if match is None or not entry.is_dir() or entry.is_symlink():
            continue
        lock = _locked(entry)
        with contextlib.suppress(FileNotFoundError):
            if lock == HELD or (lock is None and time.time() - entry.stat().st_mtime < STALE_SECONDS):
                continue
            final = entry.with_name(match["name"])
            if match["state"] == "old" and not final.exists():
                with contextlib.suppress(OSError):
                    os.rename(entry, final)
            else:
                shutil.rmtree(entry, ignore_errors=True)
            swept.append(entry)
        _unlock(lock)
    return swept


# --- from disk ---------------------------------------------------------------------------------------------------


def load_recording(folder: str | Path, *, arrays: bool = True, verify: bool = True) -> Recording:
    """A recording. `verify`: compare each file with its hash; else only with its size. `arrays`: read them too."""
    folder = Path(folder)
    manifest = _manifested(folder)
    for name, facts in manifest.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise InputError(str(path), "is missing or cut off", REMEDY)
        if verify and sha(path.read_bytes()) != facts["sha256"]:
            raise InputError(str(path), "was changed after it was recorded", REMEDY)
    place = folder / RECORDING
    data = _read_json(place)
    version = data.get("schema") if isinstance(data, dict) else None
    if version != SCHEMA:
        raise InputError(str(place), f"has schema {version!r}; this is {SCHEMA}", REMEDY)
    recording = from_plain(Recording, data, str(place))
    recording.check(str(place))
    if arrays and ARRAYS in manifest:
        recording = replace(recording, arrays=_read_arrays(folder / ARRAYS, recording))
    return recording


def is_recorded(folder: str | Path) -> bool:
    """Whether a whole recording is here, by its manifest and the sizes of its files."""
    try:
        manifest = _manifested(Path(folder))
        return all((Path(folder) / name).stat().st_size == facts["bytes"] for name, facts in manifest.items())
    except (InputError, OSError):
        return False


def recording_sha(folder: str | Path) -> str:
    """Of the manifest, and so of every file."""
    return sha((Path(folder) / MANIFEST).read_bytes())


def recordings_in(parent: str | Path) -> list[Path]:
    """The folders of all recordings, by name."""
    if not Path(parent).is_dir():
        return []
    return sorted(p for p in Path(parent).iterdir() if p.name[0] != "." and (p / MANIFEST).is_file())


def comparable(recording: Recording) -> dict[str, Any]:
    """Its plain data without what two equal runs may differ in (`VARYING`), and its arrays by their hash."""
    data = to_plain(recording)
    for name in VARYING:
        del data["provenance"][name]
    hashes = {name: sha(a.tobytes() + str((a.dtype, a.shape)).encode()) for name, a in recording.arrays.items()}
    return data | {"arrays": hashes}


def _manifested(folder: Path) -> dict[str, Any]:
    place = folder / MANIFEST
    if not place.is_file():
        raise InputError(str(folder), "holds no whole recording", "`vsp-report run` makes one.")
    data = _read_json(place)
    listed = data.get("files") if isinstance(data, dict) else None
    if not isinstance(listed, dict) or RECORDING not in listed:
        raise InputError(str(place), "lists no recording", REMEDY)
    for name, facts in listed.items():
        parts = PurePosixPath(name).parts
        known = name in (RECORDING, ARRAYS) or _FILE.fullmatch(name)
        if not known or ".." in parts or not isinstance(facts, dict) or not isinstance(facts.get("bytes"), int):
            raise InputError(str(place), f"lists {name[:80]!r}, which is no file of a recording", REMEDY)
    return listed


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(str(path), f"is over {MAX_JSON_BYTES // 2**20} MiB", REMEDY)
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON ({str(error)[:100]})", REMEDY) from error
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", REMEDY) from error


def _not_finite(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _read_arrays(path: Path, recording: Recording) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_ARRAY_BYTES:
                raise InputError(str(path), f"unpacks to over {MAX_ARRAY_BYTES // 2**30} GiB", REMEDY)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise InputError(str(path), f"cannot be read ({str(error)[:100]})", REMEDY) from error
    if unknown := arrays.keys() - {f.name for f in fields(Arrays)}:
        raise InputError(str(path), f"holds {min(unknown)!r}, which is no array of a recording", REMEDY)
    for name, array in arrays.items():
        array.setflags(write=False)
        if (shape := _shape(name, recording)) is not None and array.shape != shape:
            raise InputError(str(path), f"{name} is {array.shape}; the recording says {shape}", REMEDY)
    return Arrays(**arrays)


def _shape(name: str, recording: Recording) -> tuple[int, ...] | None:
    """What the rest of the recording says of an array's shape; None where it says nothing."""
    patches = recording.grid.patches if recording.grid else None
    if name == "heatmap_TL":
        return (len(recording.heatmap.rows), len(recording.heatmap.columns)) if recording.heatmap else None
    first = {"maps_LP": len(recording.latents), "boxes_P4": patches}.get(name, len(recording.tokens))
    return None if patches is None else (first, 4 if name == "boxes_P4" else patches)
