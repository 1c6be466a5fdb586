"""Edits: the formulas, as laws and against plain loops; numpy and torch through the same function."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from vsp_report.errors import SteeringError
from vsp_report.maths import edits
from vsp_report.maths.edits import ALL, Edit, Region, Steering
from vsp_report.maths.grids import Canvas, PatchGrid, Size

S, L, D = 6, 9, 4
SIZE = Size(40, 70)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def touched(sites: list[int], latents: list[int]) -> np.ndarray:
    result = np.zeros((S, L))
    result[np.ix_(sites, latents)] = 1
    return result


# --- formulas ----------------------------------------------------------------------------------------------------


def test_no_edit_changes_nothing() -> None:
    h = numbers(S, L)
    assert np.array_equal(edits.edited(h, (), ()), h)
    assert not edits.delta(h, h, numbers(L, D)).any()


@pytest.mark.parametrize("op", edits.OPS)
def test_an_edit_is_made_where_it_is_asked_for_and_nowhere_else(op: str) -> None:
    h, value = numbers(S, L), 2.5
    expected = h.copy()
    for site, latent in ((0, 3), (0, 8), (4, 3), (4, 8)):
        old = h[site, latent]
        expected[site, latent] = {"set": value, "scale": old * value, "add": old + value}[op]
    new = edits.edited(h, (Edit((3, 8), op, value),), (touched([0, 4], [3, 8]),))
    assert np.array_equal(new, expected)


def test_edits_are_made_in_order_and_disjoint_ones_in_any() -> None:
    h = numbers(S, L)
    double, more = Edit((1,), "scale", 2.0), Edit((1,), "add", 1.0)
    here, there = touched([2], [1]), touched([3], [1])
    new = edits.edited(h, (double, more), (here, here))
    assert new[2, 1] == h[2, 1] * 2 + 1
    one = edits.edited(h, (double, more), (here, there))
    assert np.array_equal(one, edits.edited(h, (more, double), (there, here)))


def test_numpy_and_torch_agree() -> None:
    h, g, W, where = numbers(S, L), numbers(S, D, seed=1), numbers(L, D, seed=2), touched([1, 2], [0, 5])
    asked = (Edit((0, 5), "set", 1.5), Edit((0, 5), "scale", -2.0), Edit((0, 5), "add", 0.25))
    t = torch.from_numpy
    new, new_t = edits.edited(h, asked, [where] * 3), edits.edited(t(h), asked, [t(where)] * 3)
    assert np.array_equal(new, new_t.numpy())
    assert np.allclose(edits.delta(h, new, W), edits.delta(t(h), new_t, t(W)).numpy(), atol=1e-12)
    assert np.allclose(edits.worth(g, W, 3.0), edits.worth(t(g), t(W), 3.0).numpy(), atol=1e-12)


@pytest.mark.parametrize("op", edits.OPS)
def test_a_prediction_is_exact_for_a_linear_model(op: str) -> None:
    h, g, W = np.abs(numbers(S, L)), numbers(S, D, seed=1), numbers(L, D, seed=2)
    scale_S1 = np.abs(numbers(S, 1, seed=3))
    worth = edits.worth(g, W, scale_S1)
    predicted = edits.predicted(op, 0.3, (h * worth).sum(0), worth.sum(0))
    for latent in range(L):
        new = edits.edited(h, (Edit((latent,), op, 0.3),), (touched(list(range(S)), [latent]),))
        assert (edits.delta(h, new, W, scale_S1) * g).sum() == pytest.approx(predicted[latent])


def test_scaling_by_x_is_x_less_one_times_minus_zeroing() -> None:
    present, unit = numbers(L), numbers(L, seed=1)
    zeroing = edits.predicted("set", 0.0, present, unit)
    assert np.allclose(edits.predicted("scale", 3.0, present, unit), (3.0 - 1) * -zeroing)


def test_agreement_is_scipys_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 20):
        p, m = rng.integers(0, 6, n).astype(float), rng.integers(0, 6, n).astype(float)
        assert edits.agreement(p, m).spearman == pytest.approx(spearmanr(p, m)[0])
    assert edits.agreement(np.array([1.0, -2.0]), np.array([2.0, -4.0])) == (pytest.approx(1), pytest.approx(2))
    assert math.isnan(edits.agreement(np.ones(3), np.arange(3.0)).spearman)
    assert math.isnan(edits.agreement(np.zeros(3), np.arange(3.0)).slope)


# --- regions -----------------------------------------------------------------------------------------------------


def boxes() -> np.ndarray:
    """4 x 4 patches, and one that shows padding only."""
    grid = PatchGrid.cut(SIZE, [Canvas.of(SIZE).resized(28, 28)], 7)
    return np.concatenate([grid.boxes_P4, np.full((1, 4), np.nan)])


def random_region(rng: np.random.Generator) -> tuple[float, float, float, float]:
    x, y = np.sort(rng.integers(-5, 80, 2)), np.sort(rng.integers(-5, 45, 2))
    return float(x[0]), float(y[0]), float(x[1] + 1), float(y[1] + 1)


def test_a_box_meets_the_patches_that_share_pixels_with_it() -> None:
    rng, patches = np.random.default_rng(0), boxes()
    for _ in range(50):
        asked = random_region(rng)
        expected = [
            min(p[2], asked[2]) > max(p[0], asked[0]) and min(p[3], asked[3]) > max(p[1], asked[1]) for p in patches
        ]
        if any(expected):
            assert Region((asked,)).meets(patches, SIZE).tolist() == expected


def test_a_mask_meets_what_its_boxes_meet() -> None:
    rng, patches = np.random.default_rng(1), boxes()
    for _ in range(50):
        x0, y0, x1, y1 = random_region(rng)
        mask = np.zeros(SIZE, bool)
        mask[max(0, int(y0)) : max(0, int(y1)), max(0, int(x0)) : max(0, int(x1))] = True
        if mask.any():
            same = Region(((x0, y0, x1, y1),)).meets(patches, SIZE)
            assert np.array_equal(Region(mask=mask).meets(patches, SIZE), same)


def test_neighbours_are_not_met_and_parts_add_up() -> None:
    patches = boxes()  # 17.5 x 10 px each
    assert np.flatnonzero(Region(((17.5, 10.0, 35.0, 20.0),)).meets(patches, SIZE)).tolist() == [5]
    mask = np.zeros(SIZE, np.uint8)
    mask[39, 69] = 1
    both = Region(((0, 0, 1, 1),), mask)
    assert np.flatnonzero(both.meets(patches, SIZE)).tolist() == [0, 15]


def test_regions_are_values() -> None:
    one, same, other = (Region(mask=np.full((2, 2), value)) for value in (True, 1, False))
    assert one == same and hash(one) == hash(same) and one != other and one != Region()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.mask = None


# --- refusals ----------------------------------------------------------------------------------------------------


def refused(match: str):
    return pytest.raises(SteeringError, match=match)


@pytest.mark.parametrize(
    ("latents", "op", "value", "said"),
    [
        ((1, L), "set", 0.0, r"s.edits\[0\].latents: 9 is no latent of an SAE that has 9. Name latents from 0 to 8."),
        ((-1,), "set", 0.0, "-1 is no latent"),
        ((True,), "set", 0.0, "True is no latent"),
        ((1.5,), "set", 0.0, "1.5 is no latent"),
        (("3",), "set", 0.0, "'3' is no latent"),
        ((), "set", 0.0, "Name latents, or write all"),
        (7, "set", 0.0, r"edits\[0\].latents: is 7. Name latents, or write all."),
        (None, "set", 0.0, "is None. Name latents, or write all"),
        ("every", "set", 0.0, "Name latents, or write all"),
        ((1,), "zero", 0.0, r"edits\[0\].op: is 'zero'. Write set, scale or add."),
        ((1,), "set", math.nan, r"edits\[0\].value: is nan. Write a finite number."),
        ((1,), "add", -math.inf, "is -inf"),
        ((1,), "add", "1", "is '1'"),
        ((1,), "add", True, "is True"),
        (ALL, "scale", None, "is None"),
    ],
)
def test_what_cannot_be_done_is_refused(latents, op, value, said: str) -> None:
    with refused(said) as caught:
        edits.check(Steering("s", (Edit(latents, op, value),)), L)
    assert "\n" not in str(caught.value)


def test_what_can_be_done_is_not_refused() -> None:
    asked = (Edit((0, np.int64(8)), "set", 0), Edit(ALL, "scale", np.float32(2)))
    edits.check(Steering("s", asked, "reconstruct"), L)
    with refused("s.mode: is 'swap'. Write delta or reconstruct."):
        edits.check(Steering("s", (), "swap"), L)


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (Region(), "meets no patch"),
        (Region(mask=np.zeros(SIZE)), "meets no patch"),
        (Region(((80, 0, 90, 10),)), "meets no patch"),
        (Region(((5, 5, 5, 9),)), "is empty"),
        (Region(((5, 9, 9, 5),)), "is empty"),
        (Region(((0, 0, math.nan, 5),)), "is empty"),
        (Region(((0, 0, 5),)), "is empty"),
        (Region(mask=np.ones((70, 40))), "its mask is 70 x 40, the image 40 x 70"),
    ],
)
def test_a_region_that_meets_nothing_is_refused(region: Region, said: str) -> None:
    with refused(said) as caught:
        region.meets(boxes(), SIZE, "s.where")
    assert str(caught.value).startswith("s.where: ") and "\n" not in str(caught.value)
