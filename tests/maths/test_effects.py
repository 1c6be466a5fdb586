"""Effects against slow, independent references."""

import numpy as np
import pytest

from vsp_report.maths.effects import average_precision


def by_definition(scores, there) -> float:
    """Mean over thresholds: for every distinct score from above, precision times the recall it adds."""
    total, recalled = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        recall = (chosen & there).sum() / there.sum()
        total += (recall - recalled) * (chosen & there).sum() / chosen.sum()
        recalled = recall
    return total


def test_average_precision_is_what_its_definition_says():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = np.round(rng.gamma(0.4, size=(60, 5)), 1)  # many ties, many zeros
        there = rng.random(60) < 0.2
        there[0] = True
        expected = [by_definition(scores[:, k], there) for k in range(5)]
        assert average_precision(scores, there) == pytest.approx(expected)


def test_a_perfect_column_a_blind_one_and_a_reversed_one():
    there = np.array([True, True, False, False, False, False])
    scores = np.stack([there * 1.0, np.zeros(6), np.arange(6.0)], axis=1)
    perfect, blind, reversed_ = average_precision(scores, there)
    assert perfect == 1
    assert blind == pytest.approx(2 / 6)
    assert reversed_ < 0.4


def test_the_order_of_rows_is_nothing():
    rng = np.random.default_rng(1)
    scores, there = rng.integers(0, 4, size=(50, 3)).astype(float), rng.random(50) < 0.3
    order = rng.permutation(50)
    assert average_precision(scores, there) == pytest.approx(average_precision(scores[order], there[order]))


def test_nothing_there_has_no_precision():
    assert np.isnan(average_precision(np.ones((4, 2)), np.zeros(4, bool))).all()
