"""GitHub: an account as a job's summary and as annotations, within what GitHub takes.

A step's summary may have 1 MiB; one that has more is dropped as a whole, and some that nearly have as much are dropped
without a word, so what is written ends well below. Of annotations a step may have ten of each kind, and the rest is
dropped in silence: the tenth then says how many more there are. What was confirmed in the last audit and is not now
comes first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vsp_report.audit.account import UNSTABLE, Account, CaseJudged, by_urgency
from vsp_report.audit.verdicts import UNMET
from vsp_report.audit.words import one_line

SUMMARY_BYTES = 900_000
ANNOTATIONS = 10
_MARKED = re.compile(r"([\\`*_{}\[\]<>()#+!|~@&-])")


def summary(account: Account) -> str:
    """Markdown: what the audit comes to, then a row for each case."""
    head = [f"### {_plain(account.said)}", "", "| verdict | case | why | where |", "|---|---|---|---|"]
    rows = [_row(one) for one in by_urgency(account.cases)]
    room = SUMMARY_BYTES - sum(len(line.encode()) + 1 for line in head) - 100
    kept = 0
    for row in rows:
        room -= len(row.encode()) + 1
        if room < 0:
            break
        kept += 1
    more = ["", f"{len(rows) - kept} more cases are not shown here."] if kept < len(rows) else []
    return "\n".join([*(head if rows else head[:1]), *rows[:kept], *more]) + "\n"


def _row(one: CaseJudged) -> str:
    said = f"**{one.verdict}**" if one.tone == "bad" else one.verdict
    was = f" (was {one.was})" if one.was and one.was != one.verdict else ""
    late = f"; to be reviewed by {one.overdue}" if one.overdue else ""
    return f"| {said}{was} | {_plain(one.id)} | {_plain(one.why)}{late} | {_plain(one.file)}:{one.line} |"


def _plain(text: str) -> str:
    """Text of a case or a model as nothing but text."""
    return _MARKED.sub(lambda found: f"&#{ord(found[1])};", one_line(text))


def annotations(account: Account) -> list[str]:
    """Workflow commands, one on a line."""
    errors, warnings = [], []
    for one in by_urgency(account.cases):
        fails = one.verdict in UNMET or one.verdict == "error" or one.baseline
        fails = fails or (one.verdict == "unstable" and account.code == UNSTABLE)
        if fails:
            errors.append((one, f"{one.verdict}: {one.why}"))
        elif one.verdict == "unstable":
            warnings.append((one, f"{one.verdict}: {one.why}"))
        if one.overdue:
            warnings.append((one, f"to be reviewed by {one.overdue}"))
    return [*_commands("error", errors), *_commands("warning", warnings)]


def _commands(kind: str, found: Sequence[tuple[CaseJudged, str]]) -> list[str]:
    shown = found if len(found) <= ANNOTATIONS else found[: ANNOTATIONS - 1]
    lines = [
        f"::{kind} file={_property(one.file)},line={one.line},title={_property(one.id)}::{_data(text)}"
        for one, text in shown
    ]
    more = len(found) - len(shown)
    return [*lines, f"::{kind}::{more} more; the summary and the report have them all"] if more else lines


def _data(text: str) -> str:
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
