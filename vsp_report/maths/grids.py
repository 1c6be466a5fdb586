"""Grids: image tokens <-> patches <-> boxes in pixels of the original image. Numbers in, arrays out; no
torch.

A picture reaches a vision tower as one or more tiles, each a grid of patches, and leaves the connector as
image tokens. `Canvas` repeats what an image processor does to a picture (resize, crop, pad, split) and never
loses the region of the original that it shows, so that a patch's box is arithmetic and not a guess.
`ImageMap` then answers, for any tap, which rows of the states belong to the image, what every image token is
made of, and where it is.

The rounding in here is the processors' own, to the pixel; the tests hold it against them.

Axes: P patches of one image (tile after tile, row by row), C outputs of its connector, I its image tokens,
S sites (patches, outputs or tokens, whichever a tap has).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, kron, vstack

IDEFICS_LONGEST_PX = 4096

Weights = csr_array
"""What each row is made of. A row sums to 1, or to 0 where it is made of nothing."""


class Size(NamedTuple):
    height: int
    width: int


class Canvas(NamedTuple):
    """A raster of `height` x `width` pixels, and the region of the original image that it shows.

    Where the raster was padded, the region reaches beyond the image.
    """

    height: int
    width: int
    x0: float
    y0: float
    x1: float
    y1: float

    @classmethod
    def of(cls, size: Size) -> Canvas:
        return cls(size.height, size.width, 0.0, 0.0, float(size.width), float(size.height))

    def resized(self, height: int, width: int) -> Canvas:
        return self._replace(height=height, width=width)

    def window(self, top: int, left: int, height: int, width: int) -> Canvas:
        """A crop where it lies inside, a padding where it reaches out."""
        sx, sy = (self.x1 - self.x0) / self.width, (self.y1 - self.y0) / self.height
        x0, y0 = self.x0 + left * sx, self.y0 + top * sy
        return Canvas(height, width, x0, y0, x0 + width * sx, y0 + height * sy)

    def centred(self, height: int, width: int) -> Canvas:
        return self.window((self.height - height) // 2, (self.width - width) // 2, height, width)

    def split(self, rows: int, cols: int) -> list[Canvas]:
        height, width = self.height // rows, self.width // cols
        return [self.window(r * height, c * width, height, width) for r in range(rows) for c in range(cols)]


class Tile(NamedTuple):
    """A grid of patches, and the region of the original image that it covers."""

    rows: int
    cols: int
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, eq=False)
class PatchGrid:
    size: Size
    tiles: tuple[Tile, ...]

    @classmethod
    def cut(cls, size: Size, canvases: Sequence[Canvas], patch_px: int) -> PatchGrid:
        """Whole patches only: what is left over at the right and the bottom, no tower looks at."""
        tiles = []
        for canvas in canvases:
            rows, cols = canvas.height // patch_px, canvas.width // patch_px
            seen = canvas.window(0, 0, rows * patch_px, cols * patch_px)
            tiles.append(Tile(rows, cols, seen.x0, seen.y0, seen.x1, seen.y1))
        return cls(size, tuple(tiles))

    def __len__(self) -> int:
        return len(self.tile_P)

    @cached_property
    def _place_P3(self) -> np.ndarray:
        places = [np.indices((1, tile.rows, tile.cols)).reshape(3, -1).T for tile in self.tiles]
        return np.concatenate([place_P3 + np.array([k, 0, 0]) for k, place_P3 in enumerate(places)])

    @property
    def tile_P(self) -> np.ndarray:
        return self._place_P3[:, 0]

    @property
    def row_P(self) -> np.ndarray:
        return self._place_P3[:, 1]

    @property
    def col_P(self) -> np.ndarray:
        return self._place_P3[:, 2]

    @cached_property
    def boxes_P4(self) -> np.ndarray:
        """x0, y0, x1, y1 in pixels of the original image, clipped to it; NaN where only padding is shown."""
        parts = []
        for tile in self.tiles:
            x, y = np.linspace(tile.x0, tile.x1, tile.cols + 1), np.linspace(tile.y0, tile.y1, tile.rows + 1)
            left, top = np.meshgrid(x[:-1], y[:-1])
            right, bottom = np.meshgrid(x[1:], y[1:])
            parts.append(np.stack([left, top, right, bottom], -1).reshape(-1, 4))
        height, width = self.size
        boxes_P4 = np.concatenate(parts).clip(0.0, [width, height, width, height])
        # A patch beside the image by less than rounding is beside the image.
        empty_P = (boxes_P4[:, 2:] - boxes_P4[:, :2]).min(1) < 1e-6
        boxes_P4[empty_P] = np.nan
        return boxes_P4


@dataclass(frozen=True, eq=False)
class Layout:
    """What one model does with one image, from its patches to its tokens."""

    grid: PatchGrid
    states_P: np.ndarray
    """where each patch stands among this image's rows of the vision states"""
    n_states: int
    """how many rows this image has there: its patches, class tokens and padding"""
    merge_CP: Weights
    """what each output of the connector is made of; a class token's output is an empty row"""
    outputs_C: np.ndarray
    """where each output stands among this image's rows of the connector's output"""
    n_outputs: int
    tokens_IC: Weights
    """what each image token is made of, in the order of the prompt; newline tokens are empty rows"""


