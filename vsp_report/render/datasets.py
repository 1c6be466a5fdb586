"""Datasets: a data set that was audited, as the values of its page: what it comes to, and every row to filter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsp_report.audit.datasets import FILE, FOLDER, RECORDINGS, UNDIAGNOSED, Dataset, RowJudged, Share, load_dataset
from vsp_report.audit.words import mode_name, number, share
from vsp_report.recording import file_sha

SHOWN = 2000
"""rows of the page; all are in the JSON"""


@dataclass(frozen=True)
class Told:
    """A share in words."""

    name: str
    share: str
    counts: str
    between: str
    bar: tuple[float, float, float]
    """where it is, from and to: 0 to 100"""


@dataclass(frozen=True)
class Line:
    row: RowJudged
    picture: str
    """relative to the page; empty where there is none"""
    mode: str
    margin: str
    pair: str
    """both, one, none: how many of the row's pair are right; empty for a row of its own"""


@dataclass(frozen=True)
class DatasetPage:
    dataset: Dataset
    when: str
    tone: str
    tiles: tuple[Told, ...]
    modes: tuple[Told, ...]
    groups: tuple[Told, ...]
    lines: tuple[Line, ...]
    left_out: int
    choices: dict[str, tuple[tuple[str, str], ...]]
    """for each filter, its values and what they are called"""


def files(site: Path) -> list[Path]:
    """Of all data sets of a site, by name."""
    return sorted((site / FOLDER).glob(f"*/{FILE}")) if (site / FOLDER).is_dir() else []


def sources(site: Path) -> list[list[str]]:
    return [[file.parent.name, file_sha(file)] for file in files(site)]


def dataset_page(file: Path) -> DatasetPage:
    dataset = load_dataset(file)
    rights: dict[str, list[bool | None]] = {}
    for row in dataset.rows:
        if row.pair:
            rights.setdefault(row.pair, []).append(None if row.says == "error" else row.says == "right")
    lines = tuple(_line(row, rights, file.parent) for row in dataset.rows[:SHOWN])
    values = {
        "says": [(line.row.says, line.row.says) for line in lines],
        "mode": [(line.mode, line.mode) for line in lines if line.mode],
        "pair": [(line.pair, line.pair) for line in lines if line.pair],
        "group": [(group, group) for line in lines for group in _groups(line.row)],
    }
    choices = {name: tuple(sorted(set(found))) for name, found in values.items()}
    return DatasetPage(
        dataset,
        dataset.created.replace("T", " ").replace("Z", " UTC"),
        {0: "good"}.get(dataset.code, "bad"),
        (_told("right", dataset.accuracy), _told("both of a pair right", dataset.pairs),
         _told("the right answer likelier", dataset.prefers), _told("neither answer", dataset.neither)),
        tuple(_told(mode_name(mode), found) for mode, found in dataset.modes.items()),
        tuple(_told(mode_name(group), found) for group, found in dataset.groups.items()),
        lines,
        max(0, len(dataset.rows) - SHOWN),
        {name: found for name, found in choices.items() if len(found) > (name == "says")},
    )  # fmt: skip


def _groups(row: RowJudged) -> list[str]:
    return [group for group in (row.failure, *row.tags) if group]


def _line(row: RowJudged, rights: dict[str, list[bool | None]], folder: Path) -> Line:
    found = rights.get(row.pair, [])
    small = f"{RECORDINGS}/{row.id}/{row.picture}" if row.picture else ""
    explained = row.says in ("wrong", "neither")
    return Line(
        row,
        small if small and (folder / small).is_file() else "",
        (mode_name(row.mode) if row.mode else UNDIAGNOSED) if explained else "",
        "–" if row.margin is None else number(row.margin, 2, signed=True),
        ("both" if all(found) else "one" if any(found) else "none") if len(found) > 1 and None not in found else "",
    )


def _told(name: str, one: Share) -> Told:
    if one.share is None:
        return Told(name, "–", "of none", "", (0.0, 0.0, 0.0))
    places = tuple(round(100 * value, 1) for value in (one.share, one.low, one.high))
    return Told(name, share(one.share), f"{one.count} of {one.of}", f"{share(one.low)} to {share(one.high)}", places)
