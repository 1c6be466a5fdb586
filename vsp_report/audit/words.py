"""Words: figures in few digits, and text of a model on one harmless line. The same on pages and in every report."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """With a true minus, and no sign before what rounds to zero."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", "−") if value < 0 else f"+{text}" if signed else text


def share(value: float | None) -> str:
    """A probability or share, in percent: two digits that mean something."""
    if value is None:
        return "–"
    percent = 100 * value
    if percent == 0 or 9.95 <= percent <= 99 or percent == 100:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.1 and percent <= 99.9 else ("< 0.1 %" if percent < 1 else "> 99.9 %")


def p_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}" if value >= 0.0001 else "< 0.0001"


def same_answer(one: str, other: str) -> bool:
    return one.strip().rstrip(".").casefold() == other.strip().rstrip(".").casefold()


def mode_name(mode: str) -> str:
    return {"none": "nothing wrong"}.get(mode, mode.replace("-", " "))


def figure(metric: str, value: float | str) -> str:
    """What was measured of a metric, or is asked of it."""
    if isinstance(value, str):
        return mode_name(value) if metric == "diagnosis" else f"“{value}”"
    if metric in ("margin", "change"):
        return number(value, 2, signed=value != 0)
    return p_value(value) if metric == "p" else share(value)


def one_line(text: str, longest: int = 0) -> str:
    """Without line feeds, and without what a terminal or a browser would take for more than text."""
    line = " ".join(_CONTROL.sub(" ", text).split())
    return line if not longest or len(line) <= longest else line[: longest - 1] + "…"


def listed(counts: dict[str, int]) -> str:
    """2 not corrected, 11 confirmed"""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
