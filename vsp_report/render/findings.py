"""Findings: what a recording comes to, in words: the headline, and what was edited. Verdict and checks are the audit's.

Everything is computed from the recording; nothing that the author hoped for is repeated as if it had been seen.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

from vsp_report.audit.verdicts import VERDICTS, Checked, checks, verdict
from vsp_report.audit.words import number, p_value, same_answer, share
from vsp_report.case.answers import side
from vsp_report.recording import Answered, ControlDraws, EditMade, Recording, Steered

__all__ = [
    "MODES", "VERDICTS", "Checked", "Run", "base_of", "change_of", "changes_of", "checks", "contrast_of", "counted",
    "edit_words", "edits_words", "gerund", "headline", "headline_steering", "margin_before", "mode_of", "number",
    "p_value", "plain", "rebuilt", "round_of", "same_answer", "share", "steering_words", "tone", "turns",
    "uncompared", "verdict", "word_changes",
]  # fmt: skip

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
    "perception-missing": (
        "perception missing",
        "What would decide the question is not seen: no latent stands for it, so there is nothing to steer.",
    ),
    "none": ("nothing wrong", "The model is right, and has reason to be. The case shows what no failure looks like."),
    "undetermined": ("undetermined", "No test separates the failure modes here."),
}
"""Each failure mode: its name, and what it is in two lines."""


CONTROL_KINDS = {"latents": "other latents", "directions": "random directions", "untrained": "untrained SAE"}
OTHERS = {"directions": "random directions", "untrained": "an untrained SAE"}
"""Controls that are no latents of the case's own autoencoder."""
BY_CHANCE = 0.05
"""From here on a p-value is told against what is claimed."""


class Run(NamedTuple):
    """A run of words in one tone: "", right, wrong, effect, quote or code."""

    text: str
    tone: str = ""


# --- figures in words ------------------------------------------------------------------------------------------------


def counted(count: int, noun: str, plural: str = "") -> str:
    many = noun if count == 1 else plural or f"{noun}s"
    return f"{_word(count)} {many}"


def _word(count: int) -> str:
    words = "no one two three four five six seven eight nine ten eleven twelve".split()
    return words[count] if count < len(words) else str(count)


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


def edits_words(steered: Steered, named: bool = True) -> str:
    """`named`: with the case's own words for the latents."""
    return "; ".join(edit_words(edit, named) for edit in steered.edits) or "edit nothing"


def steering_words(steered: Steered, named: bool = True) -> str:
    return edits_words(steered, named) + (f"; on top of {steered.onto}" if steered.onto else "")


def gerund(words: str) -> str:
    """ablate ten latents; set … -> ablating ten latents and setting …"""
    forms = {"ablate": "ablating", "multiply": "multiplying", "set": "setting", "add": "adding", "edit": "editing"}
    parts = [part.strip() for part in words.split(";")]
    done = [" ".join([forms.get(p.split(" ", 1)[0], p.split(" ", 1)[0]), *p.split(" ", 1)[1:]]) for p in parts]
    return " and ".join([", ".join(done[:-1]), done[-1]]) if len(done) > 1 else done[0]


def tone(answered: Answered | None, contrast: tuple[str, str] | None) -> str:
    """right, wrong, or empty for neither: as a diagnosis and a data set read it."""
    if answered is None or contrast is None:
        return ""
    return side(answered.text, *contrast, answered.margin)


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


# --- the headline ----------------------------------------------------------------------------------------------------


def contrast_of(recording: Recording) -> tuple[str, str] | None:
    asked = recording.case.get("contrast")
    return (asked["right"], asked["wrong"]) if asked else None


def mode_of(recording: Recording) -> tuple[str, bool]:
    """The failure mode, and whether it was found; else it is what the author believes. Empty for none of the two."""
    if recording.diagnosis is not None:
        return recording.diagnosis.mode, True
    believed = recording.case.get("failure") or ""
    return (believed if believed in MODES else ""), False


def rebuilt(one: Steered) -> bool:
    """Whether its edits stand on the SAE's reconstruction, which has an error of its own."""
    return one.mode == "reconstruct"


def base_of(recording: Recording, one: Steered) -> Answered | None:
    """What its answer is held against: the model as it is, or where the edits stand on the SAE's reconstruction, the
    model with that and nothing edited. So the SAE's own error is not taken for the edits' doing. None where that was
    measured and is not in the recording, as where class tokens are reconstructed too."""
    if not rebuilt(one):
        return recording.clean
    asked = (recording.case.get("steer") or {}).get(one.name) or {}
    return None if asked.get("cls") else recording.reconstructed


def change_of(one: Steered) -> float | None:
    """By how much its edits move the log-odds, the SAE's own error left out."""
    return one.change if one.beyond_reconstruction is None else one.beyond_reconstruction


