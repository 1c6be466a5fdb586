"""Charts: small bar charts of real tables, drawn by Altair, with the exact place of everything in them.

The numbers come from tables that vega_datasets carries inside its package; nothing is downloaded.
All lengths are in 96ths of the picture's side, so that the chart drawn at 384 px for the report is the one
drawn at 96 px for the model, four times as large. Only labels, small and light, are left out where nobody
could read them; measuring text is also most of what a Vega chart costs.

A chart of its own is a vl-convert call of 30 to 50 ms. `draw_many` compiles one chart of each size and lets
Vega repeat it, with every chart's numbers, over one contact sheet that is rendered once and cut up: 2 ms a
chart at 96 px, and the pixels are those of `draw`; a test holds them to that.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from vsp_report.sketchworld.drawing import COLORS, WORLD, Color, shade

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

T = TypeVar("T")

BACKGROUNDS: tuple[Color, ...] = (
    (226, 231, 236),
    (231, 228, 221),
    (222, 230, 225),
    (230, 227, 235),
    (228, 228, 228),
)
GOLD: Color = (251, 216, 124)
INK: Color = (38, 42, 52)
LABEL_INK: Color = (98, 104, 116)
FONT = "Liberation Sans"
"""The font inside vl-convert: labels look the same on every machine, also on one without fonts."""

LABELS_FROM_PX = 256
"""Below it a label would be a smear."""

LEFT, RIGHT = 8.0, 88.0
TOP, BASELINE = 20.0, 80.0
"""The tallest bar reaches from BASELINE to TOP."""
BAND_TOP, BAND_BOTTOM = 13.0, 93.0
GAP = 0.36
"""The share of a bar's step that stays empty."""
BAND_WIDTH = 1.42
"""The highlight's width in widths of its bar."""
OUTLINE = 1.5
"""Around the highlighted bar; wholly outside it."""
EDGE = 0.6
"""Every bar has a thin edge in a darker shade: it is what sets a white bar off from the background."""

TALLEST_LEAD = 0.12
"""The second bar is at least this share of the tallest shorter than it."""
SHORTEST = 0.10
"""No bar is shorter than this share of the tallest."""

_SHEET_CHARTS = 64


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    color: str
    """A word of COLORS."""


@dataclass(frozen=True)
class Chart:
    table: str
    """The vega-datasets table that the numbers are from."""
    measure: str
    bars: tuple[Bar, ...]
    """From left to right; their labels differ."""
    highlighted: int | None
    """The bar with the pale-gold band behind it."""
    background: Color


# ---- numbers ----


class Series(NamedTuple):
    """One measure over the categories of a table: what a chart shows some of."""

    measure: str
    values: dict[str, float]


class View(NamedTuple):
    """One way to read a table: `column` over the categories of `by`, once for every value of `within`."""

    column: str
    text: str
    by: str
    within: tuple[str, ...] = ()
    aggregate: str = "mean"


_CARS = {
    "Miles_per_Gallon": "Miles per gallon",
    "Horsepower": "Horsepower",
    "Displacement": "Displacement (cubic inches)",
    "Weight_in_lbs": "Weight (lb)",
    "Acceleration": "Seconds to 60 mph",
}
_VIEWS: dict[str, tuple[View, ...]] = {
    "barley": (
        View("yield", "Barley yield (bushels/acre)", "variety", ("site", "year")),
        View("yield", "Barley yield (bushels/acre)", "site", ("variety", "year")),
    ),
    "cars": tuple(
        View(column, text, by, (within,))
        for column, text in _CARS.items()
        for by, within in itertools.permutations(("Origin", "cylinders", "year"), 2)
    ),
    "iowa-electricity": (
        View("net_generation", "Iowa electricity (GWh)", "source", ("year",)),
        View("net_generation", "Iowa electricity (GWh)", "year", ("source",)),
    ),
    "iris": (View("cm", "Iris (cm)", "species", ("part",)), View("cm", "Iris (cm)", "part", ("species",))),
    "seattle-weather": (
        View("precipitation", "Rain and snow (mm)", "month", ("year",), "sum"),
        View("precipitation", "Rain and snow (mm)", "year", ("month",), "sum"),
        View("wind", "Mean wind (m/s)", "month", ("year",)),
        View("wind", "Days", "weather", ("year",), "count"),
        View("wind", "Days", "weather", ("month",), "count"),
        View("wind", "Days", "month", ("weather", "year"), "count"),
    ),
    "stocks": (
        View("price", "Mean share price (US$)", "symbol", ("year",)),
        View("price", "Mean share price (US$)", "year", ("symbol",)),
    ),
    "us-employment": (View("jobs", "Jobs (thousands)", "sector", ("year",)),),
    "wheat": (
        View("wheat", "Wheat (shillings/quarter)", "year"),
        View("wages", "Weekly wage (shillings)", "year"),
    ),
}
TABLES = tuple(_VIEWS)

