"""Pages: recording -> the values of its page; one typed function per page. No HTML, no files.

A template decides where a value stands and what it looks like; nothing is computed there. Every text of a recording
is data: it is escaped where it is shown.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from vsp_report.recording import Answered, Collateral, Evidence, Latent, Recording, Rephrased, Steered, Stop
from vsp_report.recording.parts import Row
from vsp_report.render import figures, prose
from vsp_report.render.figures import Figure, Table
from vsp_report.render.findings import (
    MODES,
    VERDICTS,
    Checked,
    Run,
    checks,
    contrast_of,
    counted,
    headline,
    headline_steering,
    number,
    p_value,
    plain,
    share,
    steering_words,
    tone,
    verdict,
    word_changes,
)

SHADES = 9
TOP_BARS = 12


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
    latents: str = ""
    best: bool = False
    indented: bool = False


@dataclass(frozen=True)
class Spot:
    """A token of the strip."""

    place: int
    text: str
    kind: str
    shade: int
    """0 to `SHADES`: how much of its attention is on the picture"""
    selected: bool
    probability: str


@dataclass(frozen=True)
class LatentBar:
    place: int
    number: int
    label: str
    value: str
    length: float
    """of 100"""


@dataclass(frozen=True)
class Download:
    name: str
    href: str
    what: str


@dataclass(frozen=True)
class Card:
    """A case on the index. Plain data: it is kept from build to build."""

    id: str
    title: str
    status: str
    verdict: str
    tone: str
    mode: str
    mode_name: str
    model: str
    tap: str
    tags: tuple[str, ...]
    headline: str
    prompt: str
    before: str
    before_tone: str
    after: str
    after_tone: str
    after_name: str
    margin_before: float | None
    margin_after: float | None
    alt: str = ""
    thumbnail: str = ""
    """relative to the site; empty where there is no picture"""


@dataclass(frozen=True)
class CasePage:
    id: str
    title: str
    status: str
    verdict: str
    tone: str
    verdict_means: str
    mode: str
    mode_name: str
    mode_means: str
    mode_found: bool
    """by the diagnosis; else it is what the author believes"""
    headline: tuple[Run, ...]
    description: str
    facts: tuple[str, ...]
    story: Any
    prompt: str
    system: str
    contrast: tuple[str, str] | None
    picture_alt: str
    width_px: int
    height_px: int
    tokens: tuple[Spot, ...]
    selected: str
    opens: Row
    bars: tuple[LatentBar, ...]
    arms: tuple[Arm, ...]
    has_controls: bool
    rephrased: tuple[Arm, ...]
    collateral: tuple[tuple[str, Collateral], ...]
    figures: dict[str, Figure]
    latents: Table
    evidence: tuple[Evidence, ...]
    diagnosis_runs: int | None
    agreements: Table
    minimal: str
    checks: tuple[Checked, ...]
    repeats: Table
    stop: Stop | None
    command: str
    provenance: tuple[tuple[str, str], ...]
    data: dict[str, Any] | None
    """for the page's script"""


# --- a case --------------------------------------------------------------------------------------------------------


def case_page(recording: Recording) -> CasePage:
    case, contrast = recording.case, contrast_of(recording)
    named = verdict(recording)
    mode, found = _mode(recording)
    said = tuple(headline(recording, brief=True))
    opens = start(recording)
    scale = _margin_scale(recording)
    picture = recording.image
    return CasePage(
        id=recording.id,
        title=case["title"],
        status=recording.status,
        verdict=named,
        tone=VERDICTS[named][0],
        verdict_means=VERDICTS[named][1],
        mode=mode,
        mode_name=MODES[mode][0] if mode else "",
        mode_means=MODES[mode][1] if mode else "",
        mode_found=found,
        headline=said,
        description=plain(headline(recording))[:300],
        facts=_facts(recording),
        story=prose.story(case.get("story")),
        prompt=(case.get("prompt") or "").strip(),
        system=(case.get("system") or "").strip(),
        contrast=contrast,
        picture_alt=(picture.alt if picture and picture.alt else "The picture of this case"),
        width_px=picture.width_px if picture else 0,
        height_px=picture.height_px if picture else 0,
        tokens=_strip(recording, opens),
        selected=recording.tokens[opens.token].text.strip() if opens else "",
        opens=opens.row if opens else "predicting",
        bars=_bars(recording, opens),
        arms=_arms(recording, scale),
        has_controls=any(one.controls or one.change is not None for one in recording.steered),
        rephrased=tuple(_rephrased(one, contrast, scale) for one in recording.rephrased),
        collateral=tuple((one.name, other) for one in recording.steered for other in one.collateral),
        figures=figures.figures_of(recording),
        latents=_latents(recording),
        evidence=recording.diagnosis.evidence if recording.diagnosis else (),
        diagnosis_runs=recording.diagnosis.runs if recording.diagnosis else None,
        agreements=_agreements(recording),
        minimal=_minimal(recording),
        checks=tuple(checks(recording)),
        repeats=_repeats(recording),
        stop=recording.stop,
        command=recording.provenance.command or f"vsp-report run {recording.id}",
        provenance=_provenance(recording),
        data=_script_data(recording, opens),
    )


