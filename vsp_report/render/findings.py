"""Findings: what a recording comes to, in words. The verdict, the headline, the checks, and figures with few digits.

Everything is computed from the recording; nothing that the author hoped for is repeated as if it had been seen.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

from vsp_report.case import Check
from vsp_report.recording import Answered, EditMade, Recording, Steered

MODES = {
    "limited-alignment": (
        "limited alignment",
        "The model sees the thing, but not under the name that the question uses. Other words help; "
        "a different picture is not needed.",
    ),
    "misleading-cue": (
        "misleading cue",
        "Something else in the picture speaks for the wrong answer. Taking its latents away lets the model "
        "see what it was asked about.",
    ),
    "hidden-cue": (
        "hidden cue",
        "Two cues are seen and the model speaks of one. The other can be had by making its latents stronger.",
    ),
    "cue-missing": (
        "cue missing",
        "What would decide the question is not seen: no latent stands for it, so there is nothing to steer.",
    ),
    "none": ("nothing wrong", "The model is right, and has reason to be. The case shows what no failure looks like."),
    "undetermined": ("undetermined", "No test separates the failure modes here."),
}
"""Each failure mode: its name, and what it is in two lines."""

VERDICTS = {
    "confirmed": ("good", "Everything that the case expects was measured."),
    "not reproduced": ("bad", "The model as it is does not behave as the case says."),
    "not corrected": ("bad", "A steering or a rephrasing does not do what the case says."),
    "side effect": ("bad", "Controls or other questions change more than the case allows."),
    "other diagnosis": ("bad", "The failure mode that was found is not the one that the case expects."),
    "not measured": ("plain", "The case expects a figure that the run did not measure."),
    "observed": ("plain", "The case expects nothing; this is what was seen."),
    "failed": ("bad", "The run stopped before it was done."),
    "not run": ("plain", "The case needs something that was not there."),
}
"""Each verdict: its tone, and what it means."""


class Run(NamedTuple):
    """A run of words in one tone: "", right, wrong, effect, quote or code."""

    text: str
    tone: str = ""


class Checked(NamedTuple):
    """One expectation and what came of it."""

    what: str
    expected: str
    observed: str
    holds: bool | None
    """None where it was not measured"""
    where: str


# --- figures in words ------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """With a true minus, and no sign before what rounds to zero."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", "−") if value < 0 else f"+{text}" if signed else text


def share(value: float | None) -> str:
    """A probability or share, in percent: two digits that mean something."""
    if value is None:
        return "–"
    percent = 100 * value
    if percent == 0 or 9.95 <= percent <= 99 or percent == 100:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.1 and percent <= 99.9 else ("< 0.1 %" if percent < 1 else "> 99.9 %")


def p_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}" if value >= 0.0001 else "< 0.0001"


def counted(count: int, noun: str, plural: str = "") -> str:
    words = "no one two three four five six seven eight nine ten eleven twelve".split()
    many = noun if count == 1 else plural or f"{noun}s"
    return f"{words[count] if count < len(words) else count} {many}"


def edit_words(edit: EditMade, named: bool = True) -> str:
    """ablate ten latents (label chair, top 10), in a part of the picture"""
    which = "all latents" if edit.latents == "all" else counted(len(edit.latents), "latent")
    asked = f" ({edit.asked})" if named and edit.asked and edit.asked != "all" else ""
    value = f"{edit.value:g}".replace("-", "−")
    if edit.value == 0 and edit.op in ("set", "scale"):
        said = f"ablate {which}{asked}"
    elif edit.op == "scale":
        said = f"multiply {which}{asked} by {value}"
    else:
        said = f"set {which}{asked} to {value}" if edit.op == "set" else f"add {value} to {which}{asked}"
    return said + (", in a part of the picture" if edit.boxes else "")


def steering_words(steered: Steered, named: bool = True) -> str:
    """`named`: with the case's own words for the latents."""
    said = "; ".join(edit_words(edit, named) for edit in steered.edits) or "edit nothing"
    return said + (f"; on top of {steered.onto}" if steered.onto else "")


def gerund(words: str) -> str:
    """ablate ten latents; set … -> ablating ten latents and setting …"""
    forms = {"ablate": "ablating", "multiply": "multiplying", "set": "setting", "add": "adding", "edit": "editing"}
    parts = [part.strip() for part in words.split(";")]
    done = [" ".join([forms.get(p.split(" ", 1)[0], p.split(" ", 1)[0]), *p.split(" ", 1)[1:]]) for p in parts]
    return " and ".join([", ".join(done[:-1]), done[-1]]) if len(done) > 1 else done[0]


