"""Activation cache: the states of many pictures, kept on disk and read through memory maps.

    manifest.json     what it is of: model, pictures, prompt, taps; how many rows each chunk has; whether it is whole
    vision.3.rows     one tap's states, row after row, nothing else

It is written once, chunk by chunk, and goes on where it stopped: the manifest is renamed into place after the rows that
it counts, and rows that it does not count are cut off. Whoever opens it says what it should be of; another model,
other or changed pictures, another prompt or precision are refused, not mixed in.

Axes: N rows, D width.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vsp_report.errors import InputError
from vsp_report.model.streams import DTYPES, PictureRows, Rows

MANIFEST, FORMAT = "manifest.json", 1
EVERY = 32
"""Chunks between two manifests."""
AGAIN = "Delete it, and it is written anew."


class Identity(NamedTuple):
    """What states depend on."""

    model: str
    """its name, and a hash of its files or its revision"""
    images: str
    """where they are from, and a hash that tells them from others"""
    prompt: str
    """what stands beside a picture; text taps depend on it"""
    dtype: str
    per_pass: int
    """pictures in one forward pass: they set where chunks begin, and the last bits of sums"""


@dataclass(frozen=True)
class CachedRows:
    """A source: rows of a cache that is whole."""

    folder: Path
    taps: tuple[str, ...]
    widths: Mapping[str, int]
    dtype: torch.dtype
    ends: Mapping[str, tuple[int, ...]]
    """of each tap, the row after each chunk's last"""
    skipped: Mapping[str, str]

    @property
    def chunks(self) -> int:
        return len(next(iter(self.ends.values())))

    @property
    def rows(self) -> int:
        return min(ends[-1] if ends else 0 for ends in self.ends.values())

    def load(self, chunk: int, then: int | None = None) -> Rows:
        loaded = {}
        for tap in self.taps:
            ends, width = self.ends[tap], self.widths[tap]
            start, end = ends[chunk - 1] if chunk else 0, ends[chunk]
            if start == end:
                return {}
            bits = np.dtype(f"u{self.dtype.itemsize}")
            shape, offset = (end - start, width), start * width * bits.itemsize
            mapped = np.memmap(self.folder / f"{tap}.rows", bits, "r", offset, shape)
            loaded[tap] = torch.from_numpy(np.array(mapped)).view(self.dtype)
        return loaded


def open_cache(folder: Path, identity: Identity, taps: tuple[str, ...]) -> CachedRows | None:
    """The rows of a cache that is whole and is of `identity`; None if there is none or it is not finished."""
    manifest = _manifest(folder)
    if manifest is None:
        return None
    _check(folder, manifest, identity)
    missing = [tap for tap in taps if tap not in manifest["taps"]]
    if missing:
        held = ", ".join(manifest["taps"])
        raise InputError(str(folder), f"holds states of {held}, not of {', '.join(missing)}", "Name another folder.")
    if not manifest["whole"]:
        return None
    dtype = DTYPES[identity.dtype]
    ends = {tap: tuple(np.cumsum(manifest["taps"][tap]["rows"], dtype=np.int64).tolist()) for tap in taps}
    widths = {tap: int(manifest["taps"][tap]["width"]) for tap in taps}
    for tap in taps:
        wanted = (ends[tap][-1] if ends[tap] else 0) * widths[tap] * dtype.itemsize
        found = _size(folder / f"{tap}.rows")
        if found != wanted:
            raise InputError(str(folder / f"{tap}.rows"), f"has {found} bytes where {wanted} were written", AGAIN)
    return CachedRows(folder, taps, widths, dtype, ends, manifest["skipped"])