def margin_before(recording: Recording, one: Steered) -> float | None:
    """The log-odds that its edits begin with."""
    base, change = base_of(recording, one), change_of(one)
    if base is not None:
        return base.margin
    return None if change is None else one.after.margin - change


def changes_of(one: Steered, draws: ControlDraws) -> tuple[float, ...]:
    """The same of its controls: each stands on the same reconstruction."""
    shift = 0.0 if one.change is None else one.change - change_of(one)
    return tuple(change - shift for change in draws.changes) if shift else draws.changes


def turns(recording: Recording, one: Steered) -> bool:
    """Whether its edits change what is said."""
    base = base_of(recording, one) if rebuilt(one) else None
    return one.flipped if base is None else one.after.text != base.text


def uncompared(one: Steered) -> str:
    """With what a steering could not be compared; empty where matched latents say how far chance goes."""
    if any(draws.kind == "latents" and (draws.changes or draws.flips is not None) for draws in one.controls):
        return ""
    return "not compared with matched latents" if one.controls else "not compared with controls"


def headline_steering(recording: Recording) -> Steered | None:
    """The steering that the page opens with: one that puts a wrong answer right, else the strongest."""
    contrast = contrast_of(recording)

    def worth(one: Steered) -> tuple[bool, bool, float, float]:
        repairs = tone(base_of(recording, one), contrast) == "wrong" and tone(one.after, contrast) == "right"
        return repairs, turns(recording, one), -(1.0 if one.p is None else one.p), abs(change_of(one) or 0.0)

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
    turned, change = turns(recording, best), change_of(best)
    if rebuilt(best) and (base := base_of(recording, best)) is not None:
        yield Run("Through the SAE with nothing edited, it says ")
        yield Run(f"“{base.text.strip()}”", tone(base, contrast) or "quote")
        yield Run(". ")
    done = gerund(edits_words(best, named=False))
    done = done if len(done) < 160 else f"the edits of {best.name}"
    if (round := round_of(recording, best)) > 1:
        yield Run(f"In round {_word(round)}, ")
        yield Run(done, "effect")
    else:
        yield Run(done[0].upper() + done[1:], "effect")
    if turned:
        yield Run(" makes it say ")
        yield Run(f"“{best.after.text.strip()}”", tone(best.after, contrast) or "quote")
    else:
        yield Run(" leaves the answer as it is")
    if change is not None:
        yield Run(": the log-odds move by " if turned else "; the log-odds move by ")
        yield Run(number(change, 1, signed=True), "effect")
    yield from _among_controls(best)
    yield Run(".")


def round_of(recording: Recording, steered: Steered) -> int:
    """1 for a steering of the model as it is, 2 for one on top of that, and so on."""
    names, one = {steered.name}, steered
    while one.onto and (one := recording.steering(one.onto)) is not None and one.name not in names:
        names.add(one.name)
    return len(names)


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
    """How many of the matched controls do as much, counted back from the p-value that was recorded; without a contrast,
    how many are answered in other words. Where there were none, that is said."""
    for draws in steered.controls:
        if draws.kind != "latents":
            continue
        if draws.p is not None and draws.changes:
            as_far = max(0, round(draws.p * (1 + len(draws.changes))) - 1)
            many = "none" if as_far == 0 else str(as_far)
            verb = "moves" if as_far < 2 else "move"
            yield Run(f", and {many} of {len(draws.changes)} matched controls {verb} them as far "
                      f"(p\u00a0=\u00a0{p_value(draws.p)})")  # fmt: skip
            if draws.p <= BY_CHANCE and (others := ", and ".join(_others(steered))):
                yield Run(f"; but {others}")
            return
        if not draws.changes and draws.flips is not None:
            yield Run(f", and {share(draws.flips)} of its matched controls change the answer in some way"
                      if draws.flips else ", and none of its matched controls changes the answer")  # fmt: skip
            return
    if missing := uncompared(steered):
        yield Run(f" ({missing})")


def _others(steered: Steered) -> Iterator[str]:
    """What moves the log-odds as far and is no latent of this autoencoder, or takes them to the other side of zero, in
    more than one draw of twenty."""
    for draws in steered.controls:
        if not draws.changes or draws.p is None:
            continue
        count, kind = len(draws.changes), OTHERS.get(draws.kind)
        as_far, over = round(draws.p * (1 + count)) - 1, round((draws.flips or 0.0) * count)
        drawn = f"of {count} draws of {kind}" if kind else "of those"
        far = kind is not None and draws.p > BY_CHANCE
        if far:
            yield f"{as_far} {drawn} {'do' if as_far > 1 else 'does'} (p\u00a0=\u00a0{p_value(draws.p)})"
        if over > BY_CHANCE * count:
            takes = "take them past zero" if over > 1 else "takes them past zero"
            yield f"{over} {takes}" if far else f"{over} {drawn} {takes} as well"


def plain(runs: list[Run]) -> str:
    return re.sub(r"\s+", " ", "".join(run.text for run in runs)).strip()
