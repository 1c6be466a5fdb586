"""Survey: pictures in, tallies of every latent out. One pass for several SAEs; stopped, it goes on where it was.

    plan     looks at some of the pictures first: units, neighbours, the middle of the embeddings; writes all of it down
    shard    surveys some hundred pictures and writes their tallies; shards know nothing of each other
    merge    tallies of shards that follow each other become one; any grouping gives the same

Plan, shards and merged tallies are files of one work folder. Whoever sees it can survey a shard: this process, others,
or the workers of a cluster. A shard is whole or absent, so a survey that is stopped, or killed, has lost the shards at
work and nothing else; the same command finds the folder by what is asked and goes on. Memory holds one batch, one tally
of each SAE, and the pictures whose truth is known, of which so many are judged and no more.

Beside each SAE an untrained one of the same kind is surveyed in the same way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vsp_report import paths
from vsp_report.errors import VspError
from vsp_report.maths.tallies import Frame, Tally, Truth
from vsp_report.model import feeding
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.feeding import Feeder
from vsp_report.model.sae import Sae
from vsp_report.model.taps import Tap
from vsp_report.study import photographs, sheets
from vsp_report.study.photographs import Photograph
from vsp_report.study.survey_plan import CONTROL_SEED, Asked, Plan, kept_vlm, npz, plan

JUDGED = 20_000
"""So many pictures with a truth are kept one by one."""
MERGED_AT_ONCE = 8
_SHARD = re.compile(r"tally-(\d{6})-(\d{6})\.npz")


class Dictionary(NamedTuple):
    """One SAE of a survey."""

    name: str
    sha: str
    tap: Tap
    sae: Sae
    frame: Frame
    control: bool


class Progress(NamedTuple):
    done: int
    """pictures that are surveyed, those of an earlier run among them"""
    total: int
    fresh: int
    """of this run"""


Report = Callable[[Progress], None]


# --- a shard -----------------------------------------------------------------------------------------------------


class Surveyor:
    """A plan with its model and SAEs loaded."""

    def __init__(self, plan: Plan) -> None:
        facts = plan.facts
        self.plan, self.vlm = plan, kept_vlm(facts["model"], facts["device"], facts["asked_dtype"])
        trained = [load_sae(paths.bundled(one["name"]) or one["name"]) for one in facts["saes"]]
        self.dictionaries: list[Dictionary] = []
        for k, told in enumerate(facts["dictionaries"]):
            of, sae = facts["saes"][told["of"]], trained[told["of"]]
            sae = Sae.untrained(CONTROL_SEED, like=sae) if told["control"] else sae
            sae = sae.to(self.vlm.device)
            self.dictionaries.append(Dictionary(of["name"], of["sha"], Tap.parse(of["tap"]), sae, plan.frame(k),
                                                told["control"]))  # fmt: skip
        self.feeder = Feeder(self.vlm, [one.tap for one in self.dictionaries])

    def tallies(self) -> list[Tally]:
        return [Tally(one.frame) for one in self.dictionaries]

    def add(self, tallies: Sequence[Tally], batch: Sequence[Photograph], fed: feeding.Fed) -> None:
        """One batch, to the tally of each SAE."""
        embeddings_BD = self.plan.embedded(feeding.mean_states(fed, self.feeder.top))
        truth = self._truth(batch, fed) if any(tally.frame.concepts for tally in tallies) else None
        numbers = [one.number for one in batch]
        for tally, one in zip(tallies, self.dictionaries, strict=True):
            entries = feeding.entries_of(one.sae, fed, one.tap, numbers)
            tally.add(entries, embeddings_BD=embeddings_BD, truth=truth)

    def _truth(self, batch: Sequence[Photograph], fed: feeding.Fed) -> Truth:
        source, patches_B = self.plan.source, fed.patches_B
        first_B = patches_B.cumsum() - patches_B
        shown = [source.shown(one, *map(int, grid)) for one, grid in zip(batch, fed.grids_B2, strict=True)]
        row_X = np.concatenate([one.patch_X + first for one, first in zip(shown, first_B, strict=True)])
        halves = [source.half(one.number) if one.number < JUDGED else 2 for one in batch]
        return Truth(np.array(halves), np.stack([s.concepts_C for s in shown]),
                     row_X, np.concatenate([one.concept_X for one in shown]))  # fmt: skip


@lru_cache(maxsize=1)
def _surveyor(folder: str, key: str) -> Surveyor:
    return Surveyor(Plan.read(folder))


def survey_shard(folder: str, shard: int, on_batch: Callable[[int], None] | None = None) -> int:
    """Survey one shard and write its file; says how many pictures it has."""
    key = json.loads((Path(folder) / "plan.json").read_text(encoding="utf-8"))["key"]
    surveyor = _surveyor(folder, key)
    plan, tallies, small, broken = surveyor.plan, surveyor.tallies(), {}, []
    numbers = plan.numbers(shard)
    done = 0
    for batch in photographs.batches(plan.source, numbers, plan.facts["batch"]):
        good = [one for one in batch if one.image is not None]
        broken += [[one.number, plan.source.name(one.number), one.fault] for one in batch if one.image is None]
        if good:
            fed = surveyor.feeder.feed([one.image for one in good])
            surveyor.add(tallies, good, fed)
            small |= {one.number: (sheets.packed(photographs.grid_crop(one.image, box, plan.facts["cell_px"])), grid)
                      for one, box, grid in zip(good, fed.boxes_B4, fed.grids_B2.tolist(), strict=True)}  # fmt: skip
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    save_tallies(plan, shard, shard, tallies, small, broken)
    return len(numbers)


Small = dict[int, tuple[bytes, list[int]]]
"""Small pictures by their number, with rows and columns of patches."""


def save_tallies(plan: Plan, first: int, last: int, tallies: Sequence[Tally], small: Small, broken: list) -> None:
    arrays: dict[str, np.ndarray] = {}
    for k, tally in enumerate(tallies):
        arrays |= {f"{k}.{name}": _narrow(array) for name, array in tally.arrays().items()}
    needed = {int(i) for k, tally in enumerate(tallies) if not plan.facts["dictionaries"][k]["control"]
              for i in tally.references.picture_A}  # fmt: skip
    kept = sorted(needed & small.keys())
    arrays["small.numbers"] = np.array(kept, np.int64)
    arrays["small.grids"] = np.array([small[i][1] for i in kept], np.uint16).reshape(-1, 2)
    arrays["small.ends"] = np.cumsum([len(small[i][0]) for i in kept], dtype=np.int64)
    arrays["small.bytes"] = np.frombuffer(b"".join(small[i][0] for i in kept), np.uint8)
    arrays["broken"] = np.frombuffer(json.dumps(sorted(broken)).encode(), np.uint8)
    _write(plan.folder / f"tally-{first:06}-{last:06}.npz", npz(arrays))


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


def merge_files(folder: str, names: Sequence[str]) -> str:
    """Files of shards that follow each other become one; the parts go once the whole is there."""
    plan = Plan.read(folder)
    ordered = sorted(names)
    loaded = [load_tallies(plan, name) for name in ordered]
    merged = [first.merged(*others) for first, *others in zip(*(tallies for tallies, _, _ in loaded), strict=True)]
    small = {number: one for _, some, _ in loaded for number, one in some.items()}
    broken = [one for _, _, some in loaded for one in some]
    first, last = int(_SHARD.fullmatch(ordered[0])[1]), int(_SHARD.fullmatch(ordered[-1])[2])
    save_tallies(plan, first, last, merged, small, broken)
    for name in ordered:
        if len(ordered) > 1:
            (plan.folder / name).unlink(missing_ok=True)
    return f"tally-{first:06}-{last:06}.npz"


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


# --- all of them -------------------------------------------------------------------------------------------------


def finished(plan: Plan) -> list[tuple[int, int, str]]:
    """First shard, last shard and name of every file that counts: of one inside another, the other."""
    found = [(int(m[1]), int(m[2]), m[0]) for m in map(_SHARD.fullmatch, os.listdir(plan.folder)) if m]
    kept: list[tuple[int, int, str]] = []
    for one in sorted(found, key=lambda f: (f[0], -f[1])):
        if not kept or one[0] > kept[-1][1]:
            kept.append(one)
    return kept


def survey(plan: Plan, executor: Executor | None = None, on_progress: Report = lambda progress: None) -> Path:
    """Survey what is not surveyed yet, here or by an executor's workers, and merge all; says where the tallies are."""
    there = {shard for first, last, _ in finished(plan) for shard in range(first, last + 1)}
    left = [shard for shard in range(plan.shards) if shard not in there]
    before = sum(len(plan.numbers(shard)) for shard in there)
    total, fresh, folder = len(plan.source), 0, str(plan.folder)
    on_progress(Progress(before, total, 0))
    if executor is None:
        for shard in left:
            said = lambda done, so_far=fresh: on_progress(Progress(before + so_far + done, total, so_far + done))  # noqa: E731
            fresh += survey_shard(folder, shard, said)
        on_progress(Progress(before + fresh, total, fresh))
        return plan.folder / _merged(plan, None)
    tasks = [executor.submit(survey_shard, folder, shard) for shard in left]
    try:
        for task in as_completed(tasks):
            fresh += task.result()
            on_progress(Progress(before + fresh, total, fresh))
        return plan.folder / _merged(plan, executor)
    except BaseException as error:
        for task in tasks:
            task.cancel()
        if type(error).__name__ == "BrokenProcessPool":
            raise VspError("survey", "a worker died", "Give --jobs fewer, or less memory; then go on.") from error
        raise


def _merged(plan: Plan, executor: Executor | None) -> str:
    """A tree: so many files at once become one, until one is left."""
    while len(files := [name for _, _, name in finished(plan)]) > 1:
        groups = [files[k : k + MERGED_AT_ONCE] for k in range(0, len(files), MERGED_AT_ONCE)]
        groups = [group for group in groups if len(group) > 1]
        if executor is None or len(groups) == 1:
            for group in groups:
                merge_files(str(plan.folder), group)
        else:
            for task in [executor.submit(merge_files, str(plan.folder), group) for group in groups]:
                task.result()
    return finished(plan)[0][2]


def forget(plan: Plan) -> None:
    """Clear the work folder of a survey whose atlases are written."""
    with suppress(OSError):
        shutil.rmtree(plan.folder)


__all__ = [
    "Asked", "Plan", "Progress", "finished", "forget", "load_tallies", "merge_files", "plan", "survey",
    "survey_shard",
]  # fmt: skip
