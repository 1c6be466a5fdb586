"""Sheets: small pictures, many to one WebP file. One is kept as JPEG until it is known to be a reference."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

ACROSS = DOWN = 4
"""Few enough that a sheet is decoded in some milliseconds: one latent's pictures lie on a dozen of them."""
KEPT_QUALITY, SHEET_QUALITY = 95, 46


def packed(small: Any) -> bytes:
    """A small picture in a few thousand bytes, hardly changed."""
    made = io.BytesIO()
    small.save(made, "JPEG", quality=KEPT_QUALITY, subsampling=0)
    return made.getvalue()


def unpacked(data: bytes) -> Any:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
        return opened.convert("RGB")


def sheets_of(small: Iterable[bytes], cell_px: int) -> Iterator[bytes]:
    """Sheets in WebP, row by row, the last one no higher than it must be."""
    cells: list[Any] = []
    for one in small:
        cells.append(unpacked(one))
        if len(cells) == ACROSS * DOWN:
            yield _sheet(cells, cell_px)
            cells = []
    if cells:
        yield _sheet(cells, cell_px)


def _sheet(cells: list[Any], cell_px: int) -> bytes:
    rows = -(-len(cells) // ACROSS)
    sheet = np.full((rows * cell_px, ACROSS * cell_px, 3), 255, np.uint8)
    for i, cell in enumerate(cells):
        row, column = divmod(i, ACROSS)
        sheet[row * cell_px : (row + 1) * cell_px, column * cell_px : (column + 1) * cell_px] = np.asarray(cell)
    made = io.BytesIO()
    Image.fromarray(sheet).save(made, "WEBP", quality=SHEET_QUALITY, method=6)
    return made.getvalue()
