"""Pictures: a case's image as it is looked at: a file, a SketchWorld scene, or a chart over a vega-datasets table.

What is looked at and what is recorded are two things. The model gets the picture itself; a recording keeps a copy
that a page can carry, upright, in RGB, without what else the file may hold. Sizes and boxes are always those of the
picture itself.

This room may draw: it imports Pillow for the copies, and vl-convert and vega-datasets for charts.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pil

from vsp_report.case import Case, ChartImage, Drawn, ImageFile, Planted, SceneImage
from vsp_report.case import Region as Named
from vsp_report.case.pictures import numbered
from vsp_report.errors import CaseError, ImageError
from vsp_report.maths.edits import Region
from vsp_report.model.vlm import load_image
from vsp_report.recording import Picture, file_sha, sha
from vsp_report.sketchworld.planted import plant
from vsp_report.sketchworld.rules import sample_scene
from vsp_report.sketchworld.scene import COVERED, Scene, make_scene

COPY_PX = 1600
"""Longest side of the copy that is recorded."""
PNG_BYTES = 600_000
"""A copy that is larger as PNG is kept as JPEG."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A case's picture."""

    image: Any
    """PIL, upright, RGB"""
    sha: str
    scene: Scene | None = None
    """what is where, if SketchWorld drew it"""

    @cached_property
    def copy(self) -> tuple[str, bytes]:
        """The name and the bytes of what is recorded."""
        image = self.image
        if max(image.size) > COPY_PX:
            share = COPY_PX / max(image.size)
            image = image.resize([max(1, round(side * share)) for side in image.size], Pil.Resampling.LANCZOS)
        data = png(image)
        if len(data) <= PNG_BYTES:
            return "images/input.png", data
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return "images/input.jpg", buffer.getvalue()

    def recorded(self, alt: str) -> Picture:
        return Picture(self.copy[0], *self.image.size, alt)

    def region(self, named: Named | None, boxes_P4: np.ndarray, place: str) -> Region | None:
        """The region that a case names, as boxes. A thing is every patch of which it covers enough to be seen."""
        if named is None:
            return None
        if named.thing is None:
            return Region(tuple(tuple(map(float, box)) for box in named.all_boxes))
        shown_P = self._shows(self._parts(named, place), boxes_P4)
        if not shown_P.any():
            raise CaseError(place, f"no patch shows {named.thing!r}", "Name a thing that is larger, or a box.")
        return Region(joined(boxes_P4[shown_P]))

    def _parts(self, named: Named, place: str) -> list[int]:
        parts = self.scene.parts if self.scene else ()
        if found := named.among(parts):
            return found
        raise CaseError(place, f"names {named.thing!r}, which is not in the scene", f"There are: {numbered(parts)}.")

    def _shows(self, parts: list[int], boxes_P4: np.ndarray) -> np.ndarray:
        width, height = self.image.size
        mask = np.any([self.scene.mask(part, width) for part in parts], axis=0)
        sums = np.zeros((height + 1, width + 1))
        sums[1:, 1:] = mask.cumsum(0).cumsum(1)
        whole_P = np.isfinite(boxes_P4).all(1)
        x0, y0, x1, y1 = np.where(whole_P[:, None], boxes_P4, 0).round().astype(int).T
        inside_P = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
        share_P = np.where(whole_P, inside_P / np.maximum((x1 - x0) * (y1 - y0), 1), 0)
        return share_P >= COVERED if (share_P >= COVERED).any() else share_P > 0


def load_picture(case: Case) -> Seen:
    """The picture that a case asks about. What is wrong with it is said with the case's line."""
    image, place = case.image, f"{case.path or case.id}:{case.line_of('image')}"
    if isinstance(image, ImageFile):
        return Seen(load_image(case.image_path), file_sha(Path(case.image_path)))
    if isinstance(image, SceneImage):
        scene = _scene(image, place)
        drawn = scene.draw(image.size)
        return Seen(drawn, sha(png(drawn)), scene)
    drawn = draw_chart(image, place)
    return Seen(drawn, sha(png(drawn)))


def _scene(image: SceneImage, place: str) -> Scene:
    asked = image.scene
    if isinstance(asked, Planted):
        return plant(asked.mode, asked.variation, asked.seed).scene
    if isinstance(asked, Drawn):
        return make_scene(_filled(asked.data), place)
    return sample_scene(asked.seed, asked.family)


def _filled(data: Any) -> Any:
    """Plain data without the keys that a case leaves open: a scene has defaults of its own."""
    if isinstance(data, dict):
        return {key: _filled(value) for key, value in data.items() if value is not None and value != []}
    return [_filled(value) for value in data] if isinstance(data, list) else data


def draw_chart(chart: ChartImage, place: str = "image.chart") -> Any:
    """A Vega-Lite chart over its table, exactly as large as the case says. Nothing is downloaded."""
    import vl_convert

    spec = {
        "autosize": {"type": "fit", "contains": "padding"},
        "background": "white",
        **chart.spec.data,
        "width": chart.width,
        "height": chart.height,
        "data": {"values": _table(chart.table)},
    }
    try:
        data = vl_convert.vegalite_to_png(spec, allowed_base_urls=[])
    except ValueError as error:
        reason = (str(error).strip().splitlines() or ["it says nothing"])[0][:200].rstrip(".")
        raise ImageError(place, f"Vega-Lite cannot draw it ({reason})", "Try the chart in the Vega editor.") from error
    drawn = Pil.open(io.BytesIO(data)).convert("RGB")
    # Layers and facets do not fit themselves into a size.
    size = (chart.width, chart.height)
    return drawn if drawn.size == size else drawn.resize(size, Pil.Resampling.LANCZOS)


def _table(name: str) -> list[dict[str, Any]]:
    from vega_datasets import local_data

    with warnings.catch_warnings():
        # vega_datasets asks pandas for an option that pandas has begun to retire.
        warnings.simplefilter("ignore")
        frame = getattr(local_data, name.replace("-", "_"))()
    return json.loads(frame.to_json(orient="records", date_format="iso"))


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def joined(boxes_N4: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    """The same area in fewer boxes: those that stand side by side in one row become one."""
    rows: list[list[float]] = []
    for x0, y0, x1, y1 in sorted(boxes_N4.tolist(), key=lambda box: (box[1], box[3], box[0])):
        if rows and rows[-1][1] == y0 and rows[-1][3] == y1 and abs(rows[-1][2] - x0) < 1e-6:
            rows[-1][2] = x1
        else:
            rows.append([x0, y0, x1, y1])
    return tuple(tuple(box) for box in rows)