def same_answer(one: str, other: str) -> bool:
    return one.strip().rstrip(".").casefold() == other.strip().rstrip(".").casefold()


def tone(answered: Answered | None, contrast: tuple[str, str] | None) -> str:
    """right or wrong, by the words of the answer; by the sign of the margin where the words are neither."""
    if answered is None or contrast is None:
        return ""
    for side, words in zip(("right", "wrong"), contrast, strict=True):
        if same_answer(answered.text, words):
            return side
    mentioned = [words.casefold() in answered.text.casefold() for words in contrast]
    if sum(mentioned) == 1:
        return "right" if mentioned[0] else "wrong"
    return ""


def word_changes(before: str, after: str) -> list[Run]:
    """The second text against the first: tones same, gone and new."""
    old, new = before.split(), after.split()
    found: list[Run] = []
    for op, a0, a1, b0, b1 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if op == "equal":
            found.append(Run(" ".join(new[b0:b1]), "same"))
            continue
        if a1 > a0:
            found.append(Run(" ".join(old[a0:a1]), "gone"))
        if b1 > b0:
            found.append(Run(" ".join(new[b0:b1]), "new"))
    return found


# --- expectations ----------------------------------------------------------------------------------------------------

_SIGNS = {"lt": "<", "le": "≤", "gt": ">", "ge": "≥", "is": "is", "contains": "contains", "lacks": "lacks"}
_METRICS = {
    "answer": "answer",
    "margin": "log-odds",
    "p_right": "probability of the right answer",
    "change": "change of the log-odds",
    "p": "p among controls",
    "flips": "controls that change the answer",
    "collateral": "other questions whose answer changes",
    "diagnosis": "failure mode",
}


def checks(recording: Recording) -> list[Checked]:
    case, figures = recording.asked(), recording.figures()
    return [_checked(check, figures.get(f"{check.where}.{check.metric}".lstrip("."))) for check in case.expect.checks]


def _checked(check: Check, seen: float | str | None) -> Checked:
    place = {"before": "clean", "controls": "controls", "": "diagnosis"}.get(check.where)
    place = place or check.where.partition(".")[2]
    return Checked(
        f"{place}: {_METRICS[check.metric]}" if check.where else _METRICS[check.metric],
        f"{_SIGNS[check.op]} {_figure(check.metric, check.wanted)}",
        "not measured" if seen is None else _figure(check.metric, seen),
        None if seen is None else _holds(check, seen),
        check.where,
    )


def _holds(check: Check, seen: float | str) -> bool:
    wanted = check.wanted
    if isinstance(wanted, str) or isinstance(seen, str):
        text, asked = str(seen), str(wanted)
        if check.op == "is":
            return same_answer(text, asked)
        return (asked.casefold() in text.casefold()) == (check.op == "contains")
    return {"lt": seen < wanted, "le": seen <= wanted, "gt": seen > wanted, "ge": seen >= wanted}[check.op]


def _figure(metric: str, value: float | str) -> str:
    if isinstance(value, str):
        return MODES[value][0] if metric == "diagnosis" and value in MODES else f"“{value}”"
    if metric in ("margin", "change"):
        return number(value, 2, signed=value != 0)
    return p_value(value) if metric == "p" else share(value)


def verdict(recording: Recording) -> str:
    """One of `VERDICTS`."""
    if recording.status != "ok":
        return "failed" if recording.status == "error" else "not run"
    found = checks(recording)
    if not found:
        return "observed"
    for prefix, name in (
        ("before", "not reproduced"),
        ("after.", "not corrected"),
        ("rephrase.", "not corrected"),
        ("controls", "side effect"),
        ("", "other diagnosis"),
    ):
        if any(one.holds is False and (one.where.startswith(prefix) if prefix else not one.where) for one in found):
            return name
    return "not measured" if any(one.holds is None for one in found) else "confirmed"


# --- the headline ----------------------------------------------------------------------------------------------------


def contrast_of(recording: Recording) -> tuple[str, str] | None:
    asked = recording.case.get("contrast")
    return (asked["right"], asked["wrong"]) if asked else None


def headline_steering(recording: Recording) -> Steered | None:
    """The steering that the page opens with: one that puts a wrong answer right, else the strongest."""
    contrast = contrast_of(recording)
    was = tone(recording.clean, contrast)

    def worth(one: Steered) -> tuple[bool, bool, float, float]:
        repairs = was == "wrong" and tone(one.after, contrast) == "right"
        return repairs, one.flipped, -(1.0 if one.p is None else one.p), abs(one.change or 0.0)

    return max(recording.steered, key=worth, default=None)  # the first of equals


