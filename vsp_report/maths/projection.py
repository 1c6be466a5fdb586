"""Projection: decoder directions to a map of two dimensions, its dense parts, and each latent's nearest others.

UMAP is slow to begin, because it compiles itself (a quarter of a minute, a minute from 4096 latents on), and then takes
seconds for thousands of latents.
With a seed it runs on one core and gives the same map each time on one machine; another machine's may differ.
Clusters are found on the map by density (HDBSCAN), so latents between them belong to none.

Axes: L latents, D width, N neighbours.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

NEIGHBOURS, DISTANCE = 15, 0.1
"""UMAP's own defaults."""
SLOW = 4096
"""Of more latents than this UMAP seeks neighbours by descent, whose code takes long to compile."""
COMPILING_SECONDS, COMPILING_SLOW_SECONDS, SECONDS_EACH = 15.0, 40.0, 0.0005
"""Measured on one core; the first map of a process compiles."""
FEWEST = 4
"""Fewer points than that have no map."""
BLOCK = 1024


class Nearest(NamedTuple):
    latents_LN: np.ndarray
    """int32, the nearest first; -1 where there are no more"""
    cosines_LN: np.ndarray
    """float32; 0 where there is none"""


def nearest(directions_LD: np.ndarray, count: int) -> Nearest:
    """For each latent the others of most similar direction."""
    L = len(directions_LD)
    length_L = np.linalg.norm(directions_LD, axis=1)
    unit_LD = np.asarray(directions_LD / np.maximum(length_L, np.finfo(np.float32).tiny)[:, None], np.float32)
    latents_LN, cosines_LN = np.full((L, count), -1, np.int32), np.zeros((L, count), np.float32)
    most = min(count, L)
    for start in range(0, L, BLOCK) if most else ():
        rows = np.arange(start, min(start + BLOCK, L))
        cosines = unit_LD[rows] @ unit_LD.T
        cosines[rows - start, rows] = -np.inf
        best = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        value = np.take_along_axis(cosines, best, 1)
        order = np.lexsort((best, -value), axis=1)
        best, value = np.take_along_axis(best, order, 1), np.take_along_axis(value, order, 1)
        there = np.isfinite(value)  # a latent itself is no neighbour of its own
        latents_LN[rows, :most] = np.where(there, best, -1)
        cosines_LN[rows, :most] = np.where(there, value, 0)
    return Nearest(latents_LN, cosines_LN)


def first_of(among_L: np.ndarray, latents_LN: np.ndarray, count: int, *figures_LN: np.ndarray) -> list[np.ndarray]:
    """Of each latent's neighbours the first `count` that are `among_L`, and their figures; -1 and 0 where there are no
    more."""
    kept_LN = (latents_LN >= 0) & among_L[latents_LN]
    # Those that stay move to the front, in their order.
    order = np.argsort(~kept_LN, axis=1, kind="stable")[:, :count]
    kept = np.take_along_axis(kept_LN, order, 1)
    return [np.where(kept, np.take_along_axis(of, order, 1), none).astype(of.dtype)
            for of, none in ((latents_LN, -1), *((figure, 0) for figure in figures_LN))]  # fmt: skip


def seconds_for(latents: int) -> float:
    """About how long a map of so many takes, if it is the first one of a process."""
    if latents < FEWEST:
        return 0.0
    return (COMPILING_SLOW_SECONDS if latents > SLOW else COMPILING_SECONDS) + SECONDS_EACH * latents


def map_of(directions_LD: np.ndarray, seed: int = 0) -> np.ndarray:
    """(L, 2) from 0 to 1: similar directions lie near each other."""
    if len(directions_LD) < FEWEST:
        return np.full((len(directions_LD), 2), 0.5, np.float32)
    from threadpoolctl import threadpool_limits

    # Numba, under UMAP, starts OpenMP's threads and leaves their number changed, in torch too: whatever this process
    # computed afterwards would be added up in another order. On leaving, the numbers are as they were.
    with warnings.catch_warnings(), threadpool_limits(None):
        # of itself: that it compiles, that a seed means one core, that few points have few neighbours
        warnings.simplefilter("ignore")
        import umap

        made = umap.UMAP(
            n_neighbors=min(NEIGHBOURS, len(directions_LD) - 1), min_dist=DISTANCE, metric="cosine", random_state=seed,
            n_jobs=1, init="spectral" if len(directions_LD) > 4 * NEIGHBOURS else "random",
        )  # fmt: skip
        found_L2 = np.asarray(made.fit_transform(np.asarray(directions_LD, np.float32)), float)
    low, high = found_L2.min(0), found_L2.max(0)
    return ((found_L2 - low) / np.maximum(high - low, 1e-9)).astype(np.float32)


def clusters_of(map_L2: np.ndarray) -> np.ndarray:
    """(L,): the dense part that each point belongs to, from the largest down, or -1."""
    fewest = max(5, len(map_L2) // 200)
    if len(map_L2) < 2 * fewest:
        return np.full(len(map_L2), -1)
    from sklearn.cluster import HDBSCAN

    # The leaves of the tree, not its most lasting branches: those may be two halves of the whole map.
    found_L = HDBSCAN(min_cluster_size=fewest, min_samples=5, cluster_selection_method="leaf", copy=True).fit_predict(
        np.asarray(map_L2, float)
    )
    sizes = np.bincount(found_L[found_L >= 0]) if (found_L >= 0).any() else np.zeros(0, int)
    place = np.empty(len(sizes), int)
    place[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return np.where(found_L >= 0, place[found_L] if len(sizes) else -1, -1)
