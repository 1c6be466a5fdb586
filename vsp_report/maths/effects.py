"""Effects: how strong, how sure. Arrays in, arrays out."""

from __future__ import annotations

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