def write_cache(
    folder: Path,
    identity: Identity,
    source: PictureRows,
    *,
    check: Callable[[], None] = lambda: None,
    on_chunk: Callable[[int], None] = lambda done: None,
) -> CachedRows:
    """Write what is not written yet. `check` is called between chunks and may raise: what is there, stays."""
    manifest = _manifest(folder)
    if manifest is None:
        _make(folder)
        taps = {tap: {"width": 0, "rows": []} for tap in source.taps}
        manifest = {"format": FORMAT, **identity._asdict(), "whole": False, "taps": taps, "skipped": {}}
    elif sorted(manifest["taps"]) != sorted(source.taps):
        held = ", ".join(manifest["taps"])
        raise InputError(str(folder), f"is a cache of {held}, half written", f"Ask for these taps again. {AGAIN}")
    done = len(next(iter(manifest["taps"].values()))["rows"])
    files = {tap: _cut(folder / f"{tap}.rows", manifest["taps"][tap], DTYPES[identity.dtype]) for tap in source.taps}
    source.skipped.update(manifest["skipped"])
    try:
        for chunk in range(done, source.chunks):
            check()
            rows = source.load(chunk, chunk + 1 if chunk + 1 < source.chunks else None)
            for tap, file in files.items():
                part = rows.get(tap)
                manifest["taps"][tap]["rows"].append(0 if part is None else len(part))
                if part is not None:
                    manifest["taps"][tap]["width"] = part.shape[1]
                    bits = torch.int16 if part.element_size() == 2 else torch.int32
                    file.write(part.contiguous().view(bits).numpy().tobytes())
            if chunk == done:
                _check_room(folder, rows, source.chunks - done)
            if (chunk + 1) % EVERY == 0:
                _keep(folder, manifest, files, source.skipped)
            on_chunk(chunk + 1)
        manifest["whole"] = True
    finally:
        _keep(folder, manifest, files, source.skipped)
        for file in files.values():
            file.close()
    found = open_cache(folder, identity, source.taps)
    assert found is not None
    return found


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(str(folder), "holds other files, and is no activation cache", "Name another folder.")
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and isinstance(manifest["whole"], bool)
        rows = [tap["rows"] for tap in manifest["taps"].values()]
        known &= bool(rows) and len({len(part) for part in rows}) == 1 and isinstance(manifest["skipped"], dict)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(str(path), "is no manifest of an activation cache", "Name another folder.") from error
    if not known:
        raise InputError(str(path), "is of another version of this package", AGAIN)
    return manifest


def _check(folder: Path, manifest: Mapping[str, Any], identity: Identity) -> None:
    for name, wanted in identity._asdict().items():
        if (found := manifest.get(name)) != wanted:
            fault = f"is of another run: {_SAID[name]} {found!r}, and {wanted!r} is asked for"
            raise InputError(str(folder), fault, f"Name another folder. {AGAIN}")


_SAID = {"model": "its model is", "images": "its pictures are", "prompt": "its prompt is", "dtype": "its states are",
         "per_pass": "its passes are of"}  # fmt: skip


def _make(folder: Path) -> None:
    if not folder.absolute().parent.is_dir():
        raise InputError(str(folder), "its folder does not exist", "Make it first.")
    if folder.exists() and not folder.is_dir():
        raise InputError(str(folder), "is a file", "Name a folder.")
    folder.mkdir(exist_ok=True)


def _cut(path: Path, tap: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The file, open at the end of what the manifest counts."""
    wanted = sum(tap["rows"]) * tap["width"] * dtype.itemsize
    found = _size(path)
    if found < wanted:
        raise InputError(str(path), f"has {found} bytes where {wanted} were written", AGAIN)
    file = open(path, "r+b" if path.exists() else "w+b")
    file.truncate(wanted)
    file.seek(wanted)
    return file


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(folder: Path, rows: Rows, chunks: int) -> None:
    """Said after the first chunk, not when the disk is full."""
    each = sum(part.numel() * part.element_size() for part in rows.values())
    free = shutil.disk_usage(folder).free
    if each * (chunks - 1) > free:
        fault = f"needs about {each * chunks / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise InputError(str(folder), fault, "Take fewer pictures (--n) or fewer taps, or leave --cache out.")


def _keep(folder: Path, manifest: dict[str, Any], files: Mapping[str, Any], skipped: Mapping[str, str]) -> None:
    """The rows first, then the manifest that counts them."""
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())
    least = min(len(tap["rows"]) for tap in manifest["taps"].values())
    for tap in manifest["taps"].values():  # an error inside a chunk leaves it half counted
        del tap["rows"][least:]
    manifest["skipped"] = dict(skipped)
    beside = folder / f".{MANIFEST}.{os.getpid()}.partial"
    try:
        beside.write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        os.replace(beside, folder / MANIFEST)
    finally:
        beside.unlink(missing_ok=True)
