"""Charts: parts of a recording in, alt.Chart out. No files, no torch.

Every chart takes plain rows, which are also the rows of its data table and its CSV, and carries a description for
who cannot see it. Marks have no labels of their own for screen readers: six thousand cells are no reading matter,
and the table beside the chart is.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from vsp_report.recording import Attribution, ClassScores, ControlDraws, Swept
from vsp_report.render.findings import CONTROL_KINDS, number, p_value
from vsp_report.render.theme import LIGHT, chart_config, finished_svg

_DOSE_MARGIN = 1.35
APART = "\u2003"
"""Between the parts of an axis's title: SVG makes one of several ordinary spaces."""
_ROUNDS_PX = 300
SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+~g')"
"""Of an axis of changes: a sign before everything but zero."""


def svg(chart: alt.TopLevelMixin) -> str:
    buffer = io.StringIO()
    chart.save(buffer, format="svg")
    return finished_svg(buffer.getvalue())


def spec(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Vega-Lite for the browser."""
    return chart.to_dict()


def _rows(rows: Sequence[dict[str, Any]]) -> alt.Data:
    return alt.Data(values=list(rows))


def _framed(chart: Any, description: str) -> Any:
    return chart.properties(description=description, padding={"left": 4, "right": 8, "top": 4, "bottom": 4}).configure(
        **chart_config()
    )


def _zero() -> alt.Chart:
    return alt.Chart(_rows([{"zero": 0}])).mark_rule(aria=False, color=LIGHT["soft"], strokeDash=[2, 3])


# --- what steering does ----------------------------------------------------------------------------------------------


def control_histogram(
    change: float, controls: Sequence[ControlDraws], description: str, contrast: tuple[str, str] = ("right", "wrong")
) -> alt.TopLevelMixin:
    """How far each kind of control moves the margin, and how far the steering does."""
    everything = np.array([change, 0.0, *(c for draws in controls for c in draws.changes)])
    low, high = float(everything.min()), float(everything.max())
    pad = 0.06 * max(high - low, 0.2)
    edges = np.linspace(low - pad, high + pad, 49)
    rows = []
    for draws in controls:
        counts, _ = np.histogram(draws.changes, edges)
        for i, count in enumerate(counts):
            if count:
                rows.append({"kind": CONTROL_KINDS[draws.kind], "from": round(float(edges[i]), 4),
                             "to": round(float(edges[i + 1]), 4), "draws": int(count), "none": 0})  # fmt: skip
    kinds = [CONTROL_KINDS[draws.kind] for draws in controls]
    scale = alt.Scale(domain=[float(edges[0]), float(edges[-1])], nice=False, zero=False)
    title = f"← towards “{contrast[1][:20]}”{APART}change of the log-odds{APART}towards “{contrast[0][:20]}” →"

    def across(last: bool) -> alt.X:
        shown = alt.Axis(tickCount=7, labelExpr=SIGNED, labels=last, ticks=last)
        return alt.X("from:Q", scale=scale, title=title if last else None, axis=shown)

    bars = (
        alt.Chart(_rows(rows))
        .mark_rect(aria=False, color=LIGHT["control"])
        .encode(x2="to:Q", y2="none:Q",
                y=alt.Y("draws:Q", title=None, axis=alt.Axis(tickCount=2, domain=False, minExtent=30)),
                tooltip=["kind:N", "draws:Q", alt.Tooltip("from:Q", format="+.2f"), alt.Tooltip("to:Q", format="+.2f")])
    )  # fmt: skip
    here = [{"kind": CONTROL_KINDS[draws.kind], "change": change, "label": _with_p(change, draws.p)}
            for draws in controls]  # fmt: skip
    rule = alt.Chart(_rows(here)).mark_rule(aria=False, color=LIGHT["after"], strokeWidth=2.5).encode(x="change:Q")
    beyond = change > (low + high) / 2
    style = {"aria": False, "fontSize": 13, "fontWeight": "bold", "y": 8, "dx": -6 if beyond else 6,
             "align": "right" if beyond else "left"}  # fmt: skip
    labels = alt.Chart(_rows(here)).encode(x="change:Q", text="label:N")
    halo = labels.mark_text(color=LIGHT["paper"], stroke=LIGHT["paper"], strokeWidth=5, strokeJoin="round", **style)
    named = labels.mark_text(color=LIGHT["after"], **style)
    zero = (
        alt.Chart(_rows([{"kind": kind, "zero": 0} for kind in kinds]))
        .mark_rule(aria=False, color=LIGHT["soft"], strokeDash=[2, 3])
        .encode(x="zero:Q")
    )
    layers = []
    for kind in kinds:
        parts = (bars.encode(x=across(kind == kinds[-1])), zero, rule, halo, named)
        layer = alt.layer(*(part.transform_filter(alt.datum.kind == kind) for part in parts))
        heading = alt.TitleParams(kind, fontSize=12, color=LIGHT["soft"])
        layers.append(layer.properties(width=440, height=58, title=heading))
    return _framed(alt.vconcat(*layers, spacing=8).resolve_scale(x="shared"), description)


def _with_p(change: float, p: float | None) -> str:
    said = p_value(p)
    p_said = "" if p is None else f", p {said}" if said.startswith("<") else f", p = {said}"
    return number(change, 1, signed=True) + p_said


def dose_response(swept: Swept, contrast: tuple[str, str], description: str) -> alt.TopLevelMixin:
    """The margin at every recorded strength. Points are what was measured; the line only leads the eye."""
    rows = [
        {"factor": dose.factor, "margin": dose.answered.margin, "answer": dose.answered.text[:80],
         "side": "right" if dose.answered.margin > 0 else "wrong"}
        for dose in swept.doses if dose.answered.margin is not None
    ]  # fmt: skip
    largest = max([abs(row["margin"]) for row in rows], default=1.0) * _DOSE_MARGIN or 1.0
    y = alt.Y("margin:Q", scale=alt.Scale(domain=[-largest, largest], nice=False),
              title="log-odds", axis=alt.Axis(tickCount=5, labelExpr=SIGNED, grid=True))  # fmt: skip
    x = alt.X("factor:Q", title="strength of the latents (1: untouched, 0: ablated)",
              scale=alt.Scale(zero=False, padding=12), axis=alt.Axis(tickCount=6, format="~g"))  # fmt: skip
    base = alt.Chart(_rows(rows))
    line = base.mark_line(aria=False, color=LIGHT["before"], strokeWidth=1.5).encode(x=x, y=y)
    points = base.mark_point(aria=False, filled=True, size=70, opacity=1).encode(
        x=x, y=y, tooltip=[alt.Tooltip("factor:Q", format="~g"), alt.Tooltip("margin:Q", format="+.2f"), "answer:N"],
        shape=_sides(alt.Shape), color=_sides(alt.Color),
    )  # fmt: skip
    zero = _zero().encode(y="zero:Q")
    sides = [{"side": "right", "at": largest * 0.94, "label": f"“{contrast[0][:28]}” is likelier"},
             {"side": "wrong", "at": -largest * 0.94, "label": f"“{contrast[1][:28]}” is likelier"}]  # fmt: skip
    labels = (
        alt.Chart(_rows(sides))
        .mark_text(aria=False, align="right", x="width", fontSize=12)
        .encode(y="at:Q", text="label:N", color=alt.Color("side:N", legend=None))
    )
    layers = [zero, line, points, labels]
    if swept.flip_factor is not None:
        at = alt.Chart(_rows([{"at": swept.flip_factor, "label": f"even at {swept.flip_factor:.2g}"}]))
        layers.insert(0, at.mark_rule(aria=False, color=LIGHT["after"], strokeDash=[4, 3]).encode(x="at:Q"))
        named = at.mark_text(aria=False, align="left", dx=5, y=26, color=LIGHT["after"], fontSize=12)
        layers.append(named.encode(x="at:Q", text="label:N"))
    return _framed(alt.layer(*layers).properties(width=440, height=220), description)


def rounds(rows: Sequence[dict[str, Any]], contrast: tuple[str, str], description: str) -> alt.TopLevelMixin:
    """Steerings one on top of the other: rows (round, does, answer, margin, side, says), from top to bottom. `side` is
    that of the log-odds, `says` which of the two answers the model gives, or neither."""
    margins = [row["margin"] for row in rows] + [0.0]
    low, high = min(margins), max(margins)
    pad = 0.16 * max(high - low, 0.2)
    names = ["as it is" if row["round"] == "0" else f"round {row['round']}" for row in rows]
    rows = [row | {"name": name, "place": place, "shown": f"“{row['answer'][:24]}” {number(row['margin'], 1, True)}"}
            for place, (row, name) in enumerate(zip(rows, names, strict=True))]  # fmt: skip
    y = alt.Y("name:N", sort=names, title=None,
              axis=alt.Axis(domain=False, ticks=False, labelPadding=10, labelColor=LIGHT["ink"]))  # fmt: skip
    x = alt.X("margin:Q", scale=alt.Scale(domain=[low - pad, high + pad], nice=False), title=_directions(contrast),
              axis=alt.Axis(tickCount=4, labelExpr=SIGNED))  # fmt: skip
    base = alt.Chart(_rows(rows))
    line = base.mark_line(aria=False, color=LIGHT["before"], strokeWidth=1.5).encode(
        x=x, y=y, order=alt.Order("place:O"))  # fmt: skip
    points = base.mark_point(aria=False, filled=True, size=90, opacity=1).encode(
        x=x, y=y, shape=_sides(alt.Shape), color=_sides(alt.Color),
        tooltip=["name:N", "does:N", "answer:N", alt.Tooltip("margin:Q", format="+.2f")],
    )  # fmt: skip
    said = base.mark_text(aria=False, align="left", x="width", dx=12).encode(
        y=y, text="shown:N", color=_sides(alt.Color, "says")
    )
    zero = _zero().encode(x="zero:Q")
    return _framed(alt.layer(zero, line, points, said).properties(width=_ROUNDS_PX, height=44 * len(rows)), description)


def _sides(channel: Any, of: str = "side") -> Any:
    """right and wrong: two hues, and two shapes for who sees no hues; neither is as ink is."""
    hues = channel is alt.Color
    ends = [LIGHT["right"], LIGHT["wrong"], LIGHT["ink"]] if hues else ["circle", "square", "diamond"]
    return channel(f"{of}:N", legend=None, scale=alt.Scale(domain=["right", "wrong", "neither"], range=ends))


def _directions(contrast: tuple[str, str]) -> str:
    return f"← “{contrast[1][:24]}”{APART}log-odds{APART}“{contrast[0][:24]}” →"


# --- concepts --------------------------------------------------------------------------------------------------------

CELL_GAP = 0.06
CLUSTER_GAP = 0.5
ROW_PX = 20
LETTER_PX = 6


def heatmap_step(columns: int) -> int:
    """Pixels from one column to the next."""
    return min(24, max(11, round(720 / max(columns, 1))))


def heatmap(
    cells: Sequence[dict[str, Any]],
    columns: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    clusters: Sequence[dict[str, Any]],
    description: str,
) -> alt.TopLevelMixin:
    """Tokens against latents. The four tables are in places, not in names, so that the page's own script can put
    other values into the same chart: cells (x, y, value), columns (x, latent), rows (y, token), clusters (x, x2)."""
    last = max([c["x2"] for c in clusters], default=1.0)
    step = heatmap_step(len(columns))
    width, height = round(last * step), ROW_PX * len(rows)
    x = alt.Scale(domain=[0, last], nice=False, zero=False)
    y = alt.Scale(domain=[len(rows), 0], nice=False, zero=False)
    chosen = alt.condition("datum.on", alt.value(LIGHT["after"]), alt.value(LIGHT["soft"]))
    drawn = (
        alt.Chart(alt.Data(values=list(cells), name="cells"))
        .mark_rect(aria=False, color=LIGHT["heat"], cursor="pointer")
        .encode(
            x=alt.X("x:Q", scale=x, axis=None), x2="x2:Q", y=alt.Y("y:Q", scale=y, axis=None), y2="y2:Q",
            opacity=alt.Opacity("shade:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.05, 1])),
            tooltip=["token:N", "latent:N", alt.Tooltip("value:Q", format=".3g")],
        )
    )  # fmt: skip
    tokens = (
        alt.Chart(alt.Data(values=list(rows), name="rows"))
        .mark_text(aria=False, align="right", x=-8, fontSize=12)
        .encode(y=alt.Y("y:Q", scale=y, axis=None), text="token:N", color=chosen)
    )
    names = (
        alt.Chart(alt.Data(values=list(columns), name="columns"))
        .mark_text(aria=False, align="left", angle=60, y=height + 7, baseline="middle", fontSize=min(11, step - 1))
        .encode(x=alt.X("x:Q", scale=x, axis=None), text="name:N", color=chosen)
    )  # fmt: skip
    bands = alt.Chart(alt.Data(values=list(clusters), name="clusters")).encode(x=alt.X("x:Q", scale=x, axis=None))
    hand = {"aria": False, "cursor": "pointer", "color": LIGHT["after"]}
    strokes = bands.mark_rule(y=-6, strokeWidth=3, **hand).encode(x2="x2:Q")
    titles = bands.mark_text(y=-16, align="left", fontSize=11, **hand).encode(text="name:N")
    # Nothing is chosen in a picture; the page's script puts a cell here.
    chosen_cell = (
        alt.Chart(alt.Data(values=[], name="chosen"))
        .mark_rect(aria=False, filled=False, stroke=LIGHT["after"], strokeWidth=2, cornerRadius=2)
        .encode(x=alt.X("x:Q", scale=x, axis=None), x2="x2:Q", y=alt.Y("y:Q", scale=y, axis=None), y2="y2:Q")
    )
    chart = alt.layer(drawn, tokens, names, strokes, titles, chosen_cell).properties(width=width, height=height)
    return _framed(chart, description)


def attribution_scatter(attributions: Sequence[Attribution], description: str) -> alt.TopLevelMixin:
    """Predicted against measured change, for the latents that were measured. On the line, the prediction is right."""
    rows = [{"latent": a.latent, "predicted": a.predicted, "measured": a.measured}
            for a in attributions if a.measured is not None]  # fmt: skip
    ends = [v for row in rows for v in (row["predicted"], row["measured"])] + [0.0]
    low, high = min(ends), max(ends)
    pad = 0.08 * max(high - low, 0.1)
    scale = alt.Scale(domain=[low - pad, high + pad], nice=False, zero=False)
    x = alt.X("predicted:Q", scale=scale, title="predicted change of the log-odds",
              axis=alt.Axis(tickCount=5, labelExpr=SIGNED))  # fmt: skip
    y = alt.Y("measured:Q", scale=scale, title="measured", axis=alt.Axis(tickCount=5, labelExpr=SIGNED, grid=True))
    diagonal = (
        alt.Chart(_rows([{"a": low - pad, "b": low - pad}, {"a": high + pad, "b": high + pad}]))
        .mark_line(aria=False, color=LIGHT["soft"], strokeDash=[2, 3], strokeWidth=1)
        .encode(x="a:Q", y="b:Q")
    )
    points = (
        alt.Chart(_rows(rows))
        .mark_circle(aria=False, color=LIGHT["after"], size=52, opacity=0.7)
        .encode(x=x, y=y, tooltip=["latent:N", alt.Tooltip("predicted:Q", format="+.3f"),
                                   alt.Tooltip("measured:Q", format="+.3f")])
    )  # fmt: skip
    return _framed(alt.layer(diagonal, points).properties(width=320, height=260), description)


# --- classification --------------------------------------------------------------------------------------------------

MOST_CLASSES = 12
RARE, LEAST = 0.01, 1e-6
PERCENT = "format(100 * datum.value, '.3~r') + ' %'"


def likeliest(scores: Sequence[ClassScores]) -> list[int]:
    """Of the classes, those that a chart shows."""
    many = range(len(scores[0].probabilities))
    return sorted(many, key=lambda i: -max(one.probabilities[i] for one in scores))[:MOST_CLASSES]


def least_shown(scores: Sequence[ClassScores]) -> float:
    """Where a scale of orders of magnitude begins; 0 where an even scale will do."""
    least = min((one.probabilities[i] for one in scores for i in likeliest(scores)), default=1.0)
    return 10.0 ** math.floor(math.log10(max(least, LEAST))) if least < RARE else 0.0


def decades(floor: float) -> list[float]:
    """Ticks down from certainty, in steps as even as the scale is: every power of ten, or every second of many."""
    many = round(-math.log10(floor))
    return [10.0**-n for n in range(0, many + 1, 1 if many <= 3 else 2)]


def class_bars(
    classes: Sequence[str], scores: Sequence[ClassScores], contrast: tuple[str, str] | None, description: str
) -> alt.TopLevelMixin:
    """The likeliest classes: a bar as the model is, and a mark for every other arm. Where some are unlikely, on a scale
    of orders of magnitude, so that they can be told apart."""
    best = likeliest(scores)
    order = [classes[i] for i in sorted(best, key=lambda i: -scores[0].probabilities[i])]
    floor = least_shown(scores)
    rows = [{"class": classes[i], "arm": one.name, "probability": round(max(one.probabilities[i], floor), 7),
             "from": floor, "before": n == 0} for n, one in enumerate(scores) for i in best]  # fmt: skip
    names = alt.Axis(domain=False, ticks=False, labelLimit=150, labelPadding=9, labelColor=LIGHT["ink"])
    y = alt.Y("class:N", sort=order, title=None, axis=names)
    across = alt.Scale(type="log", domain=[floor, 1], nice=False) if floor else alt.Scale(domain=[0, 1])
    ticks = {"values": decades(floor)} if floor else {"tickCount": 5}
    x = alt.X("probability:Q", title="probability", scale=across,
              axis=alt.Axis(labelExpr=PERCENT, grid=True, **ticks))  # fmt: skip
    shown = [alt.Tooltip("class:N"), alt.Tooltip("arm:N"), alt.Tooltip("probability:Q", format=".3~%")]
    base = alt.Chart(_rows(rows))
    bars = base.transform_filter(alt.datum.before).mark_bar(aria=False, height=11, color=LIGHT["before"], opacity=0.55)
    arms = [one.name for one in scores[1:]]
    steered = base.transform_filter(~alt.datum.before)
    marks = steered.mark_point(aria=False, filled=True, size=70, color=LIGHT["after"], opacity=0.85)
    shapes = ["circle", "diamond", "square", "triangle-up", "cross", "triangle-down"]
    scale = alt.Scale(domain=arms, range=[shapes[i % 6] for i in range(len(arms))])
    shape = alt.Shape("arm:N", title=None, scale=scale,
                      legend=alt.Legend(orient="bottom", symbolFillColor=LIGHT["after"], symbolStrokeWidth=0,
                                        labelColor=LIGHT["soft"], columns=2, labelFontSize=12))  # fmt: skip
    layers = [bars.encode(x=x, x2="from:Q", y=y, tooltip=shown)]
    if arms:
        layers.append(marks.encode(x=x, y=y, shape=shape, tooltip=shown))
    return _framed(alt.layer(*layers).properties(width=400, height=24 * len(order)), description)