class Sites(NamedTuple):
    """What a tap has of one image."""

    rows_S: np.ndarray
    """vision, connector: rows of the states, all axes but the last flattened; text: positions in the sample"""
    weights_IS: Weights
    """how an image token's attention is shared out among the sites"""
    boxes_S4: np.ndarray


@dataclass(frozen=True, eq=False)
class ImageMap:
    """One image inside one batch."""

    layout: Layout
    columns_I: np.ndarray
    """positions of the image tokens in the padded prompt; for a model that cross-attends, key indices"""
    first_state: int = 0
    """the row of the vision states at which this image begins"""
    first_output: int = 0
    cross: bool = False

    @property
    def grid(self) -> PatchGrid:
        return self.layout.grid

    @property
    def size(self) -> Size:
        return self.layout.grid.size

    @cached_property
    def tokens_IP(self) -> Weights:
        """The sparse token -> patch matrix: attention over patches is attention over tokens times this."""
        return csr_array(self.layout.tokens_IC @ self.layout.merge_CP)

    @cached_property
    def boxes_I4(self) -> np.ndarray:
        return united_boxes(self.tokens_IP, self.grid.boxes_P4)

    def at(self, place: str) -> Sites:
        """The sites of a tap at `place`: vision, connector or text."""
        layout = self.layout
        if place == "vision":
            return Sites(self.first_state + layout.states_P, self.tokens_IP, self.grid.boxes_P4)
        if place == "connector":
            boxes_C4 = united_boxes(layout.merge_CP, self.grid.boxes_P4)
            return Sites(self.first_output + layout.outputs_C, layout.tokens_IC, boxes_C4)
        if place == "text" and not self.cross:
            return Sites(self.columns_I, one_to_one(len(self.columns_I)), self.boxes_I4)
        why = " that is cross-attended" if self.cross else ""
        raise ValueError(f"an image{why} has no sites at {place!r}")


def united_boxes(weights_IS: Weights, boxes_S4: np.ndarray) -> np.ndarray:
    """The box around everything a token is made of; NaN for a token made of nothing."""
    result = np.full((weights_IS.shape[0], 4), np.nan)
    filled = np.flatnonzero(np.diff(weights_IS.indptr))
    if len(filled):
        starts, picked = weights_IS.indptr[filled], boxes_S4[weights_IS.indices]
        low = np.minimum.reduceat(np.where(np.isnan(picked), np.inf, picked), starts)
        high = np.maximum.reduceat(np.where(np.isnan(picked), -np.inf, picked), starts)
        joined = np.concatenate([low[:, :2], high[:, 2:]], axis=1)
        joined[~np.isfinite(joined).all(1)] = np.nan
        result[filled] = joined
    return result


# --- how tokens are made of patches --------------------------------------------------------------------


def placed(row_S: np.ndarray, n_rows: int) -> Weights:
    """Row `row_S[k]` is made of k and of nothing else; the other rows are empty."""
    return csr_array((np.ones(len(row_S)), (row_S, np.arange(len(row_S)))), (n_rows, len(row_S)))


