"""Drawing: one sketch per kind of thing. Plain Pillow shapes in, pixels and a mask of things out.

Coordinates are in world units: a picture is 96 units wide and high, whatever its size in pixels; a sketch
draws around its own origin and the pen places and scales it. Every stroke lands twice: as colour in the
picture and as the number of the thing in the mask, so the truth about a picture is exact by construction.
Shapes are drawn at twice the size and shrunk once, which is all the smoothing there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
WORLD = 96
_OVERSAMPLING = 2

COLORS: dict[str, Color] = {
    "red": (205, 62, 55),
    "green": (70, 150, 82),
    "blue": (62, 100, 192),
    "yellow": (232, 190, 60),
    "purple": (138, 84, 170),
    "white": (244, 243, 238),
}

_SKIN, _FUR, _WOOD, _STEEL, _TROUSERS = (233, 188, 156), (206, 184, 150), (139, 94, 56), (150, 156, 163), (58, 62, 84)
_INK = (42, 38, 42)


def shade(color: Color, factor: float) -> Color:
    """Darker below 1, lighter above."""
    if factor <= 1:
        return tuple(int(v * factor) for v in color)
    return tuple(int(v + (255 - v) * (factor - 1)) for v in color)


class Pen:
    """Draws shapes of one thing after another into a picture and into its mask."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self._scale = size_px * _OVERSAMPLING / WORLD
        side = size_px * _OVERSAMPLING
        self._image = Image.new("RGB", (side, side))
        self._mask = Image.new("L", (side, side), 0)
        self._picture, self._truth = ImageDraw.Draw(self._image), ImageDraw.Draw(self._mask)
        self._x = self._y = 0.0
        self._size, self._flip, self._id = 1.0, 1, 0

    def place(self, number: int, x: float, y: float, size: float, flip: bool) -> None:
        """From here on shapes belong to thing `number` (1, 2, …) and stand around (x, y)."""
        self._id, self._x, self._y, self._size, self._flip = number, x, y, size, -1 if flip else 1

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (
            (self._x + self._flip * x * self._size) * self._scale,
            (self._y + y * self._size) * self._scale,
        )

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        (ax, ay), (bx, by) = self._at(x0, y0), self._at(x1, y1)
        return [min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)]

    def _px(self, width: float) -> int:
        return max(1, round(width * self._size * self._scale))

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: Color, line: float = 0.5) -> None:
        box = self._box(cx - rx, cy - ry, cx + rx, cy + ry)
        self._picture.ellipse(box, fill=fill, outline=shade(fill, 0.72), width=self._px(line))
        self._truth.ellipse(box, fill=self._id)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Color, round_by: float = 0.8) -> None:
        box, radius = self._box(x0, y0, x1, y1), self._px(round_by)
        self._picture.rounded_rectangle(box, radius, fill=fill, outline=shade(fill, 0.72), width=self._px(0.5))
        self._truth.rounded_rectangle(box, radius, fill=self._id)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Color) -> None:
        corners = [self._at(x, y) for x, y in points]
        self._picture.polygon(corners, fill=fill)
        self._picture.line(
            [*corners, corners[0], corners[1]], fill=shade(fill, 0.72), width=self._px(0.5), joint="curve"
        )
        self._truth.polygon(corners, fill=self._id)

    def line(self, points: Sequence[tuple[float, float]], width: float, fill: Color) -> None:
        """A stroke with round ends and joints."""
        corners, px = [self._at(x, y) for x, y in points], self._px(width)
        for draw, value in ((self._picture, fill), (self._truth, self._id)):
            draw.line(corners, fill=value, width=px, joint="curve")
            for x, y in (corners[0], corners[-1]):
                r = px / 2
                draw.ellipse([x - r, y - r, x + r, y + r], fill=value)

    def arc(
        self, cx: float, cy: float, rx: float, ry: float, start: float, end: float, width: float, fill: Color
    ) -> None:
        if self._flip < 0:
            start, end = 180 - end, 180 - start
        box = self._box(cx - rx, cy - ry, cx + rx, cy + ry)
        self._picture.arc(box, start, end, fill=fill, width=self._px(width))
        self._truth.arc(box, start, end, fill=self._id, width=self._px(width))

    def backdrop(self, base: Color, horizon: float | None, spots: Sequence[tuple[float, float, float, float]]) -> None:
        """A soft vertical gradient, pale round spots, and a floor below `horizon` (world units) if there is one."""
        side = self._image.size[0]
        ramp = np.linspace(1.10, 0.94, side)[:, None] * np.asarray(base, dtype=float)[None, :]
        column = np.clip(ramp, 0, 255).astype(np.uint8)[:, None, :]
        self._image.paste(Image.fromarray(np.ascontiguousarray(np.broadcast_to(column, (side, side, 3)))))
        for x, y, radius, tone in spots:
            box = [v * self._scale for v in (x - radius, y - radius, x + radius, y + radius)]
            self._picture.ellipse(box, fill=shade(base, tone))
        if horizon is not None:
            self._picture.rectangle([0, horizon * self._scale, side, side], fill=shade(base, 0.80))
            self._picture.line(
                [0, horizon * self._scale, side, horizon * self._scale], fill=shade(base, 0.68), width=self._px(0.5)
            )

    def finished(self) -> tuple[Image.Image, np.ndarray]:
        """The picture at its size, and the mask of thing numbers at the same size (0 is background)."""
        size = (self.size_px, self.size_px)
        numbers = np.asarray(self._mask.resize(size, Image.Resampling.NEAREST))
        return self._image.resize(size, Image.Resampling.BOX), numbers


