"""Terminal: an account as a table for people, the line that agrees with the exit code left to its printer."""

from __future__ import annotations

from vsp_report.audit.account import Account, CaseJudged, by_urgency
from vsp_report.audit.words import one_line


def table(account: Account, width: int = 100) -> list[str]:
    """A line for each case, what needs somebody first; below what is not met, each comparison that does not hold."""
    judged = by_urgency(account.cases)
    if not judged:
        return []
    first = max(len(one.verdict) for one in judged)
    second = min(40, max(len(one.id) for one in judged))
    lines = []
    for one in judged:
        was = f" (was {one.was})" if one.was and one.was != one.verdict else ""
        lines.append(_cut(f"{one.verdict:<{first}}  {one.id:<{second}}  {one_line(one.why)}{was}", width))
        if one.tone == "bad":
            lines += [_cut(f"{'':<{first}}  {line}", width) for line in _unmet(one)]
        if one.overdue:
            lines.append(_cut(f"{'':<{first}}  {one.file}:{one.review_line}: to be reviewed by {one.overdue}", width))
    return lines


def _unmet(one: CaseJudged) -> list[str]:
    found = [
        f"{one.file}:{c.line}: {c.what} {c.expected}, observed {c.observed}" + (f" (by {c.room})" if c.room else "")
        for c in one.comparisons
        if not c.holds
    ]
    return found or [f"{one.file}:{one.line}"]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
