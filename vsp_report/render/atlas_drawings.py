"""Atlas drawings: what a reader without scripts sees of an atlas, as SVG. Values in, text out.

Points of a whole dictionary are too many for a chart library's SVG: here points of one colour are one path, and
points that fall on the same pixel are drawn once. With scripts, atlas.js draws the same on canvases that answer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vsp_report.atlas import ABSENT, Atlas
from vsp_report.render import atlas_map
from vsp_report.render.theme import CHART_FONT, DARK, LIGHT

WIDTH, HEIGHT = 560, 400
LEFT, BOTTOM, TOP, RIGHT = 56, 44, 10, 12
SHADES = 5
"""Label entropy has so many colours: the fewer labels, the more colour."""
VEILED = 0.25
"""Of a reference, patches below this share of its activation are veiled."""


def shade(level: int, night: bool = False) -> str:
    """Of label entropy, 0 for the purest."""
    of = DARK if night else LIGHT
    start, end, part = _rgb(of["heat"]), _rgb(of["control"]), level / (SHADES - 1)
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(start, end, strict=True))


def _rgb(hue: str) -> tuple[int, ...]:
    return tuple(int(hue[i : i + 2], 16) for i in (1, 3, 5))


def shades_of(entropy_L: np.ndarray) -> np.ndarray:
    """0 to 4 evenly up to the largest entropy; 4 where there is none."""
    there = entropy_L != np.float32(ABSENT)
    top = float(entropy_L[there].max()) if there.any() else 1.0
    level = np.floor(SHADES * np.clip(entropy_L / (top or 1), 0, 0.9999)).astype(int)
    return np.where(there, level, SHADES - 1)


def scatter(atlas: Atlas) -> str:
    """Frequency across, mean activation up, both by logarithm; the colour is label entropy."""
    a, seen = atlas.arrays, atlas.alive_L & (atlas.arrays.mean_L > 0)
    x, y = np.log10(100 * a.frequency_L[seen].astype(float)), np.log10(a.mean_L[seen].astype(float))
    across, up = _Axis.over(x, LEFT, WIDTH - RIGHT), _Axis.over(y, HEIGHT - BOTTOM, TOP)
    parts = [_ticks_below(across, "percent of pictures that activate it"), _ticks_left(up, "mean activation there")]
    level = shades_of(a.entropy_L[seen])
    for one in reversed(range(SHADES)):
        parts.append(_points(across.at(x[level == one]), up.at(y[level == one]), f"e{one}"))
    return _svg("".join(parts), WIDTH, HEIGHT)


def map_of(atlas: Atlas) -> str:
    """Decoder directions on the plane, with the names of the clusters. What lies beyond the frame is on its rim."""
    a, seen, drawn = atlas.arrays, atlas.alive_L, atlas_map.drawn(atlas)
    x, y = 8 + drawn.place_L2[seen, 0] * (WIDTH - 16), 8 + drawn.place_L2[seen, 1] * (HEIGHT - 16)
    rim, grouped = drawn.rim_L[seen], a.cluster_L[seen] >= 0
    kinds = {"loose": ~grouped & ~rim, "grouped": grouped & ~rim}
    parts = [_points(x[those], y[those], kind) for kind, those in kinds.items()]
    if rim.any():
        left, top = 8 + drawn.inset / 2 * (WIDTH - 16), 8 + drawn.inset / 2 * (HEIGHT - 16)
        parts.append(f'<rect class="frame" x="{left:.1f}" y="{top:.1f}" width="{WIDTH - 2 * left:.1f}" '
                     f'height="{HEIGHT - 2 * top:.1f}"/>')  # fmt: skip
        places = np.unique(np.rint(np.stack([x[rim], y[rim]], 1)).astype(int), axis=0).tolist()
        rings = "".join(f"M{a - 3} {b}a3 3 0 1 0 6 0a3 3 0 1 0-6 0" for a, b in places)
        parts.append(f'<path class="rim" d="{rings}"/>')
    # Names of large clusters first; one that would cover another is left out.
    taken: list[tuple[float, float, float]] = []
    for c in sorted(range(len(atlas.clusters)), key=lambda c: -atlas.clusters[c].size):
        places = drawn.place_L2[a.cluster_L == c]
        name = atlas.clusters[c].name.partition(", ")[0]
        if not name or not len(places):
            continue
        middle = np.median(places, 0)
        left, down, half = 8 + middle[0] * (WIDTH - 16), 8 + middle[1] * (HEIGHT - 16), 3.4 * len(name)
        left = float(np.clip(left, half + 4, WIDTH - half - 4))
        if all(abs(left - l) > half + h or abs(down - d) > 14 for l, d, h in taken):  # noqa: E741
            taken.append((left, float(down), half))
            parts.append(f'<text class="halo" x="{left:.0f}" y="{down:.0f}">{_escaped(name)}</text>'
                         f'<text class="name" x="{left:.0f}" y="{down:.0f}">{_escaped(name)}</text>')  # fmt: skip
    return _svg("".join(parts), WIDTH, HEIGHT)


def histogram(values: np.ndarray, title: str, *, log: bool) -> str:
    """How often values occur, in thirty bins."""
    width, height, bottom = 300, 170, 40
    values = np.log10(values.astype(float)) if log else values.astype(float)
    across = _Axis.over(values, 14, width - 14, log=log)
    counts, edges = np.histogram(values, bins=30, range=(across.low, across.high))
    tall = (height - bottom - 8) / max(1, counts.max())
    left, right, floor = across.at(edges[:-1]) + 0.5, across.at(edges[1:]) - 0.5, height - bottom
    bars = "".join(f"M{left[i]:.1f} {floor}v{-counts[i] * tall:.1f}H{right[i]:.1f}V{floor}z"
                   for i in np.flatnonzero(counts))  # fmt: skip
    return _svg(f'<path class="bar" d="{bars}"/>' + _ticks_below(across, title, height, bottom, width), width, height)


class _Axis(NamedTuple):
    low: float
    high: float
    start: float
    end: float
    log: bool = True

    @classmethod
    def over(cls, values: np.ndarray, start: float, end: float, log: bool = True) -> _Axis:
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        spare = (high - low) * 0.03 or 0.5
        # A share above one is none, and neither is an amount below zero.
        return cls(low - spare if log else max(0.0, low - spare), high + spare, start, end, log)

    def at(self, values: np.ndarray) -> np.ndarray:
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if self.log:
            found = [d + np.log10(m) for d in range(-6, 7) for m in ((1,) if self.high - self.low > 2 else (1, 2, 5))]
            return [(self.at(t), f"{10**t:.3g}") for t in found if self.low <= t <= self.high]
        step = 10 ** np.floor(np.log10((self.high - self.low) / 2))
        found = np.arange(np.ceil(self.low / step), self.high / step) * step
        kept = found[:: max(1, len(found) // 6)]
        return [(self.at(t), f"{t:.3g}") for t in kept]


def _ticks_below(axis: _Axis, title: str, height: int = HEIGHT, bottom: int = BOTTOM, width: int = WIDTH) -> str:
    y = height - bottom
    marks = "".join(f'<path class="axis" d="M{x:.1f} {y}v4"/><text x="{x:.1f}" y="{y + 16}">{said}</text>'
                    for x, said in axis.ticks())  # fmt: skip
    line = f'<path class="axis" d="M{min(axis.start, axis.end):.0f} {y}H{max(axis.start, axis.end):.0f}"/>'
    return f'{line}{marks}<text x="{(axis.start + axis.end) / 2:.0f}" y="{y + 34}">{_escaped(title)}</text>'


def _ticks_left(axis: _Axis, title: str) -> str:
    x = LEFT
    marks = "".join(f'<path class="axis" d="M{x} {y:.1f}h-4"/><text class="side" x="{x - 7}" y="{y + 4:.1f}">{said}'
                    "</text>" for y, said in axis.ticks())  # fmt: skip
    line, middle = f'<path class="axis" d="M{x} {axis.start:.0f}V{axis.end:.0f}"/>', (axis.start + axis.end) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})" x="14" y="{middle:.0f}"'
    return f"{line}{marks}<text {turned}>{_escaped(title)}</text>"


def _points(x: np.ndarray, y: np.ndarray, kind: str) -> str:
    """Round points as one path, one for each pixel."""
    if not len(x):
        return ""
    places = np.unique(np.rint(np.stack([x, y], 1)).astype(int), axis=0).tolist()
    return f'<path class="point {kind}" d="{"".join(f"M{a} {b}h0" for a, b in places)}"/>'


def _svg(inside: str, width: int, height: int) -> str:
    def rules(of: dict[str, str], night: bool) -> str:
        points = "".join(f".e{n}{{stroke:{shade(n, night)}}}" for n in range(SHADES))
        return (
            f"text{{fill:{of['soft']}}}.axis{{stroke:{of['line']}}}.bar{{fill:{of['before']}}}{points}"
            f".loose{{stroke:{of['control']}}}.grouped{{stroke:{of['heat']}}}.name{{fill:{of['ink']}}}"
            f".halo{{stroke:{of['paper']};fill:{of['paper']}}}.frame,.rim{{stroke:{of['soft']}}}"
        )

    style = (
        f"text{{font:12px {CHART_FONT};text-anchor:middle}}.side{{text-anchor:end}}"
        "path,rect{fill:none}.frame{stroke-dasharray:2 4}"
        ".point{stroke-width:3;stroke-linecap:round}.halo{stroke-width:4;stroke-linejoin:round}.name{font-weight:bold}"
        f".halo{{font-weight:bold}}{rules(LIGHT, False)}"
        f"@media (prefers-color-scheme:dark){{{rules(DARK, True)}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<style>{style}</style>{inside}</svg>\n"
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def veil(grid: np.ndarray) -> str:
    """A path over the patches of a reference on which the latent is silent, in units of patches: a rectangle for each
    run of them in a row."""
    found = []
    for row, line in enumerate(grid < VEILED * (grid.max() or 1)):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int)))
        found += [f"M{a} {row}h{b - a}v1h{a - b}z" for a, b in edges.reshape(-1, 2).tolist()]
    return "".join(found)