def _mode(recording: Recording) -> tuple[str, bool]:
    if recording.diagnosis is not None:
        return recording.diagnosis.mode, True
    return recording.case.get("failure") or "", False


def _facts(recording: Recording) -> tuple[str, ...]:
    made, case = recording.provenance, recording.case
    seconds = f"{made.seconds:.0f} s" if made.seconds >= 1 else ""
    where = f"{seconds} on {made.device_class.partition(' ')[0].upper()}" if seconds and made.device_class else ""
    return tuple(filter(None, (made.model or case["model"], made.tap or case.get("tap") or "", where)))


class Start(NamedTuple):
    """What a page opens with: a token, and whose attention."""

    token: int
    row: Row

    def attention(self, recording: Recording) -> np.ndarray:
        return np.nan_to_num(recording.arrays.attention(self.row)[self.token].astype(float))


def start(recording: Recording) -> Start | None:
    """The word of the answer that tells it from the other, and what the model looked at as it said it; else the last
    token that has a row."""
    wanted: Row = recording.heatmap.row if recording.heatmap else "predicting"
    if recording.grid is None:
        return None
    for row in (wanted, "predicting", "own"):
        if (attention_TP := recording.arrays.attention(row)) is None:
            continue
        there = np.flatnonzero(np.isfinite(attention_TP).any(1))
        answer = [t for t in there if recording.tokens[t].kind == "answer"]
        # “the purple bar” or “the yellow bar”: the model chooses where they part.
        telling = [t for t in answer if recording.tokens[t].text.strip().casefold() not in _shared(recording)]
        if len(there):
            return Start(int((telling or answer or list(there[-1:]))[0]), row)
    return None


def _shared(recording: Recording) -> set[str]:
    """Words that both answers of the contrast have."""
    answers = [set(answer.casefold().split()) for answer in contrast_of(recording) or ()]
    return set.intersection(*answers) if answers else set()


def _strip(recording: Recording, opens: Start | None) -> tuple[Spot, ...]:
    if opens is None:
        return ()
    totals = np.nan_to_num(recording.arrays.attention(opens.row).astype(float)).sum(1)
    top = totals.max(initial=0) or 1.0
    return tuple(
        Spot(t, token.text, token.kind, round(SHADES * float(totals[t]) / top), t == opens.token,
             "" if token.log_prob is None else share(float(np.exp(token.log_prob))))
        for t, token in enumerate(recording.tokens)
    )  # fmt: skip


def _bars(recording: Recording, opens: Start | None) -> tuple[LatentBar, ...]:
    """The strongest latents where this token looks."""
    arrays = recording.arrays
    if opens is None or arrays.maps_LP is None or not recording.latents:
        return ()
    values = np.nan_to_num(arrays.maps_LP.astype(float)) @ opens.attention(recording)
    values[[one.noisy for one in recording.latents]] = 0
    order = [i for i in np.argsort(-values, kind="stable")[:TOP_BARS] if values[i] > 0]
    top = max((values[i] for i in order), default=1.0)
    return tuple(
        LatentBar(int(i), recording.latents[i].number, recording.latents[i].label, f"{values[i]:.3g}",
                  round(100 * float(values[i] / top), 1))
        for i in order
    )  # fmt: skip


def _margin_scale(recording: Recording) -> float:
    answers = [recording.clean, recording.reconstructed, *(one.after for one in recording.steered)]
    answers += [one.answered for one in recording.rephrased]
    return max([abs(one.margin) for one in answers if one is not None and one.margin is not None], default=0.0) * 1.08


def _bar(margin: float | None, scale: float, interval: tuple[float, float] | None = None) -> Bar | None:
    if margin is None or not scale:
        return None
    place = round(100 * margin / scale, 2)
    ends = [round(max(-100.0, min(100.0, 100 * end / scale)), 2) for end in interval] if interval else [None, None]
    return Bar(min(0.0, place), abs(place), "right" if margin > 0 else "wrong", *ends)


