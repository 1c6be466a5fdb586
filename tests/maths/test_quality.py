"""Average precision: laws, and its definition step by step."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from vsp_report.maths.quality import average_precisions


def by_definition(scores_N: np.ndarray, there_N: np.ndarray) -> float:
    """Mean over thresholds: for every distinct score from above, precision times the recall it adds."""
    total, recalled = 0.0, 0.0
    for threshold in sorted(set(scores_N), reverse=True):
        chosen = scores_N >= threshold
        recall = (chosen & there_N).sum() / there_N.sum()
        total += (recall - recalled) * (chosen & there_N).sum() / chosen.sum()
        recalled = recall
    return total


def found(scores_NL: np.ndarray, there_NC: np.ndarray) -> np.ndarray:
    return average_precisions(csr_array(scores_NL), there_NC)


def test_average_precision_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = np.round(rng.gamma(0.4, size=(60, 5)), 1)  # many ties, many zeros
        there = rng.random((60, 3)) < 0.2
        there[0] = True
        expected = [[by_definition(column, shown) for shown in there.T] for column in scores.T]
        np.testing.assert_allclose(found(scores, there), expected)


def test_a_perfect_latent_a_silent_one_and_a_reversed_one() -> None:
    there = np.array([True, True, False, False, False, False])
    scores = np.stack([there * 1.0, np.zeros(6), np.arange(6.0)], axis=1)
    perfect, silent, reversed_ = found(scores, there[:, None])[:, 0]
    assert perfect == 1
    assert silent == pytest.approx(2 / 6)
    assert reversed_ < 0.4


def test_the_order_of_pictures_is_nothing() -> None:
    rng = np.random.default_rng(1)
    scores, there = rng.integers(0, 4, size=(50, 3)).astype(float), rng.random((50, 2)) < 0.3
    order = rng.permutation(50)
    np.testing.assert_allclose(found(scores, there), found(scores[order], there[order]))


def test_what_no_picture_shows_has_no_precision() -> None:
    assert np.isnan(found(np.ones((4, 2)), np.zeros((4, 1), bool))).all()
