"""Heatmap: which latents the token-latent heatmap shows, how it is scaled, and which of them belong together.

The paper's steps, in its order: latents that are active everywhere are left out; every token brings its strongest
latents; the union of them is clustered by how alike they are across tokens; and what is shown is scaled, by default
each latent to its own largest value.

Two columns are near by correlation, where only the shape of their curve over the tokens counts, or by Euclidean
distance of the curves as they are shown. A column that is the same at every token correlates with nothing: it is at
distance 1 of all others. Hierarchical clusters join by average distance, and their leaves are turned so that
neighbours are as near as the tree allows. k-means starts from a seed, several times, and keeps the tightest result;
for correlation it runs on centred columns of length one, whose squared distances are 2 (1 - r).

Axes: T tokens, L latents (columns), K clusters, D distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

NORMALISATIONS = ("none", "row", "column")
CLUSTERINGS = tuple((how, near) for how in ("hierarchical", "k-means") for near in ("correlation", "euclidean"))
STARTS = 8
"""k-means runs from so many seeded starts."""
ROUNDS = 100


class Grouping(NamedTuple):
    order_L: np.ndarray
    """columns from left to right"""
    cluster_L: np.ndarray
    """of every column, in the order in which the columns came: from 0, by first place from the left"""


# --- which latents -----------------------------------------------------------------------------------------------


def noisy(frequency_L: np.ndarray, mean_L: np.ndarray | None = None, *, share: float = 0.02) -> np.ndarray:
    """(L,): latents that are among the top `share` by how often they are active or, given it, by mean activation.

    The mean is for statistics of many images, as in the paper. Of one image alone it would leave out the very
    latents that are strong because of what the image shows; there, only those that are on everywhere are noise.
    Latents that tie with one inside the share are only left out if all of them fit.
    """
    out_L = np.zeros(len(frequency_L), bool)
    many = int(share * len(frequency_L))
    for axis in (frequency_L, mean_L):
        if axis is not None and many:
            ranked = np.sort(np.asarray(axis, float))[::-1]
            limit = ranked[many] if many < len(ranked) else -np.inf
            out_L |= np.asarray(axis, float) > limit
    return out_L


def chosen(values_TL: np.ndarray, top: int, left_out_L: np.ndarray | None = None) -> np.ndarray:
    """Columns, ascending, that are among some token's `top` largest; never one that is zero there."""
    values_TL = np.nan_to_num(np.asarray(values_TL, float))
    if left_out_L is not None:
        values_TL = np.where(left_out_L, 0.0, values_TL)
    found: set[int] = set()
    for row_L in values_TL:
        best = np.argsort(-row_L, kind="stable")[:top]
        found.update(int(column) for column in best if row_L[column] > 0)
    return np.array(sorted(found), int)


# --- how it is scaled --------------------------------------------------------------------------------------------


def normalised(values_TL: np.ndarray, how: str) -> np.ndarray:
    """Each row, or each column, to its own largest value; a row or column of zeros stays zero."""
    values_TL = np.asarray(values_TL, float)
    if how not in NORMALISATIONS:
        raise ValueError(f"normalise is {how!r}; known are {', '.join(NORMALISATIONS)}")
    if how == "none" or not values_TL.size:
        return values_TL
    largest = np.abs(values_TL).max(axis=1 if how == "row" else 0, keepdims=True)
    return np.divide(values_TL, largest, out=np.zeros_like(values_TL), where=largest > 0)


# --- what belongs together ---------------------------------------------------------------------------------------


