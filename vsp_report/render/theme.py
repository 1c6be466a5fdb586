"""Theme: the colours of pages and charts, in light and in dark. A colour means one thing wherever it stands.

before   what the model does by itself: neutral
after    what a steering does, and what is selected: the one accent
control  what steerings are compared with: grey
right, wrong   the two answers of the contrast; a blue-green and a purple that stay apart for colour-blind readers
heat     amounts: attention, activation

Charts are drawn with the light colours. As each colour of a theme has one value, a picture and a live chart become
dark by exchanging values; nothing is drawn twice.
"""

from __future__ import annotations

import json
import re
from typing import Any

LIGHT = {
    "paper": "#fdfdfb",
    "ink": "#1d2327",
    "soft": "#5c656d",
    "line": "#dcdcd6",
    "before": "#7a8086",
    "after": "#b8480f",
    "control": "#a9aeb3",
    "right": "#0b6b6c",
    "wrong": "#9c2c6a",
    "heat": "#0e6f73",
    "wash": "#f3f3ee",
}
DARK = {
    "paper": "#14171a",
    "ink": "#e8e8e4",
    "soft": "#a0a9b1",
    "line": "#30373d",
    "before": "#8d959c",
    "after": "#f5905a",
    "control": "#626a71",
    "right": "#4ec7c4",
    "wrong": "#ee92bf",
    "heat": "#43c3c0",
    "wash": "#1c2125",
}
CHART_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""The renderer brings the first of these, so that a chart has the same measures on every machine."""

_COUNTED_ID = re.compile(r"(gradient_|clip)\d+")
_PLACES, _DIGITS = re.compile(r'\bd="[^"]*"|translate\([^)]*\)'), re.compile(r"\d+\.\d{3,}")


def stylesheet() -> str:
    """The colours as CSS custom properties."""

    def block(colours: dict[str, str]) -> str:
        return "".join(f"--{name}:{value};" for name, value in colours.items())

    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{block(DARK)}}}}}"
    return f":root{{color-scheme:light;{block(LIGHT)}}}\n{dark}\n"


def script() -> str:
    """The colours for the page's script, which exchanges them in charts."""
    return f"window.VSP_COLOURS={json.dumps({'light': LIGHT, 'dark': DARK}, separators=(',', ':'))};\n"


def chart_config() -> dict[str, Any]:
    """Vega-Lite's configuration: quiet axes, the site's colours, one font."""
    text = {"font": CHART_FONT, "color": LIGHT["soft"]}
    return {
        "background": "transparent",
        "font": CHART_FONT,
        "view": {"stroke": None},
        "mark": {"color": LIGHT["before"]},
        "text": {**text, "fontSize": 12},
        "title": {**text, "fontSize": 13, "fontWeight": "normal", "anchor": "start", "color": LIGHT["ink"]},
        "header": {"labelFont": CHART_FONT, "labelColor": LIGHT["soft"], "labelFontSize": 12, "title": None},
        "axis": {
            "domainColor": LIGHT["line"],
            "tickColor": LIGHT["line"],
            "gridColor": LIGHT["line"],
            "grid": False,
            "labelColor": LIGHT["soft"],
            "labelFont": CHART_FONT,
            "labelFontSize": 12,
            "titleColor": LIGHT["soft"],
            "titleFont": CHART_FONT,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
        },
    }


def finished_svg(svg: str) -> str:
    """A chart as a file: dark where the reader's screen is, the same bytes whatever was drawn before it; places to a
    hundredth of a pixel, where the renderer writes sixteen digits."""
    svg = _PLACES.sub(lambda place: _DIGITS.sub(lambda number: f"{float(number[0]):.2f}", place[0]), svg)
    numbers: dict[str, str] = {}
    # The renderer counts its ids through a whole process.
    svg = _COUNTED_ID.sub(lambda m: numbers.setdefault(m[0], f"{m[1]}{len(numbers)}"), svg)
    rules = "".join(
        f'[{part}="{light}"]{{{part}:{DARK[name]}}}'
        for name, light in LIGHT.items()
        for part in ("fill", "stroke")
        if f'{part}="{light}"' in svg
    )
    opening = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:opening]}<style>@media (prefers-color-scheme:dark){{{rules}}}</style>{svg[opening:]}\n"
