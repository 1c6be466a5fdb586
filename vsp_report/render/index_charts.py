"""Index charts: all cases at once, as alt.Chart. No files.

Their data has a name, so that the page can put the cases that a reader has filtered into the same chart, and every
mark knows its case, so that a click leads there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from vsp_report.render.charts import SIGNED
from vsp_report.render.theme import LIGHT, chart_config

MOST_ROWS = 40
"""With more cases than this, each is a point and no longer a row."""
_TONES = {"good": LIGHT["right"], "bad": LIGHT["wrong"], "plain": LIGHT["control"]}
_DATA = "cases"


def _rows(rows: Sequence[dict[str, Any]]) -> alt.Data:
    return alt.Data(values=list(rows), name=_DATA)


def _framed(chart: Any, description: str) -> Any:
    padding = {"left": 22, "right": 14, "top": 4, "bottom": 4}  # a wider font than the renderer's needs some
    return chart.properties(description=description, padding=padding).configure(**chart_config())


def _names(**more: Any) -> alt.Axis:
    return alt.Axis(domain=False, ticks=False, labelColor=LIGHT["ink"], labelPadding=8, **more)


def _signed() -> alt.Axis:
    """As many ticks as there is room for, on a phone too; each label at its tick."""
    return alt.Axis(tickCount=alt.ExprRef("max(3, width / 60)"), labelExpr=SIGNED, labelFlush=False, grid=True)


def outcomes(rows: Sequence[dict[str, Any]], modes: Sequence[str], description: str) -> alt.TopLevelMixin:
    """Rows (mode, verdict, tone, cases, from, to): one bar for each mode, a part of it for each verdict."""
    tones = list(_TONES)
    base = alt.Chart(_rows(rows))
    axis = alt.Axis(tickMinStep=1, tickCount=6, format="d", grid=True)
    y = alt.Y("mode:N", sort=list(modes), title=None, axis=_names(labelLimit=170), scale=alt.Scale(paddingInner=0.35))
    tips = ["mode:N", "verdict:N", "cases:Q"]
    bars = base.mark_bar(aria=False, cursor="pointer", stroke=LIGHT["paper"], strokeWidth=1.5).encode(
        x=alt.X("from:Q", title="cases", axis=axis, scale=alt.Scale(nice=False)), x2="to:Q", y=y, tooltip=tips,
        color=alt.Color("tone:N", legend=None, scale=alt.Scale(domain=tones, range=list(_TONES.values()))),
    )  # fmt: skip
    # Colour is not alone in saying what a part is: it has its name in it where there is room, and its number elsewhere.
    widest = max(row["to"] for row in rows)
    room = f"datum.cases / {widest} * width > 7 * length(datum.verdict) + 26"
    labels = (
        base.transform_calculate(said=f"{room} ? datum.cases + ' ' + datum.verdict : datum.cases",
                                 middle="(datum.from + datum.to) / 2")
        .mark_text(aria=False, fontSize=12, cursor="pointer")
        .encode(x="middle:Q", y=y, text="said:N", tooltip=tips,
                color=alt.condition("datum.tone == 'plain'", alt.value(LIGHT["ink"]), alt.value(LIGHT["paper"])))
    )  # fmt: skip
    return _framed(alt.layer(bars, labels).properties(width=420, height=alt.Step(28)), description)


def turned(rows: Sequence[dict[str, Any]], description: str) -> alt.TopLevelMixin:
    """Rows (id, title, before, after): a line for each case, from the one to the other."""
    order = [row["title"] for row in rows]
    y = alt.Y("title:N", sort=order, title=None, axis=_names(labelLimit=220))
    x = alt.X("before:Q", title="log-odds of the right answer", axis=_signed())
    base = alt.Chart(_rows(rows))
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(aria=False, color=LIGHT["soft"], strokeDash=[2, 3])
    tips = ["title:N", alt.Tooltip("before:Q", format="+.2f"), alt.Tooltip("after:Q", format="+.2f"), "steering:N"]
    style = {"aria": False, "size": 70, "opacity": 1, "cursor": "pointer"}
    link = base.mark_rule(aria=False, color=LIGHT["after"], strokeWidth=1.5, opacity=0.6).encode(x=x, x2="after:Q", y=y)
    start = base.mark_circle(color=LIGHT["before"], **style).encode(x=x, y=y, tooltip=tips)
    end = base.mark_circle(color=LIGHT["after"], **style).encode(x="after:Q", y=y, tooltip=tips)
    layers = alt.layer(zero.encode(x="zero:Q"), link, start, end)
    return _framed(layers.properties(width=420, height=alt.Step(22)), description)


def scattered(rows: Sequence[dict[str, Any]], description: str) -> alt.TopLevelMixin:
    """The same for very many: a point for each case."""
    values = [row[name] for row in rows for name in ("before", "after")]
    low, high = min(values), max(values)
    pad = 0.05 * max(high - low, 0.1)
    scale = alt.Scale(domain=[low - pad, high + pad], nice=False, zero=False)
    axis = _signed()
    x = alt.X("before:Q", scale=scale, title="log-odds of the right answer, before", axis=axis)
    y = alt.Y("after:Q", scale=scale, title="after", axis=axis)
    zero = alt.Chart(alt.Data(values=[{"zero": 0}]))
    rule = {"aria": False, "color": LIGHT["soft"], "strokeDash": [2, 3]}
    ends = [{"a": low - pad, "b": low - pad}, {"a": high + pad, "b": high + pad}]
    same = alt.Chart(alt.Data(values=ends)).mark_line(aria=False, color=LIGHT["line"], strokeWidth=1.5)
    tips = ["title:N", alt.Tooltip("before:Q", format="+.2f"), alt.Tooltip("after:Q", format="+.2f"), "steering:N"]
    points = (
        alt.Chart(_rows(rows))
        .mark_circle(aria=False, color=LIGHT["after"], size=34, opacity=0.6, cursor="pointer")
        .encode(x=x, y=y, tooltip=tips)
    )
    layers = alt.layer(
        same.encode(x="a:Q", y="b:Q"), zero.mark_rule(**rule).encode(x="zero:Q"),
        zero.mark_rule(**rule).encode(y="zero:Q"), points,
    )  # fmt: skip
    return _framed(layers.properties(width=400, height=400), description)