# --- small objects, about 26 units wide --------------------------------------------------------------------------


def _fish(pen: Pen, color: Color, pose: str) -> None:
    pen.polygon([(8, 0), (17, -7), (15, 0), (17, 7)], shade(color, 0.85))
    pen.polygon([(-3, -5), (4, -10), (6, -4)], shade(color, 0.85))
    pen.ellipse(0, 0, 12, 6.5, color)
    pen.arc(-4, 0, 3, 5, -70, 70, 0.7, shade(color, 0.7))
    pen.ellipse(-7.5, -1.5, 1.7, 1.7, (250, 250, 250), 0)
    pen.ellipse(-7.8, -1.5, 0.9, 0.9, _INK, 0)


def _turtle(pen: Pen, color: Color, pose: str) -> None:
    skin = (122, 142, 92)
    for x, y in ((-8, 6), (8, 6), (-8, -6), (8, -6)):
        pen.ellipse(x, y, 3.8, 2.8, skin)
    pen.ellipse(-13.5, 0, 4.2, 3.4, skin)
    pen.ellipse(-15, -1, 0.8, 0.8, _INK, 0)
    pen.ellipse(0, 0, 10.5, 7.8, color)
    dark = shade(color, 0.66)
    pen.line([(-4, -4), (4, -4), (6.5, 0), (4, 4), (-4, 4), (-6.5, 0), (-4, -4)], 0.8, dark)
    for x, y, u, v in ((-4, -4, -6, -6), (4, -4, 6, -6), (4, 4, 6, 6), (-4, 4, -6, 6)):
        pen.line([(x, y), (u, v)], 0.8, dark)


def _star(pen: Pen, color: Color, pose: str) -> None:
    points = []
    for i in range(10):
        radius, angle = (12.5 if i % 2 == 0 else 5.6), math.pi * i / 5 - math.pi / 2
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    pen.polygon(points, color)
    for x in (-2.2, 2.2):
        pen.ellipse(x, -1.5, 0.9, 1.2, _INK, 0)


def _ball(pen: Pen, color: Color, pose: str) -> None:
    pen.ellipse(0, 0, 10.5, 10.5, color)
    stripe = (250, 249, 244) if sum(color) < 660 else (120, 130, 150)
    pen.arc(-9, 0, 9, 12, -52, 52, 1.8, stripe)
    pen.arc(9, 0, 9, 12, 128, 232, 1.8, stripe)
    pen.ellipse(-3.8, -5, 1.6, 1.2, shade(color, 1.6), 0)


def _boat(pen: Pen, color: Color, pose: str) -> None:
    pen.line([(0, 4), (0, -13)], 1.4, (104, 74, 48))
    pen.polygon([(1, -13), (1, 1.5), (11, 1.5)], (248, 244, 232))
    pen.polygon([(-1, -9), (-1, 1.5), (-8, 1.5)], (232, 226, 210))
    pen.polygon([(-14, 3.5), (14, 3.5), (9, 11), (-9, 11)], color)
    pen.line([(-12, 6), (12, 6)], 0.8, shade(color, 0.7))