def grouped(values_TL: np.ndarray, how: str, near: str, k: int, seed: int = 0) -> Grouping:
    """The columns in order, and the cluster of each. `values_TL` as they are shown; at most `k` clusters."""
    if (how, near) not in CLUSTERINGS:
        raise ValueError(f"{how!r} by {near!r} is not known; known are {CLUSTERINGS}")
    values_TL = np.asarray(values_TL, float)
    L = values_TL.shape[1]
    if L < 3 or k >= L:
        order_L = np.arange(L) if L < 3 else _leaves(distances(values_TL, near))
        alike = np.arange(L) if k >= L else np.zeros(L, int)
        return Grouping(order_L, _renumbered(alike, order_L))
    distances_D = distances(values_TL, near)
    tree = linkage(distances_D, "average")
    order_L = leaves_list(optimal_leaf_ordering(tree, distances_D))
    if how == "hierarchical":
        return Grouping(order_L, _renumbered(fcluster(tree, k, "maxclust"), order_L))
    points_LT = (_unit(values_TL) if near == "correlation" else values_TL).T
    found_L = k_means(points_LT, k, seed)
    # Clusters stand where the tree has their middle, and inside a cluster the tree's order holds.
    place_L = np.empty(L, int)
    place_L[order_L] = np.arange(L)
    middle_L = np.array([np.median(place_L[found_L == cluster]) for cluster in found_L])
    order_L = np.lexsort((place_L, found_L, middle_L))
    return Grouping(order_L, _renumbered(found_L, order_L))


def distances(values_TL: np.ndarray, near: str) -> np.ndarray:
    """(L (L - 1) / 2,): between all columns, in scipy's condensed order."""
    values_TL = np.asarray(values_TL, float)
    if near == "correlation":
        unit_TL = _unit(values_TL)
        square_LL = 1.0 - unit_TL.T @ unit_TL
    else:
        squared_L = (values_TL**2).sum(0)
        square_LL = np.sqrt((squared_L[:, None] + squared_L - 2 * values_TL.T @ values_TL).clip(0))
    square_LL = (square_LL + square_LL.T) / 2
    np.fill_diagonal(square_LL, 0.0)
    return squareform(square_LL.clip(0), checks=False)


def k_means(points_LT: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """(L,): the cluster of each point; the same for a seed on every machine."""
    generator, best, least = np.random.default_rng(seed), np.zeros(len(points_LT), int), np.inf
    for _ in range(STARTS):
        centres_KT = _far_apart(points_LT, k, generator)
        found_L = np.full(len(points_LT), -1)
        for _ in range(ROUNDS):
            apart_LK = _squared(points_LT, centres_KT)
            nearest_L = apart_LK.argmin(1)
            if (nearest_L == found_L).all():
                break
            found_L = nearest_L
            # A centre that lost all its points stays where it is.
            centres_KT = np.stack([points_LT[found_L == c].mean(0) if (found_L == c).any() else centres_KT[c]
                                   for c in range(len(centres_KT))])  # fmt: skip
        spread = float(apart_LK.min(1).sum())
        if spread < least - 1e-12:
            best, least = found_L, spread
    return best


def _far_apart(points_LT: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """Starting centres: each next one by chance in proportion to its squared distance from those before."""
    centres = [points_LT[generator.integers(len(points_LT))]]
    while len(centres) < k:
        away_L = _squared(points_LT, np.stack(centres)).min(1)
        if away_L.sum() <= 1e-18:
            break
        centres.append(points_LT[generator.choice(len(points_LT), p=away_L / away_L.sum())])
    return np.stack(centres)


def _squared(points_LT: np.ndarray, centres_KT: np.ndarray) -> np.ndarray:
    crossed_LK = (points_LT**2).sum(1)[:, None] + (centres_KT**2).sum(1) - 2 * points_LT @ centres_KT.T
    return crossed_LK.clip(0)


def _unit(values_TL: np.ndarray) -> np.ndarray:
    """Columns centred and of length one; a constant column is zero."""
    centred_TL = values_TL - values_TL.mean(0)
    length_L = np.linalg.norm(centred_TL, axis=0)
    real_L = length_L > 1e-12 * np.maximum(1e-300, np.abs(values_TL).max(0, initial=0.0))
    return np.divide(centred_TL, length_L, out=np.zeros_like(centred_TL), where=real_L)


def _leaves(distances_D: np.ndarray) -> np.ndarray:
    return leaves_list(optimal_leaf_ordering(linkage(distances_D, "average"), distances_D))


def _renumbered(cluster_L: Sequence[int], order_L: np.ndarray) -> np.ndarray:
    """From 0, by first place from the left."""
    cluster_L = np.asarray(cluster_L)
    numbers = {old: new for new, old in enumerate(dict.fromkeys(cluster_L[order_L].tolist()))}
    return np.array([numbers[c] for c in cluster_L.tolist()], int)