def one_to_one(n: int) -> Weights:
    return placed(np.arange(n), n)


def merged(grid: PatchGrid, side: int) -> Weights:
    """Every tile's `side` x `side` blocks become one output each: pixel shuffle, pooling, patch merging."""
    counts = []
    for tile in grid.tiles:
        if tile.rows % side or tile.cols % side:
            raise ValueError(f"{tile.rows} x {tile.cols} patches do not divide into blocks of {side}")
        counts.append((tile.rows // side) * (tile.cols // side))
    first_T = np.concatenate([[0], np.cumsum(counts)])
    across_T = np.array([tile.cols // side for tile in grid.tiles])
    output_P = first_T[grid.tile_P] + grid.row_P // side * across_T[grid.tile_P] + grid.col_P // side
    n = len(grid)
    return csr_array((np.full(n, side**-2.0), (output_P, np.arange(n))), (int(first_T[-1]), n))


def block_order(rows: int, cols: int, side: int, window: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Where patches and blocks stand when a tower holds them block by block, or windows of blocks one by one.

    Returns, in raster order, the position of each patch and the position of each block.
    """
    down, across = rows // side, cols // side
    blocks = np.arange(down * across).reshape(down, across)
    if window is not None:
        ordered = [
            blocks[r : r + window, c : c + window].ravel()
            for r in range(0, down, window)
            for c in range(0, across, window)
        ]
        blocks = np.empty(down * across, int)
        blocks[np.concatenate(ordered)] = np.arange(down * across)
        blocks = blocks.reshape(down, across)
    row, col = np.indices((rows, cols))
    patches = blocks[row // side, col // side] * side**2 + row % side * side + col % side
    return patches.ravel(), blocks.ravel()


def anyres_tokens(size: Size, side: int, rows: int, cols: int, most_tiles: int | None = None) -> Weights:
    """LLaVA-NeXT's packing: the base tile; then `rows` x `cols` tiles as one grid, the padding cut off, and a
    newline after each row of it. With `most_tiles` (LLaVA-OneVision) a grid larger than so many tiles is
    shrunk bilinearly.
    """
    tile_C = side**2
    n = (1 + rows * cols) * tile_C
    high, wide = rows * side, cols * side
    r, c = np.indices((high, wide))
    fine = (1 + r // side * cols + c // side) * tile_C + r % side * side + c % side
    if size.width / size.height > wide / high:
        kept = int(round(size.height * (wide / size.width), 7))
        cut = (high - kept) // 2
        fine = fine[cut : high - cut]
    else:
        kept = int(round(size.width * (high / size.height), 7))
        cut = (wide - kept) // 2
        fine = fine[:, cut : wide - cut]
    chosen = csr_array((np.ones(fine.size), (np.arange(fine.size), fine.ravel())), (fine.size, n))
    high, wide = fine.shape
    if most_tiles is not None and (ratio := math.sqrt(high * wide / (most_tiles * tile_C))) > 1.1:
        new_high, new_wide = int(high // ratio), int(wide // ratio)
        chosen = csr_array(kron(_bilinear(high, new_high), _bilinear(wide, new_wide), format="csr") @ chosen)
        high, wide = new_high, new_wide
    lines = np.arange(high * wide).reshape(high, wide)
    newline = np.full((high, 1), high * wide)  # the empty row that is appended below
    picked = np.concatenate([lines, newline], axis=1).ravel()
    packed = vstack([chosen, csr_array((1, n))], format="csr")[picked]
    return csr_array(vstack([one_to_one(n)[:tile_C], packed], format="csr"))


def _bilinear(old: int, new: int) -> Weights:
    """Resampling of one axis as torch does it, corners not aligned."""
    at = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0)
    low = np.floor(at).astype(int).clip(0, old - 1)
    high, share = (low + 1).clip(max=old - 1), at - low
    index = np.arange(new)
    weights, places = np.concatenate([1 - share, share]), (np.tile(index, 2), np.concatenate([low, high]))
    matrix = csr_array((weights, places), (new, old))
    matrix.eliminate_zeros()
    return matrix


# --- what image processors do to a picture -------------------------------------------------------------


def shortest_edge(size: Size, edge: int, longest: int | None = None) -> Size:
    """The shorter side becomes `edge`, the aspect is kept; with `longest`, the longer side stays below it."""
    short, long = sorted(size)
    if longest is None:
        new = edge, int(edge * long / short)
    else:
        exact = float(edge)
        if long / short * edge > longest:
            exact = longest * float(short) / long
            edge = round(exact)
        new = (short, long) if short == edge else (edge, int(exact * long / short))
    return Size(*new) if size.height <= size.width else Size(*reversed(new))


def best_pinpoint(size: Size, pinpoints: Sequence[Sequence[int]]) -> Size:
    """The resolution that keeps most of the image's pixels and, among equals, wastes fewest of its own."""

    def worth(point: Sequence[int]) -> tuple[int, int]:
        height, width = point
        scale = min(width / size.width, height / size.height)
        kept = min(int(size.width * scale) * int(size.height * scale), size.width * size.height)
        return kept, -(height * width - kept)

    return Size(*max(pinpoints, key=worth))


def anyres_canvases(size: Size, best: Size, tile_px: int) -> list[Canvas]:
    """The image stretched to one tile; then the image fitted into `best`, padded to the middle, and cut."""
    height, width = fitted(size, best)
    top, left = (best.height - height) // 2, (best.width - width) // 2
    canvas = Canvas.of(size).resized(height, width).window(-top, -left, best.height, best.width)
    tiles = canvas.split(best.height // tile_px, best.width // tile_px)
    return [Canvas.of(size).resized(tile_px, tile_px), *tiles]


def fitted(size: Size, into: Size) -> Size:
    sx, sy = into.width / size.width, into.height / size.height
    if sx < sy:
        return Size(min(math.ceil(size.height * sx), into.height), into.width)
    return Size(into.height, min(math.ceil(size.width * sy), into.width))


def idefics_tiling(size: Size, longest_px: int | None, tile_px: int) -> tuple[int, int]:
    """Rows and columns of tiles; 1 x 1 is an image that is not split."""
    height, width = size
    if longest_px is not None:
        aspect = width / height
        if width >= height:
            width, height = longest_px, int(longest_px / aspect)
            height += height % 2
        else:
            height, width = longest_px, int(longest_px * aspect)
            width += width % 2
        height, width = max(height, 1), max(width, 1)
        aspect, most = width / height, IDEFICS_LONGEST_PX
        if width >= height and width > most:
            width, height = most, max(int(most / aspect), 1)
        elif height > width and height > most:
            height, width = most, max(int(most * aspect), 1)
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile_px) * tile_px
        height = int(width / aspect)
    else:
        height = math.ceil(height / tile_px) * tile_px
        width = int(height * aspect)
    return math.ceil(height / tile_px), math.ceil(width / tile_px)


def closest_tiling(size: Size, tile: Size, fewest: int, most: int) -> tuple[int, int]:
    """InternVL's rows and columns: the closest aspect; of equals the larger, if the image half fills it."""
    aspect, area = size.width / size.height, size.width * size.height
    sides = range(1, most + 1)
    shapes = [(c, r) for c in sides for r in sides if fewest <= c * r <= most]
    best, closest = (1, 1), float("inf")
    for cols, rows in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        apart = abs(aspect - cols / rows)
        if apart < closest:
            best, closest = (cols, rows), apart
        elif apart == closest and area > 0.5 * tile.height * tile.width * cols * rows:
            best = (cols, rows)
    return best[1], best[0]


def mllama_canvases(size: Size, tile_px: int, rows: int, cols: int) -> list[Canvas]:
    """The image fitted into rows x cols tiles, never below one tile, padded at the right and the bottom."""
    into = Size(rows * tile_px, cols * tile_px)
    target = Size(min(max(size.height, tile_px), into.height), min(max(size.width, tile_px), into.width))
    sx, sy = target.width / size.width, target.height / size.height
    if sx < sy:
        height, width = min(math.floor(size.height * sx) or 1, target.height), target.width
    else:
        height, width = target.height, min(math.floor(size.width * sy) or 1, target.width)
    return Canvas.of(size).resized(height, width).window(0, 0, into.height, into.width).split(rows, cols)