_DATES = {
    "cars": "Year",
    "iowa-electricity": "year",
    "seattle-weather": "date",
    "stocks": "date",
    "us-employment": "month",
}
_SECTORS = (
    "construction",
    "manufacturing",
    "wholesale_trade",
    "retail_trade",
    "information",
    "financial_activities",
    "leisure_and_hospitality",
    "other_services",
    "government",
)


def sample_chart(
    random_float: Callable[[], float], *, highlight: bool, lead: tuple[float, float] = (TALLEST_LEAD, 1.0)
) -> Chart:
    """A chart of some categories of one table, with one clearly tallest bar, which `highlight` marks.

    `lead`: by how much of itself the tallest bar is taller than the second, at least and at most. Equal
    numbers from `random_float` (uniform in [0, 1)) give equal charts on every machine.
    """
    while True:
        table = _choose(random_float, TABLES, 1)[0]
        series = _choose(random_float, _series(table), 1)[0]
        count = min(3 + int(random_float() * 3), len(series.values))
        labels = _choose(random_float, tuple(series.values), count)
        values = [series.values[label] for label in labels]
        *lower, second, tallest = sorted(values)
        if tallest > 0 and lead[0] <= (tallest - second) / tallest <= lead[1] and lower[0] >= SHORTEST * tallest:
            break
    colors = _choose(random_float, tuple(COLORS), len(labels))
    bars = tuple(Bar(*parts) for parts in zip(labels, values, colors, strict=True))
    background = _choose(random_float, BACKGROUNDS, 1)[0]
    return Chart(table, series.measure, bars, values.index(tallest) if highlight else None, background)


def _choose(random_float: Callable[[], float], items: Sequence[T], count: int) -> list[T]:
    left = list(items)
    return [left.pop(int(random_float() * len(left))) for _ in range(count)]


@cache
def _series(table: str) -> tuple[Series, ...]:
    frame = _frame(table)
    found = (series for view in _VIEWS[table] for series in _aggregated(frame, view))
    return tuple(series for series in found if len(series.values) >= 3)


def _frame(table: str) -> pd.DataFrame:
    """The table with its categories as text columns."""
    import pandas as pd
    from vega_datasets import local_data

    with warnings.catch_warnings():
        # vega_datasets asks pandas for an option that pandas has begun to retire.
        warnings.filterwarnings("ignore", "The 'convert_dates' keyword")
        frame = getattr(local_data, table.replace("-", "_"))()
    if table in _DATES:
        when = pd.to_datetime(frame[_DATES[table]]).dt
        frame = frame.assign(year=when.year, month=when.month_name().str[:3])
    if table == "cars":
        frame["cylinders"] = frame["Cylinders"].astype(str) + " cylinders"
    elif table == "iris":
        parts = {"sepalLength": "sepal length", "sepalWidth": "sepal width"}
        parts |= {"petalLength": "petal length", "petalWidth": "petal width"}
        frame = frame.rename(columns=parts).melt("species", var_name="part", value_name="cm")
    elif table == "us-employment":
        frame = frame.melt("year", _SECTORS, var_name="sector", value_name="jobs")
        frame["sector"] = frame["sector"].str.replace("_", " ").str.capitalize()
    return frame


def _aggregated(frame: pd.DataFrame, view: View) -> Iterator[Series]:
    keys = [*view.within, view.by]
    numbers = frame.groupby(keys)[view.column].agg(view.aggregate).dropna()
    found: dict[str, dict[str, float]] = {}
    for key, number in numbers.items():
        *within, label = [str(part) for part in (key if isinstance(key, tuple) else (key,))]
        # Four digits: what a sum rounds to in its last bit differs between machines.
        found.setdefault(", ".join([view.text, *within]), {})[label] = float(f"{number:.4g}")
    return (Series(measure, values) for measure, values in found.items())


