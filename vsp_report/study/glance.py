"""Glance: what a notebook shows while it runs: small tables and pictures. A page's charts are render's.

Tables are lists of rows, each a plain mapping; pictures are bytes of JPEG, of PNG where they are cells of one colour
each. Both are made of what an inquiry has so far.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vsp_report.recording import Attribution, Steered, Swept
from vsp_report.study.inquiry import Inquiry
from vsp_report.study.resolve import words_of

SHOWN_PX = 320
CELL_PX = 12
QUALITY = 82
INK = (228, 87, 46)
PAPER = (250, 250, 248)

Table = list[dict[str, Any]]


# --- tables ------------------------------------------------------------------------------------------------------


def answers(inquiry: Inquiry) -> Table:
    """What the model says, as it is and through the SAE with nothing edited."""
    found = [("as it is", inquiry.clean), ("through the SAE", inquiry.reconstructed)]
    found += [(one.name, one.after) for one in inquiry.steered] + [(o.name, o.answered) for o in inquiry.rephrased]
    return [{"": name, "answer": one.text, "margin": one.margin, "p(right)": one.p_right} for name, one in found if one]


def tokens(inquiry: Inquiry) -> Table:
    """Each token, and how much of its attention the picture has."""
    looked = inquiry.looked
    spent_T = looked.predicting_TP.sum(1)
    return [
        {"token": one.text.strip(), "kind": one.kind, "log p": one.log_prob, "on the picture": float(spent)}
        for one, spent in zip(looked.tokens, spent_T, strict=True) if one.kind != "template"
    ]  # fmt: skip


def clusters(inquiry: Inquiry) -> Table:
    """The clusters of the heatmap, as the case groups it."""
    if not inquiry.clusters:
        return []
    names = inquiry.heat.clusterings[0].names
    return [{"cluster": n, "name": names[n], "latents": ", ".join(map(str, latents))}
            for n, latents in inquiry.clusters.items()]  # fmt: skip


def predictions(inquiry: Inquiry, most: int = 10) -> Table:
    """The latents predicted to move the contrast most, with the true change where it was measured."""
    if inquiry.effects_L is None:
        return []
    strong = np.argsort(-np.abs(inquiry.effects_L), kind="stable")[:most]
    return [{"latent": int(k), "supports": "wrong" if inquiry.effects_L[k] > 0 else "right",
             "predicted": float(inquiry.effects_L[k]), "measured": inquiry.measured.get(int(k))}
            for k in strong if inquiry.effects_L[k]]  # fmt: skip


def agreements(inquiry: Inquiry) -> Table:
    """How well each ranking of latents agrees with true effects."""
    return [{"ranking": one.by, "rank correlation": one.spearman, "flips after": one.flips_after}
            for one in inquiry.agreements]  # fmt: skip


def steerings(inquiry: Inquiry) -> Table:
    """Every steering: what it edits, what the model says then, and how far the contrast moves."""
    return [
        {"steering": one.name, "edits": "; ".join(f"{edit.op} {edit.value:g}: {edit.asked}" for edit in one.edits),
         "answer": one.after.text, "change": one.change, "p": one.p, "flipped": one.flipped}
        for one in inquiry.steered
    ]  # fmt: skip


def controls(inquiry: Inquiry) -> Table:
    """What stands against each steering."""
    return [
        {"steering": one.name, "control": draws.kind, "draws": len(draws.changes) or None,
         "largest change": max(map(abs, draws.changes), default=None), "flips": draws.flips}
        for one in inquiry.steered for draws in one.controls
    ]  # fmt: skip


def doses(inquiry: Inquiry) -> Table:
    """A steering's latents at several strengths."""
    return [{"of": one.of, "factor": dose.factor, "answer": dose.answered.text, "margin": dose.answered.margin}
            for one in inquiry.swept for dose in one.doses]  # fmt: skip


def minimal(inquiry: Inquiry) -> Table:
    """The smallest set found that takes the log-odds to the other side of zero."""
    one = inquiry.minimal
    if one is None:
        return []
    return [{"latents": ", ".join(map(str, one.latents)), "answer": one.after.text, "margin": one.after.margin,
             "runs": one.runs}]  # fmt: skip


