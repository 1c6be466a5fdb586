"""Audits: what audits came to, as the values of a page. The last one case by case, and what each came to before.

Reads `audit/audit.json` and `audit/history.jsonl` of a site, which `vsp-report audit` writes; a site without them has
no such page. The page of a data set is `datasets`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vsp_report.audit.account import SAID, Account, CaseJudged, by_urgency
from vsp_report.audit.history import FOLDER, LAST, LINES, Line, load_history, load_last
from vsp_report.audit.verdicts import VERDICTS
from vsp_report.audit.words import listed, number
from vsp_report.recording import file_sha
from vsp_report.render import datasets

PAGE = "audit.html"
STRIP = 24
"""audits that a case's history shows"""
LISTED = 40
"""audits that the page lists"""
_MARGIN = "before.margin"


@dataclass(frozen=True)
class Mark:
    """One audit in the history of a case."""

    x: int
    tone: str
    """good, bad, plain; empty where the audit did not look at the case"""
    says: str


@dataclass(frozen=True)
class Row:
    case: CaseJudged
    href: str
    """of the case's page; empty where the site has none"""
    means: str
    marks: tuple[Mark, ...]
    width: int
    told: str
    """the history in words"""
    margin: str
    moved: str
    """since the audit before"""


@dataclass(frozen=True)
class Past:
    """One audit of the list."""

    when: str
    said: str
    tone: str
    counts: str
    program: str


@dataclass(frozen=True)
class AuditPage:
    account: Account
    said: str
    tone: str
    when: str
    counts: tuple[tuple[str, str, int], ...]
    rows: tuple[Row, ...]
    past: tuple[Past, ...]
    """the newest first"""
    left_out: int
    shown: int
    """how many audits a strip has at most"""


def sources(site: Path) -> list[list[str]]:
    """What the page is made of, with hashes; empty where there has been no audit."""
    files = [site / FOLDER / name for name in (LAST, LINES)]
    return [*([file.name, file_sha(file)] for file in files if file.is_file()), *datasets.sources(site)]


def pages(site: Path, shown: set[str], render: Callable[..., bytes]) -> dict[str, bytes]:
    """The files of these pages; `render` takes a template and its values."""
    sets = {file.parent.name: datasets.dataset_page(file) for file in datasets.files(site)}
    made = {PAGE: render("audit.html.jinja", root="", here=PAGE, page=audit_page(site, shown), sets=sets)}
    for name, page in sets.items():
        made[f"{datasets.FOLDER}/{name}/index.html"] = render("dataset.html.jinja", root="../../", page=page)
    return made


def audit_page(site: Path, pages: set[str]) -> AuditPage | None:
    """`pages`: the cases that the site has a page of. None where there has been no audit."""
    account, lines = load_last(site), load_history(site)
    if account is None:
        return None
    counts = Counter(one.verdict for one in account.cases)
    return AuditPage(
        account,
        SAID[account.code],
        _tone(account.code),
        _when(account.created),
        tuple((name, tone, counts[name]) for name, (tone, _) in VERDICTS.items() if counts[name]),
        tuple(_row(one, lines, pages) for one in by_urgency(account.cases)),
        tuple(_past(line) for line in reversed(lines[-LISTED:])),
        max(0, len(lines) - LISTED),
        STRIP,
    )


def _tone(code: int) -> str:
    return {0: "good", 5: "plain"}.get(code, "bad")


def _when(created: str) -> str:
    return created.replace("T", " ").replace("Z", " UTC")


def _row(one: CaseJudged, lines: Sequence[Line], pages: set[str]) -> Row:
    shown = lines[-STRIP:]
    marks, told = [], []
    for place, line in enumerate(shown):
        verdict = line.cases.get(one.id, ("", None))[0]
        says = f"{_when(line.when)}: {verdict or 'not looked at'}"
        marks.append(Mark(place * 8, VERDICTS[verdict][0] if verdict else "", says))
        told.append(verdict)
    margins = [m for line in lines if (m := line.cases.get(one.id, ("", None))[1]) is not None]
    now = (one.figures or {}).get(_MARGIN)
    moved = now - margins[-2] if isinstance(now, float) and len(margins) > 1 else 0.0
    return Row(
        one,
        f"cases/{one.id}/index.html" if one.id in pages else "",
        VERDICTS[one.verdict][1],
        tuple(marks),
        8 * len(shown),
        _in_words([verdict for verdict in told if verdict]),
        number(now, 2, signed=True) if isinstance(now, float) else "–",
        number(moved, 2, signed=True) if abs(moved) >= 0.005 else "",
    )


def _in_words(verdicts: Sequence[str]) -> str:
    """confirmed 3 times, then not corrected"""
    runs: list[list] = []
    for verdict in verdicts:
        if runs and runs[-1][0] == verdict:
            runs[-1][1] += 1
        else:
            runs.append([verdict, 1])
    return ", then ".join(f"{name} {n} times" if n > 1 else name for name, n in runs)


def _past(line: Line) -> Past:
    counts = Counter(verdict for verdict, _ in line.cases.values())
    found = listed({name: counts[name] for name in VERDICTS})
    return Past(_when(line.when), SAID.get(line.code, str(line.code)), _tone(line.code), found, line.program)