# ---- pictures ----


def specification(chart: Chart, size_px: int) -> alt.Chart:
    """The chart as Altair draws it, `size_px` wide and high."""
    import altair as alt

    unit = size_px / WORLD
    labelled = size_px >= LABELS_FROM_PX
    gray, ink = _hex(LABEL_INK), _hex(INK)
    places = alt.Scale(
        domain=[bar.label for bar in chart.bars],
        range=[LEFT * unit, RIGHT * unit],
        paddingInner=GAP,
        paddingOuter=GAP / 2,
    )
    heights = alt.Scale(domain=[0, _tallest(chart)], range=[BASELINE * unit, TOP * unit], nice=False)
    axis = alt.Axis(
        title=None,
        ticks=False,
        zindex=1,
        labels=labelled,
        offset=(BASELINE - WORLD) * unit,
        translate=0,
        domainColor=ink,
        domainWidth=0.5 * unit,
        labelExpr="split(datum.label, ' ')",
        labelAngle=0,
        labelLimit=0,
        labelOverlap=False,
        labelPadding=2.2 * unit,
        labelFont=FONT,
        labelFontSize=2.8 * unit,
        labelLineHeight=3.3 * unit,
        labelColor=gray,
    )
    title = alt.TitleParams(
        chart.measure,
        anchor="start",
        frame="group",
        dx=LEFT * unit,
        offset=-9 * unit,
        font=FONT,
        fontSize=3.4 * unit,
        fontWeight=500,
        color=ink,
    )
    x = alt.X("label:N", sort=None, scale=places, axis=axis)
    bars = alt.Chart(alt.Data(values=_rows(chart))).encode(x=x)
    marked = bars.transform_filter("datum.highlighted")
    y = alt.Y("value:Q", scale=heights, stack=None, axis=None)
    # The bar covers the inner half of its outline, so that outline and bar share no pixel.
    layers = (
        marked.mark_bar(color=_hex(GOLD), width=alt.RelativeBandSize(BAND_WIDTH)).encode(
            y=alt.value(BAND_TOP * unit), y2=alt.value(BAND_BOTTOM * unit)
        ),
        marked.mark_bar(stroke=ink, strokeWidth=2 * OUTLINE * unit).encode(y=y),
        bars.mark_bar(strokeWidth=EDGE * unit).encode(
            y=y, color=alt.Color("fill:N", scale=None), stroke=alt.Stroke("edge:N", scale=None)
        ),
    )
    if labelled:
        text = bars.mark_text(dy=-3.2 * unit, font=FONT, fontSize=2.8 * unit, color=gray)
        layers += (text.encode(y=y, text="text:N"),)
    picture = alt.layer(*layers, width=size_px, height=size_px, padding=0, autosize="none")
    picture = picture.properties(background=_hex(chart.background), **({"title": title} if labelled else {}))
    return picture.configure(aria=False, view=alt.ViewConfig(stroke=None))


def draw(chart: Chart, size_px: int) -> Image.Image:
    """The chart as an RGB picture, `size_px` wide and high."""
    import vl_convert

    return _decoded(vl_convert.vegalite_to_png(_source(chart, size_px)))


def draw_many(charts: Sequence[Chart], size_px: int) -> list[Image.Image]:
    """What `draw` gives for every chart, many times faster."""
    pictures: list[Image.Image] = []
    for start in range(0, len(charts), _SHEET_CHARTS):
        pictures += _draw_sheet(charts[start : start + _SHEET_CHARTS], size_px)
    return pictures


