"""GitHub: an account, or a data set, as a job's summary and as annotations, within what GitHub takes.

A step's summary may have 1 MiB; one that has more is dropped as a whole, and some that nearly have as much are dropped
without a word, so what is written ends well below. Of annotations a step may have ten of each kind, and the rest is
dropped in silence: the tenth then says how many more there are. What was confirmed in the last audit and is not now
comes first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vsp_report.audit.account import NOT_MET, Account, CaseJudged, by_urgency
from vsp_report.audit.datasets import Dataset, RowJudged, Share
from vsp_report.audit.verdicts import UNMET
from vsp_report.audit.words import mode_name, one_line, share

SUMMARY_BYTES = 900_000
ANNOTATIONS = 10
_MARKED = re.compile(r"([\\`*_{}\[\]<>()#+!|~@&-])")


def summary(account: Account) -> str:
    """Markdown: what the audit comes to, then a row for each case."""
    head = [f"### {_plain(account.said)}", "", "| verdict | case | why | where |", "|---|---|---|---|"]
    rows = [_row(one) for one in by_urgency(account.cases)]
    return _within(head if rows else head[:1], rows, "cases")


def _within(head: Sequence[str], rows: Sequence[str], what: str) -> str:
    """As many rows as there is room for, and how many more there are."""
    room = SUMMARY_BYTES - sum(len(line.encode()) + 1 for line in head) - 100
    kept = 0
    for row in rows:
        room -= len(row.encode()) + 1
        if room < 0:
            break
        kept += 1
    more = ["", f"{len(rows) - kept} more {what} are not shown here."] if kept < len(rows) else []
    return "\n".join([*head, *rows[:kept], *more]) + "\n"


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
        fails = fails or (one.verdict == "unstable" and account.fail_on_unstable)
        told = (one.file, one.line, one.id, f"{one.verdict}: {one.why}")
        if fails:
            errors.append(told)
        elif one.verdict == "unstable":
            warnings.append(told)
        if one.overdue:
            warnings.append((one.file, one.review_line, one.id, f"to be reviewed by {one.overdue}"))
    return [*_commands("error", errors), *_commands("warning", warnings)]


def _commands(kind: str, found: Sequence[tuple[str, int, str, str]]) -> list[str]:
    """`found`: file, line, title and text of each."""
    shown = found if len(found) <= ANNOTATIONS else found[: ANNOTATIONS - 1]
    lines = [
        f"::{kind} file={_property(file)},line={line},title={_property(title)}::{_data(text)}"
        for file, line, title, text in shown
    ]
    more = len(found) - len(shown)
    return [*lines, f"::{kind}::{more} more; the summary and the report have them all"] if more else lines


# --- data sets ---------------------------------------------------------------------------------------------------


def dataset_summary(dataset: Dataset) -> str:
    """Markdown: the shares, then a row for each row that is not right."""
    shares = [("right", dataset.accuracy), ("both of a pair right", dataset.pairs),
              ("the right answer likelier", dataset.prefers), ("neither answer", dataset.neither),
              *((f"{mode_name(mode)}, of those not right", one) for mode, one in dataset.modes.items()),
              *((f"right of {group}", one) for group, one in dataset.groups.items())]  # fmt: skip
    head = [f"### {_plain(dataset.said)}", "", f"{_plain(dataset.file)}, asked of {_plain(dataset.model)}", "",
            "| what | share | rows | between |", "|---|---|---|---|",
            *(_share(what, one) for what, one in shares if one.share is not None)]  # fmt: skip
    rows = [_asked(row) for row in dataset.rows if row.says != "right"]
    rows += [f"| error |  |  | {_plain(fault)} |" for fault in dataset.broken]
    return _within(
        [*head, *(["", "| says | row | question | answer |", "|---|---|---|---|"] if rows else [])], rows, "rows"
    )


def _share(what: str, one: Share) -> str:
    return f"| {_plain(what)} | {share(one.share)} | {one.count} of {one.of} | {share(one.low)} to {share(one.high)} |"


def _asked(row: RowJudged) -> str:
    mode = f" ({mode_name(row.mode)})" if row.mode else ""
    return f"| {row.says}{mode} | {_plain(row.id)} | {_plain(row.question)} | {_plain(row.fault or row.answer)} |"


def dataset_annotations(dataset: Dataset, file: str) -> list[str]:
    """Workflow commands: that a goal is not met, and each row that could not be asked. `file`: the data set's."""
    found = [(file, 1, dataset.name, dataset.said)] if dataset.code == NOT_MET else []
    found += [(file, row.line, row.id, row.fault) for row in dataset.rows if row.says == "error"]
    # What is broken says its place itself: file, line, fault.
    found += [(file, _line(fault, file), dataset.name, fault) for fault in dataset.broken]
    return _commands("error", found)


def _line(fault: str, file: str) -> int:
    number = re.match(r":(\d+):", fault.removeprefix(file))
    return int(number[1]) if number and fault.startswith(file) else 1


def _data(text: str) -> str:
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
