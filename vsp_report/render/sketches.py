"""Sketches: each figure of a case's page as a small drawing of what to look for, and the way to a diagnosis.

They are drawn of made-up figures and say so by being sketches: no axis, few marks, the site's colours by their class.
Written as SVG for the page itself, so that they follow its colours by day and by night; no text in them is needed to
read them, as the page says it beside.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 240, 132


class Sketch(NamedTuple):
    name: str
    drawing: Markup
    says: str
    """what to see, and what not to take it for"""


class Step(NamedTuple):
    """One question on the way to a failure mode."""

    asked: str
    yes: str
    """the mode that it leads to"""


class Hue(NamedTuple):
    name: str
    """as in the theme"""
    means: str


HUES = (
    Hue("before", "the model as it is"),
    Hue("after", "the model with a steering; what is selected"),
    Hue("control", "what steerings are compared with"),
    Hue("right", "the right answer, and what speaks for it"),
    Hue("wrong", "the wrong answer, and what speaks for it"),
    Hue("heat", "amounts: the more, the deeper"),
)

WAY = (
    Step("Is the answer right?", "none"),
    Step("Asked in other words, with nothing edited: is it right then, and does that answer rest on latents that are "
         "active here?", "limited-alignment"),
    Step("Does no edit bring the right answer any more easily than answers that nobody claims, and does nothing pull "
         "towards it elsewhere in the picture than the wrong one is seen?", "perception-missing"),
    Step("Does ablating a few latents that speak for the wrong answer bring the right one, and do they stand for "
         "something else than the wrong answer itself?", "misleading-cue"),
    Step("Does ablating them, or amplifying what speaks for the right answer as well, bring the right one more easily "
         "than any other, do they stand for the wrong answer itself, and does what pulls towards the right one lie "
         "elsewhere in the picture (where that is beyond doubt, more easily than most others is enough; and where "
         "ablation alone is enough, not in the very same patches)?", "hidden-cue"),
)  # fmt: skip
"""The questions in their order, as `study.diagnose` asks them. The first yes names the mode; without one it is
undetermined."""


def figures() -> tuple[Sketch, ...]:
    return (
        Sketch(
            "The picture", _look(),
            "Where the model looks as it says a word: the more colour on a patch, the more attention. It says what was "
            "looked at, not what the answer rests on.",
        ),
        Sketch(
            "The words", _words(),
            "What the model reads and says. The stronger the line under a word, the more of its attention is on the "
            "picture. Choose a word, and the picture shows where it looks.",
        ),
        Sketch(
            "Latents", _bars(),
            "What the autoencoder finds in the patches that are looked at. Each is a number with a guessed name. A "
            "latent with a long bar is strong here; whether the answer rests on it, steering tests.",
        ),
        Sketch(
            "Words and latents", _heat(),
            "One row for each word, one column for each latent, deeper where the word reads more of it. Latents that "
            "go together stand together.",
        ),
        Sketch(
            "What changes the answer", _arms(),
            "How much likelier the right answer is than the wrong one: to the right of the middle the right one is "
            "likelier, to the left the wrong one. What the model says stands beside it, and may be neither. The thin "
            "line is how far matched controls reach, laid around the change.",
        ),
        Sketch(
            "Controls", _controls(),
            "The upright line is what the steering does. The grey heap is what as much editing does elsewhere. A line "
            "far outside of the heap is an effect of these latents; a line inside of it may be one of any editing.",
        ),
        Sketch(
            "Dose and response", _dose(),
            "The same latents made weaker and stronger. Only the points were measured, and no controls beside them. "
            "Where the line crosses the middle, both answers are equally likely.",
        ),
        Sketch(
            "Prediction", _scatter(),
            "What one look backwards through the model predicts of each latent, against what ablating it does. On the "
            "slanted line the prediction is exact.",
        ),
    )  # fmt: skip


# --- drawing ---------------------------------------------------------------------------------------------------------


def _svg(*parts: str) -> Markup:
    inner = "".join(parts)
    return Markup(
        f'<svg class="sketch" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" aria-hidden="true" '
        f'focusable="false">{inner}</svg>'
    )


def _rect(x: float, y: float, width: float, height: float, hue: str, shade: float = 1.0) -> str:
    shaded = f' opacity="{shade:.2f}"' if shade < 1 else ""
    return f'<rect class="{hue}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{shaded}/>'


def _path(points: str, hue: str, kind: str = "line") -> str:
    return f'<path class="{kind} {hue}" d="{points}"/>'


def _dot(x: float, y: float, hue: str, radius: float = 4) -> str:
    return f'<circle class="{hue}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>'


def _look() -> Markup:
    side, left, top = 14, 57, 3
    # somebody beside a chair; the attention is on the chair
    warm = {(2, 3): 0.3, (2, 4): 0.65, (2, 5): 0.9, (3, 5): 0.75, (4, 5): 0.6, (2, 6): 0.8, (4, 6): 0.5, (2, 7): 0.45,
            (4, 7): 0.35, (6, 2): 0.2, (6, 3): 0.25}  # fmt: skip
    patches = [
        _rect(left + x * side, top + y * side, side - 1, side - 1, "after" if (x, y) in warm else "wash",
              warm.get((x, y), 1.0))
        for y in range(9) for x in range(9)
    ]  # fmt: skip
    chair = _path("M92 44V112M92 77H122V112", "ink")
    person = _path("M148 52V84L141 112M148 84L155 112M148 60L138 74M148 60L158 74", "ink")
    return _svg(*patches, chair, person, '<circle class="line ink" cx="148" cy="44" r="8"/>')


def _words() -> Markup:
    lines = (((34, 0.1), (22, 0.1), (52, 0.35)), ((60, 0.8), (20, 0.15), (72, 0.55)), ((78, 0.2), (64, 1.0)))
    parts, y = [], 18.0
    for line in lines:
        x = 18.0
        for width, shade in line:
            chosen = shade == 1.0
            parts += [_rect(x, y, width, 10, "after" if chosen else "quiet"), _rect(x, y + 15, width, 4, "heat", shade)]
            x += width + 12
        y += 38
    return _svg(*parts)


def _bars() -> Markup:
    parts = []
    for i, length in enumerate((128, 92, 74, 41, 22)):
        y = 12 + i * 24
        parts += [_rect(14, y, 58 - 9 * (i % 3), 9, "quiet"), _rect(84, y, length, 9, "heat")]
    return _svg(*parts)


def _heat() -> Markup:
    groups, parts, x = (4, 3, 3), [], 62.0
    for group, columns in enumerate(groups):
        for column in range(columns):
            for row in range(6):
                strong = (row in (1, 2) and group == 0) or (row == 4 and group == 1) or (row == 5 and group == 2)
                shade = (0.95 if strong else 0.14) - 0.07 * ((3 * column + 5 * row + group) % 3) * (
                    1 if strong else 0.5
                )
                parts.append(_rect(x, 12 + 18 * row, 14, 15, "heat", shade))
            x += 16
        x += 8
    rows = [_rect(52 - width, 15 + 18 * row, width, 8, "quiet") for row, width in enumerate((24, 34, 20, 40, 28, 36))]
    return _svg(*rows, *parts)


def _arms() -> Markup:
    return _svg(
        _rect(54, 22, 66, 18, "wrong"), _rect(66, 58, 54, 18, "wrong"), _rect(120, 94, 72, 18, "right"),
        _path("M120 10V124", "soft dashed"),
        _path("M174 103H208M174 97V109M208 97V109", "ink"),
        _rect(10, 26, 30, 9, "quiet"), _rect(10, 62, 36, 9, "quiet"), _rect(10, 98, 26, 9, "after"),
    )  # fmt: skip


def _controls() -> Markup:
    bars = [
        _rect(22 + 8 * i, 112 - height, 7, height, "control")
        for i, height in enumerate(round(78 * math.exp(-(((i - 7) / 2.6) ** 2))) for i in range(15))
        if height
    ]
    return _svg(*bars, _path("M14 112.5H228", "soft"), _path("M82 18V112", "soft dashed"),
                _path("M196 22V112", "after thick"), _dot(196, 22, "after", 5))  # fmt: skip


def _dose() -> Markup:
    points = [(24, 26), (62, 34), (100, 52), (138, 88), (176, 104), (214, 110)]
    line = "M" + "L".join(f"{x} {y}" for x, y in points)
    marks = [_dot(x, y, "right", 5) if y < 66 else _rect(x - 4.5, y - 4.5, 9, 9, "wrong") for x, y in points]
    return _svg(_path("M14 66H228", "soft dashed"), _path(line, "before"), *marks)


def _scatter() -> Markup:
    points = [(40, 108), (62, 96), (70, 86), (84, 84), (96, 70), (112, 69), (124, 58), (150, 47), (168, 30), (196, 22)]
    return _svg(_path("M28 114L212 14", "soft dashed"), *(_dot(x, y, "after") for x, y in points))
