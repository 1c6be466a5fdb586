"""Overlays: an image and a weight for each patch in, an image out.

One hue over a picture made paler: more is more of it, so it reads the same for every kind of colour vision and on
every picture. Patches may overlap and differ in size (tiles at two scales): a weight is spread over its patch's area.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vsp_report.render.theme import LIGHT

MAX_PIXELS = 64_000_000
"""A picture with more is not opened: the page goes without it."""
_RASTER = 192
_PALENESS = 0.35
_STRENGTH = 0.85


def opened(path: Path) -> Image.Image | None:
    """The picture in RGB, turned upright; None for what is no picture, or is too large."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return _flat(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _flat(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A"))
        return flat
    return image.convert("RGB")


def spread(weights_P: np.ndarray, boxes_P4: np.ndarray, width_px: int, height_px: int) -> np.ndarray:
    """(rows, columns): density of the weights over the picture, from 0 to 1. Patches without a place have none."""
    scale = _RASTER / max(width_px, height_px, 1)
    rows, columns = max(1, round(height_px * scale)), max(1, round(width_px * scale))
    field = np.zeros((rows, columns))
    for weight, box in zip(np.nan_to_num(weights_P.astype(float)), boxes_P4.astype(float), strict=True):
        if not np.isfinite(box).all() or weight <= 0:
            continue
        x0, y0, x1, y1 = np.rint(box * scale).astype(int)
        x0, y0 = min(max(x0, 0), columns - 1), min(max(y0, 0), rows - 1)
        x1, y1 = min(max(x1, x0 + 1), columns), min(max(y1, y0 + 1), rows)
        field[y0:y1, x0:x1] += weight / ((x1 - x0) * (y1 - y0))
    return field / field.max() if field.max() > 0 else field


def overlay(image: Image.Image, field: np.ndarray, *, smooth: bool = False, size_px: int = 720) -> Image.Image:
    """The picture with a field laid over it; `smooth` or with the edges of the patches."""
    base = fitted(image, size_px, enlarge=True)
    mask = Image.fromarray((255 * _STRENGTH * np.clip(field, 0, 1)).astype(np.uint8))
    if smooth:
        mask = mask.filter(ImageFilter.GaussianBlur(_RASTER / 24))
    mask = mask.resize(base.size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)
    pale = ImageEnhance.Color(base).enhance(_PALENESS)
    return Image.composite(Image.new("RGB", base.size, LIGHT["after"]), pale, mask)


def fitted(image: Image.Image, size_px: int, enlarge: bool = False) -> Image.Image:
    """At most so large on its longer side."""
    scale = size_px / max(image.size)
    if scale >= 1 and not enlarge:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def encoded(image: Image.Image, quality: int = 84) -> bytes:
    """WebP, with nothing in it but pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