def _arms(recording: Recording, scale: float) -> tuple[Arm, ...]:
    contrast, clean = contrast_of(recording), recording.clean
    arms = []
    for name, does, one in (("clean", "the model as it is", clean),
                            ("reconstructed", "through the SAE, nothing edited", recording.reconstructed)):  # fmt: skip
        if one is not None:
            words = _answer(None if one is clean else clean, one)
            margin, bar = number(one.margin, 2, True), _bar(one.margin, scale)
            arms.append(Arm(name, does, words, tone(one, contrast), margin, bar))
    best = headline_steering(recording)
    return (*arms, *(_steered(one, clean, contrast, scale, one is best) for one in recording.steered))


def _answer(before: Answered | None, after: Answered) -> tuple[Run, ...]:
    """A longer answer is shown as what changed in it."""
    if before is None or len(before.text.split()) < 5 or before.text == after.text:
        return (Run(after.text.strip() + ("" if after.ended else " …")),)
    return tuple(word_changes(before.text, after.text))


def _steered(one: Steered, clean: Answered | None, contrast: Any, scale: float, best: bool) -> Arm:
    was = clean.margin if clean else None
    ends = (was + one.interval[0], was + one.interval[1]) if one.interval and was is not None else None
    flips = [draws.flips for draws in one.controls if draws.flips is not None]
    numbers = sorted({n for edit in one.edits if edit.latents != "all" for n in edit.latents})
    return Arm(
        one.name,
        steering_words(one) + (", reconstructing" if one.mode == "reconstruct" else ""),
        _answer(clean, one.after),
        tone(one.after, contrast),
        number(one.after.margin, 2, True),
        _bar(one.after.margin, scale, ends),
        number(one.change, 2, True) if one.change is not None else "–",
        f"{number(one.interval[0], 2, True)} to {number(one.interval[1], 2, True)}" if one.interval else "",
        p_value(one.p),
        share(max(flips)) if flips else "–",
        ", ".join(map(str, numbers)),
        best,
        one.onto is not None,
    )


def _rephrased(one: Rephrased, contrast: tuple[str, str] | None, scale: float) -> Arm:
    asked = one.contrast or contrast
    return Arm(one.name, one.prompt, _answer(None, one.answered), tone(one.answered, asked),
               number(one.answered.margin, 2, True), _bar(one.answered.margin, scale))  # fmt: skip


def _latents(recording: Recording) -> Table:
    def facts(one: Latent) -> tuple[Any, ...]:
        seen = ", ".join(f"{reference.id} ({reference.activation:.3g})" for reference in one.references[:5])
        filtered = "left out of the heatmap as active everywhere" if one.noisy else ""
        frequency = share(one.frequency) if one.frequency is not None else None
        return (one.number, one.label, one.strongest, one.total, frequency, one.mean_activation, seen, filtered)

    head = ("latent", "label", "strongest here", "total here", "frequency", "mean activation", "references", "note")
    return Table(head, tuple(facts(one) for one in recording.latents))


def _agreements(recording: Recording) -> Table:
    head = ("ranked by", "rank correlation with true effects", "slope", "latents measured", "flips after")
    rows = ((one.by, one.spearman, one.slope, one.measured, one.flips_after) for one in recording.agreements)
    return Table(head, tuple(rows))


def _minimal(recording: Recording) -> str:
    one = recording.minimal
    if one is None:
        return ""
    listed = ", ".join(map(str, one.latents))
    return (
        f"The smallest set found that turns the answer has {counted(len(one.latents), 'latent')} ({listed}): with it "
        f"ablated the model says “{one.after.text.strip()}”. The search took {counted(one.runs, 'run')}."
    )


def _repeats(recording: Recording) -> Table:
    names = sorted({name for one in recording.repeats for name in one.figures})[:8]
    rows = ((one.seed, *(one.figures.get(name) for name in names)) for one in recording.repeats)
    return Table(("seed", *names), tuple(rows))


def _provenance(recording: Recording) -> tuple[tuple[str, str], ...]:
    made = recording.provenance
    hashes = {"run": made.run_key, "case": made.case_sha, "picture": made.image_sha, "model": made.model_sha,
              "SAE": made.sae_sha, "notebook": made.notebook_sha, "package": made.package_sha}  # fmt: skip
    facts = [
        ("model", made.model),
        ("SAE", made.sae),
        ("tap", made.tap),
        ("device", made.device_name or made.device_class),
        ("numbers", made.dtype),
        ("seed", str(made.seed)),
        ("seconds", f"{made.seconds:.1f}" if made.seconds else ""),
        ("recorded", made.created.replace("T", " ").replace("Z", " UTC")),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(made.versions.items()))),
        *((f"SHA-256, {name}", value) for name, value in hashes.items()),
    ]
    return tuple((name, value) for name, value in facts if value)


# --- what the page's script gets -------------------------------------------------------------------------------------