def _draw_sheet(charts: Sequence[Chart], size_px: int) -> list[Image.Image]:
    import vl_convert

    columns = math.isqrt(len(charts) - 1) + 1
    corners = [(i % columns * size_px, i // columns * size_px) for i in range(len(charts))]
    sheet = {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "autosize": "none",
        "padding": 0,
        "width": columns * size_px,
        "height": corners[-1][1] + size_px,
        "config": {"aria": False},
        "data": [{"name": "charts", "values": [_facet(*each) for each in zip(charts, corners, strict=True)]}],
        "marks": [_stencil(size_px)],
    }
    image = _decoded(vl_convert.vega_to_png(json.dumps(sheet)))
    return [image.crop((x, y, x + size_px, y + size_px)) for x, y in corners]


def _facet(chart: Chart, corner: tuple[int, int]) -> dict[str, Any]:
    """All that is the chart's own on a sheet; `_stencil` says how it looks."""
    return {
        "corner": corner,
        "background": _hex(chart.background),
        "measure": chart.measure,
        "labels": [bar.label for bar in chart.bars],
        "values": [0, _tallest(chart)],
        "rows": _rows(chart),
    }


@cache
def _stencil(size_px: int) -> dict[str, Any]:
    """A compiled chart, as a Vega group that is repeated for every facet."""
    import vl_convert

    bars = tuple(Bar(color, 1.0, color) for color in COLORS)
    chart = Chart("stencil", "stencil", bars, 0, BACKGROUNDS[0])
    compiled = vl_convert.vegalite_to_vega(_source(chart, size_px))
    own_data, *derived_data = compiled["data"]
    # Not domains taken from the data: within a facet Vega 6 loses the first label when labels are years.
    domains = {"x": {"signal": "parent.labels"}, "y": {"signal": "parent.values"}}
    own = {}
    if "title" in compiled:
        own["title"] = compiled["title"] | {"text": {"signal": "parent.measure"}}
    return own | {
        "type": "group",
        "from": {"facet": {"name": "rows", "data": "charts", "field": "rows"}},
        "encode": {
            "enter": {
                "x": {"field": "corner[0]"},
                "y": {"field": "corner[1]"},
                "width": {"value": size_px},
                "height": {"value": size_px},
                "fill": {"field": "background"},
            }
        },
        "data": [{"name": own_data["name"], "source": "rows"}, *derived_data],
        "scales": [scale | {"domain": domains[scale["name"]]} for scale in compiled["scales"]],
        "axes": compiled["axes"],
        "marks": compiled["marks"],
    }


def _source(chart: Chart, size_px: int) -> str:
    """Vega-Lite for the chart. A theme that somebody enabled for other charts must not change a pixel."""
    import altair as alt

    with alt.theme.enable("none"):
        return specification(chart, size_px).to_json(indent=None, validate=False)


def _decoded(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def _rows(chart: Chart) -> list[dict[str, Any]]:
    return [
        {
            "label": bar.label,
            "value": bar.value,
            "text": f"{float(f'{bar.value:.3g}'):,g}",
            "fill": _hex(COLORS[bar.color]),
            "edge": _hex(shade(COLORS[bar.color], 0.72)),
            "highlighted": i == chart.highlighted,
        }
        for i, bar in enumerate(chart.bars)
    ]


def _tallest(chart: Chart) -> float:
    return max(bar.value for bar in chart.bars)


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


# ---- truth ----


def masks(chart: Chart, size_px: int) -> dict[str, np.ndarray]:
    """What is where: "bar 0", "bar 1", …, and "highlight", the band and outline around its bar.

    A pixel belongs to what its centre lies in; none belongs to two.
    """
    step = (RIGHT - LEFT) / len(chart.bars)
    middles = [LEFT + (i + 0.5) * step for i in range(len(chart.bars))]
    half = (1 - GAP) * step / 2
    tops = [BASELINE - (BASELINE - TOP) * bar.value / _tallest(chart) for bar in chart.bars]
    found = {
        f"bar {i}": _box(size_px, middle - half, top, middle + half, BASELINE)
        for i, (middle, top) in enumerate(zip(middles, tops, strict=True))
    }
    if chart.highlighted is not None:
        middle, wide = middles[chart.highlighted], half * BAND_WIDTH
        band = _box(size_px, middle - wide, BAND_TOP, middle + wide, BAND_BOTTOM)
        found["highlight"] = band & ~found[f"bar {chart.highlighted}"]
    return found


def _box(size_px: int, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    centres = (np.arange(size_px) + 0.5) * WORLD / size_px
    inside_x, inside_y = ((centres >= low) & (centres < high) for low, high in ((left, right), (top, bottom)))
    return inside_y[:, None] & inside_x[None, :]
