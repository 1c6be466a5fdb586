"""Baselines: figures kept beside the cases, from which later runs may not drift. A case that asks for none has none.

    cases/baselines/ID.json     one small file for each case, made to be read in a review

A baseline belongs to one question: after a change of the case's picture, model name, steerings or seeds it is stale,
and so it is once the case holds other figures to it. A picture's file counts by its bytes, a scene or a chart by the
words that it is drawn from. New weights under the same name do not make it stale: to say what they change is what it is
there for.

Figures are those of the run with the case's own seed, and so is drift: runs with the other seeds of `repeat` are held
to everything else that the case expects, and not to its baseline.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsp_report.audit.verdicts import allowed
from vsp_report.case import Case
from vsp_report.errors import InputError
from vsp_report.recording import Recording, sha_of

SCHEMA = 1
FOLDER = "baselines"
MAX_BYTES = 2**20


@dataclass(frozen=True)
class Baseline:
    """What is kept for one case; `fault` says why it cannot be compared with, empty where it can."""

    figures: dict[str, float] = field(default_factory=dict)
    fault: str = ""
    """missing, or stale: and why"""


@dataclass(frozen=True)
class Moved:
    """A figure that an update of a baseline changes."""

    figure: str
    before: float | None
    """None where there was none"""
    after: float


@dataclass(frozen=True)
class Update:
    """What a baseline will be; nothing is written yet."""

    case: Case
    picture: str
    figures: dict[str, float]
    moved: tuple[Moved, ...] = ()
    fault: str = ""
    """why the one that is there cannot be compared with"""

    @property
    def needed(self) -> bool:
        return bool(self.moved or self.fault)


def path_of(case: Case) -> Path:
    if case.path is None:
        raise InputError(case.id, "comes from no file, and a baseline stands beside one", "Write the case to a file.")
    return case.path.parent / FOLDER / f"{case.id}.json"


def load_baseline(case: Case, recording: Recording) -> Baseline | None:
    """None for a case that holds nothing to a baseline. `recording`: what is to be compared with it."""
    held = {tolerance.name for tolerance in case.expect.baseline}
    if not held:
        return None
    file = path_of(case)
    if not file.is_file():
        return Baseline(fault="missing")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        data = json.loads(file.read_text(encoding="utf-8"))
        figures, question, picture = _figures(data), str(data["question"]), str(data.get("picture", ""))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Baseline(fault=f"stale: it cannot be read ({str(error)[:80]})")
    if question != question_of(case):
        return Baseline(figures, "stale: it is of another question")
    if (now := picture_of(case, recording)) and picture != now:
        return Baseline(figures, f"stale: it is of another picture than {case.image_path.name}")
    if lacking := sorted(held - figures.keys()):
        return Baseline(figures, f"stale: it lacks {', '.join(lacking)}")
    if unused := sorted(figures.keys() - held):
        return Baseline(figures, f"stale: the case no longer holds {', '.join(unused)}")
    return Baseline(figures)


def _figures(data: Any) -> dict[str, float]:
    if data["schema"] != SCHEMA:
        raise ValueError(f"its schema is {data['schema']!r}, not {SCHEMA}")
    for name, value in data["figures"].items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} is no number")
    return {name: float(value) for name, value in data["figures"].items()}


def question_of(case: Case) -> str:
    return sha_of(case.computed())


def picture_of(case: Case, recording: Recording) -> str:
    """The hash of the picture's file; empty for what is drawn, and where the run did not come to see it."""
    return recording.provenance.image_sha if case.image_path is not None else ""


def update_of(case: Case, recording: Recording) -> Update | None:
    """What has moved beyond its tolerance, is new, or is held no longer; the other figures stay. None where there is
    nothing to hold. Raises where the run did not measure a figure that the case holds."""
    kept = load_baseline(case, recording)
    if kept is None or recording.status != "ok":
        return None
    figures, moved, seen = {}, [], recording.figures()
    for tolerance in case.expect.baseline:
        now, was = seen.get(tolerance.name), kept.figures.get(tolerance.name)
        if now is None or isinstance(now, str):
            place = f"{case.path}:{case.line_of(f'expect.baseline.{tolerance.name}')}"
            fault = f"{tolerance.name} was not measured, and no baseline of any case is written"
            raise InputError(place, fault, "Hold another figure, or ask for what measures it.")
        figures[tolerance.name] = was if was is not None else 0.0
        if was is None or abs(now - was) > allowed(tolerance, was):
            figures[tolerance.name] = float(f"{now:.6g}")
            moved.append(Moved(tolerance.name, was, figures[tolerance.name]))
    return Update(case, picture_of(case, recording), figures, tuple(moved), kept.fault)


def save_baseline(new: Update) -> Path:
    file = path_of(new.case)
    file.parent.mkdir(exist_ok=True)
    data = {"schema": SCHEMA, "case": new.case.id, "question": question_of(new.case), "figures": new.figures}
    data |= {"picture": new.picture} if new.picture else {}
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return file
