"""Grids: laws of canvases, boxes and weights; then each order and packing against a slow one, written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vsp_report.maths import grids
from vsp_report.maths.grids import Canvas, ImageMap, Layout, PatchGrid, Size, Tile

SIZES = [Size(40, 70), Size(70, 40), Size(1, 1), Size(333, 333), Size(20, 2500), Size(2500, 21)]


def whole(size: Size, rows: int, cols: int) -> PatchGrid:
    return PatchGrid(size, (Tile(rows, cols, 0.0, 0.0, float(size.width), float(size.height)),))


def areas(boxes_P4: np.ndarray) -> np.ndarray:
    return np.nan_to_num((boxes_P4[:, 2:] - boxes_P4[:, :2]).prod(1))


# --- canvases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_resizing_shows_the_same_region(size: Size) -> None:
    assert Canvas.of(size).resized(7, 9)[2:] == Canvas.of(size)[2:]


def test_a_crop_of_a_crop_is_one_crop() -> None:
    canvas = Canvas.of(Size(100, 200)).resized(50, 80)
    assert canvas.window(5, 10, 30, 40).window(2, 3, 10, 20) == pytest.approx(canvas.window(7, 13, 10, 20))


def test_padding_is_undone_by_cropping() -> None:
    canvas = Canvas.of(Size(100, 200)).resized(50, 80)
    assert canvas.window(-3, -4, 60, 90).window(3, 4, 50, 80) == pytest.approx(canvas)


def test_a_crop_is_where_it_says() -> None:
    # shrunk to a half; then 10 px from the top and 20 from the left are 20 and 40 of the original
    assert Canvas.of(Size(100, 200)).resized(50, 100).window(10, 20, 30, 40)[2:] == (40.0, 20.0, 120.0, 80.0)


def test_a_centre_crop_pads_what_is_too_small() -> None:
    assert Canvas.of(Size(10, 5)).centred(4, 8)[2:] == (-2.0, 3.0, 6.0, 7.0)


def test_tiles_cover_what_was_split() -> None:
    tiles = Canvas.of(Size(60, 90)).resized(28, 56).split(2, 2)
    assert [tile[2:] for tile in tiles] == [
        (0, 0, 45, 30),
        (45, 0, 90, 30),
        (0, 30, 45, 60),
        (45, 30, 90, 60),
    ]


# --- patches and their boxes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_patches_share_the_image_out(size: Size) -> None:
    boxes_P4 = whole(size, 3, 5).boxes_P4
    assert areas(boxes_P4).sum() == pytest.approx(size.width * size.height)
    assert boxes_P4[5 + 2] == pytest.approx(
        [size.width * 0.4, size.height / 3, size.width * 0.6, size.height * 2 / 3]
    )


def test_patches_come_tile_after_tile_and_row_by_row() -> None:
    grid = PatchGrid(Size(10, 10), (Tile(1, 2, 0, 0, 10, 10), Tile(2, 3, 0, 0, 10, 10)))
    assert len(grid) == 8
    assert grid.tile_P.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert grid.row_P.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert grid.col_P.tolist() == [0, 1, 0, 1, 2, 0, 1, 2]


def test_boxes_stay_inside_and_padding_has_none() -> None:
    # 100 x 200 in the middle of a square: the first and the last of four rows show padding only
    grid = PatchGrid.cut(Size(100, 200), [Canvas.of(Size(100, 200)).window(-50, 0, 200, 200)], 50)
    boxes_P4 = grid.boxes_P4.reshape(4, 4, 4)
    assert np.isnan(boxes_P4[[0, 3]]).all() and not np.isnan(boxes_P4[1:3]).any()
    assert areas(grid.boxes_P4).sum() == 100 * 200
    # and a patch that is half padding keeps the half that is not
    grid = PatchGrid.cut(Size(100, 200), [Canvas.of(Size(100, 200)).window(-25, 0, 150, 200)], 50)
    assert grid.boxes_P4[0].tolist() == [0, 0, 50, 25]


def test_what_is_left_over_belongs_to_no_patch() -> None:
    # 384 px in patches of 14: 27 of them, and 6 px that the tower never sees
    grid = PatchGrid.cut(Size(100, 200), [Canvas.of(Size(100, 200)).resized(384, 384)], 14)
    assert grid.tiles[0] == pytest.approx((27, 27, 0, 0, 200 * 378 / 384, 100 * 378 / 384))


# --- what tokens are made of -------------------------------------------------------------------------------------


def test_merging_takes_every_patch_once_and_adds_up() -> None:
    grid = PatchGrid(Size(10, 10), (Tile(4, 6, 0, 0, 10, 10), Tile(2, 2, 0, 0, 10, 10)))
    merge_CP = grids.merged(grid, 2).toarray()
    assert merge_CP.shape == (7, 28)
    assert merge_CP.sum(1) == pytest.approx(np.ones(7))
    assert ((merge_CP > 0).sum(0) == 1).all()
    # the second row's second block of the first tile, and the second tile
    assert np.flatnonzero(merge_CP[4]).tolist() == [14, 15, 20, 21]
    assert np.flatnonzero(merge_CP[6]).tolist() == [24, 25, 26, 27]


def test_blocks_that_do_not_fit_are_no_blocks() -> None:
    with pytest.raises(ValueError, match="3 x 4 patches do not divide"):
        grids.merged(whole(Size(9, 9), 3, 4), 2)


@pytest.mark.parametrize(
    ("rows", "cols", "window"), [(4, 6, None), (8, 8, 2), (6, 10, 2), (10, 14, 3), (2, 2, 4)]
)
def test_block_order_against_loops(rows: int, cols: int, window: int | None) -> None:
    step = window or 10**6
    order = [
        (r, c)
        for top in range(0, rows // 2, step) for left in range(0, cols // 2, step)
        for r in range(top, min(top + step, rows // 2)) for c in range(left, min(left + step, cols // 2))
    ]  # fmt: skip
    patches, blocks = grids.block_order(rows, cols, 2, window)
    for at, (r, c) in enumerate(order):
        assert blocks[r * (cols // 2) + c] == at
        for within, (y, x) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            assert patches[(2 * r + y) * cols + 2 * c + x] == 4 * at + within
    assert sorted(patches) == list(range(rows * cols))


@pytest.mark.parametrize(("old", "new"), [(9, 5), (5, 9), (7, 7), (12, 1), (1, 4)])
def test_bilinear_is_torchs(old: int, new: int) -> None:
    line = torch.rand(1, 1, 1, old, dtype=torch.float64)
    theirs = torch.nn.functional.interpolate(line, [1, new], mode="bilinear")[0, 0, 0]
    assert grids._bilinear(old, new) @ line.numpy().ravel() == pytest.approx(theirs.numpy())


@pytest.mark.parametrize("most_tiles", [None, 1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_anyres_rows_add_up_and_newlines_are_empty(size: Size, most_tiles: int | None) -> None:
    tokens_IC = grids.anyres_tokens(size, 4, 2, 3, most_tiles)
    sums = np.asarray(tokens_IC.sum(1)).ravel()
    assert set(np.round(sums, 9)) <= {0.0, 1.0}
    assert sums[:16] == pytest.approx(np.ones(16))
    if len(sums) > 16:
        across = np.flatnonzero(sums[16:] == 0)[0] + 1  # a newline ends each row, and there is no other
        fine = sums[16:].reshape(-1, across)
        assert (fine[:, -1] == 0).all() and fine[:, :-1] == pytest.approx(np.ones((len(fine), across - 1)))


def test_a_box_is_around_all_that_a_token_is_made_of() -> None:
    boxes_S4 = np.array([[0, 0, 1, 1], [5, 1, 6, 2], [np.nan] * 4, [2, 2, 3, 9]], float)
    weights = grids.csr_array(
        np.array([[0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 1]])
    )
    joined = grids.united_boxes(weights, boxes_S4)
    assert joined[[0, 3, 4]].tolist() == [[0, 0, 6, 2], [2, 2, 3, 9], [2, 2, 3, 9]]
    assert np.isnan(joined[[1, 2]]).all()


# --- images in a batch -------------------------------------------------------------------------------------------


def example(cross: bool = False) -> ImageMap:
    grid = whole(Size(20, 40), 2, 4)
    states_P, outputs_C = grids.block_order(2, 4, 2)
    layout = Layout(grid, states_P, 8, grids.merged(grid, 2), outputs_C, 2, grids.one_to_one(2))
    return ImageMap(layout, np.array([3, 4]), first_state=100, first_output=50, cross=cross)


def test_every_place_has_its_sites() -> None:
    image = example()
    assert image.at("vision").rows_S.tolist() == [100, 101, 104, 105, 102, 103, 106, 107]
    assert image.at("connector").rows_S.tolist() == [50, 51]
    assert image.at("text").rows_S.tolist() == [3, 4]
    for place in ("connector", "text"):
        assert image.at(place).boxes_S4.tolist() == [[0, 0, 20, 20], [20, 0, 40, 20]]
    for place in ("vision", "connector", "text"):
        sites = image.at(place)
        assert sites.weights_IS.shape == (2, len(sites.rows_S)) == (2, len(sites.boxes_S4))
        assert np.asarray(sites.weights_IS.sum(1)).ravel() == pytest.approx(np.ones(2))


def test_attention_is_shared_out_and_none_is_lost() -> None:
    attention_TI = np.random.default_rng(0).random((5, 2))
    shared_TP = attention_TI @ example().tokens_IP
    assert shared_TP.sum(1) == pytest.approx(attention_TI.sum(1))
    assert shared_TP[:, [0, 1, 4, 5]] == pytest.approx(np.repeat(attention_TI[:, :1] / 4, 4, 1))


def test_an_image_that_is_cross_attended_has_no_text_positions() -> None:
    with pytest.raises(ValueError, match="cross-attended"):
        example(cross=True).at("text")
