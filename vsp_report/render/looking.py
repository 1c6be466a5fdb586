"""Looking: where the model looks as it says or reads each word, and which latents are active there.

What a page opens with is chosen here: the word of the answer that tells it from the other answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vsp_report.recording import Recording
from vsp_report.recording.parts import Row
from vsp_report.render.figures import Table
from vsp_report.render.findings import contrast_of, share
from vsp_report.render.labels import NOTHING, Known

SHADES = 9
TOP_BARS = 12
_TURNS = {"system": "System prompt", "prompt": "Prompt", "answer": "Answer"}


class Start(NamedTuple):
    """What a page opens with: a token, and whose attention."""

    token: int
    row: Row

    def attention(self, recording: Recording) -> np.ndarray:
        return np.nan_to_num(recording.arrays.attention(self.row)[self.token].astype(float))


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
class Line:
    """The tokens of the system prompt, of the prompt, or of the answer."""

    name: str
    tokens: tuple[Spot, ...]


@dataclass(frozen=True)
class LatentBar:
    place: int
    number: int
    label: str
    score: str
    """of the label: empty where there is none"""
    poor: bool
    value: str
    length: float
    """of 100"""


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
    """Words that both answers of the contrast have; of an answer without a contrast, those that name nothing."""
    answers = [set(answer.casefold().split()) for answer in contrast_of(recording) or ()]
    return set.intersection(*answers) if answers else {"a", "an", "the", "and"}


def strip(recording: Recording, opens: Start | None) -> tuple[Line, ...]:
    """The tokens in the order that the model reads them, line by line. What the template puts between stands with
    what it opens."""
    if opens is None:
        return ()
    totals = np.nan_to_num(recording.arrays.attention(opens.row).astype(float)).sum(1)
    top = totals.max(initial=0) or 1.0
    lines: list[tuple[str, list[Spot]]] = []
    for t, token in enumerate(recording.tokens):
        shade = round(SHADES * float(totals[t]) / top)
        seen = "" if token.log_prob is None else share(float(np.exp(min(0.0, token.log_prob))))
        kind = token.kind if token.kind in _TURNS else (lines[-1][0] if lines else "")
        if not lines or (kind and lines[-1][0] and kind != lines[-1][0]):
            lines.append((kind, []))
        elif not lines[-1][0]:
            lines[-1] = (kind, lines[-1][1])
        lines[-1][1].append(Spot(t, token.text.strip() or "␣", token.kind, shade, t == opens.token, seen))
    return tuple(Line(_TURNS.get(kind, "Prompt"), tuple(spots)) for kind, spots in lines)


def bars(recording: Recording, opens: Start | None, known: Known = NOTHING) -> tuple[LatentBar, ...]:
    """The strongest latents where this token looks; of a picture without tokens, on all of it."""
    arrays = recording.arrays
    if arrays.maps_LP is None or not recording.latents:
        return ()
    maps_LP = np.nan_to_num(arrays.maps_LP.astype(float))
    values = maps_LP @ opens.attention(recording) if opens is not None else maps_LP.sum(1)
    values[[one.noisy for one in recording.latents]] = 0
    order = [i for i in np.argsort(-values, kind="stable")[:TOP_BARS] if values[i] > 0]
    top = max((values[i] for i in order), default=1.0)
    found, digits = [], 3 if top <= 0 else min(4, max(0, 2 - math.floor(math.log10(top))))
    for i in map(int, order):
        latent, length = recording.latents[i], round(100 * float(values[i] / top), 1)
        label = known.labels.get(latent.number)
        score, poor = (label.said, label.poor) if label else ("", False)
        found.append(LatentBar(i, latent.number, latent.label, score, poor, f"{values[i]:.{digits}f}", length))
    return tuple(found)


def words_table(recording: Recording, opens: Start | None) -> Table:
    """What the picture with its attention says, in figures: a row for each token."""
    head = ("token", "part", "probability", "attention on the picture", "looks most at", "with")
    if opens is None:
        return Table(head, ())
    attention_TP = recording.arrays.attention(opens.row).astype(float)
    rows = []
    for token, weights in zip(recording.tokens, attention_TP, strict=True):
        seen = None if token.log_prob is None else float(np.exp(min(0.0, token.log_prob)))
        there = np.isfinite(weights).any()
        best = int(np.nanargmax(weights)) if there else 0
        most = (float(np.nansum(weights)), _patch(recording, best), float(weights[best])) if there else (None, "", None)
        rows.append((token.text.strip() or repr(token.text)[1:-1], token.kind, seen, *most))
    return Table(head, tuple(rows))


def _patch(recording: Recording, patch: int) -> str:
    grid = recording.grid
    if grid is None or not grid.columns:
        return f"patch {patch}"
    return f"row {patch // grid.columns + 1}, column {patch % grid.columns + 1}"
