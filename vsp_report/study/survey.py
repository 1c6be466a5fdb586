"""Survey: pictures in, tallies of every latent out. One pass for several SAEs; stopped, it goes on where it was.

    plan     looks at some of the pictures first: units, neighbours, the middle of the embeddings; writes all of it down
    shard    surveys some hundred pictures and writes their tallies; shards know nothing of each other
    merge    tallies of shards that follow each other become one, as soon as all of them are there; any grouping gives
             the same, so a survey of any size has a few dozen files at most

Plan, shards and merged tallies are files of one work folder. Whoever sees it can survey a shard: this process, others,
or the workers of a cluster. A shard is whole or absent, so a survey that is stopped, or killed, has lost the shards at
work and nothing else; the same command finds the folder by what is asked and goes on. What was damaged meanwhile is
surveyed again. Memory holds one batch, one tally of each SAE, and the pictures whose truth is known, of which so many
are judged and no more.

A picture that cannot be read is passed over; a folder that is gone is no picture's fault. So where many more fail than
the first look foretold, some are read once more, and if it goes otherwise now than then, the survey stops.

Beside each SAE an untrained one of the same kind is surveyed in the same way.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vsp_report import paths
from vsp_report.errors import VspError
from vsp_report.maths.tallies import Frame, Tally, Truth
from vsp_report.model import feeding
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.devices import device_of
from vsp_report.model.feeding import Feeder
from vsp_report.model.sae import Sae
from vsp_report.model.taps import Tap
from vsp_report.study.photographs import Photograph
from vsp_report.study.survey_files import finished, load_tallies, made_on, merge_files, name_of, save_tallies, sound
from vsp_report.study.survey_plan import (
    CONTROL_SEED,
    Asked,
    Plan,
    batch_size,
    budget,
    kept_vlm,
    key_of,
    plan,
    this_package,
)
from vsp_report.study.survey_reading import ready

JUDGED = 20_000
"""So many pictures with a truth are kept one by one."""
MERGED_AT_ONCE = 4
DOUBTED = 8
"""Where more than one picture in so many fails beyond what the first look foretold, some are read once more."""
READ_AGAIN = 32
WORKER_DIED = ("BrokenProcessPool", "KilledWorker")
CLUSTER_GONE = ("CancelledError", "FutureCancelledError", "FuturesCancelledError", "CommClosedError")


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
        if (here := this_package()) != facts["package_sha"]:
            raise VspError("survey", "a worker has another vsp-report than the plan's", "Install the same everywhere.")
        self.plan, self.vlm = plan, kept_vlm(facts["model_at"], facts["device"], facts["asked_dtype"])
        device = device_of(self.vlm.model)
        self.made = {"device_class": device.kind, "dtype": device.dtype, "package_sha": here}
        trained = [load_sae(paths.bundled(one["at"]) or one["at"]) for one in facts["saes"]]
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
        moments = {tap: feeding.moments(fed, tap) for tap in self.feeder.taps}
        embeddings_BD = self.plan.embedded(moments[self.feeder.top].state_BS / fed.patches_B[:, None])
        truth = self._truth(batch, fed) if any(tally.frame.concepts for tally in tallies) else None
        numbers = [one.number for one in batch]
        for tally, one in zip(tallies, self.dictionaries, strict=True):
            found = feeding.read(one.sae, fed, one.tap, numbers)
            explained = moments[one.tap].explained(found.error_B)
            tally.add(found.entries, embeddings_BD=embeddings_BD, truth=truth, explained=explained)

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


def survey_shard(
    folder: str, shard: int, memory_bytes: int | None = None, on_batch: Callable[[int], None] | None = None
) -> int:
    """Survey one shard and write its file; says how many pictures it has. Threads of one process take turns: a worker
    of a cluster may have many, and memory, like the model, is there once."""
    with _AT_WORK:
        return _survey_shard(_surveyor(folder, key_of(folder)), shard, memory_bytes, on_batch)


_AT_WORK = threading.Lock()


def _survey_shard(
    surveyor: Surveyor, shard: int, memory_bytes: int | None, on_batch: Callable[[int], None] | None
) -> int:
    plan, tallies, small, broken = surveyor.plan, surveyor.tallies(), {}, []
    numbers = plan.numbers(shard)
    plan.source.check_there()
    at_once = batch_size(memory_bytes, surveyor.vlm, plan.facts["patches"])
    open_to = budget(memory_bytes, surveyor.vlm)
    done = 0
    for batch in ready(plan.source, surveyor.feeder, numbers, at_once, open_to, plan.facts["cell_px"]):
        good = [one for one in batch if one.prompt is not None]
        lost = [one.photograph for one in batch if one.prompt is None]
        broken += [[one.number, plan.source.name(one.number), one.fault] for one in lost]
        if good:
            fed = surveyor.feeder.see([one.prompt for one in good])
            surveyor.add(tallies, [one.photograph for one in good], fed)
            small |= {one.photograph.number: (one.small, list(one.grid)) for one in good}
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    if _doubtful(plan, len(broken), len(numbers)):
        _check_readable(plan, broken)
    save_tallies(plan, shard, shard, tallies, small, broken, surveyor.made)
    return len(numbers)


def _doubtful(plan: Plan, broken: int, of: int) -> bool:
    """Whether many more fail than the first look foretold."""
    share = len(plan.facts["unread"]) / len(plan.facts["looked"])
    return broken > 2 * share * of + of / DOUBTED


def _check_readable(plan: Plan, broken: Sequence) -> None:
    """That what could be read in the first look still can."""
    unread = set(plan.facts["unread"])
    good = [number for number in plan.facts["looked"] if number not in unread]
    some = good[:: -(-len(good) // READ_AGAIN)]
    if gone := [number for number in some if not plan.source.can_read(number)]:
        fault = f"{plan.source.name(gone[0])} could be read before and now cannot, as {len(broken)} others here"
        raise VspError(plan.facts["images"], fault, "See that its folder is there; the same command then goes on.")


# --- all of them -------------------------------------------------------------------------------------------------


def survey(
    plan: Plan, executor: Executor | None = None, on_progress: Report = lambda progress: None,
    memory_bytes: int | None = None,
) -> Path:  # fmt: skip
    """Survey what is not surveyed yet, here or by an executor's workers, and merge all; says where the tallies are."""
    held = {(first, last): name for first, last, name in sound(plan)}
    there = {shard for first, last in held for shard in range(first, last + 1)}
    left = [shard for shard in range(plan.shards) if shard not in there]
    before = sum(len(plan.numbers(shard)) for shard in there)
    total, folder = len(plan.source), str(plan.folder)
    on_progress(Progress(before, total, 0))
    if executor is None:
        fresh = 0
        for shard in left:
            said = lambda done, so_far=fresh: on_progress(Progress(before + so_far + done, total, so_far + done))  # noqa: E731
            fresh += survey_shard(folder, shard, memory_bytes, said)
            _hold(plan, held, shard)
        on_progress(Progress(before + fresh, total, fresh))
    else:
        on_fresh = lambda fresh: on_progress(Progress(before + fresh, total, fresh))  # noqa: E731
        _elsewhere(plan, executor, held, left, memory_bytes, on_fresh)
    while len(held) > 1:  # what an earlier run left grouped in another way
        group = sorted(held)[:MERGED_AT_ONCE]
        _take(held, group, merge_files(folder, [held[one] for one in group]))
    (name,) = held.values()
    _check_enough(plan, plan.folder / name)
    return plan.folder / name