def _tree(pen: Pen, color: Color, pose: str) -> None:
    pen.box(-1.8, 5, 1.8, 13, (112, 78, 48))
    for y, half in ((6, 11), (0, 9), (-6, 6.5)):
        pen.polygon([(-half, y), (half, y), (0, y - 9)], color)


# --- animals: one shape of head; what is added to it tells the animal --------------------------------------------


def _animal(pen: Pen, color: Color, pose: str) -> None:
    pen.ellipse(5, 15, 10, 9, shade(color, 0.94))
    pen.ellipse(0, 0, 13, 12, color)
    pen.ellipse(-4, -2, 1.9, 2.1, _INK, 0)
    pen.ellipse(-4.6, -2.8, 0.6, 0.6, (255, 255, 255), 0)


def _bill(pen: Pen, color: Color, pose: str) -> None:
    pen.polygon([(-10, -1), (-18, -3.5), (-27, -2.5), (-27, 1), (-10, 3)], (238, 150, 45))
    pen.polygon([(-10, 3), (-25, 2.5), (-23, 6), (-10, 6.5)], (216, 122, 34))


def _trunk(pen: Pen, color: Color, pose: str) -> None:
    pen.line([(-10, 2), (-17, 5), (-20, 13), (-19, 21), (-25, 24)], 5.5, (138, 146, 158))
    for x, y in ((-17, 8), (-18.5, 13), (-18, 18)):
        pen.line([(x - 2, y), (x + 1.5, y)], 0.7, (104, 110, 122))


def _snout(pen: Pen, color: Color, pose: str) -> None:
    pen.ellipse(-15, 4, 6.5, 5.5, (238, 150, 164))
    pen.ellipse(-17, 3.5, 1.1, 1.7, (166, 80, 96), 0)
    pen.ellipse(-13, 3.5, 1.1, 1.7, (166, 80, 96), 0)


def _beak(pen: Pen, color: Color, pose: str) -> None:
    pen.polygon([(-9, -6), (-17, -6), (-21, 0), (-20, 9), (-16, 3), (-9, 5)], (64, 66, 74))
    pen.polygon([(-9, 5), (-15, 4), (-14, 8), (-9, 8)], (92, 94, 104))
    pen.ellipse(-11, -4, 2, 1.4, (220, 70, 60), 0)


def _ears(pen: Pen, color: Color, pose: str) -> None:
    for x in (-5, 5):
        pen.ellipse(x, -20, 3.6, 11, _FUR)
        pen.ellipse(x, -20, 1.7, 8, (236, 160, 170), 0)


def _antlers(pen: Pen, color: Color, pose: str) -> None:
    for side in (-1, 1):
        pen.line([(4 * side, -10), (8 * side, -19), (7 * side, -29)], 1.9, (110, 72, 40))
        pen.line([(8 * side, -19), (15 * side, -25)], 1.7, (110, 72, 40))
        pen.line([(6.5 * side, -15), (13 * side, -16)], 1.7, (110, 72, 40))


def _horns(pen: Pen, color: Color, pose: str) -> None:
    for side in (-1, 1):
        pen.polygon(
            [(3 * side, -9), (9 * side, -9), (12 * side, -17), (10 * side, -27), (6.5 * side, -18)], (226, 220, 196)
        )
        pen.line([(5.5 * side, -14), (11 * side, -14)], 0.8, (150, 142, 116))
        pen.line([(7 * side, -19), (11 * side, -19)], 0.8, (150, 142, 116))


def _points(pen: Pen, color: Color, pose: str) -> None:
    for side in (-1, 1):
        pen.polygon([(2 * side, -10.5), (12 * side, -6), (11 * side, -21)], (72, 66, 70))
        pen.polygon([(5 * side, -11), (10 * side, -8.5), (10 * side, -16)], (240, 170, 176))


# --- people, what they sit on, what they lean on -----------------------------------------------------------------


