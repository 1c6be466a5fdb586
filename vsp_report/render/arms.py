"""Arms: the model under each condition, as a page shows it: a line with a bar, and what it said word by word.

The first arms are the model as it is, and the model through the SAE with nothing edited, which is what the edits
stand on. Everything here is text and shares of a width; nothing is drawn.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

from vsp_report.recording import Answered, Recording, Rephrased, Steered
from vsp_report.render.findings import (
    CONTROL_KINDS,
    Run,
    base_of,
    change_of,
    contrast_of,
    headline_steering,
    margin_before,
    number,
    p_value,
    rebuilt,
    share,
    steering_words,
    tone,
    uncompared,
    word_changes,
)


@dataclass(frozen=True)
class Bar:
    """A margin as a bar from the middle, and its interval, in hundredths of half the width."""

    start: float
    width: float
    side: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Arm:
    """One line of the table of answers: the model under some condition."""

    name: str
    does: str
    answer: tuple[Run, ...]
    tone: str
    margin: str
    bar: Bar | None
    change: str = ""
    interval: str = ""
    p: str = ""
    flips: str = ""
    """the share of the matched latents that flip"""
    flips_beside: tuple[str, ...] = ()
    """of the other kinds, those of which some do"""
    latents: str = ""
    best: bool = False
    indented: bool = False


@dataclass(frozen=True)
class Said:
    """A token of an answer: what became of it, and how likely it was, in percent."""

    text: str
    tone: str
    """same, gone or new"""
    probability: str


@dataclass(frozen=True)
class Turn:
    """An answer before and after a steering, token by token."""

    name: str
    does: str
    before: tuple[Said, ...]
    after: tuple[Said, ...]
    before_tone: str
    after_tone: str
    before_margin: str
    after_margin: str
    same: bool
    from_name: str = "Before"


# --- the table -------------------------------------------------------------------------------------------------------


def arms_of(recording: Recording) -> tuple[Arm, ...]:
    contrast, clean, scale = contrast_of(recording), recording.clean, _scale(recording)
    arms = []
    for name, does, one in (("clean", "the model as it is", clean),
                            ("reconstructed", "through the SAE, nothing edited", recording.reconstructed)):  # fmt: skip
        if one is not None:
            words = _answer(None if one is clean else clean, one)
            margin, bar = number(one.margin, 2, True), _bar(one.margin, scale)
            arms.append(Arm(name, does, words, tone(one, contrast), margin, bar))
    best = headline_steering(recording)
    return (*arms, *(_steered(recording, one, contrast, scale, one is best) for one in recording.steered))


def rephrased_of(recording: Recording) -> tuple[Arm, ...]:
    contrast, scale = contrast_of(recording), _scale(recording)
    return tuple(_rephrased(one, contrast, scale) for one in recording.rephrased)


def _scale(recording: Recording) -> float:
    answers = [recording.clean, recording.reconstructed, *(one.after for one in recording.steered)]
    answers += [one.answered for one in recording.rephrased]
    return max([abs(one.margin) for one in answers if one is not None and one.margin is not None], default=0.0) * 1.08


def _bar(margin: float | None, scale: float, interval: tuple[float, float] | None = None) -> Bar | None:
    if margin is None or not scale:
        return None
    place = round(100 * margin / scale, 2)
    ends = [round(max(-100.0, min(100.0, 100 * end / scale)), 2) for end in interval] if interval else [None, None]
    return Bar(min(0.0, place), abs(place), "right" if margin > 0 else "wrong", *ends)


def _answer(before: Answered | None, after: Answered) -> tuple[Run, ...]:
    """A longer answer is shown as what changed in it."""
    if before is None or len(before.text.split()) < 5 or before.text == after.text:
        return (Run(after.text.strip() + ("" if after.ended else " …")),)
    return tuple(word_changes(before.text, after.text))


def _steered(recording: Recording, one: Steered, contrast: Any, scale: float, best: bool) -> Arm:
    change, missing, was = change_of(one), uncompared(one), margin_before(recording, one)
    ends = (was + one.interval[0], was + one.interval[1]) if one.interval and was is not None else None
    flips = {draws.kind: draws.flips for draws in one.controls if draws.flips is not None}
    beside = [f"{CONTROL_KINDS[kind]} {share(of)}" for kind, of in flips.items() if of and kind != "latents"]
    numbers = sorted({n for edit in one.edits if edit.latents != "all" for n in edit.latents})
    return Arm(
        one.name,
        steering_words(one)
        + ("; change from what it says reconstructed" if rebuilt(one) else "")
        + (f" ({missing})" if missing else ""),
        _answer(base_of(recording, one), one.after),
        tone(one.after, contrast),
        number(one.after.margin, 2, True),
        _bar(one.after.margin, scale, ends),
        number(change, 2, True) if change is not None else "–",
        f"{number(one.interval[0], 2, True)} to {number(one.interval[1], 2, True)}" if one.interval else "",
        p_value(one.p),
        share(flips["latents"]) if "latents" in flips else "–",
        tuple(beside),
        ", ".join(map(str, numbers)),
        best,
        one.onto is not None,
    )


def _rephrased(one: Rephrased, contrast: tuple[str, str] | None, scale: float) -> Arm:
    asked = one.contrast or contrast
    return Arm(one.name, one.prompt, _answer(None, one.answered), tone(one.answered, asked),
               number(one.answered.margin, 2, True), _bar(one.answered.margin, scale))  # fmt: skip


# --- word by word ----------------------------------------------------------------------------------------------------


def turns_of(recording: Recording) -> tuple[Turn, ...]:
    """Every steering beside what it is held against, the headline's first; not where that was not recorded. A class is
    no text: it has none."""
    if recording.clean is None or recording.classified is not None:
        return ()
    best, contrast = headline_steering(recording), contrast_of(recording)
    ordered = sorted(recording.steered, key=lambda one: one is not best)
    beside = ((one, base_of(recording, one)) for one in ordered)
    return tuple(_turn(base, one, contrast) for one, base in beside if base is not None)


def _turn(base: Answered, one: Steered, contrast: tuple[str, str] | None) -> Turn:
    before, after = differing(base, one.after)
    return Turn(
        one.name, steering_words(one, named=False), before, after, tone(base, contrast), tone(one.after, contrast),
        number(base.margin, 2, True), number(one.after.margin, 2, True), base.text.strip() == one.after.text.strip(),
        "Through the SAE" if rebuilt(one) else "Before",
    )  # fmt: skip


def differing(before: Answered, after: Answered) -> tuple[tuple[Said, ...], tuple[Said, ...]]:
    """Both answers token by token, with what left the first and what came into the second."""
    old, new = _pieces(before), _pieces(after)
    gone, came = [False] * len(old), [False] * len(new)
    matcher = difflib.SequenceMatcher(None, [text for text, _ in old], [text for text, _ in new], autojunk=False)
    for op, a0, a1, b0, b1 in matcher.get_opcodes():
        if op != "equal":
            gone[a0:a1], came[b0:b1] = [True] * (a1 - a0), [True] * (b1 - b0)
    return (
        tuple(Said(text, "gone" if off else "same", seen) for (text, seen), off in zip(old, gone, strict=True)),
        tuple(Said(text, "new" if on else "same", seen) for (text, seen), on in zip(new, came, strict=True)),
    )


def _pieces(answered: Answered) -> list[tuple[str, str]]:
    """Tokens with their probabilities; where none were recorded, words without."""
    if not answered.tokens:
        return [(word, "") for word in answered.text.split()]
    return [(token.text.strip() or "␣", "" if token.log_prob is None else _percent(math.exp(min(0.0, token.log_prob))))
            for token in answered.tokens]  # fmt: skip


def _percent(probability: float) -> str:
    """Above a word there is room for two digits."""
    percent = 100 * probability
    return f"{percent:.0f}" if percent >= 9.5 else f"{percent:.1f}" if percent >= 0.05 else "0"


# --- round by round --------------------------------------------------------------------------------------------------


def rounds_of(recording: Recording) -> list[tuple[Steered, ...]]:
    """Steerings that stand on one another, from the first to the last: one sequence for each last one."""
    under = {one.onto for one in recording.steered if one.onto}
    found = []
    for last in recording.steered:
        if last.onto is None or last.name in under:
            continue
        chain, seen = [last], {last.name}
        while (earlier := recording.steering(chain[-1].onto or "")) is not None and earlier.name not in seen:
            chain.append(earlier)
            seen.add(earlier.name)
        if len(chain) > 1:
            found.append(tuple(reversed(chain)))
    return found
