"""Expectations: what must hold for a case to be confirmed, and the single checks that it comes to."""

# ruff: noqa: RUF009  (`asked` is dataclasses.field with a declaration)
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

from vsp_report.case.kinds import As, Choice, Either, Named, Number, Record, Several, Share, Text, asked
from vsp_report.case.words import ANSWER, SEED, Wrong

FAILURES = ("limited-alignment", "misleading-cue", "hidden-cue", "perception-missing", "none")
"""What a case's author may believe: the paper's three modes; the cue cannot be seen; nothing is wrong."""
DIAGNOSES = (*FAILURES, "undetermined")


@dataclass(frozen=True)
class TextIs:
    """Comparisons of a text, without regard to case."""

    equals: str | None = asked(ANSWER, "it is this, but for spaces around it and a full stop behind it", None, key="is")
    contains: tuple[str, ...] = asked(Several(ANSWER, 1, 50, unique=True, alone=True), "it contains these", ())
    lacks: tuple[str, ...] = asked(Several(ANSWER, 1, 50, unique=True, alone=True), "it contains none of these", ())

    def faults(self) -> Wrong:
        if self == TextIs():
            yield (), "compares with nothing", "Write is, contains or lacks with a text."


@dataclass(frozen=True)
class About:
    """A number and how far from it is near enough; of two tolerances the wider one counts."""

    value: float = asked(Number(), "the number")
    abs: float | None = asked(Number(0), "by at most this", None)
    rel: float | None = asked(Share(), "by at most this share of it", None)

    def faults(self) -> Wrong:
        if self.abs is None and self.rel is None:
            yield (), "allows nothing", "Write abs or rel."

    @property
    def ends(self) -> tuple[float, float]:
        allowed = max(self.abs or 0.0, (self.rel or 0.0) * abs(self.value))
        return self.value - allowed, self.value + allowed


@dataclass(frozen=True)
class NumberIs:
    """Comparisons of a number; all of them hold."""

    lt: float | None = asked(Number(), "less than", None)
    le: float | None = asked(Number(), "less than or equal to", None)
    gt: float | None = asked(Number(), "greater than", None)
    ge: float | None = asked(Number(), "greater than or equal to", None)
    about: About | None = asked(Record(About), "near a number: {value: -3, abs: 0.5}", None)

    def faults(self) -> Wrong:
        yield from _never(self)


@dataclass(frozen=True)
class ShareIs:
    """Comparisons of a share; all of them hold."""

    lt: float | None = asked(Share(), "less than", None)
    le: float | None = asked(Share(), "less than or equal to", None)
    gt: float | None = asked(Share(), "greater than", None)
    ge: float | None = asked(Share(), "greater than or equal to", None)
    about: About | None = asked(Record(About), "near a share: {value: 0.8, abs: 0.1}", None)

    def faults(self) -> Wrong:
        yield from _never(self)


def _never(asked_for: NumberIs | ShareIs) -> Wrong:
    given = {op: getattr(asked_for, op) for op in ("lt", "le", "gt", "ge") if getattr(asked_for, op) is not None}
    if not given and asked_for.about is None:
        yield (), "compares with nothing", "Write lt, le, gt or ge with a number, or about."
    least = max((given[op] for op in ("gt", "ge") if op in given), default=None)
    most = min((given[op] for op in ("lt", "le") if op in given), default=None)
    if least is not None and most is not None and (least > most or (least == most and set(given) & {"lt", "gt"})):
        yield (), "is never true", "No number is at once that small and that large."


TEXT_IS = Either((As(TextIs, "equals", ANSWER), Record(TextIs)), "an answer, or {contains: …}", lambda value: 1)


@dataclass(frozen=True)
class Outcome:
    """What is expected of one answer."""

    answer: TextIs | None = asked(TEXT_IS, "the answer: text that it is, or {is, contains, lacks}", None)
    margin: NumberIs | None = asked(Record(NumberIs), "log-odds of the right answer against the wrong one", None)
    p_right: ShareIs | None = asked(Record(ShareIs), "the probability of the right answer", None)
    name: str = ""


@dataclass(frozen=True)
class SteeredOutcome(Outcome):
    """What is expected of a steered answer."""

    change: NumberIs | None = asked(Record(NumberIs), "by how much the steering moves the margin", None)
    p: ShareIs | None = asked(Record(ShareIs), "the p-value of that change among matched controls", None)


@dataclass(frozen=True)
class ControlsOutcome:
    """What is expected of the controls, so that a repair is the steering's own."""

    flips: ShareIs | None = asked(
        Record(ShareIs),
        "the share of matched sets of latents that take the log-odds to the other side or, without a contrast, change "
        "the words",
        None,
    )
    collateral: ShareIs | None = asked(Record(ShareIs), "the share of other questions whose answer changes", None)


