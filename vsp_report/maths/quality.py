"""Quality: how good a dictionary's latents are, from what a survey tallied. Arrays in, arrays out.

Each of these says nothing alone: an untrained SAE of the same kind scores too, and well on some. They are read beside
its figures, computed by the same functions.

Axes: L latents, R references, N pictures, C concepts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_array, csr_array, vstack

from vsp_report.maths.tallies import EMBEDDING_BITS, Tally

FEWEST = 10
"""References that a label entropy is taken of; of fewer it would be small by chance."""


def label_entropy(references_LR: np.ndarray, strengths_LR: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """(L,): in nats, of the references' labels weighted by activation; NaN where fewer than ten have a label.

    0 is one label; log(R) is another one for each reference. `label_N` numbers each picture's label; -1 for none.
    """
    labels_LR = (
        np.where(references_LR >= 0, label_N[references_LR], -1) if len(label_N) else np.full_like(references_LR, -1)
    )
    entropy_L = np.full(len(references_LR), np.nan)
    for latent in np.flatnonzero((labels_LR >= 0).sum(1) >= FEWEST):
        there = labels_LR[latent] >= 0
        _, of = np.unique(labels_LR[latent, there], return_inverse=True)
        weights = np.bincount(of, weights=strengths_LR[latent, there])
        share = weights[weights > 0] / weights.sum()
        entropy_L[latent] = max(0.0, float(-(share * np.log(share)).sum()))
    return entropy_L


def common_label(
    references_LR: np.ndarray, strengths_LR: np.ndarray, label_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(L,) twice: the label that most of the references' activation has, and its share of it; -1 and 0 for none."""
    best_L, share_L = np.full(len(references_LR), -1, np.int64), np.zeros(len(references_LR))
    if not len(label_N):
        return best_L, share_L
    labels_LR = np.where(references_LR >= 0, label_N[references_LR], -1)
    for latent in np.flatnonzero((labels_LR >= 0).any(1)):
        there = labels_LR[latent] >= 0
        weights = np.bincount(labels_LR[latent, there], weights=strengths_LR[latent, there])
        best_L[latent] = int(weights.argmax())
        share_L[latent] = weights.max() / strengths_LR[latent].sum()
    return best_L, share_L


def monosemanticity(tally: Tally) -> np.ndarray:
    """(L,): how alike the pictures are that activate a latent: the mean cosine of all pairs of their embeddings,
    weighted by the product of their activations. NaN where fewer than two pictures activate it.

    In one pass, without the pairs: the squared length of the weighted sum of unit embeddings is the sum over all pairs
    and over each picture with itself, and the latter is the sum of squared activations.
    """
    sum_L, square_L = tally.strength_L.astype(float), tally.square_L.astype(float)
    resultant_L = np.square(tally.resultant_LD.astype(float) / 2.0**EMBEDDING_BITS).sum(1)
    pairs_L = np.square(sum_L) - square_L
    several_L = (tally.pictures_L > 1) & (pairs_L > 0)
    found_L = np.full(len(sum_L), np.nan)
    np.divide(resultant_L - square_L, pairs_L, out=found_L, where=several_L)
    return found_L.clip(-1, 1)