def _script_data(recording: Recording, opens: Start | None) -> dict[str, Any] | None:
    arrays = recording.arrays
    if opens is None:
        return None
    data: dict[str, Any] = {
        "tokens": [token.text.strip() or token.text for token in recording.tokens],
        "start": opens.token,
        "whose": opens.row,
        "width": recording.image.width_px if recording.image else 1,
        "height": recording.image.height_px if recording.image else 1,
        "attention": {row: _packed(arrays.attention(row)) for row in ("predicting", "own")
                      if arrays.attention(row) is not None},
        "latents": [[one.number, one.label, one.strongest, one.frequency, one.mean_activation, one.noisy,
                     [[reference.id, reference.activation] for reference in one.references[:5]]]
                    for one in recording.latents],
    }  # fmt: skip
    if arrays.boxes_P4 is not None:
        data["boxes"] = [[_short(v) for v in box] if np.isfinite(box).all() else None for box in arrays.boxes_P4]
    if arrays.maps_LP is not None:
        data["maps"] = _packed(arrays.maps_LP)
    if recording.heatmap is not None and arrays.heatmap_TL is not None:
        values = [[_short(v) for v in row] for row in np.nan_to_num(arrays.heatmap_TL)]
        data["heatmap"] = asdict(recording.heatmap) | {"values": values}
    return data


def _packed(values: np.ndarray) -> dict[str, Any]:
    """Rows of bytes, each scaled to its own largest value: a 255th is finer than a screen. A row of NaN has no top."""
    there = np.isfinite(values).any(1)
    values = np.nan_to_num(values.astype(float))
    top = values.max(axis=1, initial=0)
    whole = np.rint(255 * np.divide(values, top[:, None], out=np.zeros_like(values), where=top[:, None] > 0))
    tops = [_short(value) if seen else None for value, seen in zip(top, there, strict=True)]
    return {"top": tops, "bytes": base64.b64encode(whole.astype(np.uint8).tobytes()).decode()}


def _short(value: Any) -> float | int:
    short = float(f"{float(value):.4g}")
    return int(short) if short == int(short) else short


# --- the index -------------------------------------------------------------------------------------------------------


def card(recording: Recording, thumbnail: str = "") -> Card:
    contrast, case = contrast_of(recording), recording.case
    named, (mode, _) = verdict(recording), _mode(recording)
    best, clean = headline_steering(recording), recording.clean
    return Card(
        id=recording.id,
        title=case["title"],
        status=recording.status,
        verdict=named,
        tone=VERDICTS[named][0],
        mode=mode,
        mode_name=MODES[mode][0] if mode else "",
        model=case["model"],
        tap=recording.provenance.tap or case.get("tap") or "",
        tags=tuple(case.get("tags") or ()),
        headline=plain(headline(recording)),
        prompt=(case.get("prompt") or "").strip() or "classification",
        before=clean.text.strip() if clean else "",
        before_tone=tone(clean, contrast),
        after=best.after.text.strip() if best else "",
        after_tone=tone(best.after, contrast) if best else "",
        after_name=best.name if best else "",
        margin_before=clean.margin if clean else None,
        margin_after=best.after.margin if best else None,
        alt=recording.image.alt if recording.image else "",
        thumbnail=thumbnail,
    )


@dataclass(frozen=True)
class IndexPage:
    cards: tuple[Card, ...]
    counts: tuple[tuple[str, str, int], ...]
    """verdict, tone, how many"""
    choices: dict[str, tuple[tuple[str, str], ...]]
    """for each filter, its values with their names; filters with one value are left out"""
    summary: Figure | None


def index_page(cards: Sequence[Card]) -> IndexPage:
    ranked = tuple(sorted(cards, key=lambda one: (("ok", "error", "not-run").index(one.status), one.id)))
    counts = tuple((name, VERDICTS[name][0], sum(one.verdict == name for one in ranked)) for name in VERDICTS)
    choices = {
        "mode": {one.mode: one.mode_name for one in ranked if one.mode},
        "verdict": {one.verdict: one.verdict for one in ranked},
        "model": {one.model: one.model for one in ranked},
        "tap": {one.tap: one.tap for one in ranked if one.tap},
        "tag": {tag: tag for one in ranked for tag in one.tags},
    }
    moved = [
        {"title": one.title[:40], "before": _short(one.margin_before), "after": _short(one.margin_after)}
        for one in ranked if one.margin_before is not None and one.margin_after is not None
    ]  # fmt: skip
    return IndexPage(
        ranked,
        tuple(found for found in counts if found[2]),
        {name: tuple(sorted(values.items())) for name, values in choices.items() if len(values) > 1},
        figures.before_after(moved) if 2 <= len(moved) <= 40 else None,
    )
