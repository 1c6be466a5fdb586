"""Account: an audit as a whole. Every case with its verdict, what that comes to, and the exit code that says so.

    0 met   1 not met   3 could not run   4 unstable, where that was asked for   5 no cases   6 a baseline is missing

More than one may be true; then 3 is said before 1, 1 before 6, and 6 before 4: what could not be looked at may hide all
the others. A case that was not run for want of a GPU, of weights or of a picture is neither met nor unmet; if no other
case was looked at, nothing was, and that is 3.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vsp_report.audit.baselines import load_baseline
from vsp_report.audit.sources import replaced
from vsp_report.audit.verdicts import UNMET, VERDICTS, Checked, Told, judge
from vsp_report.audit.words import listed, one_line
from vsp_report.case import Case
from vsp_report.errors import InputError
from vsp_report.recording import Recording, load_recording
from vsp_report.recording.plain import schema_of

SCHEMA = 1
MET, NOT_MET, USAGE, COULD_NOT_RUN, UNSTABLE, NO_CASES, NO_BASELINE = range(7)
SAID = {
    MET: "met",
    NOT_MET: "not met",
    USAGE: "usage",
    COULD_NOT_RUN: "could not run",
    UNSTABLE: "unstable",
    NO_CASES: "no cases selected",
    NO_BASELINE: "baseline missing or stale",
}
"""Each exit code in words."""


@dataclass(frozen=True)
class Comparison:
    """One expectation, or one figure beside its baseline."""

    what: str
    expected: str
    observed: str
    holds: bool | None
    """None where it was not measured"""
    path: str
    """inside the case file"""
    line: int
    room: str = ""
    """how far the figure is from where this would turn"""


@dataclass(frozen=True)
class CaseJudged:
    """One case of an audit."""

    id: str
    title: str
    file: str
    """the case file, from the folder in which the audit ran"""
    line: int
    """of the expectation that made the verdict"""
    verdict: str
    why: str
    was: str = ""
    """its verdict in the audit before; empty where there was none"""
    failure: str = ""
    """the failure mode that its author believes in"""
    tags: tuple[str, ...] = ()
    model: str = ""
    met: int = 0
    """how many runs, of all seeds, met everything"""
    runs: int = 0
    baseline: str = ""
    """missing, or stale: and why"""
    overdue: str = ""
    """the day by which the case was to be reviewed, once it has passed"""
    review_line: int = 0
    """of that day; 0 where it has not passed"""
    seconds: float = 0.0
    """that its run took"""
    figures: dict[str, float | str | None] | None = None
    comparisons: tuple[Comparison, ...] = ()

    @property
    def tone(self) -> str:
        return VERDICTS[self.verdict][0]

    @property
    def regressed(self) -> bool:
        return self.was == "confirmed" and self.verdict not in ("confirmed", "not run")


@dataclass(frozen=True)
class Account:
    """One audit."""

    schema: int
    created: str
    """UTC: 2030-01-31T12:00:00Z"""
    program: str
    """vsp_report's version"""
    code: int
    """the exit code"""
    said: str
    """the last line that is printed"""
    cases: tuple[CaseJudged, ...]
    fail_on_unstable: bool = False
    """whether unstable was asked to fail: in reports it does, whatever the code tells first"""


