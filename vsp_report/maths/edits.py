"""Edits: what a steering does to latents, as values and formulas. Plain operators: numpy and torch both pass through.

An edit sets latents to a value, scales them by a factor, or adds to them, on every patch or on the patches that a
region meets. Edits of one steering are made one after another, so that only those of the same latent on the same
patch depend on their order. A latent is not held above zero: taking 5 from a latent of 2 leaves -3, which keeps
every change as large as it was asked to be.

    delta        z' = z + (h' - h) W_dec     keeps what the SAE does not explain; nothing edited, nothing changed
    reconstruct  z' = h' W_dec + b_dec       the paper's; its damage is its own, so it is read against h' = h

To first order an edit changes a log-odds y by Σ_p (h'_p - h_p) · unit_p with unit_p = W_dec ∂y/∂z_p.

Axes: S sites (patches and class tokens), E edits of a steering, K latents it names, L latents, D model width.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from vsp_report.errors import SteeringError
from vsp_report.maths.grids import Size

ALL: Literal["all"] = "all"
OPS = ("set", "scale", "add")
MODES = ("delta", "reconstruct")
ROUNDING_PX = 1e-6
"""Boxes that overlap by less are beside each other."""


# --- what is asked -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the picture: all of the boxes, and of the mask, together."""

    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """x0, y0, x1, y1 in pixels of the original image"""
    mask: np.ndarray | None = None
    """(height, width) of the original image; true inside"""

    def _value(self) -> tuple:
        mask = None if self.mask is None else np.asarray(self.mask, bool)
        return self.boxes, mask is not None and (mask.shape, mask.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def meets(self, boxes_S4: np.ndarray, size: Size, place: str = "region") -> np.ndarray:
        """(S,): the sites whose box shares pixels with the region. A site without a box (NaN) never does."""
        x0, y0, x1, y1 = np.asarray(boxes_S4, float).T
        met_S = np.zeros(len(boxes_S4), bool)
        with np.errstate(invalid="ignore"):
            for box in self.boxes:
                left, top, right, bottom = _checked_box(box, place)
                wide_S = np.minimum(x1, right) - np.maximum(x0, left) > ROUNDING_PX
                met_S |= wide_S & (np.minimum(y1, bottom) - np.maximum(y0, top) > ROUNDING_PX)
        if self.mask is not None:
            mask = np.asarray(self.mask)
            if mask.shape != tuple(size):
                shape = " x ".join(map(str, mask.shape))
                raise SteeringError(place, f"its mask is {shape}, the image {size.height} x {size.width}",
                                    "Give one value for each pixel of the image.")  # fmt: skip
            before = np.zeros((size.height + 1, size.width + 1), np.int64)
            before[1:, 1:] = (mask != 0).cumsum(0).cumsum(1)
            boxed_S = np.isfinite(np.asarray(boxes_S4)).all(1)
            low = np.floor(np.stack([x0, y0])[:, boxed_S] + ROUNDING_PX).astype(int)
            high = np.ceil(np.stack([x1, y1])[:, boxed_S] - ROUNDING_PX).astype(int)
            (a, b), (c, d) = low, high
            met_S[boxed_S] |= before[d, c] - before[b, c] - before[d, a] + before[b, a] > 0
        if not met_S.any():
            remedy = "Give boxes x0, y0, x1, y1 in pixels of the original image, or a mask of it."
            raise SteeringError(place, "meets no patch of the image", remedy)
        return met_S


@dataclass(frozen=True)
class Edit:
    latents: tuple[int, ...] | Literal["all"]
    op: Literal["set", "scale", "add"]
    value: float
    where: Region | None = None
    """None is every patch"""

    @property
    def wakes(self) -> bool:
        """It does something to latents that are silent."""
        return self.op != "scale" and self.value != 0


@dataclass(frozen=True)
class Steering:
    name: str
    edits: tuple[Edit, ...]
    mode: Literal["delta", "reconstruct"] = "delta"
    cls: bool = False
    """class tokens as well, by the edits that are not held to a region"""


@dataclass(frozen=True)
class Contrast:
    """The two answers that every effect is measured between."""

    right: str
    wrong: str


def check(steering: Steering, d_sae: int) -> None:
    """Refuse what cannot be done to an SAE of `d_sae` latents."""
    if steering.mode not in MODES:
        raise SteeringError(f"{steering.name}.mode", f"is {steering.mode!r}", f"Write {' or '.join(MODES)}.")
    for k, edit in enumerate(steering.edits):
        place = f"{steering.name}.edits[{k}]"
        if edit.op not in OPS:
            raise SteeringError(f"{place}.op", f"is {edit.op!r}", f"Write {', '.join(OPS[:-1])} or {OPS[-1]}.")
        if not _is_finite(edit.value):
            raise SteeringError(f"{place}.value", f"is {edit.value!r}", "Write a finite number.")
        if isinstance(edit.latents, str) and edit.latents == ALL:
            continue
        if not _names_some(edit.latents):
            raise SteeringError(f"{place}.latents", f"is {edit.latents!r}", f"Name latents, or write {ALL}.")
        for latent in edit.latents:
            if not _is_index(latent, d_sae):
                raise SteeringError(f"{place}.latents", f"{latent!r} is no latent of an SAE that has {d_sae}",
                                    f"Name latents from 0 to {d_sae - 1}.")  # fmt: skip


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _names_some(latents: Any) -> bool:
    try:
        return not isinstance(latents, str) and len(latents) > 0
    except TypeError:  # one number, as (7) without its comma is
        return False


def _is_index(value: Any, n: int) -> bool:
    try:
        return not isinstance(value, (bool, np.bool_)) and 0 <= operator.index(value) < n
    except TypeError:
        return False


def _checked_box(box: Sequence[float], place: str) -> Sequence[float]:
    fine = len(box) == 4 and all(map(_is_finite, box)) and box[0] < box[2] and box[1] < box[3]
    if not fine:
        raise SteeringError(place, f"its box {tuple(box)} is empty", "Write x0, y0, x1, y1 with x0 < x1 and y0 < y1.")
    return box


# --- formulas ----------------------------------------------------------------------------------------------------


def changed(op: str, value: float, h: Any) -> Any:
    """What an operation makes of latents."""
    if op == "set":
        return h * 0 + value
    return h * value if op == "scale" else h + value


def edited(h_SK: Any, edits: Sequence[Edit], touched_E: Sequence[Any]) -> Any:
    """Latents after all edits; `touched_E` says with 1 and 0 where each applies, and broadcasts to (S, K)."""
    for edit, touched in zip(edits, touched_E, strict=True):
        # A weighted sum of two and not a step from one to the other: what is set is set to the last bit.
        h_SK = touched * changed(edit.op, edit.value, h_SK) + (1 - touched) * h_SK
    return h_SK


def delta(h_SK: Any, new_SK: Any, directions_KD: Any, row_scale: Any = 1.0) -> Any:
    """What an edit adds to the states."""
    return (new_SK - h_SK) @ directions_KD * row_scale


def worth(gradient_SD: Any, directions_LD: Any, row_scale: Any = 1.0) -> Any:
    """(S, L): what one unit more of each latent adds, to first order."""
    return gradient_SD * row_scale @ directions_LD.T


def predicted(op: str, value: float, present_L: Any, unit_L: Any) -> Any:
    """The change that an edit of each latent by itself makes, to first order; `present_L` is Σ_p h_p · unit_p and
    `unit_L` is Σ_p unit_p. Set to zero: minus what is present. Scaled by x: (x - 1) times it."""
    if op == "set":
        return value * unit_L - present_L
    return (value - 1) * present_L if op == "scale" else value * unit_L


# --- how well a prediction holds ---------------------------------------------------------------------------------


class Agreement(NamedTuple):
    spearman: float
    """rank correlation of predicted and measured; NaN where one of them is constant"""
    slope: float
    """measured per predicted, through the origin"""


def agreement(predicted_N: np.ndarray, measured_N: np.ndarray) -> Agreement:
    p, m = np.asarray(predicted_N, float), np.asarray(measured_N, float)
    ranks = [_ranks(x) - (len(x) - 1) / 2 for x in (p, m)]
    lengths = math.sqrt(float(ranks[0] @ ranks[0]) * float(ranks[1] @ ranks[1]))
    power = float(p @ p)
    spearman = float(ranks[0] @ ranks[1]) / lengths if lengths else math.nan
    return Agreement(spearman, float(p @ m) / power if power else math.nan)


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 0; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[place]
