"""Ledger: what earlier builds wrote, so that the next one knows what is stale and what is its own to remove.

    build.json      every part of the site: its key, and the hash of each of its files; written last
    build.journal   what a build is about to write, line by line; gone when the build is done

A file that neither names is somebody else's: it is not overwritten and not removed. A build that is killed leaves
its journal, so its files are known to the next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vsp_report.errors import InputError
from vsp_report.recording import sha

LEDGER, JOURNAL, SCHEMA = "build.json", "build.journal", 1


class NotOurs(InputError):
    """A file in the way that no build of ours wrote."""


@dataclass(frozen=True)
class Part:
    """Files that are made together, and the key of what they were made from."""

    key: str
    files: Mapping[str, str]
    """path inside the site: SHA-256"""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """what other pages show of it"""


class Ledger:
    """The parts of one site, old and new."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.old: dict[str, Part] = _read(site / LEDGER)
        self.new: dict[str, Part] = {}
        self._owned = {path for part in self.old.values() for path in part.files} | _begun(site / JOURNAL)

    def fresh(self, name: str, key: str) -> bool:
        """Whether a part is there, made from this, and as it was written."""
        part = self.old.get(name)
        return part is not None and part.key == key and all(self._is(path, made) for path, made in part.files.items())

    def keep(self, name: str) -> Part:
        self.new[name] = self.old[name]
        return self.old[name]

    def held(self, name: str, path: str) -> bytes | None:
        """A file of a part, if it is there as it was written."""
        made = self.old[name].files.get(path) if name in self.old else None
        return self._place(path).read_bytes() if made and self._is(path, made) else None

    def write(self, name: str, key: str, files: Mapping[str, bytes], kept: Mapping[str, Any] | None = None,
              force: bool = False) -> int:  # fmt: skip
        """Write a part; the number of files that changed."""
        hashes = {path: sha(data) for path, data in files.items()}
        changed = [path for path, made in hashes.items() if not self._is(path, made)]
        for path in changed:
            place = self._place(path)
            if place.exists() and path not in self._owned and not force:
                raise NotOurs(str(place), "is there, and no build of ours made it",
                              "Name another folder with --out, or replace it with --force.")  # fmt: skip
        if changed:
            with open(self.site / JOURNAL, "a", encoding="utf-8") as journal:
                journal.writelines(f"{path}\n" for path in changed)
        for path in changed:
            write_whole(self._place(path), files[path])
        self._owned |= set(files)
        self.new[name] = Part(key, hashes, kept or {})
        return len(changed)

    def close(self) -> list[str]:
        """Remove what no part holds any more, and write the ledger. The files that were removed."""
        held = {path for part in self.new.values() for path in part.files}
        removed = []
        for path in sorted(self._owned - held):
            known = {part.files[path] for part in self.old.values() if path in part.files}
            place = self._place(path)
            # What was changed since belongs to who changed it; what a killed build began has no hash.
            if place.is_file() and (not known or sha(place.read_bytes()) in known):
                place.unlink()
                removed.append(path)
                _remove_empty(place.parent, self.site)
        write_whole(self.site / LEDGER, _json(self.new))
        (self.site / JOURNAL).unlink(missing_ok=True)
        return removed

    def _is(self, path: str, made: str) -> bool:
        place = self._place(path)
        return place.is_file() and not place.is_symlink() and sha(place.read_bytes()) == made

    def _place(self, path: str) -> Path:
        place = self.site / path
        if not safe(path) or not place.parent.resolve().is_relative_to(self.site.resolve()):
            raise NotOurs(str(place), "is outside of the site", "Remove the link, or name another folder with --out.")
        return place


def safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not PurePosixPath(path).is_absolute() and not {"..", "."} & set(parts) and "\\" not in path


def write_whole(place: Path, data: bytes) -> None:
    """Whole or absent."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        beside.write_bytes(data)
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)


def _read(place: Path) -> dict[str, Part]:
    """Nothing of a ledger that cannot be read is trusted: its files are then somebody else's."""
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            return {}
        parts = {name: Part(one["key"], dict(one["files"]), one.get("kept", {})) for name, one in data["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: part for name, part in parts.items() if _ours(part.files)}


def _ours(paths: Iterable[str]) -> bool:
    """Recordings are evidence: no ledger, whoever wrote it, makes them a build's own."""
    return all(isinstance(path, str) and safe(path) and PurePosixPath(path).parts[0] != "recordings" for path in paths)


def _begun(journal: Path) -> set[str]:
    if not journal.is_file():
        return set()
    lines = journal.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line for line in lines if line and _ours([line])}


def _json(parts: Mapping[str, Part]) -> bytes:
    """A line for each part."""
    plain = {name: {"key": one.key, "files": dict(sorted(one.files.items())), "kept": dict(one.kept)}
             for name, one in sorted(parts.items())}  # fmt: skip
    compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    lines = ",\n".join(f"{compact(name)}:{compact(one)}" for name, one in plain.items())
    return f'{{"schema":{SCHEMA},"parts":{{\n{lines}\n}}}}\n'.encode()


def _remove_empty(folder: Path, site: Path) -> None:
    while folder != site and folder.is_relative_to(site) and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