@dataclass(frozen=True)
class Repeat:
    """More runs of the same case. The case's own run, with its own seed, counts as one of them."""

    seeds: tuple[int, ...] = asked(Several(SEED, 2, 100, unique=True), "the seeds to run with, beside the case's own")
    agree: float = asked(Share(), "the share of the runs that must meet everything; fewer is unstable", 1.0)


@dataclass(frozen=True)
class Tolerance:
    """How far a figure may stand from its baseline."""

    abs: float | None = asked(Number(0), "by at most this", None)
    rel: float | None = asked(Share(), "by at most this share of the baseline", None)
    name: str = ""

    def faults(self) -> Wrong:
        if self.abs is None and self.rel is None:
            yield (), "allows nothing", "Write abs or rel."


class Check(NamedTuple):
    """One comparison of an expectation."""

    where: str
    """before, after.NAME, rephrase.NAME or controls; the path of the outcome inside `expect`"""
    metric: str
    op: str
    """lt, le, gt, ge; is, contains, lacks"""
    wanted: float | str
    path: str
    """for `Case.line_of`"""


_METRIC = r"(?:before|(?:after|rephrase)\.[a-z0-9-]+|controls)\.[a-z_]+"


@dataclass(frozen=True)
class Expectation:
    """What must hold for the case to be confirmed. The failure is asserted, not excused: `before` is its claim."""

    before: Outcome | None = asked(Record(Outcome), "of the model as it is", None)
    after: tuple[SteeredOutcome, ...] = asked(Named(Record(SteeredOutcome), "steering"), "of every steering", ())
    rephrase: tuple[Outcome, ...] = asked(Named(Record(Outcome), "rephrasing"), "of every rephrasing", ())
    controls: ControlsOutcome | None = asked(Record(ControlsOutcome), "of the controls of every steering", None)
    diagnosis: str | None = asked(Choice(DIAGNOSES), "the failure mode that is found", None)
    repeat: Repeat | None = asked(Record(Repeat), "run with several seeds, and how many must agree", None)
    baseline: tuple[Tolerance, ...] = asked(
        Named(Record(Tolerance), "figure, such as before.margin", _METRIC, 120),
        "figures that may not drift from the recorded baseline, such as after.no-chair.change",
        (),
    )
    review_by: str | None = asked(
        Text("a date, 2030-12-31", 10, r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"),
        "after this day the audit asks for a review",
        None,
    )

    def faults(self) -> Wrong:
        try:
            date.fromisoformat(self.review_by or "2000-01-01")
        except ValueError:
            yield ("review_by",), f"is {self.review_by}, which is no day", "Write one, such as 2030-12-31."

    def overdue(self, today: str) -> bool:
        """Whether the day of the review has passed; `today` as 2030-12-31."""
        return self.review_by is not None and today > self.review_by

    def outcomes(self) -> Iterator[tuple[str, Outcome | ControlsOutcome]]:
        if self.before is not None:
            yield "before", self.before
        yield from ((f"after.{one.name}", one) for one in self.after)
        yield from ((f"rephrase.{one.name}", one) for one in self.rephrase)
        if self.controls is not None:
            yield "controls", self.controls

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every comparison by itself. The diagnosis is a comparison of its own: ("", diagnosis, is, …)."""
        found = [check for where, outcome in self.outcomes() for check in _checks(where, outcome)]
        if self.diagnosis is not None:
            found.append(Check("", "diagnosis", "is", self.diagnosis, "expect.diagnosis"))
        return tuple(found)


def _checks(where: str, outcome: Outcome | ControlsOutcome) -> Iterator[Check]:
    for metric in ("answer", "margin", "p_right", "change", "p", "flips", "collateral"):
        asked_for, path = getattr(outcome, metric, None), f"expect.{where}.{metric}"
        if isinstance(asked_for, TextIs):
            if asked_for.equals is not None:
                yield Check(where, metric, "is", asked_for.equals, f"{path}.is")
            for op in ("contains", "lacks"):
                yield from (Check(where, metric, op, text, f"{path}.{op}") for text in getattr(asked_for, op))
        elif asked_for is not None:
            for op in ("lt", "le", "gt", "ge"):
                if (wanted := getattr(asked_for, op)) is not None:
                    yield Check(where, metric, op, wanted, f"{path}.{op}")
            if asked_for.about is not None:
                least, most = asked_for.about.ends
                yield Check(where, metric, "ge", least, f"{path}.about")
                yield Check(where, metric, "le", most, f"{path}.about")
