"""Survey's files: the tallies of shards that follow each other, whole or absent, merged to one, and read again."""

from __future__ import annotations

import json
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from vsp_report.errors import VspError
from vsp_report.maths.tallies import Tally
from vsp_report.study.survey_plan import KEPT, Plan, key_of, npz

_SHARD = re.compile(r"tally-(\d{6})-(\d{6})\.npz")


def name_of(first: int, last: int) -> str:
    """A file's, by its first and last shard."""
    return f"tally-{first:06}-{last:06}.npz"


Small = dict[int, tuple[bytes, list[int]]]
"""Small pictures by their number, with rows and columns of patches."""


def save_tallies(
    plan: Plan, first: int, last: int, tallies: Sequence[Tally], small: Small, broken: list, made: Mapping[str, str]
) -> None:
    arrays: dict[str, np.ndarray] = {}
    for k, tally in enumerate(tallies):
        arrays |= {f"{k}.{name}": _narrow(array) for name, array in tally.arrays().items()}
    # What is not among the best few here is not among the best few of all.
    needed = {int(i) for k, tally in enumerate(tallies) if not plan.facts["dictionaries"][k]["control"]
              for i in tally.references.best(KEPT).picture_A}  # fmt: skip
    kept = sorted(needed & small.keys())
    arrays["small.numbers"] = np.array(kept, np.int64)
    arrays["small.grids"] = np.array([small[i][1] for i in kept], np.uint16).reshape(-1, 2)
    arrays["small.ends"] = np.cumsum([len(small[i][0]) for i in kept], dtype=np.int64)
    arrays["small.bytes"] = np.frombuffer(b"".join(small[i][0] for i in kept), np.uint8)
    arrays["broken"] = np.frombuffer(json.dumps(sorted(broken)).encode(), np.uint8)
    arrays["made"] = np.frombuffer(json.dumps(made, sort_keys=True).encode(), np.uint8)
    _write(plan.folder / name_of(first, last), npz(arrays))


def load_tallies(plan: Plan, name: str) -> tuple[list[Tally], Small, list]:
    with np.load(plan.folder / name, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    tallies = []
    for k in range(len(plan.facts["dictionaries"])):
        frame = plan.frame(k)
        kinds = {name: array.dtype for name, array in Tally(frame).arrays().items()}
        mine = {key.partition(".")[2]: array for key, array in arrays.items() if key.startswith(f"{k}.")}
        tallies.append(Tally.of(frame, {name: array.astype(kinds[name], copy=False) for name, array in mine.items()}))
    starts, held = np.append(0, arrays["small.ends"]), arrays["small.bytes"].tobytes()
    grids = arrays["small.grids"].tolist()
    small = {int(i): (held[a:b], grid) for i, a, b, grid in zip(arrays["small.numbers"], starts[:-1], starts[1:],
                                                               grids, strict=True)}  # fmt: skip
    return tallies, small, json.loads(arrays["broken"].tobytes())


def made_on(tallies: Path) -> dict[str, str]:
    """The kind of device, the number format and the version of the package that tallies are made with."""
    with np.load(tallies, allow_pickle=False) as archive:
        return json.loads(archive["made"].tobytes())


def merge_files(folder: str, names: Sequence[str]) -> str:
    """Files of shards that follow each other become one; the parts go once the whole is there. Said twice, as may
    happen on a cluster, it is done once."""
    ordered = sorted(names)
    first, last = int(_SHARD.fullmatch(ordered[0])[1]), int(_SHARD.fullmatch(ordered[-1])[2])
    whole = name_of(first, last)
    if whole not in ordered and not (Path(folder) / whole).is_file():
        _merge(_plan(folder, key_of(folder)), ordered, first, last)
    for name in ordered:
        if name != whole:
            (Path(folder) / name).unlink(missing_ok=True)
    return whole


@lru_cache(maxsize=1)
def _plan(folder: str, key: str) -> Plan:
    return Plan.read(folder)


def _merge(plan: Plan, ordered: Sequence[str], first: int, last: int) -> None:
    made = [made_on(plan.folder / name) for name in ordered]
    if other := next((one for one in made if one != made[0]), None):
        kinds = " and ".join(f"{one['device_class']} in {one['dtype']}" for one in (made[0], other))
        remedy = f"Take workers of one kind (--device, --dtype), and remove {plan.folder} before."
        raise VspError("survey", f"its parts do not fit together: {kinds}", remedy)
    loaded = [load_tallies(plan, name) for name in ordered]
    merged = [first.merged(*others) for first, *others in zip(*(tallies for tallies, _, _ in loaded), strict=True)]
    small = {number: one for _, some, _ in loaded for number, one in some.items()}
    broken = [one for _, _, some in loaded for one in some]
    save_tallies(plan, first, last, merged, small, broken, made[0])


def _narrow(array: np.ndarray) -> np.ndarray:
    """Whole numbers in as few bytes as hold them."""
    if array.dtype.kind != "i" or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def finished(plan: Plan) -> list[tuple[int, int, str]]:
    """First shard, last shard and name of every file that counts: of one inside another, the other."""
    found = [(int(m[1]), int(m[2]), m[0]) for m in map(_SHARD.fullmatch, os.listdir(plan.folder)) if m]
    kept: list[tuple[int, int, str]] = []
    for one in sorted(found, key=lambda f: (f[0], -f[1])):
        if not kept or one[0] > kept[-1][1]:
            kept.append(one)
    return kept


def sound(plan: Plan) -> list[tuple[int, int, str]]:
    """As `finished`, less the files that are damaged, which go: their shards are surveyed again."""
    for _, _, name in finished(plan):
        try:
            with zipfile.ZipFile(plan.folder / name) as archive:
                whole = archive.testzip() is None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
            whole = False
        if not whole:
            (plan.folder / name).unlink(missing_ok=True)
    return finished(plan)
