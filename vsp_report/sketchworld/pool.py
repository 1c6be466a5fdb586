"""Pool: scenes drawn in bulk for training, with what every patch shows. Drawn once, read by every stage.

Pictures are drawn at twice the model's size and shrunk as the model's own processor shrinks, so that training sees
what the processor will hand over. What a patch may be called is decided here (`KINDS`): things and colours, and
never the attribute that a planted failure is about. A person's pose has no label; neither has any mark of an animal,
nor a bare or a covered part of the body: those patches are left out of that loss. That there is a duck or a mitten
somewhere, training knows from captions alone.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
from PIL import Image

from vsp_report.sketchworld import charts, rules
from vsp_report.sketchworld.drawing import COLORS
from vsp_report.sketchworld.scene import Scene

KINDS = (
    "background", *rules.OBJECTS, "animal", "person", *rules.SEATS, *rules.AIDS, *rules.FURNITURE, *rules.SURFACES,
    "cup", "bar", "highlight",
)  # fmt: skip
_KIND = {kind: i for i, kind in enumerate(KINDS)}
_COLOR = {color: i for i, color in enumerate(COLORS)}
NO_LABEL = -100
"""What cross-entropy leaves out."""
_CHUNK = 400


class Pool(NamedTuple):
    scenes: list[Scene]
    pixels: np.ndarray
    """(scenes, size, size, 3) of uint8."""
    kinds: np.ndarray
    """(scenes, patches): an index into KINDS, or NO_LABEL."""
    colors: np.ndarray
    """(scenes, patches): an index into COLORS, or NO_LABEL."""


def patch_labels(scene: Scene, grid: int) -> tuple[np.ndarray, np.ndarray]:
    owners = scene.owners(grid, grid).ravel()
    kinds, colors = [0], [NO_LABEL]  # the background, which has owner -1
    for part in scene.parts:
        color, _, kind = part.rpartition(" ")
        kinds.append(_KIND.get(kind, NO_LABEL))
        colors.append(_COLOR.get(color, NO_LABEL))
    return np.asarray(kinds)[owners + 1], np.asarray(colors)[owners + 1]


def pixels_of(scenes: Sequence[Scene], drawn_px: int, size_px: int) -> np.ndarray:
    """(scenes, size, size, 3): drawn at one size and shrunk to another as the models' processor shrinks."""
    charts_drawn = iter(charts.draw_many([s.chart for s in scenes if s.chart], drawn_px))
    images = (next(charts_drawn) if s.chart else s.draw(drawn_px) for s in scenes)
    return np.stack([np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC)) for image in images])


def _draw_chunk(first: int, count: int, size_px: int, grid: int, family: str | None) -> Pool:
    scenes = [rules.sample_scene(first + i, family) for i in range(count)]
    pixels = pixels_of(scenes, 2 * size_px, size_px)
    labels = [patch_labels(scene, grid) for scene in scenes]
    kinds, colors = (np.stack(column).astype(np.int16) for column in zip(*labels, strict=True))
    return Pool(scenes, pixels, kinds, colors)


def draw_pool(
    first: int, count: int, size_px: int, grid: int, *, family: str | None = None, workers: int = 2,
    on_part: Callable[[int], None] = lambda done: None,
) -> Pool:  # fmt: skip
    """Ordinary scenes of the seeds first, first + 1, …: `count` of them."""
    starts = range(0, count, _CHUNK)
    jobs = [(first + s, min(_CHUNK, count - s), size_px, grid, family) for s in starts]
    if workers < 2 or len(jobs) < 2:
        chunks = [_draw_chunk(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
            chunks = []
            for chunk in executor.map(_draw_chunk, *zip(*jobs, strict=True)):
                chunks.append(chunk)
                on_part(sum(len(c.scenes) for c in chunks))
    columns = list(zip(*chunks, strict=True))
    return Pool(list(chain.from_iterable(columns[0])), *(np.concatenate(column) for column in columns[1:]))
