"""Projection: neighbours against the plain way; groups of directions stay groups on the map and as clusters."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from vsp_report.maths import projection


@pytest.fixture(scope="module")
def directions() -> np.ndarray:
    """Three groups of forty directions each."""
    generator = np.random.default_rng(0)
    centres = np.repeat(generator.normal(size=(3, 24)), 40, axis=0)
    return centres + 0.15 * generator.normal(size=(120, 24))


def test_neighbours_against_the_plain_way(directions: np.ndarray) -> None:
    directions = directions * np.random.default_rng(1).uniform(0.5, 2, (120, 1))
    found = projection.nearest(directions, 5)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    for k in range(120):
        order = [j for j in np.argsort(-(unit @ unit[k])) if j != k][:5]
        assert found.latents_LN[k].tolist() == order
        np.testing.assert_allclose(found.cosines_LN[k], unit[order] @ unit[k], atol=1e-6)


def test_neighbours_that_stay_keep_their_order_and_their_figures() -> None:
    latents = np.array([[1, 2, 3, -1], [3, 0, -1, -1], [1, 3, 0, -1], [2, 1, 0, -1]], np.int32)
    cosines, together = latents / np.float32(10), latents * 10.0
    found = projection.first_of(np.array([True, False, True, True]), latents, 2, cosines, together)
    assert found[0].tolist() == [[2, 3], [3, 0], [3, 0], [2, 0]] and found[0].dtype == np.int32
    np.testing.assert_array_equal(found[1], found[0] / np.float32(10))
    np.testing.assert_array_equal(found[2], found[0] * 10.0)
    found = projection.first_of(np.array([False, False, True, False]), latents, 2, cosines)
    assert found[0].tolist() == [[2, -1], [-1, -1], [-1, -1], [2, -1]]
    assert found[1].tolist() == [[np.float32(0.2), 0], [0, 0], [0, 0], [np.float32(0.2), 0]]


def test_where_there_are_few_others_there_are_few_neighbours(directions: np.ndarray) -> None:
    found = projection.nearest(directions[:3], 4)
    assert (found.latents_LN >= 0).sum(1).tolist() == [2, 2, 2]
    assert (projection.nearest(directions[:1], 4).latents_LN == -1).all()
    assert projection.nearest(directions, 0).latents_LN.shape == (120, 0)


def test_groups_stay_together_on_the_map(directions: np.ndarray) -> None:
    found = projection.map_of(directions, seed=3)
    assert found.min() == 0 and found.max() == 1 and np.isfinite(found).all()
    np.testing.assert_array_equal(found, projection.map_of(directions, seed=3))
    not_mixed(projection.clusters_of(found))


def not_mixed(clusters: np.ndarray) -> None:
    """Each cluster is of one group, and each group has one."""
    groups = [{k // 40 for k in np.flatnonzero(clusters == cluster)} for cluster in range(clusters.max() + 1)]
    assert all(len(group) == 1 for group in groups) and set.union(*groups) == {0, 1, 2}


def test_a_map_leaves_the_number_of_threads_as_it_was() -> None:
    """In a process of its own: numba starts its threads once."""
    code = ("import numpy, torch\nfrom vsp_report.maths.projection import map_of\n"
            "map_of(numpy.random.default_rng(0).normal(size=(60, 8)))\nprint(torch.get_num_threads())")  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | threads, capture_output=True, text=True)
    assert said.stdout == "1\n", said.stderr


def test_clusters_are_dense_parts_and_the_largest_comes_first() -> None:
    generator = np.random.default_rng(0)
    centres = np.repeat([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]], 40, axis=0)
    clusters = projection.clusters_of(centres + 0.02 * generator.normal(size=(120, 2)))
    not_mixed(clusters)
    sizes = np.bincount(clusters[clusters >= 0])
    assert (np.diff(sizes) <= 0).all() and sizes.sum() > 60


def test_too_few_for_a_map() -> None:
    assert projection.map_of(np.ones((2, 3))).tolist() == [[0.5, 0.5]] * 2
    assert projection.clusters_of(np.zeros((4, 2))).tolist() == [-1] * 4
