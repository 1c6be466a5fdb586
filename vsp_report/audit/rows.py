"""Rows: a data set of pictures and questions, read row by row, as cases. Comma-separated values or JSON lines.

    image             a picture, named from the data set's folder; or scene:MODE/VARIATION/SEED, scene:FAMILY/SEED of
                      the bundled world; in JSON lines also a mapping, as in a case
    question          what is asked; also called prompt
    right, wrong      the two answers
    options,          instead of these, in MMVP's form: "(a) open (b) closed" and "(a)"; the options are asked too, and
    correct answer    of more than two, all but the right one are wrong and the first of them is the contrast's
    pair              rows with the same word here must both be right; without this column, each two rows that follow
                      one another; empty for a row of its own
    id                its name in the report; else row-1, row-2, …
    failure, tags     as in a case; tags with spaces between them
    index             MMVP's number; without an image column the picture is INDEX.jpg

Names of columns are read without regard to case, spaces and underscores. Other columns are left alone. A row that
cannot be read is one fault, with its line, and the next one is read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vsp_report.case import Case, ImageFile, make_case
from vsp_report.case.files import MAX_IMAGE_BYTES, is_id
from vsp_report.errors import CaseError, InputError

ENDINGS = (".csv", ".jsonl")
MAX_ROW_CHARS = 100_000
KNOWN = ("id", "pair", "image", "question", "right", "wrong", "options", "correctanswer", "failure", "tags", "index")
_ALSO = {"prompt": "question", "answer": "correctanswer", "lndex": "index", "failuremode": "failure", "tag": "tags"}
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)(?=\s*\([a-z]\)|$)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One row that can be asked."""

    number: int
    """from 1, broken ones counted"""
    line: int
    id: str
    pair: str
    case: Case
    image: Path | None
    """the picture's file; None for a scene"""


@dataclass(frozen=True)
class Asked:
    """What every row is asked with."""

    model: str
    sae: str
    seed: int = 0
    max_new_tokens: int = 64
    diagnose: bool = True
    """whether the failure mode of a wrong answer is looked for"""


def read_rows(file: Path, asked: Asked) -> Iterator[Row | CaseError]:
    """Every row, or what is wrong with it. Raises where the file as a whole cannot be read."""
    if file.suffix.lower() not in ENDINGS:
        raise InputError(str(file), "is no data set", f"Name a file that ends in {' or '.join(ENDINGS)}.")
    if not file.is_file():
        raise InputError(str(file), "is not a file", "Name a data set.")
    taken: dict[str, int] = {}
    source = _comma_separated(file) if file.suffix.lower() == ".csv" else _json_lines(file)
    try:
        for number, (line, data) in enumerate(source, 1):
            try:
                if isinstance(data, CaseError):
                    raise data
                row = _row(file, number, line, data, asked)
                if (first := taken.setdefault(row.id, line)) != line:
                    raise CaseError(f"{file}:{line}", f"id is {row.id!r}, as on line {first}", "Rename one.")
                yield row
            except CaseError as error:
                yield error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(file), f"cannot be read ({error})", "Save it as UTF-8 text.") from error


def _comma_separated(file: Path) -> Iterator[tuple[int, Any]]:
    with open(file, encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened)
        head = next(reader, None)
        if head is None:
            raise InputError(f"{file}:1", "is empty", "Begin with the names of the columns.")
        names = [_name(one) for one in head]
        _check_columns(file, names, head)
        line = reader.line_num
        for values in reader:
            first, line = line + 1, reader.line_num
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(names):
                fault = f"has {len(values)} values; there are {len(names)} columns"
                yield first, CaseError(f"{file}:{first}", fault, "Put values with commas in quotes.")
                continue
            yield first, dict(zip(names, values, strict=True))


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    with open(file, encoding="utf-8-sig") as opened:
        for line, text in enumerate(opened, 1):
            if not text.strip():
                continue
            try:
                if len(text) > MAX_ROW_CHARS:
                    raise ValueError(f"it has {len(text):,} characters")
                data = json.loads(text)
                if not isinstance(data, dict):
                    raise ValueError("it is no mapping")
            except (ValueError, RecursionError) as error:
                yield line, CaseError(f"{file}:{line}", f"is no row ({str(error)[:100]})", "Write {…} on one line.")
                continue
            yield line, {_name(key): value for key, value in data.items()}


def _name(column: str) -> str:
    plain = re.sub(r"[\s_-]+", "", column).casefold()
    return _ALSO.get(plain, plain)


def _check_columns(file: Path, names: list[str], head: list[str]) -> None:
    for name in KNOWN:
        if names.count(name) > 1:
            raise InputError(f"{file}:1", f"has the column {name!r} twice", "Delete one.")
    answers = {"right", "wrong"} <= set(names) or {"options", "correctanswer"} <= set(names)
    if not {"image", "index"} & set(names) or "question" not in names or not answers:
        fault = f"has the columns {', '.join(head)[:200]}"
        raise InputError(f"{file}:1", fault, "There must be image, question, and right and wrong (or options and "
                         "correct answer).")  # fmt: skip


