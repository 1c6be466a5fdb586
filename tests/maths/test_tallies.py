"""Tallies: laws of a monoid, and every figure against a plain, dense reference."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.maths.test_quality import by_definition
from vsp_report.maths import quality
from vsp_report.maths.tallies import BELOW, BINS, Entries, Explained, Frame, Tally, Truth, unit_for

PICTURES, PATCHES, LATENTS, CONCEPTS, WIDTH, NEAR, BATCH = 60, 9, 40, 5, 6, 3, 4
STATES = 7


def drawn(seed: int = 0) -> np.ndarray:
    """(pictures, patches, latents) of activations as they come: mostly zero, some equal, five latents dead."""
    generator = np.random.default_rng(seed)
    acts = generator.gamma(1.0, 0.7, (PICTURES, PATCHES, LATENTS)).astype(np.float32)
    acts[generator.random(acts.shape) < 0.93] = 0
    acts[..., 5:10] = np.round(acts[..., 5:10])  # equal activations, and so ties
    acts[..., -5:] = 0
    return acts


class World:
    """A survey small enough to be held as it is."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed + 1)
        self.acts = drawn(seed)
        embeddings = generator.normal(size=(PICTURES, WIDTH))
        self.embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        self.states = generator.normal(3.0, 2.0, (PICTURES, PATCHES, STATES))
        self.rebuilt = self.states + generator.normal(0, 0.5, self.states.shape)
        self.shows = generator.random((PICTURES, PATCHES, CONCEPTS)) < 0.15
        self.shows[..., -1] = False
        self.half = (np.arange(PICTURES) // 3) % 2
        nearest = np.stack([generator.permutation(LATENTS)[:NEAR] for _ in range(LATENTS)]).astype(np.int32)
        nearest[0, -1] = -1
        self.frame = Frame(LATENTS, unit_for(float(self.acts.max())), references=4, neighbours_LN=nearest,
                           width=WIDTH, concepts=CONCEPTS, states=STATES, state_unit=16.0)  # fmt: skip

    def batch(self, pictures: list[int]) -> tuple[Entries, np.ndarray, Truth]:
        acts = self.acts[pictures]
        picture, patch, latent = np.nonzero(acts)
        entries = Entries(np.array(pictures), np.full(len(pictures), PATCHES), picture, patch, latent, acts[acts > 0])
        row, concept = np.nonzero(self.shows[pictures].reshape(-1, CONCEPTS))
        truth = Truth(self.half[pictures], self.shows[pictures].any(1), row, concept)
        return entries, self.embeddings[pictures], truth

    def tally(self, pictures: list[int], size: int = BATCH) -> Tally:
        tally = Tally(self.frame)
        for start in range(0, len(pictures), size):
            entries, embeddings, truth = self.batch(pictures[start : start + size])
            tally.add(entries, embeddings_BD=embeddings, truth=truth,
                      explained=self.explained(pictures[start : start + size]))  # fmt: skip
        return tally

    def explained(self, pictures: list[int]) -> Explained:
        states, rebuilt = self.states[pictures], self.rebuilt[pictures]
        return Explained(states.sum(1), (states**2).sum((1, 2)), ((states - rebuilt) ** 2).sum((1, 2)))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def whole(world: World) -> Tally:
    return world.tally(list(range(PICTURES)))


def same(one: Tally, other: Tally) -> None:
    mine, theirs = one.arrays(), other.arrays()
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype and array.tobytes() == theirs[name].tobytes(), name


# --- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(100))
def test_any_grouping_in_any_order_gives_the_same_tally(world: World, whole: Tally, seed: int) -> None:
    chance = random.Random(seed)
    pictures = list(range(PICTURES))
    chance.shuffle(pictures)
    cuts = sorted(chance.sample(range(1, PICTURES), chance.randint(1, 8)))
    parts = [world.tally(pictures[a:b], chance.randint(1, 20)) for a, b in zip([0, *cuts], [*cuts, PICTURES],
                                                                              strict=True)]  # fmt: skip
    while len(parts) > 1:
        taken = [parts.pop(chance.randrange(len(parts))) for _ in range(min(len(parts), chance.randint(2, 3)))]
        parts.append(taken[0].merged(*taken[1:]))
    same(parts[0], whole)


def test_nothing_is_neutral(world: World, whole: Tally) -> None:
    same(whole.merged(Tally(world.frame)), whole)
    same(Tally(world.frame).merged(whole), whole)


def test_merging_leaves_its_parts_as_they_were(world: World) -> None:
    one, other = world.tally([0, 1, 2]), world.tally([3, 4])
    before = {name: array.copy() for name, array in one.arrays().items()}
    one.merged(other)
    assert all(np.array_equal(before[name], array) for name, array in one.arrays().items())


def test_a_tally_is_read_again_as_it_was_written(world: World, whole: Tally) -> None:
    again = Tally.of(world.frame, {name: array.copy() for name, array in whole.arrays().items()})
    same(again, whole)
    half = Tally.of(world.frame, world.tally(list(range(20))).arrays())
    same(half.merged(world.tally(list(range(20, PICTURES)))), whole)


def test_a_reference_is_a_picture_that_activates_the_latent(world: World, whole: Tally) -> None:
    pictures_LR, strengths_LR = whole.references.table(LATENTS, 4)
    strength = world.acts.max(1)
    for latent in range(LATENTS):
        mine = pictures_LR[latent][pictures_LR[latent] >= 0]
        assert len(set(mine.tolist())) == len(mine) == min(4, int((strength[:, latent] > 0).sum()))
        assert (strength[mine, latent] > 0).all()
    assert (strengths_LR[pictures_LR < 0] == 0).all() and (pictures_LR[-5:] == -1).all()


def test_no_batch_is_too_small_or_empty_of_activity(world: World) -> None:
    silent = Tally(Frame(LATENTS, 1.0))
    empty = np.zeros(0, np.int64)
    silent.add(Entries(np.array([7]), np.array([PATCHES]), empty, empty, empty, np.zeros(0, np.float32)))
    assert (silent.n_pictures, silent.n_patches, silent.mean_l0) == (1, PATCHES, 0.0)
    assert not silent.max_L.any() and (silent.references.table(LATENTS, 4)[0] == -1).all()


# --- against the plain way ---------------------------------------------------------------------------------------


def test_counts_means_and_maxima(world: World, whole: Tally) -> None:
    acts = world.acts.astype(float)
    on = acts.max(1) > 0
    np.testing.assert_array_equal(whole.pictures_L, on.sum(0))
    np.testing.assert_allclose(whole.frequency_L, on.mean(0))
    np.testing.assert_allclose(whole.patch_frequency_L, (acts > 0).mean((0, 1)))
    np.testing.assert_array_equal(whole.max_L, world.acts.max((0, 1)))
    np.testing.assert_allclose(whole.mean_overall_L, acts.mean((0, 1)), rtol=1e-6)
    expected = np.where(on.any(0), acts.mean(1).sum(0) / np.maximum(on.sum(0), 1), 0)
    np.testing.assert_allclose(whole.mean_active_L, expected, rtol=1e-6)
    assert whole.mean_l0 == pytest.approx((acts > 0).sum(2).mean())


def test_explained_variance_against_all_states(world: World, whole: Tally) -> None:
    states, rebuilt = (part.reshape(-1, STATES) for part in (world.states, world.rebuilt))
    unexplained = ((states - rebuilt) ** 2).sum() / ((states - states.mean(0)) ** 2).sum()
    assert whole.explained == pytest.approx(1 - unexplained, abs=1e-7)
    assert np.isnan(Tally(world.frame).explained)


def test_histogram(world: World, whole: Tally) -> None:
    edges = world.frame.edges
    assert len(edges) == BINS + 1 and np.all(np.diff(edges) > 0) and edges[2 * BELOW] == world.frame.unit
    for latent in range(LATENTS):
        values = world.acts[..., latent]
        inside = np.clip(values[values > 0], edges[0], np.nextafter(np.float32(edges[-1]), np.float32(0)))
        np.testing.assert_array_equal(whole.histogram_LH[latent], np.histogram(inside, edges)[0])


def test_values_beyond_the_bins_are_in_the_outer_ones() -> None:
    frame = Frame(1, 1.0)
    found = frame.bin_of(np.array([1e-30, 2.0**-16, 1.0, 1.5, 1e30], np.float32))
    assert found.tolist() == [0, 0, 2 * BELOW, 2 * BELOW + 1, BINS - 1]


def test_references_with_their_grids(world: World, whole: Tally) -> None:
    strength = world.acts.max(1)
    held, at = whole.references, 0
    for latent in range(LATENTS):
        order = sorted(range(PICTURES), key=lambda i: (-strength[i, latent], i))
        for picture in [i for i in order if strength[i, latent] > 0][:4]:
            assert (held.latent_A[at], held.picture_A[at]) == (latent, picture)
            start = held.count_A[:at].sum()
            grid = np.zeros(PATCHES, np.float32)
            grid[held.patch_G[start : start + held.count_A[at]]] = held.value_G[start : start + held.count_A[at]]
            np.testing.assert_array_equal(grid, world.acts[picture, :, latent])
            at += 1
    assert at == len(held.latent_A)


def test_monosemanticity_against_all_pairs(world: World, whole: Tally) -> None:
    strength, likeness = world.acts.max(1).astype(float), world.embeddings @ world.embeddings.T
    found = quality.monosemanticity(whole)
    for latent in range(LATENTS):
        pairs = np.triu(np.outer(strength[:, latent], strength[:, latent]), 1)
        if (strength[:, latent] > 0).sum() < 2:
            assert np.isnan(found[latent])
        else:
            assert found[latent] == pytest.approx((pairs * likeness).sum() / pairs.sum(), abs=2e-4)


def test_coactivation_against_all_pictures(world: World, whole: Tally) -> None:
    on, found = world.acts.max(1) > 0, quality.coactivation(whole)
    for latent in range(LATENTS):
        for n, other in enumerate(world.frame.neighbours_LN[latent]):
            either = (on[:, latent] | on[:, other]).sum()
            expected = (on[:, latent] & on[:, other]).sum() / either if other >= 0 and either else 0
            assert found[latent, n] == pytest.approx(expected)


def test_concepts_against_the_plain_way(world: World, whole: Tally) -> None:
    strength, shown = world.acts.max(1), world.shows.any(1)
    found, over_all = quality.findings(whole)
    first, second = world.half == 0, world.half == 1
    for concept in range(CONCEPTS - 1):
        there = shown[:, concept]
        expected = [[by_definition(strength[half, latent], there[half]) for latent in range(LATENTS)]
                    for half in (slice(None), first, second)]  # fmt: skip
        np.testing.assert_allclose(over_all[:, concept], expected[0])
        chosen = int(np.argmax(expected[1]))
        assert found[concept].latent == chosen
        assert found[concept].average_precision == pytest.approx(expected[2][chosen])
        on, there = world.acts[second][..., chosen] > 0, world.shows[second][..., concept]
        assert found[concept].iou == pytest.approx((on & there).sum() / (on | there).sum())
    assert found[-1] == (None, None, None) and np.isnan(over_all[:, -1]).all()


def test_entropy_and_common_label(world: World, whole: Tally) -> None:
    labels = np.arange(PICTURES) % 3
    labels[:10] = -1
    many = World()
    many.frame = Frame(LATENTS, world.frame.unit, references=16)
    pictures_LR, strengths_LR = many.tally(list(range(PICTURES))).references.table(LATENTS, 16)
    entropy = quality.label_entropy(pictures_LR, strengths_LR, labels)
    common, share = quality.common_label(pictures_LR, strengths_LR, labels)
    for latent in range(LATENTS):
        known = [(labels[i], s) for i, s in zip(pictures_LR[latent], strengths_LR[latent], strict=True)
                 if i >= 0 and labels[i] >= 0]  # fmt: skip
        weight = np.array([sum(s for label, s in known if label == k) for k in range(3)])
        if len(known) < 10:
            assert np.isnan(entropy[latent])
        else:
            p = weight[weight > 0] / weight.sum()
            assert entropy[latent] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
        if known:
            assert common[latent] == weight.argmax()
            assert share[latent] == pytest.approx(weight.max() / strengths_LR[latent].sum())
        else:
            assert common[latent] == -1 and share[latent] == 0


def test_uniqueness_against_all_pairs(whole: Tally) -> None:
    pictures_LR, _ = whole.references.table(LATENTS, 4)
    sets = [set(row[row >= 0].tolist()) for row in pictures_LR]
    found = quality.uniqueness(pictures_LR)
    for k, mine in enumerate(sets):
        overlaps = [len(mine & other) / len(mine | other) for j, other in enumerate(sets) if j != k and mine | other]
        assert np.isnan(found[k]) if not mine else found[k] == pytest.approx(1 - max(overlaps))
