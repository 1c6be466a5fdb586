"""Saving: a round becomes a case file, which is checked, run and audited like any other. Text in, text out.

What was seen is what the case expects: so running it again says at once whether it still holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vsp_report.case import Case, make_case
from vsp_report.errors import CaseError, InputError
from vsp_report.recording import Answered

STEERING = "tried"
"""What the steering of a saved round is called."""
SURE = 0.05


class Seen(NamedTuple):
    """What came out of a round."""

    before: Answered
    after: Answered | None
    p: float | None


def case_text(name: str, title: str, case: Case, seen: Seen | None, image: str | None = None) -> str:
    """The file of a case: `case` is the round as a case (`asked.case_of`), `image` another picture beside the file."""
    data = case.resolved()
    edits = next((data["steer"][one.name] for one in case.steer), None)
    for key in ("story", "failure", "tags", "steer", "expect", "sweep", "rephrase"):
        data.pop(key, None)
    data["title"] = " ".join(title.split()) or name
    if image is not None:
        data["image"] = image
    if edits is not None:
        plain = edits["mode"] == "delta" and not edits["cls"] and not edits.get("onto")
        data["steer"] = {STEERING: edits["edits"] if plain else edits}
    if seen is not None:
        data["expect"] = _expected(seen)
    data = _told(data, name)
    return "\n".join(_lines(data)) + "\n"


def save_case(folder: Path, name: str, text: str, picture: tuple[str, bytes] | None = None) -> Path:
    """Write it into a folder of cases, over none that is there."""
    file = folder / f"{name}.yaml"
    if not folder.is_dir():
        raise InputError(str(folder), "is no folder", "Make it, or take the text of the case instead.")
    if file.exists() or file.with_suffix(".yml").exists():
        raise CaseError(str(file), "is there already", "Give the case another name.")
    if picture is not None:
        place = folder / picture[0]
        place.parent.mkdir(parents=True, exist_ok=True)
        _write(place, picture[1])
    _write(file, text.encode())
    return file


def _write(file: Path, data: bytes) -> None:
    """Whole or absent."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        beside.write_bytes(data)
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _expected(seen: Seen) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if before := _outcome(seen.before):
        found["before"] = before
    if seen.after is not None:
        after = _outcome(seen.after)
        if seen.p is not None and seen.p <= SURE:
            after["p"] = {"le": SURE}
        if after:
            found["after"] = {STEERING: after}
    return found


def _outcome(answered: Answered) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if answered.text.strip() and answered.ended and len(answered.text) <= 200 and "\n" not in answered.text:
        found["answer"] = answered.text.strip()
    if answered.margin:
        found["margin"] = {"gt": 0} if answered.margin > 0 else {"lt": 0}
    return found


def _told(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Without what a case has anyway, in the order in which one is read."""
    whole = make_case(data, name, name)
    for key in sorted(data.keys() - {"title", "model", "sae", "image", "prompt", "classify"}):
        fewer = {k: v for k, v in data.items() if k != key}
        try:
            if make_case(fewer, name, name) == whole:
                data = fewer
        except CaseError:  # it cannot be left away
            continue
    order = ("title", "model", "sae", "tap", "image", "system", "prompt", "classify", "contrast")
    return {key: data[key] for key in (*order, *sorted(data.keys() - set(order) - {"steer", "expect"}), "steer",
                                       "expect") if key in data}  # fmt: skip


def _lines(data: dict[str, Any]) -> Iterator[str]:
    """YAML of which every value is JSON, which it may be; what is steered and expected is set out in lines."""
    for key, value in data.items():
        if key in ("steer", "expect") and isinstance(value, dict):
            yield f"\n{key}:"
            yield from _block(value, "  ")
        else:
            yield f"{key}: {_json(value)}"


def _block(data: dict[str, Any], indent: str, depth: int = 2) -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, dict) and depth > 1:
            yield f"{indent}{key}:"
            yield from _block(value, indent + "  ", depth - 1)
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {_json(one)}" for one in value)
        else:
            yield f"{indent}{key}: {_json(value)}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
