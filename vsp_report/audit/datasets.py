"""Datasets: what many rows come to. How many are right, in how many pairs both are, and why the others are not.

A row is right if the model says the right answer: in the same words, by the letter of the option, or in a sentence that
has the right answer in it and not the wrong one; of a sentence that has both, the likelier one counts (`case.answers`
says it all). Who says neither is not right. Beside that it is counted how often the right answer is the likelier one,
whatever is said. Shares come with Wilson's interval at 95 %. Rows that could not be read or run are in none of the
shares; they are counted by themselves.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsp_report.audit.account import COULD_NOT_RUN, MET, NO_CASES, NOT_MET, SAID
from vsp_report.audit.rows import Row, beside
from vsp_report.audit.sources import replaced
from vsp_report.audit.words import one_line, share
from vsp_report.case import Case
from vsp_report.case.answers import side
from vsp_report.errors import InputError
from vsp_report.recording import Answered, Recording, load_recording
from vsp_report.recording.plain import from_plain, schema_of, to_plain

SCHEMA = 1
FOLDER, FILE, RECORDINGS = "datasets", "dataset.json", "recordings"
SAYS = ("right", "wrong", "neither", "error")
UNDIAGNOSED = "not diagnosed"
_Z = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share and where it may lie."""

    count: int
    of: int
    share: float | None
    """None of none"""
    low: float
    high: float
    """Wilson's interval at 95 %"""


@dataclass(frozen=True)
class RowJudged:
    """One row."""

    id: str
    line: int
    """in the data set"""
    pair: str
    question: str
    right: str
    wrong: str
    image: str
    """the picture as the data set names it; the scene in words"""
    says: str
    """right, wrong, neither, error"""
    answer: str = ""
    margin: float | None = None
    mode: str = ""
    """the failure mode that was found; empty where none was looked for"""
    failure: str = ""
    """the one that the data set names"""
    tags: tuple[str, ...] = ()
    picture: str = ""
    """a small one, inside the row's recording"""
    fault: str = ""


@dataclass(frozen=True)
class Dataset:
    """A data set, audited."""

    schema: int
    created: str
    program: str
    name: str
    file: str
    model: str
    sae: str
    code: int
    said: str
    """the last line that is printed"""
    accuracy: Share
    pairs: Share
    """both rows right"""
    prefers: Share
    """the right answer is the likelier one"""
    neither: Share
    modes: dict[str, Share]
    """of the rows that are not right, by the failure mode that was found"""
    groups: dict[str, Share]
    """right ones, by the failure mode and the tags that the data set names"""
    rows: tuple[RowJudged, ...]
    broken: tuple[str, ...] = ()
    """rows that could not be read: place, fault, remedy"""


def wilson(count: int, of: int) -> Share:
    if of == 0:
        return Share(0, 0, None, 0.0, 1.0)
    p, z2 = count / of, _Z**2
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * (p * (1 - p) / of + z2 / (4 * of**2)) ** 0.5
    low, high = 0.0 if count == 0 else middle - half, 1.0 if count == of else middle + half
    return Share(count, of, p, low, high)


# --- one row -----------------------------------------------------------------------------------------------------


def says(answered: Answered, right: str, wrong: str) -> str:
    """right, wrong or neither: as a diagnosis reads it, so that what is not right here is what is looked into there."""
    return side(answered.text, right, wrong, answered.margin) or "neither"


def _question(case: Case) -> dict[str, Any]:
    """What was asked, whether or not it was looked for why the answer is wrong."""
    return {name: value for name, value in case.computed().items() if name != "diagnose"}


def judge_row(row: Row, folder: Path) -> RowJudged:
    """A row with its recording."""
    case, contrast = row.case, row.case.contrast
    known = {
        "id": row.id, "line": row.line, "pair": row.pair, "question": case.prompt, "right": contrast.right,
        "wrong": contrast.wrong, "image": _image_words(row), "failure": case.failure or "", "tags": case.tags,
    }  # fmt: skip
    try:
        recording = load_recording(folder, arrays=False)
    except InputError as error:
        return RowJudged(**known, says="error", fault=one_line(str(error), 400))
    asks_else = _question(recording.asked()) != _question(beside(row)[0])
    if other := "another question" if asks_else else replaced(recording, row.image):
        fault = f"its recording is of {other}; run it without --from-recordings"
        return RowJudged(**known, says="error", fault=fault)
    if recording.status != "ok" or recording.clean is None:
        fault = recording.stop.message if recording.stop else "the model gave no answer"
        return RowJudged(**known, says="error", fault=one_line(fault, 400))
    return RowJudged(
        **known, says=says(recording.clean, contrast.right, contrast.wrong), answer=recording.clean.text,
        margin=recording.clean.margin, mode=recording.diagnosis.mode if recording.diagnosis else "",
        picture=_picture(recording),
    )  # fmt: skip


