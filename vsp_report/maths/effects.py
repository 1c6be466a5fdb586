"""Effects: how strong, how sure. Arrays in, arrays out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def average_precision(scores_NK: np.ndarray, there_N: np.ndarray) -> np.ndarray:
    """(K,): the average precision with which each column of scores ranks the true rows first.

    Rows of equal score count as one step, so that a column of zeros scores the share of true rows.
    """
    truth = np.asarray(there_N, dtype=bool)
    if not truth.any():
        return np.full(scores_NK.shape[1], np.nan)
    order = np.argsort(-scores_NK, axis=0, kind="stable")
    ranked = np.take_along_axis(scores_NK, order, axis=0)
    hits = truth[order].cumsum(axis=0)
    precision = hits / np.arange(1, len(truth) + 1)[:, None]
    last = np.ones_like(ranked, dtype=bool)
    last[:-1] = ranked[:-1] != ranked[1:]
    gained = np.zeros(scores_NK.shape[1])
    for k in range(scores_NK.shape[1]):
        ends = np.flatnonzero(last[:, k])
        steps = np.diff(np.concatenate([[0], hits[ends, k]]))
        gained[k] = (precision[ends, k] * steps).sum()
    return gained / truth.sum()


# --- matched controls --------------------------------------------------------------------------------------------
# A model that answers greedily gives the same change twice, so there is no noise of measurement to be sure against.
# What might as well have come out otherwise is which latents were taken. So a change is compared with the changes
# that other latents make: as many, active in the same image, about as strong and about as widespread.

NEAREST = 16
"""Each control latent is drawn from this many that are most like the one it stands for."""


ROUNDING = 1e-5


class Matched(NamedTuple):
    """Sets of latents that stand in for a chosen one."""

    sets: tuple[tuple[int, ...], ...]
    mass_ratio: float
    """mean activation mass of a set against the chosen latents'; 1 is a perfect match, below 1 is weaker"""


def matched_sets(
    chosen: Sequence[int], mass_L: np.ndarray, frequency_L: np.ndarray, draws: int, seed: int,
    apart_from: Sequence[int] = (),
) -> Matched:  # fmt: skip
    """`draws` random sets of active latents, each latent like one of `chosen` in activation mass and frequency.

    `mass_L` and `frequency_L` are 0 for latents that are not active in the image, and those are never drawn; nor are
    the chosen ones, nor `apart_from`. Likeness is measured in logarithms, mass against its spread and frequency
    against its own. No sets where there are not enough others.
    """
    mass_L, frequency_L = np.asarray(mass_L, float), np.asarray(frequency_L, float)
    taken = {int(k) for k in (*chosen, *apart_from)}
    pool = np.array([k for k in np.flatnonzero(mass_L > 0) if int(k) not in taken], int)
    # One that is not active in the image has no counterpart to match: an edit of it acts on zeros.
    real = [int(k) for k in chosen if mass_L[k] > 0]
    if not real or len(pool) < 2 * len(real):
        return Matched((), math.nan)
    spread = [max(float(np.log(x_L[pool]).std()), 1e-9) for x_L in (mass_L, frequency_L)]
    nearest = []
    for latent in real:
        apart = sum(np.abs(np.log(x_L[pool] / x_L[latent])) / wide
                    for x_L, wide in zip((mass_L, frequency_L), spread, strict=True))  # fmt: skip
        nearest.append(pool[np.argsort(apart, kind="stable")])
    generator, sets = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn: list[int] = []
        # In an order of chance, so that no latent always has first choice.
        for place in generator.permutation(len(real)):
            free = [int(k) for k in nearest[place][: NEAREST + len(drawn)] if int(k) not in drawn][:NEAREST]
            drawn.append(free[int(generator.integers(len(free)))])
        sets.append(tuple(sorted(drawn)))
    masses = [mass_L[list(s)].sum() for s in sets]
    return Matched(tuple(sets), float(np.mean(masses) / mass_L[real].sum()) if sets else math.nan)


def permutation_p(change: float, controls_N: Sequence[float]) -> float | None:
    """(1 + controls at least as far from zero) / (1 + controls): never zero; None without controls."""
    controls_N = np.asarray(controls_N, float)
    if not len(controls_N):
        return None
    # Equal up to the rounding of single precision is equal.
    as_far = np.abs(controls_N) >= abs(change) - ROUNDING * max(1.0, abs(change))
    return float((1 + as_far.sum()) / (1 + len(controls_N)))


def beyond_controls(change: float, controls_N: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The change, give or take how far its controls reach: what is the chosen latents' own, and no matter of chance.

    It is the permutation test turned round: a shift lies inside if, taken off the change, what is left is no further
    from zero than `level` of the controls, so that zero lies outside exactly where p is at most 1 - level. A model
    that answers greedily has no other spread: an interval over repeated runs would have no width, and one over
    other pictures would be about another question. None where too few were drawn for that level: 19 for 95 %.
    """
    ordered_N = np.sort(np.abs(np.asarray(controls_N, float)))[::-1]
    rank = math.floor((1 - level) * (len(ordered_N) + 1) + 1e-9)
    if rank < 1:
        return None
    reach = float(ordered_N[rank - 1])
    return float(change - reach), float(change + reach)


def flip_share(margin: float, changes_N: Sequence[float]) -> float | None:
    """The share of changes that take a margin to the other side of zero."""
    changes_N = np.asarray(changes_N, float)
    return float(((margin + changes_N > 0) != (margin > 0)).mean()) if len(changes_N) else None


def flip_point(factors_N: Sequence[float], margins_N: Sequence[float], origin: float = 1.0) -> float | None:
    """Where a margin first changes its side, going away from `origin`; the nearer of both directions.

    Between two strengths that were measured, the crossing is taken where a straight line has it. The margin at the
    origin is that of the nearest strength measured, if the origin itself was not.
    """
    points = sorted(zip(map(float, factors_N), map(float, margins_N), strict=True))
    if not points:
        return None
    start = min(points, key=lambda point: (abs(point[0] - origin), point[0]))
    crossings = []
    for side in ([p for p in points if p[0] >= start[0]], [p for p in points if p[0] <= start[0]][::-1]):
        for (x0, y0), (x1, y1) in itertools.pairwise(side):
            if (y0 > 0) != (y1 > 0):
                crossings.append(x0 + (x1 - x0) * y0 / (y0 - y1) if y0 != y1 else x1)
                break
    return min(crossings, key=lambda x: abs(x - origin), default=None)