def _person(pen: Pen, color: Color, pose: str) -> None:
    hair, dark = (84, 60, 44), shade(color, 0.8)
    if pose == "standing":
        pen.line([(-2.4, 2), (-2.6, 19)], 4, _TROUSERS)
        pen.line([(2.4, 2), (2.6, 19)], 4, _TROUSERS)
        pen.line([(-4.5, -14), (-6.5, 0)], 2.6, dark)
        pen.box(-5, -17, 5, 4, color, 2)
        pen.line([(4.5, -14), (6.5, 0)], 2.6, dark)
        top = -22.5
    else:
        pen.line([(0, 6), (11, 6.5), (11, 19)], 4.2, _TROUSERS)
        pen.box(-5, -11, 5, 8, color, 2)
        pen.line([(2, -7), (5, 1), (10, 3)], 2.6, dark)
        top = -16.5
    pen.ellipse(0, top, 5, 5.4, _SKIN)
    pen.ellipse(0, top - 3.6, 4.8, 2.4, hair, 0)
    pen.ellipse(2.2, top + 0.2, 0.7, 0.8, _INK, 0)


def _chair(pen: Pen, color: Color, pose: str) -> None:
    pen.box(-10, -14, -7, 20, color)
    pen.box(5, 9, 8, 20, color)
    pen.box(-10, -14, -4, -9, shade(color, 1.1))
    pen.box(-10, 8, 9, 11.5, shade(color, 1.1))


def _bench(pen: Pen, color: Color, pose: str) -> None:
    for x in (-17, 14):
        pen.box(x, 9, x + 3, 20, (92, 96, 102))
    for y in (-6, -1, 8):
        pen.box(-20, y, 20, y + 3.2, color)
    pen.box(-17, -6, -15, 10, (92, 96, 102))
    pen.box(15, -6, 17, 10, (92, 96, 102))


def _stool(pen: Pen, color: Color, pose: str) -> None:
    for x in (-7, 7):
        pen.line([(x * 0.6, 10), (x, 19.5)], 1.9, _STEEL)
    pen.line([(-6, 15), (6, 15)], 1.3, _STEEL)
    pen.ellipse(0, 10, 9, 2.8, (196, 70, 64))


def _sofa(pen: Pen, color: Color, pose: str) -> None:
    pen.box(-19, -8, 19, 12, shade(color, 0.9), 3)
    pen.box(-17, 7, 17, 14, color, 2)
    for x in (-22, 16):
        pen.box(x, 0, x + 6, 18, shade(color, 1.12), 3)
    pen.box(-18, 13, 18, 18, shade(color, 0.82), 1)


def _cane(pen: Pen, color: Color, pose: str) -> None:
    pen.line([(9, -1), (9, 20)], 1.5, (94, 62, 40))
    pen.arc(6.5, -1, 2.8, 3, 180, 360, 1.5, (94, 62, 40))


def _walker(pen: Pen, color: Color, pose: str) -> None:
    pen.line([(9, 20), (9, 0), (20, 0), (20, 20)], 1.5, _STEEL)
    pen.line([(9, 9), (20, 9)], 1.2, _STEEL)
    for x in (9, 20):
        pen.ellipse(x, 19.5, 1.6, 1.6, _INK, 0)


def _lamp(pen: Pen, color: Color, pose: str) -> None:
    pen.line([(0, -16), (0, 19)], 1.3, (86, 84, 90))
    pen.ellipse(0, 19, 6, 1.8, (86, 84, 90))
    pen.polygon([(-5, -25), (5, -25), (9, -14), (-9, -14)], (250, 222, 140))


def _plant(pen: Pen, color: Color, pose: str) -> None:
    for x, y in ((-9, -6), (-5, -13), (0, -16), (5, -13), (9, -6)):
        pen.line([(0, 9), (x, y)], 1.6, (74, 134, 84))
        pen.ellipse(x, y, 3.4, 4.6, (90, 158, 98))
    pen.polygon([(-7, 8), (7, 8), (5, 20), (-5, 20)], (190, 106, 74))


# --- a cup, and what it stands on: the top of every support is at y = 8 ------------------------------------------


def _cup(pen: Pen, color: Color, pose: str) -> None:
    pen.arc(7, -2, 5.5, 5, -95, 95, 2, shade(color, 0.85))
    pen.polygon([(-8, -10), (8, -10), (6, 8), (-6, 8)], color)
    pen.ellipse(0, -10, 8, 2, shade(color, 0.8))