def _row(file: Path, number: int, line: int, data: dict[str, Any], asked: Asked) -> Row:
    place = f"{file}:{line}"

    def text(name: str) -> str:
        value = data.get(name)
        if value is None:
            return ""
        if isinstance(value, (dict, list, bool)):
            raise CaseError(place, f"{name} is {json.dumps(value)[:60]}", "Write text.")
        return str(value).strip()

    id = text("id") or f"row-{number}"
    if not is_id(id):
        raise CaseError(place, f"id is {id[:60]!r}", "Write small letters, digits and hyphens.")
    question, right, wrong = text("question"), text("right"), text("wrong")
    if not (right or wrong) and text("options"):
        question, right, wrong = _of_options(place, question, text("options"), text("correctanswer"))
    for name, value in (("question", question), ("right", right), ("wrong", wrong)):
        if not value:
            raise CaseError(place, f"{name} is empty", "Write one.")
    image, path = _image(file, place, data, text)
    failure, tags = text("failure"), text("tags").replace(",", " ").split()
    case = make_case(
        {
            "title": question.replace("\n", " ")[:200],
            "model": asked.model,
            "sae": asked.sae,
            "image": image,
            "prompt": question,
            "contrast": {"right": right, "wrong": wrong},
            "seed": asked.seed,
            "decoding": {"max_new_tokens": asked.max_new_tokens},
            "controls": {"draws": 0},
            "diagnose": asked.diagnose,
            **({"failure": failure} if failure else {}),
            **({"tags": tags} if tags else {}),
        },
        id,
        place,
    )
    pair = text("pair") if "pair" in data else str((number + 1) // 2)
    return Row(number, line, id, pair, case, path)


def _of_options(place: str, question: str, options: str, correct: str) -> tuple[str, str, str]:
    found = {label.casefold(): f"({label}) {said.strip()}" for label, said in _OPTION.findall(options) if said.strip()}
    label = correct.strip().strip("()").casefold()
    if label not in found or len(found) < 2:
        known = ", ".join(f"({one})" for one in found) or "none"
        raise CaseError(place, f"the correct answer is {correct[:40]!r}; the options are {known}", "Name one of them.")
    wrong = next(said for one, said in found.items() if one != label)
    return f"{question} {options}".strip(), found[label], wrong


def _image(file: Path, place: str, data: dict[str, Any], text: Any) -> tuple[Any, Path | None]:
    given = data.get("image")
    if isinstance(given, dict):
        if "file" not in given:
            return given, None
        name = str(given["file"])
    else:
        name = text("image") or (f"{text('index')}.jpg" if text("index") else "")
    if not name:
        raise CaseError(place, "image is empty", "Name a picture in the data set's folder.")
    if name.startswith("scene:"):
        return _scene(place, name.removeprefix("scene:")), None
    for where, fault, remedy in ImageFile(name).faults():
        raise CaseError(place, f"image {'.'.join(map(str, where))} {fault}", remedy.replace("case", "data set"))
    path = file.parent / name
    try:
        if not path.resolve().is_relative_to(file.parent.resolve()):
            raise CaseError(place, f"image {name!r} leads out of the data set's folder", "Put the picture there.")
        if not path.is_file():
            raise CaseError(place, f"image {name!r} is missing", "Put it in the data set's folder.")
        if path.stat().st_size > MAX_IMAGE_BYTES:
            fault = f"image {name!r} is over {MAX_IMAGE_BYTES // 2**20} MiB"
            raise CaseError(place, fault, "Make it smaller.")
    except (OSError, RuntimeError, ValueError) as error:
        raise CaseError(place, f"image {name[:80]!r} cannot be read ({error})", "Name a picture.") from error
    return name, path


def _scene(place: str, words: str) -> dict[str, Any]:
    parts = words.split("/")
    if len(parts) not in (2, 3) or not parts[-1].isdecimal() or len(parts[-1]) > 9:
        raise CaseError(
            place, f"image is 'scene:{words[:60]}'", "Write scene:MODE/VARIATION/SEED or scene:FAMILY/SEED."
        )
    names = ("mode", "variation") if len(parts) == 3 else ("family",)
    return {"scene": {**dict(zip(names, parts, strict=False)), "seed": int(parts[-1])}}


def beside(row: Row) -> tuple[Case, str]:
    """The row's case as it is run, and the name of its picture beside the case file; empty where it has none."""
    name = f"{row.id}{row.image.suffix.lower()}" if row.image is not None else ""
    return (replace(row.case, image=ImageFile(name)) if name else row.case), name
