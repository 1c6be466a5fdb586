"""Heatmap: laws of what is chosen, scaled and grouped; then slow references; then planted groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vsp_report.maths import heatmap
from vsp_report.maths.heatmap import CLUSTERINGS, chosen, distances, grouped, k_means, noisy, normalised


@pytest.fixture
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Three kinds of curves over eight tokens, twelve columns of each, of very different heights; shuffled."""
    generator = np.random.default_rng(3)
    shapes_TK = np.zeros((8, 3))
    shapes_TK[0:3, 0], shapes_TK[3:5, 1], shapes_TK[5:8, 2] = 1, 1, 1
    kind_L = generator.permutation(np.repeat(np.arange(3), 12))
    values_TL = shapes_TK[:, kind_L] * np.exp(generator.normal(0, 1.5, 36))
    return values_TL + 0.01 * values_TL.max(0) * generator.random((8, 36)), kind_L


# --- which latents -----------------------------------------------------------------------------------------------


def test_noise_is_the_top_share_of_either_axis() -> None:
    frequency_L, mean_L = np.arange(100.0), np.arange(100.0)[::-1]
    assert np.flatnonzero(noisy(frequency_L, share=0.02)).tolist() == [98, 99]
    assert np.flatnonzero(noisy(frequency_L, mean_L, share=0.02)).tolist() == [0, 1, 98, 99]


@pytest.mark.parametrize("share", [0.0, 0.005])
def test_a_share_of_less_than_one_latent_leaves_nothing_out(share: float) -> None:
    assert not noisy(np.arange(100.0), share=share).any()


def test_latents_that_tie_across_the_limit_stay() -> None:
    assert not noisy(np.ones(100), share=0.02).any()
    assert noisy(np.array([1.0, 1, 5, 5, 5]), share=0.6).sum() == 3


def test_chosen_is_the_union_of_every_tokens_strongest() -> None:
    generator = np.random.default_rng(0)
    values_TL = generator.random((5, 40)) * (generator.random((5, 40)) < 0.4)
    left_out_L = generator.random(40) < 0.2
    expected = set()
    for row in values_TL:
        order = sorted((-value, column) for column, value in enumerate(row) if value > 0 and not left_out_L[column])
        expected |= {column for _, column in order[:6]}
    assert chosen(values_TL, 6, left_out_L).tolist() == sorted(expected)


def test_chosen_is_between_k_and_n_times_k_columns_and_never_a_silent_one() -> None:
    values_TL = np.random.default_rng(1).random((4, 50)) + 0.1
    assert 7 <= len(chosen(values_TL, 7)) <= 28
    assert chosen(np.tile(values_TL[:1], (4, 1)), 7).size == 7
    values_TL[:, 10:] = 0
    assert chosen(values_TL, 20).tolist() == list(range(10))
    assert chosen(np.zeros((3, 5)), 4).size == 0


def test_a_token_without_attention_brings_nothing() -> None:
    values_TL = np.array([[np.nan] * 3, [0.0, 2.0, 1.0]])
    assert chosen(values_TL, 1).tolist() == [1]


# --- how it is scaled --------------------------------------------------------------------------------------------


def test_normalising_scales_to_the_largest_and_keeps_zeros() -> None:
    values_TL = np.array([[1.0, 0, 4], [2, 0, 1]])
    assert normalised(values_TL, "none").tolist() == values_TL.tolist()
    assert normalised(values_TL, "column").tolist() == [[0.5, 0, 1], [1, 0, 0.25]]
    assert normalised(values_TL, "row").tolist() == [[0.25, 0, 1], [1, 0, 0.5]]
    with pytest.raises(ValueError, match="known are"):
        normalised(values_TL, "columns")


@pytest.mark.parametrize("how", heatmap.NORMALISATIONS)
def test_normalising_twice_is_normalising_once(how: str) -> None:
    once = normalised(np.random.default_rng(2).random((6, 9)), how)
    assert np.allclose(normalised(once, how), once)


# --- what belongs together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("near", ["correlation", "euclidean"])
def test_distances_are_what_their_definition_says(near: str) -> None:
    values_TL = np.random.default_rng(4).random((6, 7))
    values_TL[:, 3] = 2.5
    told = []
    for i, j in itertools.combinations(range(7), 2):
        a, b = values_TL[:, i], values_TL[:, j]
        if near == "euclidean":
            told.append(np.sqrt(((a - b) ** 2).sum()))
        else:
            told.append(1.0 if 3 in (i, j) else 1 - np.corrcoef(a, b)[0, 1])
    assert np.allclose(distances(values_TL, near), told)


