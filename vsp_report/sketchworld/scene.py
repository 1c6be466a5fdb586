"""Scene: a picture as a value. It draws itself at any size and knows what is where.

A scene holds everything that shows: the things in drawing order, the backdrop, or a chart. Two equal scenes
give equal pixels; what is asked about a scene, and what is right, is said by the rules (`rules.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image

from vsp_report.errors import CaseError
from vsp_report.sketchworld import charts
from vsp_report.sketchworld.drawing import SKETCHES, Color, Pen

COVERED = 0.12
"""A patch shows a thing when the thing covers at least this share of it."""


@dataclass(frozen=True)
class Thing:
    """One thing in a picture. Places and sizes are in world units: 96 across, y downwards."""

    kind: str
    x: float
    y: float
    size: float = 1.0
    color: str = ""
    """The word for its colour; empty where colour is no property of the kind."""
    tint: Color = (128, 128, 128)
    """The colour it is drawn with: a shade of `color`."""
    pose: str = ""
    """"sitting" or "standing" for a person; half extents, "20x12", for a curtain."""
    flip: bool = False

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}".strip()


@dataclass(frozen=True)
class Backdrop:
    base: Color = (214, 220, 224)
    horizon: float | None = None
    spots: tuple[tuple[float, float, float, float], ...] = ()
    """Round spots: x, y, radius, tone (1 is the base colour)."""


@dataclass(frozen=True)
class Scene:
    family: str
    """objects, animals, people, cups or charts."""
    things: tuple[Thing, ...] = ()
    backdrop: Backdrop = Backdrop()
    chart: charts.Chart | None = None

    def draw(self, size_px: int = 384) -> Image.Image:
        return charts.draw(self.chart, size_px) if self.chart else _rendered(self, size_px)[0].copy()

    def mask(self, index: int, size_px: int = 384) -> np.ndarray:
        """True where thing `index` shows (what stands before it hides it)."""
        if self.chart:
            return list(charts.masks(self.chart, size_px).values())[index]
        return _rendered(self, size_px)[1] == index + 1

    @property
    def parts(self) -> tuple[str, ...]:
        """The name of everything that has a mask, in the order of the masks."""
        if self.chart is None:
            return tuple(thing.name for thing in self.things)
        bars = tuple(f"{bar.color} bar" for bar in self.chart.bars)
        return bars if self.chart.highlighted is None else (*bars, "highlight")

    def coverage(self, rows: int, columns: int) -> np.ndarray:
        """(parts, rows, columns): the share of every patch that every part covers."""
        fine = 8
        size_px = rows * fine if rows == columns else 8 * 96
        pixels = (
            np.stack([self.mask(i, size_px) for i in range(len(self.parts))])
            if self.parts
            else np.zeros((0, size_px, size_px))
        )
        tall, wide = size_px // rows, size_px // columns
        pixels = pixels[:, : rows * tall, : columns * wide]
        return pixels.reshape(len(pixels), rows, tall, columns, wide).mean(axis=(2, 4))

    def owners(self, rows: int, columns: int) -> np.ndarray:
        """(rows, columns): the part that shows most in each patch, or -1 where none covers enough of it."""
        coverage = self.coverage(rows, columns)
        if not len(coverage):
            return np.full((rows, columns), -1)
        return np.where(coverage.max(axis=0) >= COVERED, coverage.argmax(axis=0), -1)

    def without(self, *indices: int) -> Scene:
        return replace(self, things=tuple(t for i, t in enumerate(self.things) if i not in indices))

    def to_dict(self) -> dict:
        """Plain data that `make_scene` reads back; defaults are left out."""
        data = {"family": self.family, "backdrop": asdict(self.backdrop)}
        if self.chart:
            return data | {"chart": asdict(self.chart)}
        blank = asdict(Thing("", 0, 0))
        return data | {
            "things": [
                {k: v for k, v in asdict(t).items() if k in ("kind", "x", "y") or v != blank[k]} for t in self.things
            ]
        }


def make_scene(data: dict, place: str = "scene") -> Scene:
    """The scene that plain data describes; what is wrong with it is said with its place."""
    try:
        backdrop = data.get("backdrop", {})
        spots = tuple(tuple(spot) for spot in backdrop.get("spots", ()))
        chart = data.get("chart")
        if chart is not None:
            bars = tuple(charts.Bar(**bar) for bar in chart["bars"])
            chart = charts.Chart(**{**chart, "bars": bars, "background": tuple(chart["background"])})
        things = tuple(Thing(**{**t, "tint": tuple(t.get("tint", (128, 128, 128)))}) for t in data.get("things", ()))
        backdrop = Backdrop(**{**backdrop, "base": tuple(backdrop.get("base", Backdrop.base)), "spots": spots})
        scene = Scene(data["family"], things, backdrop, chart)
    except (TypeError, KeyError, AttributeError) as error:
        raise CaseError(
            place, f"not a scene ({error})", "`vsp-report sketchworld draw` writes scenes to start from."
        ) from error
    for i, thing in enumerate(scene.things):
        if thing.kind not in SKETCHES:
            raise CaseError(
                f"{place}.things[{i}].kind", f"nothing here is called {thing.kind!r}", f"Known: {', '.join(SKETCHES)}."
            )
    return scene


@lru_cache(maxsize=32)
def _rendered(scene: Scene, size_px: int) -> tuple[Image.Image, np.ndarray]:
    pen = Pen(size_px)
    pen.backdrop(scene.backdrop.base, scene.backdrop.horizon, scene.backdrop.spots)
    for number, thing in enumerate(scene.things, start=1):
        pen.place(number, thing.x, thing.y, thing.size, thing.flip)
        SKETCHES[thing.kind](pen, thing.tint, thing.pose)
    return pen.finished()
