"""Effects: how strong, how sure. Arrays in, arrays out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

# --- matched controls --------------------------------------------------------------------------------------------
# A model that answers greedily gives the same change twice, so there is no noise of measurement to be sure against.
# What might as well have come out otherwise is which latents were taken. So a change is compared with the changes
# that other latents make: as many, active in the same image, about as strong and about as widespread.

NEAREST = 16
"""Each control latent is drawn from this many that are most like the one it stands for."""
FEWEST = 19
"""With fewer sets to compare with, nothing can be sure at 5 %. A single latent has as many sets as there are latents
to draw from, so it is given this many."""
TRIES = 20
"""So many draws are made for each set that is wanted. Where there are few different ones, that finds all of them."""
ROUNDING = 1e-5

T = TypeVar("T")


class Part(NamedTuple):
    """Latents that are edited together, and what they are like in the part of the picture where that is done."""

    chosen: Sequence[int]
    mass_L: np.ndarray
    """the sum of each latent's activations there; 0 for one that is silent"""
    frequency_L: np.ndarray
    seed: int
    living_L: np.ndarray | None = None
    """for edits that act on silent latents too: those that are known to be active somewhere, of which as many silent
    ones as were chosen are drawn. None: what is chosen and silent has no counterpart"""


class Matched(NamedTuple):
    """Sets of latents that stand in for chosen ones."""

    sets: tuple[tuple[tuple[int, ...], ...], ...]
    """no two of them the same; in each, the latents of every part"""
    mass_ratio: float | None
    """mean activation mass of a set against the chosen latents'; 1 is a perfect match, below 1 is weaker, None where
    there are no sets or nothing that was chosen is active"""


def matched_sets(parts: Sequence[Part], draws: int, apart_from: Sequence[int] = ()) -> Matched:
    """At most `draws` random sets of latents, each active one like one of those chosen in activation mass and
    frequency, all of them different: the same set drawn twice is one control and not two.

    The chosen latents of all parts are never drawn, nor `apart_from`. Parts that share no chosen latent share no drawn
    one: what one part takes away another would not strengthen. Likeness is measured in logarithms, mass against its
    spread and frequency against its own. No sets where there are not enough others for some part.
    """
    taken = {int(k) for part in parts for k in part.chosen} | {int(k) for k in apart_from}
    replaced = sum(part.mass_L[k] > 0 or part.living_L is not None for part in parts for k in part.chosen)
    if not replaced:
        return Matched((), None)
    nearest = max(NEAREST, min(FEWEST, draws)) if replaced == 1 else NEAREST
    draws = min(draws, nearest) if replaced == 1 else draws
    sets = distinct(_together(parts, taken, nearest), draws)
    mine = sum(float(part.mass_L[k]) for part in parts for k in part.chosen)
    theirs = [sum(float(part.mass_L[k]) for part, one in zip(parts, drawn, strict=True) for k in one) for drawn in sets]
    return Matched(tuple(sets), float(np.mean(theirs)) / mine if sets and mine else None)


def distinct(drawn: Iterable[T], count: int) -> list[T]:
    """So many different ones, in the order in which they come first; fewer where there hardly are others."""
    found: dict[T, None] = {}
    for one in itertools.islice(drawn, TRIES * count):
        found.setdefault(one)
        if len(found) == count:
            break
    return list(found)


class _Pools(NamedTuple):
    """Whom a part's latents can be replaced by."""

    real: list[int]
    silent: int
    active: np.ndarray
    quiet: np.ndarray

    @classmethod
    def of(cls, part: Part, taken: set[int]) -> _Pools:
        # One that is silent in the picture has no counterpart among the active ones.
        real = [int(k) for k in part.chosen if part.mass_L[k] > 0]
        silent = len(part.chosen) - len(real) if part.living_L is not None else 0
        active = _untaken(part.mass_L > 0, taken)
        quiet = _untaken(part.living_L & (part.mass_L == 0), taken) if silent else active[:0]
        return cls(real, silent, active, quiet)

    def suffice(self, part: Part, rivals: Sequence[_Pools]) -> bool:
        """Twice as many as are needed, beside those that rivals may have drawn."""

        def lost(mine: np.ndarray) -> int:
            return sum(len(one.real) * np.isin(mine, one.active).any() + one.silent * np.isin(mine, one.quiet).any()
                       for one in rivals)  # fmt: skip

        if not self.real and not self.silent:
            return not len(part.chosen)
        return all(len(mine) >= 2 * needed + lost(mine) * bool(needed)
                   for needed, mine in ((len(self.real), self.active), (self.silent, self.quiet)))  # fmt: skip


def _together(parts: Sequence[Part], taken: set[int], nearest: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Sets for all parts, without end and with repetitions; none where there are not enough others for some part."""
    pools = [_Pools.of(part, taken) for part in parts]
    rivals = [[n for n, other in enumerate(parts[:place]) if not {*other.chosen} & {*part.chosen}]
              for place, part in enumerate(parts)]  # fmt: skip
    for part, mine, before in zip(parts, pools, rivals, strict=True):
        if not mine.suffice(part, [pools[n] for n in before]):
            return
    drawers = [_drawer(part, mine, nearest) for part, mine in zip(parts, pools, strict=True)]
    while True:
        drawn: list[tuple[int, ...]] = []
        for draw, before in zip(drawers, rivals, strict=True):
            drawn.append(draw({k for n in before for k in drawn[n]}))
        yield tuple(drawn)


def _drawer(part: Part, pools: _Pools, nearest: int) -> Callable[[set[int]], tuple[int, ...]]:
    """What draws a set for one part, without those that its rivals have."""
    mass_L, frequency_L = np.asarray(part.mass_L, float), np.asarray(part.frequency_L, float)
    pool, order = pools.active, []
    if pools.real:
        spread = [max(float(np.log(x_L[pool]).std()), 1e-9) for x_L in (mass_L, frequency_L)]
    for latent in pools.real:
        apart = sum(np.abs(np.log(x_L[pool] / x_L[latent])) / wide
                    for x_L, wide in zip((mass_L, frequency_L), spread, strict=True))  # fmt: skip
        order.append(pool[np.argsort(apart, kind="stable")].tolist())
    generator = np.random.default_rng(part.seed)

    def draw(elsewhere: set[int]) -> tuple[int, ...]:
        drawn: list[int] = []
        # In an order of chance, so that no latent always has first choice.
        for place in generator.permutation(len(order)):
            reach = nearest + len(drawn) + len(elsewhere)
            free = [k for k in order[place][:reach] if k not in drawn and k not in elsewhere][:nearest]
            drawn.append(free[int(generator.integers(len(free)))])
        if pools.silent:
            free = pools.quiet[~np.isin(pools.quiet, list(elsewhere))] if elsewhere else pools.quiet
            drawn += generator.choice(free, pools.silent, replace=False).tolist()
        return tuple(sorted(drawn))

    return draw


def _untaken(among_L: np.ndarray, taken: set[int]) -> np.ndarray:
    return np.array([k for k in np.flatnonzero(among_L) if int(k) not in taken], int)


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
