"""Replay: what a panel is given, and the events of a round. One form for what a kernel tells and what was recorded.

The live panel says these events as they happen, the page alone plays back those of the recording; so a reader's panel
cannot tell the two apart, but by their source. Nothing is computed here: a setting that was not recorded has no events.

    started    the prompt and the edits, latents by number
    token      of the answer, with its log-probability
    answered   the answer, its margin, and the change against the model as it is
    odds       how likely both answers of the contrast are
    looked     where the tokens of this answer looked, and the latents that are active there
    controls   what other latents did instead
    done

Axes: T tokens, P patches, L latents.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vsp_report.recording import Answered, EditMade, Recording, Steered, Swept
from vsp_report.render.drawn import script_json
from vsp_report.render.findings import change_of, changes_of, contrast_of, margin_before

PICTURE = "picture.webp"
"""Beside the page."""
SHOWN = 48
"""So many latents are offered to choose from, beside those of the clusters."""


# --- events ------------------------------------------------------------------------------------------------------


def token(text: str, log_prob: float | None) -> dict[str, Any]:
    return {"type": "token", "text": text, "log_prob": log_prob}


def answered(one: Answered, change: float | None, classes: Sequence[str] = (),
             likely: Sequence[float] = ()) -> dict[str, Any]:  # fmt: skip
    event = {"type": "answered", "text": one.text, "ended": one.ended, "margin": one.margin, "change": change,
             "tokens": [[part.text, part.log_prob] for part in one.tokens]}  # fmt: skip
    if classes:
        event["classes"] = [[name, float(p)] for name, p in zip(classes, likely, strict=True)]
        event["p_right"], event["p_wrong"] = one.p_right, one.p_wrong
    return event


def odds(one: Answered) -> dict[str, Any]:
    return {"type": "odds", "p_right": one.p_right, "p_wrong": one.p_wrong}


def controls(changes: Sequence[float], p: float | None, flips: float | None,
             interval: tuple[float, float] | None) -> dict[str, Any]:  # fmt: skip
    return {"type": "controls", "changes": list(changes), "p": p, "flips": flips,
            "interval": list(interval) if interval else None}  # fmt: skip


def edit(latents: Any, op: str, value: float, boxes: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    """As a case writes it, latents by number."""
    found: dict[str, Any] = {"latents": latents if isinstance(latents, str) else [int(k) for k in latents]}
    found[op] = float(value)
    if boxes:
        found["where"] = {"boxes": [[float(v) for v in box] for box in boxes]}
    return found


def looked(tokens: Sequence[tuple[str, str]], attention_TP: np.ndarray, latents: Sequence[int],
           maps_LP: np.ndarray) -> dict[str, Any]:  # fmt: skip
    """Where tokens looked and which latents are active on the patches: what a panel draws."""
    return {
        "tokens": [[text, kind] for text, kind in tokens],
        "attention": packed(attention_TP),
        "latents": [int(k) for k in latents],
        "maps": packed(maps_LP),
    }


def packed(rows: np.ndarray) -> dict[str, Any]:
    """Rows as bytes, each scaled to its largest size: sign apart, a 127th is finer than a screen. A row of NaN has no
    top."""
    rows = np.asarray(rows, float)
    there = np.isfinite(rows).any(1) if rows.size else np.zeros(len(rows), bool)
    rows = np.nan_to_num(rows)
    top = np.abs(rows).max(axis=1, initial=0)
    whole = np.rint(127 * np.divide(rows, top[:, None], out=np.zeros_like(rows), where=top[:, None] > 0))
    tops = [float(f"{value:.5g}") if seen else None for value, seen in zip(top, there, strict=True)]
    return {"top": tops, "bytes": base64.b64encode(whole.astype(np.int8).tobytes()).decode()}


def data_address(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# --- what a panel is given ---------------------------------------------------------------------------------------


def spec(recording: Recording, picture: str) -> dict[str, Any]:
    """A case as a panel shows it; `picture` is an address."""
    case, contrast = recording.case, contrast_of(recording)
    boxes_P4 = recording.arrays.boxes_P4
    boxes = [] if boxes_P4 is None else [
        [round(float(v), 2) for v in box] if np.isfinite(box).all() else None for box in boxes_P4
    ]  # fmt: skip
    classes = recording.classified.classes if recording.classified else ()
    return {
        "case": {"id": recording.id, "title": case["title"], "prompt": case.get("prompt") or "",
                 "contrast": list(contrast) if contrast else None, "classes": list(classes)},
        "model": case["model"], "sae": case["sae"], "tap": recording.provenance.tap or case.get("tap") or "",
        "picture": {"src": picture, "width": recording.image.width_px if recording.image else 1,
                    "height": recording.image.height_px if recording.image else 1,
                    "alt": recording.image.alt if recording.image else ""},
        "boxes": boxes,
        "latents": _offered(recording),
        "groups": _groups(recording),
        "steerings": [{"name": one.name, "mode": one.mode, "edits": [edit(e.latents, e.op, e.value, e.boxes)
                      for e in edits_of(recording, one)]} for one in recording.steered],
        "clean": answered(recording.clean, None, classes, _scores(recording, "clean")) if recording.clean else None,
        "command": f"vsp-report live {recording.id}",
        "live": False,
        "can": {},
    }  # fmt: skip


def _offered(recording: Recording) -> list[dict[str, Any]]:
    predicted = {one.latent: one.predicted for one in recording.attributions}
    strong = sorted(recording.latents, key=lambda one: (-abs(predicted.get(one.number, 0)), -one.total, one.number))
    shown = [one for one in strong if one.total > 0 and not one.noisy][:SHOWN]
    grouped = {number for group in _groups(recording) for number in group["latents"]}
    shown += [one for one in recording.latents if one.number in grouped and one not in shown]
    return [{"number": one.number, "label": one.label, "total": float(f"{one.total:.4g}"),
             "predicted": predicted.get(one.number)} for one in shown]  # fmt: skip


def _groups(recording: Recording) -> list[dict[str, Any]]:
    """The clusters of the heatmap, as the case groups it."""
    heat = recording.heatmap
    if heat is None or not heat.clusterings:
        return []
    first, found = heat.clusterings[0], {}
    for column in first.order:
        found.setdefault(first.clusters[column], []).append(recording.latents[heat.columns[column]].number)
    names = dict(enumerate(first.names))
    return [{"name": f"cluster {number}", "about": names.get(number, ""), "latents": latents}
            for number, latents in sorted(found.items())]  # fmt: skip


def edits_of(recording: Recording, one: Steered) -> tuple[EditMade, ...]:
    """What a steering makes in all: the edits of the one it stands on, then its own."""
    base = recording.steering(one.onto) if one.onto else None
    return (*(edits_of(recording, base) if base else ()), *one.edits)


def _scores(recording: Recording, name: str) -> Sequence[float]:
    found = (
        (one.probabilities for one in recording.classified.scores if one.name == name) if recording.classified else ()
    )
    return next(iter(found), ())


# --- what was recorded -------------------------------------------------------------------------------------------


def script(recording: Recording) -> str:
    """What stands beside a page for its panel; empty where there is none."""
    replayed = replay(recording, PICTURE)
    return f"window.VSP_REPLAY={script_json(replayed)};\n" if replayed else ""


def replay(recording: Recording, picture: str) -> dict[str, Any] | None:
    """The panel of a page alone: what it shows, and every round that was recorded; None where nothing answers."""
    if recording.clean is None or recording.image is None or not (recording.steered or recording.swept):
        return None
    shown = spec(recording, picture)
    start = clean_look(recording)
    rounds = [{"label": label, "prompt": prompt, "edits": edits, "mode": mode, "events": events}
              for label, prompt, edits, mode, events in _rounds(recording)]  # fmt: skip
    return shown | {"looked": start, "rounds": rounds}


def clean_look(recording: Recording) -> dict[str, Any] | None:
    arrays = recording.arrays
    if arrays.predicting_TP is None or arrays.maps_LP is None or not recording.tokens:
        return None
    answer = [t for t, one in enumerate(recording.tokens) if one.kind == "answer"]
    weight_P = np.nan_to_num(arrays.predicting_TP[answer].astype(float)).mean(0) if answer else 1.0
    strength_L = (arrays.maps_LP.astype(float) * weight_P).sum(1)
    strength_L[[one.noisy for one in recording.latents]] = 0
    shown = [i for i in np.argsort(-strength_L, kind="stable")[:24] if strength_L[i] > 0]
    return looked([(one.text, one.kind) for one in recording.tokens], arrays.predicting_TP,
                  [recording.latents[i].number for i in shown], arrays.maps_LP[shown])  # fmt: skip


def _rounds(recording: Recording) -> Iterator[tuple[str, str, list[dict[str, Any]], str, list[dict[str, Any]]]]:
    """What each was called, what was asked, and what came out."""
    prompt, clean, start = recording.case.get("prompt") or "", recording.clean, clean_look(recording)
    events = _events(recording, clean, None, "clean")
    yield "as it is", prompt, [], "delta", events + ([{"type": "looked", **start}] if start else [])
    for one in recording.rephrased:
        yield one.name, one.prompt, [], "delta", _events(recording, one.answered, None)
    for one in recording.steered:
        edits = [edit(e.latents, e.op, e.value, e.boxes) for e in edits_of(recording, one)]
        yield one.name, prompt, edits, one.mode, _events(recording, one.after, change_of(one), one.name, one)
    for one in recording.swept:
        of = recording.steering(one.of)
        if of is not None:
            yield from _doses(recording, prompt, of, one)


def _doses(recording: Recording, prompt: str, of: Steered, swept: Swept) -> Iterator[tuple]:
    """A steering at several strengths: what it stands on stays, its own latents are scaled, each of them once."""
    before = edits_of(recording, of)[: -len(of.edits)]
    for dose in swept.doses:
        scaled: list[EditMade] = []
        done: set[int] = set()
        for one in of.edits:
            latents = one.latents if one.latents == "all" else tuple(k for k in one.latents if k not in done)
            if latents:
                scaled.append(EditMade(latents, "scale", dose.factor, one.boxes))
            if one.latents != "all" and not one.boxes:
                done |= set(one.latents)
        edits = [edit(e.latents, e.op, e.value, e.boxes) for e in (*before, *scaled)]
        margins = (dose.answered.margin, margin_before(recording, of))
        change = None if None in margins else margins[0] - margins[1]
        yield f"{of.name} × {dose.factor:g}", prompt, edits, of.mode, _events(recording, dose.answered, change)


def _events(recording: Recording, one: Answered, change: float | None, name: str = "",
            steered: Steered | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """All of a round but its first event, which says what was asked, and its last."""
    classes = recording.classified.classes if recording.classified else ()
    scores = _scores(recording, name) if name else ()
    events = [token(part.text, part.log_prob) for part in one.tokens]
    events.append(answered(one, change, classes if scores else (), scores))
    if one.p_right is not None and not classes:
        events.append(odds(one))
    drawn = next((draws for draws in steered.controls if draws.kind == "latents"), None) if steered else None
    if drawn is not None:
        events.append(controls(changes_of(steered, drawn), drawn.p, drawn.flips, steered.interval))
    return events