Span = tuple[int, int]
"""The first and the last shard of a file."""


def _elsewhere(
    plan: Plan, executor: Executor, held: dict[Span, str], left: Sequence[int], memory_bytes: int | None,
    on_fresh: Callable[[int], None],
) -> None:  # fmt: skip
    """By an executor's workers. What they finish is merged here: in their queue merges would come last, behind all the
    shards."""
    folder, fresh = str(plan.folder), 0
    tasks: dict[Future, int] = {}
    try:
        tasks |= {executor.submit(survey_shard, folder, shard, memory_bytes): shard for shard in left}
        while tasks:
            for task in wait(tasks, return_when=FIRST_COMPLETED).done:
                shard, found = tasks.pop(task), task.result()
                on_fresh(fresh := fresh + found)
                _hold(plan, held, shard)
    except BaseException as error:
        for task in tasks:
            task.cancel()
        if type(error).__name__ in WORKER_DIED:
            remedy = "Give --jobs fewer, or --memory less, and workers enough of it; the same command goes on."
            raise VspError("survey", "a worker died", remedy) from error
        if type(error).__name__ in CLUSTER_GONE:
            raise VspError("--cluster", "is gone", "Start it again; the same command goes on.") from error
        raise


def _hold(plan: Plan, held: dict[Span, str], shard: int) -> None:
    """One shard more, and whatever is complete with it becomes one file."""
    held[shard, shard] = name_of(shard, shard)
    while group := _complete(held, shard, plan.shards):
        _take(held, group, merge_files(str(plan.folder), [held[one] for one in group]))


def _complete(held: Mapping[Span, str], shard: int, shards: int) -> list[Span] | None:
    """The files that are to become one, of those around a shard: shards are leaves of a tree, so many to a branch, and
    the smallest branch that is wholly there is merged."""
    size = 1
    while size < shards:
        size *= MERGED_AT_ONCE
        start = shard // size * size
        end = min(start + size, shards)
        about = sorted(span for span in held if span[0] < end and start <= span[1])
        if about and (about[0][0] < start or end <= about[-1][1]) and about != [(start, end - 1)]:
            continue  # some of it is merged with more than this branch already
        if sum(last - first + 1 for first, last in about) < end - start:
            return None
        if len(about) > 1:
            return about
    return None


def _take(held: dict[Span, str], group: Sequence[Span], merged: str) -> None:
    for one in group:
        del held[one]
    held[group[0][0], group[-1][1]] = merged


def _check_enough(plan: Plan, tallies: Path) -> None:
    """That pictures failed for what they are, and not for what happened meanwhile."""
    with np.load(tallies, allow_pickle=False) as archive:
        broken = json.loads(archive["broken"].tobytes())
    if not _doubtful(plan, len(broken), of := len(plan.source)):
        return
    some = broken[:: -(-len(broken) // READ_AGAIN)]
    if len(broken) == of or (now := [name for number, name, _ in some if plan.source.can_read(number)]):
        fault = f"{len(broken)} of {of} pictures could not be read ({broken[0][1]}: {broken[0][2]})"
        fault += "" if len(broken) == of else f", but now {now[0]} can"
        remedy = f"See that every worker can read them, remove {plan.folder}, and give the same command again."
        raise VspError(plan.facts["images"], fault, remedy)


__all__ = [
    "Asked", "Plan", "Progress", "finished", "load_tallies", "made_on", "merge_files", "plan", "sound", "survey",
    "survey_shard",
]  # fmt: skip
