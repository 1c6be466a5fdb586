"""History: one line for each audit, small enough to be committed with the site.

site/audit/audit.json       the last audit, whole
site/audit/history.jsonl    {"when", "code", "program", "cases": {ID: [verdict, margin of the model as it is]}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsp_report.audit.account import Account
from vsp_report.audit.verdicts import VERDICTS
from vsp_report.errors import InputError
from vsp_report.recording.plain import from_plain, to_plain

FOLDER, LAST, LINES = "audit", "audit.json", "history.jsonl"
KEPT = 500
"""Older lines are dropped."""
REMEDY = "Delete it: the next audit begins it anew."


@dataclass(frozen=True)
class Line:
    """One audit, as history keeps it."""

    when: str
    code: int
    program: str
    cases: dict[str, tuple[str, float | None]]
    """the verdict of each case, and the margin of the model as it is"""


def line_of(account: Account) -> Line:
    def margin(figures: dict[str, Any] | None) -> float | None:
        found = (figures or {}).get("before.margin")
        return round(found, 3) if isinstance(found, (int, float)) else None

    cases = {one.id: (one.verdict, margin(one.figures)) for one in account.cases}
    return Line(account.created, account.code, account.program, cases)


def load_history(site: Path) -> list[Line]:
    """The oldest first."""
    file = site / FOLDER / LINES
    if not file.is_file():
        return []
    found = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip():
            place = f"{file}:{number}"
            try:
                line = from_plain(Line, json.loads(text), place)
            except (ValueError, RecursionError) as error:
                raise InputError(place, "is no line of an audit", REMEDY) from error
            if unknown := {verdict for verdict, _ in line.cases.values()} - VERDICTS.keys():
                raise InputError(place, f"has the verdict {min(unknown)!r}, which there is not", REMEDY)
            found.append(line)
    return found


def last_verdicts(lines: Sequence[Line]) -> dict[str, str]:
    """Of every case, in the last audit that looked at it."""
    return {id: verdict for line in lines for id, (verdict, _) in line.cases.items()}


def load_last(site: Path) -> Account | None:
    file = site / FOLDER / LAST
    if not file.is_file():
        return None
    try:
        return from_plain(Account, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (ValueError, RecursionError) as error:
        raise InputError(str(file), "is not JSON", REMEDY) from error


def append(site: Path, account: Account) -> None:
    """Keep an audit: as the last one, and as one more line."""
    lines = [*load_history(site), line_of(account)][-KEPT:]
    (site / FOLDER).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(to_plain(line), separators=(",", ":"), sort_keys=True) + "\n" for line in lines)
    write_whole(site / FOLDER / LINES, text)
    write_whole(site / FOLDER / LAST, account_json(account))


def account_json(account: Account) -> str:
    return json.dumps(to_plain(account), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Whole or absent: written beside its place, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
