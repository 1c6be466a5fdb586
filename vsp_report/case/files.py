"""Files: case files in, cases or located faults out. The only part of this room that touches the disk."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from vsp_report import paths
from vsp_report.case.kinds import BAD, Record, nearest
from vsp_report.case.language import Case
from vsp_report.case.source import MAX_BYTES, MAX_FAULTS, Faults, Node, nodes_of, read_source
from vsp_report.errors import CaseError

ENDINGS = (".yaml", ".yml")
MAX_IMAGE_BYTES = 100 * 1024 * 1024
_ID = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
_NO_FILE_NAME = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]|index")
"""Names that Windows keeps for itself, and one that sites do."""


class CaseFaults(CaseError):
    """Everything that is wrong with one or several case files: itself the first, and all of them in `faults`."""

    def __init__(self, faults: Sequence[CaseError]) -> None:
        first, more = faults[0], len(faults) - 1
        hint = f"({more} more; `vsp-report check` lists them.)" if more else ""
        super().__init__(first.place, first.fault, " ".join(filter(None, (first.remedy, hint))))
        self.faults = tuple(faults)


class Read(NamedTuple):
    cases: tuple[Case, ...]
    faults: tuple[CaseError, ...]
    files: int


def load_case(path: str | Path) -> Case:
    """The case in one file. `CaseFaults` says all that is wrong with it."""
    return load_cases([path])[0]


def load_cases(where: str | Path | Iterable[str | Path]) -> list[Case]:
    """The cases of files, folders, or names of cases, in the order given; those of a folder by name."""
    read = read_cases(case_files([where] if isinstance(where, (str, Path)) else where))
    if read.faults:
        raise CaseFaults(read.faults)
    return list(read.cases)


def read_cases(files: Sequence[Path]) -> Read:
    """What can be read, and all that is wrong with the rest."""
    cases, wrong, first_of = [], [], {}
    for file in files:
        faults = Faults(str(file))
        case = _read_file(file, faults)
        if case is not None and (first := first_of.setdefault(case.id, file)) != file:
            faults.add(1, f"is named {case.id}, as {first} is", "Rename one: the name is the page's address.")
            case = None
        if case is not None:
            cases.append(case)
        wrong += faults.found[:MAX_FAULTS]
    return Read(tuple(cases), tuple(wrong), len(files))


def case_files(words: Iterable[str | Path], folder: Path = Path("cases")) -> list[Path]:
    """The files that words name: files, folders with case files, or names of cases in `folder` or bundled."""
    found: list[Path] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix in ENDINGS and f.name[0] != ".")
            if not inside:
                raise CaseError(str(path), "has no case files (.yaml)", "`vsp-report new NAME` writes one.")
            found += inside
        elif path.suffix in ENDINGS or path.exists():
            found.append(path)
        else:
            found.append(_named(str(word), folder))
    return list(dict.fromkeys(found))


def _named(word: str, folder: Path) -> Path:
    places = [place for place in (folder, *_bundled_cases()) if place.is_dir()]
    for place in places:
        for ending in ENDINGS:
            if _ID.fullmatch(word) and (place / f"{word}{ending}").is_file():
                return place / f"{word}{ending}"
    known = sorted({file.stem for place in places for file in place.iterdir() if file.suffix in ENDINGS})
    raise CaseError(word, "is no case file, folder, or name of a case", nearest(word, known))


def _bundled_cases() -> list[Path]:
    try:
        return [paths.cases_dir()]
    except paths.VspError:
        return []


def is_id(word: str) -> bool:
    """Whether a case may have this name: it is a file's on every system, and part of an address."""
    return bool(_ID.fullmatch(word)) and len(word) <= 80 and not _NO_FILE_NAME.fullmatch(word)


def make_case(data: Any, id: str = "", place: str = "case", path: Path | None = None) -> Case:
    """The case that plain data describes, in the words of a case file; `Case.resolved()` read back."""
    faults = Faults(place)
    case = _read_node(nodes_of(data), id, path, faults)
    if case is None:
        raise CaseFaults(faults.found)
    return case


def _read_file(file: Path, faults: Faults) -> Case | None:
    id = file.name.removesuffix(file.suffix)
    if not is_id(id):
        faults.add(1, f"is named {id[:80]!r}", "Use small letters, digits and hyphens: a-case.yaml.")
        return None
    try:
        # Opened so that a pipe does not wait, and told from a file only once it is open.
        with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                faults.add(1, "is not an ordinary file", "Name a case file, or a folder of them.")
                return None
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        faults.add(1, f"cannot be read ({error.strerror})", "Look at its name and its permissions.")
        return None
    node = read_source(data, faults)
    if node is None:
        return None
    case = _read_node(node, id, file, faults)
    if case is not None:
        _check_image(case, faults)
        _check_bundled(case, faults)
    return None if faults.found else case


def _read_node(node: Node, id: str, path: Path | None, faults: Faults) -> Case | None:
    value = Record(Case).read(node, "", faults)
    if value is BAD:
        faults.found.sort(key=lambda fault: int(fault.place.rpartition(":")[2] or 0) if node.line else 0)
        return None
    return replace(value, id=id, path=path, lines=MappingProxyType(dict(node.lines()) if node.line else {}))


def _check_image(case: Case, faults: Faults) -> None:
    file, line = case.image_path, case.line_of("image")
    if file is None:
        return
    try:
        target = file.resolve()
        if not target.is_relative_to(case.path.parent.resolve()):
            faults.add(line, f"image {case.image.file!r} leads out of the case's folder", "Put the picture there.")
        elif not target.exists():
            if "image" not in case.needs:
                faults.add(line, f"image {case.image.file!r} is missing", f"Put it at {file}, or write needs: image.")
        elif not target.is_file():
            faults.add(line, f"image {case.image.file!r} is not a file", "Name a picture.")
        elif target.stat().st_size > MAX_IMAGE_BYTES:
            faults.add(line, f"image {case.image.file!r} is over {MAX_IMAGE_BYTES // 2**20} MiB", "Make it smaller.")
    except (OSError, RuntimeError, ValueError) as error:
        faults.add(line, f"image {case.image.file!r} cannot be read ({error})", "Name a picture.")


def _check_bundled(case: Case, faults: Faults) -> None:
    """A name that begins like a bundled one and is none is a slip; whether other models exist is for a run to say."""
    known = paths.bundled_names()
    for part in ("model", "sae"):
        name = getattr(case, part)
        if known and name.startswith("sketchworld") and name not in known and not Path(name).exists():
            faults.add(case.line_of(part), f"{part} is {name!r}, which is not bundled", nearest(name, known))