def _picture(recording: Recording) -> str:
    return recording.image.file if recording.image else ""


def _image_words(row: Row) -> str:
    if row.image is not None:
        return row.case.image.file
    scene = getattr(row.case.image, "scene", None)
    parts = [getattr(scene, name, None) for name in ("mode", "variation", "family", "seed")]
    return "scene " + "/".join(str(part) for part in parts if part is not None) if scene else "a chart"


# --- all of them -------------------------------------------------------------------------------------------------


def make_dataset(
    rows: Sequence[RowJudged],
    broken: Iterable[str],
    *,
    least_accuracy: float | None = None,
    least_pairs: float | None = None,
    **known: Any,
) -> Dataset:
    """What rows come to. `known`: created, program, name, file, model, sae."""
    broken = tuple(broken)
    asked = [row for row in rows if row.says != "error"]
    wrong = [row for row in asked if row.says != "right"]
    accuracy = wilson(sum(row.says == "right" for row in asked), len(asked))
    pairs = _pairs(rows)
    modes = Counter(row.mode or UNDIAGNOSED for row in wrong)
    groups: dict[str, list[bool]] = {}
    for row in asked:
        for group in dict.fromkeys(filter(None, (row.failure, *row.tags))):
            groups.setdefault(group, []).append(row.says == "right")
    failed = len(broken) + len(rows) - len(asked)
    missed = (least_accuracy is not None and (accuracy.share or 0.0) < least_accuracy) or (
        least_pairs is not None and (pairs.share or 0.0) < least_pairs
    )
    code = NO_CASES if not rows and not broken else COULD_NOT_RUN if failed else NOT_MET if missed else MET
    scored = [row for row in asked if row.margin is not None]
    return Dataset(
        schema=SCHEMA, code=code, said=_said(code, accuracy, pairs, failed), accuracy=accuracy, pairs=pairs,
        prefers=wilson(sum(row.margin > 0 for row in scored), len(scored)),
        neither=wilson(sum(row.says == "neither" for row in asked), len(asked)),
        modes={mode: wilson(count, len(wrong)) for mode, count in sorted(modes.items())},
        groups={group: wilson(sum(found), len(found)) for group, found in sorted(groups.items())},
        rows=tuple(rows), broken=broken, **known,
    )  # fmt: skip


def _pairs(rows: Sequence[RowJudged]) -> Share:
    """Only pairs of two rows that could both be asked."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.pair:
            found.setdefault(row.pair, []).append(row.says)
    whole = [pair for pair in found.values() if len(pair) > 1 and "error" not in pair]
    return wilson(sum(set(pair) == {"right"} for pair in whole), len(whole))


def in_words(one: Share) -> str:
    if one.share is None:
        return "none"
    return f"{one.count} of {one.of} ({share(one.share)}, between {share(one.low)} and {share(one.high)})"


def _said(code: int, accuracy: Share, pairs: Share, failed: int) -> str:
    if code == NO_CASES:
        return f"audit: {SAID[code]} ({code})"
    parts = [f"right {in_words(accuracy)}", f"both of a pair {in_words(pairs)}"]
    parts += [f"{failed} could not be asked"] if failed else []
    return f"audit: {SAID[code]} ({code}): {', '.join(parts)}"


def dataset_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of dataset.json."""
    definitions: dict[str, Any] = {}
    schema_of(Dataset, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vsp-report data set",
        **definitions.pop("Dataset"),
        "$defs": dict(sorted(definitions.items())),
    }


def dataset_json(dataset: Dataset) -> str:
    return json.dumps(to_plain(dataset), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def load_dataset(file: Path) -> Dataset:
    try:
        return from_plain(Dataset, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (ValueError, RecursionError) as error:
        raise InputError(str(file), "is not JSON", "Audit the data set again.") from error