def _table(pen: Pen, color: Color, pose: str) -> None:
    for x in (-26, 22):
        pen.box(x, 12, x + 4, 40, shade(_WOOD, 0.85))
    pen.box(-32, 8, 32, 13, _WOOD)


def _shelf(pen: Pen, color: Color, pose: str) -> None:
    for x in (-22, 22):
        pen.polygon([(x - 4, 12), (x + 4, 12), (x - 4, 24)], _STEEL)
    pen.box(-31, 8, 31, 12.5, (226, 224, 216))


def _box(pen: Pen, color: Color, pose: str) -> None:
    pen.box(-15, 8, 15, 38, (200, 160, 110))
    pen.box(-3, 8, 3, 38, (228, 202, 158), 0.2)
    pen.line([(-15, 14), (15, 14)], 0.7, (150, 114, 74))


def _rock(pen: Pen, color: Color, pose: str) -> None:
    grey = (134, 136, 142)
    pen.polygon([(-24, 38), (-18, 16), (-9, 8), (9, 8), (19, 19), (25, 38)], grey)
    pen.line([(-9, 16), (-3, 24), (-8, 32)], 0.9, shade(grey, 0.72))
    pen.line([(8, 15), (12, 24)], 0.9, shade(grey, 0.72))


def _book(pen: Pen, color: Color, pose: str) -> None:
    pen.box(-20, 8, 20, 18, color, 1.6)
    pen.box(-17, 10, 20, 16, (246, 241, 226), 0.4)
    for y in (11.6, 13.2, 14.6):
        pen.line([(-16, y), (19, y)], 0.4, (206, 198, 176))


def _cushion(pen: Pen, color: Color, pose: str) -> None:
    pen.ellipse(0, 19, 26, 11.5, color)
    for y in (13, 17, 21, 25):
        half = 24 * math.sqrt(max(0.0, 1 - ((y - 19) / 11.5) ** 2))
        pen.line([(-half + 2, y), (half - 2, y)], 1.2, (246, 243, 236))
    for x in (-26, 26):
        pen.ellipse(x, 19, 2.6, 2.6, shade(color, 0.8))


def _stump(pen: Pen, color: Color, pose: str) -> None:
    pen.polygon([(-15, 10), (15, 10), (17, 34), (21, 39), (-21, 39), (-17, 34)], (124, 84, 52))
    pen.ellipse(0, 10.5, 15, 3.2, (216, 178, 128))
    pen.ellipse(0, 10.5, 8, 1.6, (190, 148, 98))
    for x in (-8, 0, 8):
        pen.line([(x, 16), (x, 33)], 0.9, (92, 60, 36))


def _bucket(pen: Pen, color: Color, pose: str) -> None:
    pen.polygon([(-16, 9), (16, 9), (11, 38), (-11, 38)], (158, 170, 182))
    pen.ellipse(0, 9.5, 16, 2.6, (196, 206, 214))
    pen.line([(-14.6, 17), (14.6, 17)], 1, (116, 128, 140))
    pen.line([(-12.6, 29), (12.6, 29)], 1, (116, 128, 140))


def _hand(pen: Pen, color: Color, pose: str) -> None:
    pen.line([(-34, 42), (-8, 18)], 9.5, color)
    for x, tip in ((13, 22), (12, 17.5), (10, 13)):
        pen.line([(2, 15), (x, tip - 4), (x + 9, tip - 6)], 3.1, shade(color, 0.95))
    pen.ellipse(0, 14, 14, 6.2, color)
    pen.line([(-8, 13), (-14, 4), (-12, -1)], 3.4, color)


def _fist(pen: Pen, color: Color, pose: str) -> None:
    pen.line([(2, 44), (1, 26)], 10, shade(color, 0.95))
    pen.box(-12, 8, 12, 26, color, 5)
    for x in (-6, 0, 6):
        pen.line([(x, 9.5), (x, 19)], 0.9, shade(color, 0.74))
    pen.line([(-12, 20), (-2, 22), (5, 20)], 4, shade(color, 0.93))


