"""Verdicts: a recording held against what its case expects. One word, and every comparison that led to it.

The order in which a verdict is looked for: a run that stopped is an *error*; then the model as it is (*not
reproduced*: the failure that the case describes is not there, or is of another kind), what steerings and rephrasings do
(*not corrected*), what controls do (*side effect*). Where all of that holds, figures may have left their baseline
(*drifted*). A figure that the case expects and that the run did not measure is an *error* too, unless something else is
wrong already: whoever expects a p-value and measures none has checked nothing.

With several seeds, each run is judged by itself, the first one like those of the other seeds. Enough of them meet
everything: that is what counts. As many fail: so does that. Everything between is *unstable*, whichever way it leans.

Figures that are held to a baseline are those of the case's own seed: whether one has *drifted* is not asked of the runs
with other seeds.

A case that expects nothing, or whose baseline is not there or is of another question, is *new*. One that needs a GPU,
weights or a picture that are not here is *not run*, which is no verdict on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vsp_report.audit.words import figure, number, same_answer, share
from vsp_report.case import Case, Check, Tolerance
from vsp_report.recording import Recording

VERDICTS = {
    "confirmed": ("good", "Everything that the case expects was measured."),
    "not reproduced": ("bad", "The model as it is does not behave as the case says, or fails in another way."),
    "not corrected": ("bad", "A steering or a rephrasing does not do what the case says."),
    "side effect": ("bad", "Controls or other questions change more than the case allows."),
    "drifted": ("bad", "A figure stands further from its baseline than the case allows."),
    "unstable": ("bad", "What the case expects was measured with some seeds and not with others."),
    "error": ("bad", "The run stopped before it was done, or did not measure what the case expects."),
    "new": ("plain", "The case expects nothing yet, or has no baseline; this is what was seen."),
    "not run": ("plain", "The case needs something that was not there."),
}
"""Each verdict: its tone, and what it means."""
UNMET = ("not reproduced", "not corrected", "side effect", "drifted")

_SIGNS = {"lt": "<", "le": "≤", "gt": ">", "ge": "≥", "is": "is", "contains": "contains", "lacks": "lacks"}
_METRICS = {
    "answer": "answer",
    "margin": "log-odds",
    "p_right": "probability of the right answer",
    "change": "change of the log-odds",
    "p": "p among controls",
    "flips": "controls that flip the answer",
    "collateral": "other questions whose answer changes",
    "diagnosis": "failure mode",
}
_PLACES = {"before": "clean", "controls": "controls", "": "diagnosis"}


class Checked(NamedTuple):
    """One expectation and what came of it."""

    what: str
    expected: str
    observed: str
    holds: bool | None
    """None where it was not measured"""
    where: str
    path: str = ""
    """inside the case, for `Case.line_of`"""
    room: str = ""
    """how far the figure is from where the check would turn; empty for texts"""


@dataclass(frozen=True)
class Drift:
    """A figure beside its baseline."""

    figure: str
    """before.margin"""
    baseline: float
    seen: float | None
    allowed: float
    path: str

    @property
    def holds(self) -> bool | None:
        return None if self.seen is None else abs(self.seen - self.baseline) <= self.allowed + 1e-12

    @property
    def checked(self) -> Checked:
        where, _, metric = self.figure.rpartition(".")
        seen = "not measured" if self.seen is None else figure(metric, self.seen)
        room = "" if self.seen is None else _distance(metric, self.allowed - abs(self.seen - self.baseline))
        asked_for = f"{figure(metric, self.baseline)} ± {_distance(metric, self.allowed)}"
        return Checked(f"{_named(where)}: {_METRICS[metric]} from baseline", asked_for, seen, self.holds, where,
                       self.path, room)  # fmt: skip


class Told(NamedTuple):
    """A verdict and what it rests on."""

    verdict: str
    checks: tuple[Checked, ...]
    """of the run itself, then the drifts"""
    met: int = 0
    """how many runs, of all seeds, met everything"""
    runs: int = 0
    failing: Checked | None = None
    """the comparison that made the verdict"""


def verdict(recording: Recording, baseline: dict[str, float] | None = None) -> str:
    """One of `VERDICTS`. Without a baseline nothing is compared with one."""
    return judge(recording, baseline).verdict


def checks(recording: Recording) -> list[Checked]:
    return _checked(recording.asked(), recording.figures())


def judge(recording: Recording, baseline: dict[str, float] | None = None) -> Told:
    if recording.status != "ok":
        return Told("error" if recording.status == "error" else "not run", ())
    case = recording.asked()
    seen = tuple(_checked(case, recording.figures()))
    seeds = case.expect.repeat.seeds if case.expect.repeat else ()
    others = [_checked(case, one.figures) for one in recording.repeats if one.seed in seeds and one.seed != case.seed]
    runs = [list(seen), *others]
    met = sum(all(one.holds for one in run) for run in runs)
    drifts = tuple(one.checked for one in drifted(case, recording.figures(), baseline or {}))
    made = (*seen, *drifts)
    if not seen and not drifts:
        return Told("new", made, met, len(runs))
    agree = case.expect.repeat.agree if case.expect.repeat else 1.0
    if met < agree * len(runs) - 1e-9:
        fail = len(runs) - met
        worst = next(run for run in runs if not all(one.holds for one in run))
        found = _unmet(worst)
        if fail < agree * len(runs) - 1e-9:
            return Told("unstable", made, met, len(runs), found[1])
        return Told(found[0], made, met, len(runs), found[1])
    for holds, name in ((False, "drifted"), (None, "error")):
        if (one := next((one for one in drifts if one.holds is holds), None)) is not None:
            return Told(name, made, met, len(runs), one)
    return Told("confirmed", made, met, len(runs))


_ORDER = (("before", "not reproduced"), ("after.", "not corrected"), ("rephrase.", "not corrected"),
          ("controls", "side effect"), ("", "not reproduced"))  # fmt: skip


def _unmet(run: list[Checked]) -> tuple[str, Checked]:
    for prefix, name in _ORDER:
        for one in run:
            if one.holds is False and (one.where.startswith(prefix) if prefix else not one.where):
                return name, one
    return "error", next(one for one in run if one.holds is None)


def drifted(case: Case, figures: dict[str, float | str | None], baseline: dict[str, float]) -> list[Drift]:
    """Every figure that the case holds to a baseline, as far as there is one."""
    return [
        Drift(t.name, baseline[t.name], figures.get(t.name), allowed(t, baseline[t.name]), f"expect.baseline.{t.name}")
        for t in case.expect.baseline
        if t.name in baseline
    ]


def allowed(tolerance: Tolerance, baseline: float) -> float:
    """How far a figure may stand from its baseline: whichever of the two allows more."""
    return max(tolerance.abs or 0.0, (tolerance.rel or 0.0) * abs(baseline))


def _checked(case: Case, figures: dict[str, float | str | None]) -> list[Checked]:
    return [_one(check, figures.get(f"{check.where}.{check.metric}".lstrip("."))) for check in case.expect.checks]


def _one(check: Check, seen: float | str | None) -> Checked:
    return Checked(
        f"{_named(check.where)}: {_METRICS[check.metric]}" if check.where else _METRICS[check.metric],
        f"{_SIGNS[check.op]} {figure(check.metric, check.wanted)}",
        "not measured" if seen is None else figure(check.metric, seen),
        None if seen is None else holds(check, seen),
        check.where,
        check.path,
        _room(check, seen),
    )


def _named(where: str) -> str:
    return _PLACES.get(where) or where.partition(".")[2] or where


def holds(check: Check, seen: float | str) -> bool:
    wanted = check.wanted
    if isinstance(wanted, str) or isinstance(seen, str):
        text, asked = str(seen), str(wanted)
        if check.op == "is":
            return same_answer(text, asked)
        return (asked.casefold() in text.casefold()) == (check.op == "contains")
    return {"lt": seen < wanted, "le": seen <= wanted, "gt": seen > wanted, "ge": seen >= wanted}[check.op]


def _room(check: Check, seen: float | str | None) -> str:
    if seen is None or isinstance(seen, str) or isinstance(check.wanted, str):
        return ""
    return _distance(check.metric, check.wanted - seen if check.op in ("lt", "le") else seen - check.wanted)


def _distance(metric: str, value: float) -> str:
    if metric in ("margin", "change"):
        return number(value, 2)
    if metric == "p":
        return number(value, 3)
    return f"−{share(-value)}" if value < 0 else share(value)
