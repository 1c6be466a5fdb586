"""Naming: a name is what a cluster shares beyond chance; clusters by lot get none."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from vsp_report.maths.naming import DISCOVERY, borne, borne_by_references, shared_words


def tail(at_least: int, all_: int, bearing: int, drawn: int) -> float:
    """Of drawing so many bearers, counted out."""
    ways = sum(comb(bearing, k) * comb(all_ - bearing, drawn - k) for k in range(at_least, min(bearing, drawn) + 1))
    return ways / comb(all_, drawn)


def plain(cluster_L: np.ndarray, bears_LW: np.ndarray, rate: float) -> list[set[int]]:
    """The rule, the slow way: every word on every cluster."""
    L, C, W = len(cluster_L), int(cluster_L.max()) + 1, bears_LW.shape[1]
    worth = [w for w in range(W) if bears_LW[:, w].sum() >= 2]
    chances = {}
    for c in range(C):
        for w in worth:
            count = int(bears_LW[cluster_L == c, w].sum())
            chance = tail(count, L, int(bears_LW[:, w].sum()), int((cluster_L == c).sum()))
            chances[c, w] = chance if count >= 2 else 1.0
    order = sorted(chances.values())
    bound = max((p for n, p in enumerate(order, 1) if p <= rate * n / len(order)), default=-1)
    return [{w for w in worth if chances[c, w] <= bound and bears_LW[cluster_L == c, w].sum() >= 2} for c in range(C)]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_counting_out_gives(seed: int) -> None:
    chance = np.random.default_rng(seed)
    cluster_L, word_L = chance.integers(-1, 6, 150), chance.integers(-1, 9, 150)
    cluster_L[:6] = range(6)
    word_L[cluster_L == 2] = np.where(chance.random((cluster_L == 2).sum()) < 0.4, 7, word_L[cluster_L == 2])
    found = shared_words(cluster_L, borne(word_L, 9), 0.2)
    assert [{one.word for one in shared} for shared in found] == plain(cluster_L, borne(word_L, 9).toarray(), 0.2)
    for c, shared in enumerate(found):
        for one in shared:
            assert one.count == (word_L[cluster_L == c] == one.word).sum()
            assert one.everywhere == pytest.approx((word_L == one.word).mean())
            all_, drawn = (word_L == one.word).sum(), (cluster_L == c).sum()
            assert one.chance == pytest.approx(tail(one.count, 150, int(all_), int(drawn)))
        assert [one.chance for one in shared] == sorted(one.chance for one in shared)


def test_clusters_by_lot_have_no_names() -> None:
    """Words of very different frequency, and clusters that mean nothing: hardly a run gives any name."""
    chance = np.random.default_rng(0)
    word_L = np.where(chance.random(2000) < 0.2, chance.zipf(1.5, 2000) % 50, -1)
    cluster_L = chance.integers(-1, 40, 2000)
    named = [any(map(bool, shared_words(chance.permutation(cluster_L), borne(word_L, 50)))) for _ in range(60)]
    assert sum(named) <= 60 * DISCOVERY * 2


def test_one_good_label_names_no_cluster_and_a_frequent_word_none_either() -> None:
    cluster_L = np.repeat(np.arange(10), 30)
    word_L = np.full(300, -1)
    word_L[::3] = 0  # a third of all latents, in every cluster
    word_L[31] = 1  # the only good label of cluster 1
    word_L[61:69] = 2
    found = shared_words(cluster_L, borne(word_L, 3))
    assert [c for c, shared in enumerate(found) if shared] == [2] and found[2][0].word == 2


def test_a_latent_bears_what_many_of_its_references_are() -> None:
    references_LR = np.array([[0, 1, 2, 3], [0, 4, 5, 6], [4, 0, 1, -1], [-1, -1, -1, -1], [6, 6, 6, 6]])
    label_N = np.array([0, 0, 0, 1, 2, 2, -1])
    assert borne_by_references(references_LR, label_N, 3).toarray().tolist() == [
        [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0],
    ]  # fmt: skip


def test_where_nothing_is_known_nothing_is_named() -> None:
    assert shared_words(np.full(9, -1), borne(np.zeros(9, int), 1)) == []
    assert shared_words(np.zeros(9, int), borne(np.full(9, -1), 0)) == [[]]
    assert shared_words(np.zeros(9, int), borne_by_references(np.zeros((9, 2), int), np.zeros(0, int), 0)) == [[]]
