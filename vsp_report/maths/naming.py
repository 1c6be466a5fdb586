"""Naming: which words the latents of a cluster share more than chance would have it.

A cluster is named by a word that many of its latents bear, or not at all. Many is meant against all latents: drawn by
chance from them, as many latents as the cluster has would bear the word so often in few draws only (a hypergeometric
tail). Every word is tried on every cluster, so tails are held to a false discovery rate (Benjamini and Hochberg, 1995):
of all names that are given, about that share is chance. A word that is frequent everywhere so names nothing, and one
good label among thirty poor ones does not name thirty latents.

Axes: L latents, R references, N pictures, C clusters, W words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import hypergeom

DISCOVERY = 0.05
"""About this share of the names given is chance."""
FEWEST = 2
"""A word that one latent bears is not shared; a label that one reference bears is not the latent's."""
OFTEN = 0.25
"""A latent bears the label that this share of its references has."""


class Shared(NamedTuple):
    word: int
    count: int
    """of the cluster's latents bear it"""
    everywhere: float
    """the share of all latents that bear it"""
    chance: float
    """how often as many latents, drawn by chance, would bear it so often"""


def borne(word_L: np.ndarray, words: int) -> csr_array:
    """(L, W): by latents that have one word each, or none, which is -1."""
    named = np.flatnonzero(word_L >= 0)
    return csr_array((np.ones(len(named), np.int64), (named, word_L[named])), shape=(len(word_L), words))


def borne_by_references(references_LR: np.ndarray, label_N: np.ndarray, words: int) -> csr_array:
    """(L, W): by latents whose references have a label often enough. -1 is no reference, and no label."""
    L = len(references_LR)
    labels_LR = np.where(references_LR >= 0, label_N[references_LR], -1) if len(label_N) else references_LR * 0 - 1
    latent_E, place_E = np.nonzero(labels_LR >= 0)
    pairs, count = np.unique(latent_E * words + labels_LR[latent_E, place_E], return_counts=True)
    latents = pairs // max(words, 1)
    often = (count >= FEWEST) & (count >= OFTEN * (references_LR >= 0).sum(1)[latents])
    where = (latents[often], pairs[often] % max(words, 1))
    return csr_array((np.ones(int(often.sum()), np.int64), where), shape=(L, words))


def shared_words(cluster_L: np.ndarray, bears_LW: csr_array, rate: float = DISCOVERY) -> list[list[Shared]]:
    """For each cluster its words, the least likely by chance first. Of latents that all count: the dead are left out.

    `cluster_L`: -1 for none.
    """
    L, C = len(cluster_L), int(cluster_L.max(initial=-1)) + 1
    inside_CL = borne(cluster_L, C).T
    count_CW, size_C, all_W = (inside_CL @ bears_LW).toarray(), inside_CL.sum(1), bears_LW.sum(0)
    c_E, w_E = np.nonzero(count_CW >= FEWEST)
    chance_E = hypergeom.sf(count_CW[c_E, w_E] - 1, L, all_W[w_E], size_C[c_E])
    # Words that no cluster has often were tried on each, too.
    bound = _bound(chance_E, C * int((all_W >= FEWEST).sum()), rate)
    found: list[list[Shared]] = [[] for _ in range(C)]
    for e in np.lexsort((w_E, -count_CW[c_E, w_E], chance_E)).tolist():
        c, w = int(c_E[e]), int(w_E[e])
        if chance_E[e] <= bound:
            found[c].append(Shared(w, int(count_CW[c, w]), float(all_W[w] / L), float(chance_E[e])))
    return found


def _bound(chance_E: np.ndarray, tried: int, rate: float) -> float:
    """The largest tail that is still held for no chance."""
    sorted_E = np.sort(chance_E)
    passed = np.flatnonzero(sorted_E <= rate * np.arange(1, len(sorted_E) + 1) / max(tried, 1))
    return float(sorted_E[passed[-1]]) if len(passed) else -1.0
