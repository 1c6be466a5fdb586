"""Batch: many cases become recordings. What is planned goes to an executor; what comes back is told as it comes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vsp_report import paths
from vsp_report.case import Case
from vsp_report.errors import InputError
from vsp_report.recording import notebook_code_sha, scratch, sweep
from vsp_report.run.plan import Step, Surroundings, as_typed, look_around, make_plan, of_the_hub, shown_path
from vsp_report.run.task import Outcome, Task, bundled_notebook, run_task, steps_of

TICK_SECONDS = 0.25


@dataclass(frozen=True)
class Wanted:
    """What a user asks of a run."""

    recordings: Path
    notebook: Path | None = None
    """another notebook than the bundled one"""
    force: bool = False
    only_failed: bool = False
    cold: bool = False
    device: str | None = None
    seconds: float | None = None
    """that one case may take"""

    @property
    def source(self) -> Path:
        return (self.notebook or bundled_notebook()).absolute()


class Watcher(Protocol):
    """Is told how a batch goes."""

    def begins(self, tasks: int) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...

    def runs(self, steps: Sequence[tuple[str, str]]) -> None:
        """The cases that run now, and what each is doing; called several times a second."""


def plan(cases: Sequence[Case], wanted: Wanted, surroundings: Surroundings | None = None) -> list[Step]:
    """`surroundings`: of the machine that will compute, if that is not this one."""
    sweep(wanted.recordings)  # a killed run may have hidden the older recording that it was about to replace
    return make_plan(
        cases,
        wanted.recordings,
        surroundings or look_around(),
        notebook_sha=_notebook_sha(wanted.source),
        force=wanted.force,
        only_failed=wanted.only_failed,
        device=wanted.device,
        notebook="" if wanted.notebook is None else as_typed(wanted.notebook, wanted.notebook.name),
    )


def _notebook_sha(notebook: Path) -> str:
    try:
        return notebook_code_sha(json.loads(notebook.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(str(notebook), "is no notebook that can be read", "Name a notebook (.ipynb).") from error


def look_there(pool: Executor, cases: Sequence[Case]) -> Surroundings:
    """What the machines of a pool are like, and what they have of the cases' models."""
    return pool.submit(look_around, of_the_hub(cases)).result()


def run(
    steps: Sequence[Step],
    wanted: Wanted,
    executor: Callable[[], contextlib.AbstractContextManager[Executor]],
    watcher: Watcher,
    surroundings: Surroundings | None = None,
) -> list[Outcome]:
    """Do what is planned, and return what came of it. An interrupt leaves every recording whole or absent."""
    todo = [step for step in steps if step.state != "done"]
    watcher.begins(len(todo))
    if not todo:
        return []
    wanted.recordings.mkdir(parents=True, exist_ok=True)
    with scratch(wanted.recordings) as folder, executor() as pool:
        tasks = [_task(step, wanted, folder, surroundings or look_around()) for step in todo]
        return list(_gather(pool, tasks, watcher))


def _gather(pool: Executor, tasks: Sequence[Task], watcher: Watcher) -> Iterator[Outcome]:
    waiting = {pool.submit(run_task, task): task for task in tasks}
    while waiting:
        done, _ = concurrent.futures.wait(waiting, TICK_SECONDS, concurrent.futures.FIRST_COMPLETED)
        for future in done:
            del waiting[future]
            outcome = future.result()
            watcher.ended(outcome)
            yield outcome
        watcher.runs([(task.id, step) for task, step in steps_of(list(waiting.values()))])


def _task(step: Step, wanted: Wanted, folder: Path, surroundings: Surroundings) -> Task:
    case = step.case
    return Task(
        id=case.id,
        state=step.state,
        case=case.resolved(),
        case_path=os.path.abspath(case.path) if case.path else case.id,
        shown=shown_path(case),
        # The bundled one is where the machine that runs it has it.
        notebook="" if wanted.notebook is None else str(wanted.source),
        folder=os.path.abspath(step.folder),
        scratch=str(folder),
        foreseen=step.foreseen,
        surroundings=surroundings,
        why=step.why,
        replaces=step.replaces,
        # The bundled models are small enough to be loaded side by side.
        resident="bundled" if paths.bundled(case.model) else case.model,
        cold=wanted.cold,
        seconds=wanted.seconds,
        device=wanted.device,
    )


def seconds_left(begun: float, ended: int, tasks: int) -> float | None:
    """By how long those took that have ended; None as long as that says too little."""
    return None if not ended else (time.monotonic() - begun) / ended * (tasks - ended)
