"""Survey's reading: pictures are made ready for the tower one by one, as they are read, and let go of at once.

A camera's picture is a hundred times the size of what a model is shown of it. So of each one only that is kept which
is needed further on: what the model's processor made of the whole picture, to the last bit what it would be in a batch,
and the small picture of it that may become a reference. A batch then holds pictures of the model's size, whatever the
size of the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from vsp_report.errors import ImageError
from vsp_report.model.feeding import Feeder, view_of
from vsp_report.model.vlm import Prompt
from vsp_report.study import photographs, sheets
from vsp_report.study.photographs import Photograph, Source

OPEN_SHARE = 4
"""Of the memory for a batch, the pictures that are read ahead may take one part in so many."""


class Ready(NamedTuple):
    photograph: Photograph
    """without its picture"""
    prompt: Prompt | None
    """None for a broken one"""
    small: bytes
    """of so many pixels as were asked for; empty for none"""
    grid: tuple[int, int]
    """rows and columns of patches"""


def ready(source: Source, feeder: Feeder, numbers: Sequence[int], at_once: int, memory_bytes: int, small_px: int = 0
          ) -> Iterator[list[Ready]]:  # fmt: skip
    """In order, so many at once, broken ones among them."""
    open_bytes = min(memory_bytes // OPEN_SHARE, photographs.OPEN_BYTES)
    batch: list[Ready] = []
    with closing(photographs.stream(source, numbers, max(at_once, photographs.THREADS), open_bytes)) as coming:
        for photograph in coming:
            batch.append(_ready(feeder, photograph, small_px))
            del photograph  # the next one is read in its place
            if len(batch) == at_once:
                yield batch
                batch = []
    if batch:
        yield batch


def _ready(feeder: Feeder, photograph: Photograph, small_px: int) -> Ready:
    image, kept = photograph.image, photograph._replace(image=None)
    if image is None:
        return Ready(kept, None, b"", (0, 0))
    try:
        prompt = feeder.prompt(image)
    except ImageError as error:
        return Ready(kept._replace(fault=error.fault), None, b"", (0, 0))
    view = view_of(prompt.images[0])
    small = sheets.packed(photographs.grid_crop(image, view.box, small_px)) if small_px else b""
    return Ready(kept, prompt, small, view.grid)