def headline(recording: Recording, brief: bool = False) -> list[Run]:
    """What the model said, what changes it, by how much, against which controls. `brief`: without a stop's message."""
    if recording.status == "not-run":
        asked = recording.stop.message if recording.stop else "it was not asked for"
        return [Run("This case was not run here" + ("." if brief else f": {_closed(asked)}"))]
    if recording.status == "error":
        step = recording.stop.step if recording.stop else ""
        stopped = [Run("The run stopped"), *([Run(" at "), Run(step, "code")] if step else []), Run(". ")]
        said = recording.stop.message if recording.stop else "Nothing says why"
        return stopped if brief and recording.stop else [*stopped, Run(_closed(said))]
    if recording.classified is not None:
        return [*_classified(recording), *_steered(recording)]
    if recording.clean is None:
        return [Run("The model gave no answer.")]
    return [*_asked(recording), *_steered(recording)]


def _closed(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _asked(recording: Recording) -> Iterator[Run]:
    said = tone(recording.clean, contrast_of(recording))
    yield Run("Asked ")
    yield Run(f"“{(recording.case.get('prompt') or '').strip()}”", "quote")
    yield Run(", the model says ")
    yield Run(f"“{recording.clean.text.strip()}”", said or "quote")
    yield Run({"right": ", which is right. ", "wrong": ", which is wrong. "}.get(said, ". "))


def _classified(recording: Recording) -> Iterator[Run]:
    scores = recording.classified.scores
    first = scores[0] if scores else None
    if first is None or not first.probabilities:
        yield Run("No class was scored.")
        return
    best = max(range(len(first.probabilities)), key=first.probabilities.__getitem__)
    yield Run(f"Of {counted(len(recording.classified.classes), 'class', 'classes')}")
    yield Run(", the picture is nearest to ")
    name = recording.classified.classes[best]
    contrast = contrast_of(recording) or ("", "")
    yield Run(f"“{name}”", {contrast[0]: "right", contrast[1]: "wrong"}.get(name, "quote"))
    yield Run(f" ({share(first.probabilities[best])}). ")


def _steered(recording: Recording) -> Iterator[Run]:
    best, contrast = headline_steering(recording), contrast_of(recording)
    renamed = _rephrased(recording)
    if best is None or (renamed and tone(best.after, contrast) != "right"):
        yield from renamed
        if best is None:
            return
    done = gerund(steering_words(best, named=False))
    done = done if len(done) < 160 else f"the edits of {best.name}"
    yield Run(done[0].upper() + done[1:], "effect")
    if best.flipped:
        yield Run(" makes it say ")
        yield Run(f"“{best.after.text.strip()}”", tone(best.after, contrast) or "quote")
    else:
        yield Run(" leaves the answer as it is")
    if best.change is not None:
        yield Run(": the log-odds move by " if best.flipped else "; the log-odds move by ")
        yield Run(number(best.change, 1, signed=True), "effect")
    yield from _among_controls(best)
    yield Run(".")


def _rephrased(recording: Recording) -> list[Run]:
    """The first rephrasing that is answered rightly where the question was not."""
    contrast = contrast_of(recording)
    if tone(recording.clean, contrast) != "wrong":
        return []
    for one in recording.rephrased:
        if tone(one.answered, one.contrast or contrast) == "right":
            return [Run("Asked "), Run(f"“{one.prompt.strip()}”", "quote"), Run(" instead, it says "),
                    Run(f"“{one.answered.text.strip()}”", "right"), Run(". ")]  # fmt: skip
    return []


def _among_controls(steered: Steered) -> Iterator[Run]:
    """How many of the matched controls do as much, counted back from the p-value that was recorded."""
    for draws in steered.controls:
        if draws.kind == "latents" and draws.p is not None and draws.changes:
            as_far = max(0, round(draws.p * (1 + len(draws.changes))) - 1)
            many = "none" if as_far == 0 else str(as_far)
            verb = "moves" if as_far < 2 else "move"
            yield Run(f", and {many} of {len(draws.changes)} matched controls {verb} them as far "
                      f"(p = {p_value(draws.p)})")  # fmt: skip
            return


def plain(runs: list[Run]) -> str:
    return re.sub(r"\s+", " ", "".join(run.text for run in runs)).strip()