@pytest.mark.parametrize(("how", "near"), CLUSTERINGS)
def test_a_grouping_is_a_permutation_with_clusters_in_one_piece(how: str, near: str) -> None:
    values_TL = np.random.default_rng(5).random((5, 23))
    order_L, cluster_L = grouped(values_TL, how, near, 5)
    assert sorted(order_L) == list(range(23)) and len(cluster_L) == 23
    seen = cluster_L[order_L]
    runs = [c for c, _ in itertools.groupby(seen)]
    assert runs == list(range(len(runs))) and len(runs) <= 5


@pytest.mark.parametrize(("how", "near"), CLUSTERINGS)
def test_planted_groups_are_found(how: str, near: str, planted: tuple[np.ndarray, np.ndarray]) -> None:
    values_TL, kind_L = planted
    shown_TL = values_TL if near == "correlation" else normalised(values_TL, "column")
    cluster_L = grouped(shown_TL, how, near, 3).cluster_L
    assert len(set(zip(cluster_L.tolist(), kind_L.tolist(), strict=True))) == 3


@pytest.mark.parametrize("how", ["hierarchical", "k-means"])
def test_correlation_does_not_see_height(how: str, planted: tuple[np.ndarray, np.ndarray]) -> None:
    values_TL, _ = planted
    heights_L = np.exp(np.random.default_rng(6).normal(0, 2, values_TL.shape[1]))
    before, after = (grouped(v, how, "correlation", 3).cluster_L for v in (values_TL, values_TL * heights_L))
    assert before.tolist() == after.tolist()


@pytest.mark.parametrize(("how", "near"), CLUSTERINGS)
def test_the_same_input_gives_the_same_grouping(how: str, near: str) -> None:
    values_TL = np.random.default_rng(7).random((6, 30))
    first, again = (grouped(values_TL, how, near, 4, seed=11) for _ in range(2))
    assert first.order_L.tolist() == again.order_L.tolist() and first.cluster_L.tolist() == again.cluster_L.tolist()


@pytest.mark.parametrize(("how", "near"), CLUSTERINGS)
@pytest.mark.parametrize("columns", [0, 1, 2, 3, 4])
def test_few_columns_are_grouped_too(how: str, near: str, columns: int) -> None:
    values_TL = np.random.default_rng(8).random((3, columns))
    order_L, cluster_L = grouped(values_TL, how, near, 3)
    assert sorted(order_L) == list(range(columns)) and len(cluster_L) == columns


@pytest.mark.parametrize(("how", "near"), CLUSTERINGS)
@pytest.mark.parametrize("tokens", [1, 2])
def test_one_token_or_constant_columns_are_no_fault(how: str, near: str, tokens: int) -> None:
    for values_TL in (np.ones((tokens, 6)), np.random.default_rng(9).random((tokens, 6))):
        assert sorted(grouped(values_TL, how, near, 3).order_L) == list(range(6))


def test_neighbours_are_nearer_than_strangers(planted: tuple[np.ndarray, np.ndarray]) -> None:
    values_TL, _ = planted
    order_L = grouped(values_TL, "hierarchical", "correlation", 3).order_L
    unit = heatmap._unit(values_TL)
    beside = np.mean([1 - unit[:, a] @ unit[:, b] for a, b in itertools.pairwise(order_L)])
    assert beside < 0.2 * distances(values_TL, "correlation").mean()


def test_k_means_is_as_tight_as_the_best_of_all_partitions() -> None:
    points = np.random.default_rng(10).random((9, 2))

    def spread(found: np.ndarray) -> float:
        return sum(((points[found == c] - points[found == c].mean(0)) ** 2).sum() for c in set(found.tolist()))

    best = min(spread(np.array([0, *rest])) for rest in itertools.product((0, 1), repeat=8) if any(rest))
    assert spread(k_means(points, 2)) == pytest.approx(best, rel=1e-9)


def test_k_means_of_equal_points_is_one_cluster() -> None:
    assert len(set(k_means(np.ones((7, 3)), 4).tolist())) == 1


def test_an_unknown_grouping_is_refused() -> None:
    with pytest.raises(ValueError, match="known are"):
        grouped(np.ones((2, 5)), "spectral", "correlation", 2)