def uniqueness(references_LR: np.ndarray) -> np.ndarray:
    """(L,): 1 less the largest Jaccard overlap of a latent's references with another's; NaN without references.

    By a sparse product: what is counted are pictures that two latents share, not pairs of latents.
    """
    latent_A, _ = np.nonzero(references_LR >= 0)
    L, found_L = len(references_LR), np.full(len(references_LR), np.nan)
    if not len(latent_A):
        return found_L
    pictures, number_A = np.unique(references_LR[references_LR >= 0], return_inverse=True)
    has = csr_array((np.ones(len(latent_A), np.int32), (latent_A, number_A)), (L, len(pictures)))
    size_L = np.asarray(has.sum(1)).ravel()
    for rows in np.array_split(np.arange(L), 1 + L // 2048):
        shared = (has[rows] @ has.T).tocoo()
        apart = rows[shared.row] != shared.col
        row, column, count = shared.row[apart], shared.col[apart], shared.data[apart]
        overlap_K = np.zeros(len(rows))
        np.maximum.at(overlap_K, row, count / (size_L[rows[row]] + size_L[column] - count))
        found_L[rows] = np.where(size_L[rows] > 0, 1 - overlap_K, np.nan)
    return found_L


def coactivation(tally: Tally) -> np.ndarray:
    """(L, N): pictures that activate a latent and its neighbour, over those that activate either."""
    nearest_LN, active_L = tally.frame.neighbours_LN, tally.pictures_L
    either_LN = active_L[:, None] + active_L[nearest_LN] - tally.together_LN
    there = (nearest_LN >= 0) & (either_LN > 0)
    return np.divide(tally.together_LN, either_LN, out=np.zeros(nearest_LN.shape), where=there)


# --- concepts ----------------------------------------------------------------------------------------------------


def average_precisions(strengths: csr_array | np.ndarray, shown_NC: np.ndarray) -> np.ndarray:
    """(L, C): with what average precision each latent's activation ranks the pictures of each concept first.

    Pictures of equal activation count as one step, so a silent latent scores the share of the concept's pictures. NaN
    for a concept that no picture shows. The work goes with the active pairs.
    """
    columns = csc_array(strengths)
    N, L = columns.shape
    total_C = shown_NC.sum(0).astype(float)
    found_LC = np.tile(np.where(total_C > 0, total_C / max(N, 1), np.nan), (L, 1))
    shown_NC = shown_NC.astype(float)
    for latent in np.flatnonzero(np.diff(columns.indptr)):
        part = slice(columns.indptr[latent], columns.indptr[latent + 1])
        value_K, row_K = columns.data[part], columns.indices[part]
        order = np.argsort(-value_K, kind="stable")
        ranked = value_K[order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        hits_SC = shown_NC[row_K[order]].cumsum(0)[ends]
        seen_S = ends + 1
        if seen_S[-1] < N:  # all pictures on which it is silent are one last step
            hits_SC, seen_S = np.vstack([hits_SC, total_C]), np.append(seen_S, N)
        gained_SC = np.diff(hits_SC, axis=0, prepend=0)
        with np.errstate(invalid="ignore"):
            found_LC[latent] = (hits_SC / seen_S[:, None] * gained_SC).sum(0) / total_C
    return found_LC


def overlaps(tally: Tally, half: int) -> np.ndarray:
    """(L, C): patches that are active and show the concept, over those that are active or show it."""
    inside_LC = tally.inside_2LC[half]
    either_LC = tally.active_2L[half][:, None] + tally.area_2C[half] - inside_LC
    return np.divide(inside_LC, either_LC, out=np.zeros(inside_LC.shape), where=either_LC > 0)


class Finding(NamedTuple):
    """How one concept is found, all on the half of the pictures on which it was not chosen."""

    latent: int | None
    average_precision: float | None
    iou: float | None
    """None where patches have no truth of it"""


def findings(tally: Tally) -> tuple[list[Finding], np.ndarray]:
    """For each concept the latent that finds it best on the first half, measured on the second; and (L, C) average
    precisions over all pictures, by which latents are named."""
    strengths, shown_NC, halves = [], [], []
    for half in (0, 1):
        one, shown = tally.judged.of_half(half, tally.frame.latents)
        strengths.append(one)
        shown_NC.append(shown)
        halves.append(average_precisions(one, shown))
    overlap_LC, found = overlaps(tally, 1), []
    for concept in range(tally.frame.concepts):
        if not (shown_NC[0][:, concept].any() and shown_NC[1][:, concept].any()):
            found.append(Finding(None, None, None))
            continue
        latent = int(halves[0][:, concept].argmax())
        placed = tally.area_2C[1][concept] > 0
        found.append(Finding(latent, float(halves[1][latent, concept]),
                             float(overlap_LC[latent, concept]) if placed else None))  # fmt: skip
    return found, average_precisions(csr_array(vstack(strengths)), np.vstack(shown_NC))
