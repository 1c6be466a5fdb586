"""Schema: the language as JSON Schema, which editors complete and check from, and cases to start from.

The schema is made from the same declaration that reads case files. What it cannot say: that names inside a case fit
together (a sweep of a steering that exists), that files are there, that boxes are not empty, that 3.0 is no whole
number, and that a value is text only if it is written as text.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vsp_report import paths
from vsp_report.case.files import ENDINGS, is_id
from vsp_report.case.kinds import Record, nearest
from vsp_report.case.language import Case
from vsp_report.errors import CaseError, InputError

SCHEMA_FILE = "case.schema.json"
"""Where editors look for the schema: beside the case files."""


def case_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a case file."""
    definitions: dict[str, Any] = {}
    Record(Case).schema(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vsp-report case",
        **definitions.pop("Case"),
        "$defs": dict(sorted(definitions.items())),
    }


def templates() -> dict[str, Path]:
    """The commented cases that `vsp-report new --from` knows, then the bundled ones."""
    folders = (paths.templates_dir() / "cases", paths.cases_dir())
    found = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
    return {file.stem: file for file in reversed(found) if file.suffix in ENDINGS}


class Starter(NamedTuple):
    """A case that was written to start from."""

    file: Path
    left_out: bool
    """the baseline that the case it is copied from is held to: its figures are of that case, and stay with it"""


def write_starter(name: str, template: str = "question", folder: Path = Path("cases")) -> Starter:
    """Write a case to start from; nothing is overwritten."""
    known = templates()
    if template not in known:
        raise InputError("--from", f"there is no template {template!r}", nearest(template, sorted(known)))
    if not is_id(name):
        raise CaseError(name, "is no name for a case", "Use small letters, digits and hyphens: my-case.")
    if taken := [file for ending in ENDINGS if (file := folder / f"{name}{ending}").exists()]:
        raise CaseError(str(taken[0]), "is there already", "Choose another name.")
    text = known[template].read_text(encoding="utf-8")
    kept = _without_baseline(text)
    schema = shlex.quote((folder / SCHEMA_FILE).as_posix())
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}{ENDINGS[0]}"
    with open(file, "x", encoding="utf-8") as opened:
        opened.write(kept.replace(f"> cases/{SCHEMA_FILE}`", f"> {schema}`"))
    return Starter(file, kept != text)


def _without_baseline(text: str) -> str:
    """A case file without the lines of `expect: baseline:`, and those of the comment above them."""
    found = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in ("expect", "baseline"):
        found = next(((k, v) for k, v in found.value if k.value == key), None)
        if found is None:
            return text
        name, found = found
    while getattr(found, "flow_style", True) is False:  # a block's own end is where the next begins
        found = found.value[-1][1]
    lines, first, last = text.splitlines(keepends=True), name.start_mark.line, found.end_mark.line + 1
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return "".join(lines[:first] + lines[last:])
