"""Drawn: figures become files. What is slow about a chart is done once, and again only if the chart has changed.

A chart is made twice: as a specification for the browser and as an SVG for who has no scripts. Drawing the SVG takes
most of a build, so it is kept under the hash of what it was drawn from: a build with `reusing` draws what is new.
The same values are a table beside the figure and a CSV to take away.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vsp_report.recording import sha_of

_VIEW_BOX = re.compile(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"')


class Drawing(NamedTuple):
    files: dict[str, bytes]
    """path: content; an SVG and a CSV for each figure"""
    specs: dict[str, dict[str, Any]]
    """by the figure's name: Vega-Lite for the browser"""
    made_from: dict[str, str]
    """path of each SVG: the hash of what it shows and of what drew it"""


def drawn(figures: Mapping[str, Any], at: str, drawer: str,
          reusing: Callable[[str, str], bytes | None] = lambda path, made_from: None) -> Drawing:  # fmt: skip
    """Figures in the folder `at`. `drawer`: the hash of what draws. `reusing`: an SVG that is there already."""
    files, specs, made_from = {}, {}, {}
    for name, figure in figures.items():
        spec = specification(figure.draw())
        path = f"{at}/{name}.svg"
        made_from[path] = sha_of([spec, drawer])
        files[path] = reusing(path, made_from[path]) or svg_of(spec)
        files[f"{at}/{name}.csv"] = comma_separated(figure.table)
        specs[name] = {key: value for key, value in spec.items() if key != "$schema"}
    return Drawing(files, specs, made_from)


def specification(chart: Any) -> dict[str, Any]:
    """Vega-Lite as plain values. It is not held against the schema here: the tests do that, for every chart."""
    return chart.to_dict(validate=False)


def svg_of(spec: dict[str, Any]) -> bytes:
    from altair.utils.mimebundle import spec_to_mimebundle

    from vsp_report.render.theme import finished_svg

    # Altair names the version of Vega-Lite that its specifications are for, and the renderer that goes with it.
    made = spec_to_mimebundle(spec, format="svg", mode="vega-lite")
    return finished_svg(made["image/svg+xml"]).encode()


def figures_script(specs: Mapping[str, Any]) -> bytes:
    """What the page's script draws its charts from."""
    return f"window.VSP_FIGURES={script_json(specs)};\n".encode()


def script_json(data: Any) -> str:
    """JSON that is safe inside of a script, wherever that stands."""
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def comma_separated(table: Any) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows([[_harmless(value) for value in row] for row in table.rows])
    return buffer.getvalue().encode()


def _harmless(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula stays a text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def measured(svg: bytes) -> tuple[int, int]:
    """Width and height of an SVG; 0 where it says none."""
    match = _VIEW_BOX.search(svg[:400])
    return (round(float(match[1])), round(float(match[2]))) if match else (0, 0)