def evidence(inquiry: Inquiry) -> Table:
    """The tests that led to the diagnosis."""
    tests = inquiry.diagnosis.evidence if inquiry.diagnosis else ()
    return [{"test": one.test, "finding": one.finding, "holds": one.holds, "change": one.change, "p": one.p}
            for one in tests]  # fmt: skip


def asked(inquiry: Inquiry) -> Table:
    """How the case names the latents of its steerings."""
    return [{"steering": one.name, "op": edit.op, "value": edit.value, "latents": words_of(edit.latents)}
            for one in inquiry.case.steer for edit in one.edits]  # fmt: skip


# --- what charts are drawn of -------------------------------------------------------------------------------------


def measured(inquiry: Inquiry) -> list[Attribution]:
    """Latents with a predicted and a true change."""
    effects_L = inquiry.effects_L
    return [Attribution(k, float(effects_L[k]), change) for k, change in inquiry.measured.items()]


def controlled(inquiry: Inquiry) -> list[Steered]:
    """Steerings whose change has controls beside it."""
    return [one for one in inquiry.steered if any(draws.changes for draws in one.controls)]


def swept(inquiry: Inquiry) -> list[Swept]:
    """Sweeps with a margin at every strength."""
    return [one for one in inquiry.swept if all(dose.answered.margin is not None for dose in one.doses)]


def contrast(inquiry: Inquiry) -> tuple[str, str]:
    declared = inquiry.case.contrast
    return (declared.right, declared.wrong) if declared else ("right", "wrong")


# --- pictures ----------------------------------------------------------------------------------------------------


def picture(inquiry: Inquiry) -> bytes:
    return _jpeg(_small(inquiry.seen.image))


def attention(inquiry: Inquiry, token: int = -1) -> bytes:
    """The picture, lit where a token of the answer looked while it was said; a classification has none, and is lit
    where latents are most active."""
    looked = inquiry.looked
    said = [t for t, one in enumerate(looked.tokens) if one.kind == "answer"]
    values_P = looked.predicting_TP[said[token]] if said else np.asarray(looked.latents_PL.sum(1)).ravel()
    return overlay(inquiry.seen.image, looked.boxes_P4, values_P)


def overlay(image: Any, boxes_P4: np.ndarray, values_P: np.ndarray) -> bytes:
    """A picture with every patch as bright as its value, against the largest."""
    small = _small(image)
    share = small.width / image.width
    light = Image.new("L", small.size, 0)
    drawn, most = ImageDraw.Draw(light), float(np.nanmax(values_P, initial=0)) or 1.0
    for box, value in zip(boxes_P4, np.nan_to_num(values_P), strict=True):
        if np.isfinite(box).all():
            x0, y0, x1, y1 = (box * share).round().astype(int)
            if x1 > x0 and y1 > y0:
                drawn.rectangle((x0, y0, x1 - 1, y1 - 1), fill=int(225 * max(value, 0) / most))
    faded = Image.blend(small, Image.new("RGB", small.size, (255, 255, 255)), 0.25)
    return _jpeg(Image.composite(Image.new("RGB", small.size, INK), faded, light))


def heatmap(inquiry: Inquiry) -> bytes | None:
    """Tokens down, latents across in the case's order, each latent against its own largest value."""
    heat = inquiry.heat
    if heat is None:
        return None
    order = list(heat.clusterings[0].order)
    values_TL = heat.values_TL[:, order] / np.maximum(heat.values_TL[:, order].max(0), 1e-12)
    paper, ink = np.array(PAPER, float), np.array(INK, float)
    pixels = (paper + values_TL[..., None] * (ink - paper)).round().astype(np.uint8)
    drawn = Image.fromarray(pixels)
    return _png(drawn.resize((drawn.width * CELL_PX, drawn.height * CELL_PX), Image.Resampling.NEAREST))


def _small(image: Any) -> Any:
    share = min(1.0, SHOWN_PX / max(image.size))
    return image.resize([max(1, round(side * share)) for side in image.size], Image.Resampling.LANCZOS)


def _jpeg(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