def _foot(pen: Pen, color: Color, pose: str) -> None:
    pen.line([(-30, 44), (-22, 16)], 10.5, color)
    pen.polygon([(-27, 20), (-22, 9), (14, 8), (24, 10), (24, 18), (-14, 24)], color)
    for i in range(5):
        pen.ellipse(15.5 + 2.6 * i, 8.6 + 1.3 * i, 2.5 - 0.2 * i, 2.6 - 0.2 * i, shade(color, 1.1))


def _head(pen: Pen, color: Color, pose: str) -> None:
    pen.ellipse(0, 50, 27, 12, (96, 112, 132))
    pen.box(-5, 32, 5, 44, shade(color, 0.92))
    pen.ellipse(0, 23, 14, 15, color)
    for x in (-5, 5):
        pen.ellipse(x, 22, 1.5, 1.9, _INK, 0)
    pen.ellipse(0, 26.5, 1.9, 2.4, shade(color, 0.84), 0)
    pen.arc(0, 29, 5, 4, 20, 160, 1, (150, 70, 70))
    for x in (-14, 14):
        pen.ellipse(x, 24, 2.6, 3.6, shade(color, 0.95))


def _mitten(pen: Pen, color: Color, pose: str) -> None:
    pen.ellipse(-19, 21, 6, 9, color)
    pen.ellipse(0, 22, 19, 14.5, color)
    pen.box(-14, 30, 14, 46, color, 2)
    for y in (14, 18, 22, 26, 30):
        half = 17.5 * math.sqrt(max(0.1, 1 - ((y - 22) / 15) ** 2))
        pen.line([(-half, y), (half, y)], 1.2, (246, 243, 236))
    pen.box(-15, 37, 15, 46, shade(color, 0.78), 2)


def _puppet(pen: Pen, color: Color, pose: str) -> None:
    pen.polygon([(-13, 46), (-12, 26), (12, 26), (13, 46)], shade(color, 0.85))
    pen.ellipse(0, 19, 20, 11.5, color)
    pen.line([(-19, 21), (-6, 23.5), (10, 22.5), (19, 20)], 1.5, (110, 40, 46))
    for x in (-7, 7):
        pen.ellipse(x, 14.5, 3.4, 3.4, (252, 251, 246))
        pen.ellipse(x, 15, 1.5, 1.6, _INK, 0)
    for y in (31, 36, 41):
        pen.line([(-12, y), (12, y)], 1.6, (244, 208, 90))


def _boot(pen: Pen, color: Color, pose: str) -> None:
    pen.polygon([(-18, 9), (8, 8), (8, 26), (24, 31), (26, 40), (-18, 40)], color)
    pen.box(-19, 39, 27, 44, (52, 44, 42))
    pen.box(-19, 8, 9, 14, (238, 230, 214), 2)
    for y in (19, 24, 29):
        pen.line([(-2, y), (8, y + 1)], 1.1, (246, 240, 226))


def _hat(pen: Pen, color: Color, pose: str) -> None:
    pen.polygon([(-19, 38), (-17, 20), (-9, 9.5), (9, 9.5), (17, 20), (19, 38)], color)
    for x in (-11, -4, 4, 11):
        pen.line([(x * 0.7, 12), (x, 36)], 1, shade(color, 0.74))
    pen.box(-22, 34, 22, 44, (244, 240, 230), 3)
    for x in range(-18, 19, 6):
        pen.line([(x, 36), (x, 42)], 1, (206, 200, 188))


def _curtain(pen: Pen, color: Color, pose: str) -> None:
    """Hides what is behind it; half as wide and high as its pose says ("40x30" in world units)."""
    half_width, half_height = (float(v) for v in pose.split("x"))
    pen.box(-half_width, -half_height, half_width, half_height, (176, 172, 168), 1.5)
    folds = max(3, int(half_width // 3))
    for i in range(1, folds):
        x = -half_width + 2 * half_width * i / folds
        pen.line([(x, -half_height + 2), (x, half_height - 2)], 0.8, (150, 146, 142))


SKETCHES: dict[str, Callable[[Pen, Color, str], None]] = {
    name.removeprefix("_"): sketch
    for name, sketch in list(globals().items())
    if name.startswith("_") and callable(sketch) and getattr(sketch, "__module__", "") == __name__
}