def account_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of audit.json."""
    definitions: dict[str, Any] = {}
    schema_of(Account, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vsp-report audit",
        **definitions.pop("Account"),
        "$defs": dict(sorted(definitions.items())),
    }


# --- one case ----------------------------------------------------------------------------------------------------


def find_recording(case: Case, recordings: Path) -> Recording:
    """The recording of a case with the case's present words; raises where there is none of this question, of this
    picture and of this model."""
    recording = load_recording(recordings / case.id, arrays=False)
    asks_else = recording.asked().computed() != case.computed()
    other = "another question than the case asks now" if asks_else else replaced(recording, case.image_path)
    if other:
        raise InputError(str(recordings / case.id), f"is of {other}", f"`vsp-report run {case.id}` makes it again.")
    return replace(recording, case=case.resolved())


def judge_case(case: Case, recordings: Path, today: str, was: str = "") -> CaseJudged:
    told, why, recording = Told("error", ()), "", None
    try:
        recording = find_recording(case, recordings)
        baseline = load_baseline(case, recording)
        told = judge(recording, baseline.figures if baseline and not baseline.fault else None)
        if recording.stop is not None:
            why = recording.stop.message
    except InputError as error:
        why, baseline = str(error), None
    fault = baseline.fault if baseline else ""
    if fault and told.verdict == "confirmed":
        told = told._replace(verdict="new")
    why = one_line(why or _why(case, told, fault), 600)
    overdue = case.expect.overdue(today)
    path = told.failing.path if told.failing else "expect.baseline" if fault else "expect"
    return CaseJudged(
        id=case.id, title=case.title, file=shown_path(case), line=max(1, case.line_of(path)), verdict=told.verdict,
        why=why, was=was, failure=case.failure or "", tags=case.tags, model=case.model, met=told.met, runs=told.runs,
        baseline=fault, overdue=(case.expect.review_by or "") if overdue else "",
        review_line=max(1, case.line_of("expect.review_by")) if overdue else 0,
        seconds=recording.provenance.seconds if recording else 0.0, figures=recording.figures() if recording else None,
        comparisons=tuple(_comparison(case, one) for one in told.checks),
    )  # fmt: skip


def _comparison(case: Case, one: Checked) -> Comparison:
    observed = one_line(one.observed, 400)
    return Comparison(one.what, one_line(one.expected, 400), observed, one.holds, one.path,
                      max(1, case.line_of(one.path)), one.room)  # fmt: skip


def _why(case: Case, told: Told, fault: str) -> str:
    of_runs = f"{told.met} of {told.runs} runs met everything" if told.runs > 1 else ""
    if told.failing is not None:
        one = told.failing
        said = f"{one.what} {one.expected}, observed {one.observed}"
        return "; ".join(filter(None, (of_runs, said)))
    if fault:
        return f"its baseline is {fault}; `vsp-report audit --update` writes it"
    if told.verdict == "new":
        return "it expects nothing yet"
    held = len(told.checks)
    return "; ".join(filter(None, (of_runs, f"{held} expectation{'s' * (held != 1)} hold{'s' * (held == 1)}")))


def shown_path(case: Case) -> str:
    """The case's file from the present folder, with slashes; of one that lies elsewhere, its name."""
    if case.path is None:
        return case.id
    place, here = Path(os.path.abspath(case.path)), Path.cwd()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else place.name


# --- all of them -------------------------------------------------------------------------------------------------


def make_account(
    cases: Sequence[Case],
    recordings: Path,
    *,
    created: str,
    program: str,
    was: Mapping[str, str] | None = None,
    fail_on_unstable: bool = False,
) -> Account:
    """`created`: the time; its day decides which reviews are overdue. `was`: the verdicts of earlier audits."""
    judged = [judge_case(case, recordings, created[:10], (was or {}).get(case.id, "")) for case in cases]
    code = code_of(judged, fail_on_unstable)
    return Account(SCHEMA, created, program, code, said(code, judged), tuple(judged), fail_on_unstable)


def code_of(judged: Sequence[CaseJudged], fail_on_unstable: bool = False) -> int:
    verdicts = {one.verdict for one in judged}
    if not judged:
        return NO_CASES
    if "error" in verdicts or verdicts == {"not run"}:
        return COULD_NOT_RUN
    if verdicts & set(UNMET):
        return NOT_MET
    if any(one.baseline for one in judged):
        return NO_BASELINE
    return UNSTABLE if fail_on_unstable and "unstable" in verdicts else MET


def said(code: int, judged: Sequence[CaseJudged]) -> str:
    """The line that agrees with the code."""
    counts = Counter(one.verdict for one in judged)
    found = listed({name: counts[name] for name in sorted(VERDICTS, key=list(RANK).index)})
    return f"audit: {SAID[code]} ({code})" + (f": {found}" if found else "")


RANK = {name: place for place, name in enumerate(
    ("error", "not reproduced", "not corrected", "side effect", "drifted", "unstable", "new", "confirmed", "not run")
)}  # fmt: skip
"""The order in which verdicts are told: what needs somebody first."""


def by_urgency(judged: Sequence[CaseJudged]) -> list[CaseJudged]:
    """What is new to be wrong first, then what is wrong, each in the order of the cases."""
    return sorted(judged, key=lambda one: (not one.regressed, RANK[one.verdict]))
