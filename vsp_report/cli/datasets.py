"""Datasets: `vsp-report audit --dataset`. Rows are read as they come, run in portions, and told of as a whole."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vsp_report import __version__, paths
from vsp_report.cli.words import append_summary, said, wants_github, write_whole
from vsp_report.errors import CaseError, InputError

MODEL, SAE = "sketchworld", "sketchworld/vision.3"
PORTION = 64
"""So many rows are planned and run before the next are read."""


def audit_dataset(args: argparse.Namespace) -> int:
    from vsp_report.audit import datasets, github, rows
    from vsp_report.recording import scratch

    file, name = args.dataset, args.name or re.sub(r"[^a-z0-9]+", "-", args.dataset.stem.casefold()).strip("-")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise InputError("--name", f"is {name!r}", "Use small letters, digits and hyphens.")
    model, sae = MODEL if args.model is None else args.model, SAE if args.sae is None else args.sae
    if not (model and sae):
        raise InputError("--dataset", "needs a model and an autoencoder", "Name them with --model and --sae.")
    asked = rows.Asked(model, sae, diagnose=args.diagnosis is not False)
    broken, readable = [], False
    for row in rows.read_rows(file, asked):  # all of it once, so that a fault is said before the long part
        readable = readable or not isinstance(row, CaseError)
        if isinstance(row, CaseError):
            broken.append(str(row))
            said(str(row), row.exit_code)
    folder = args.out / datasets.FOLDER / name
    recordings = folder / datasets.RECORDINGS
    if args.from_recordings and readable and not recordings.is_dir():
        remedy = "Name the site with --out and the data set with --name, or leave --from-recordings away."
        raise InputError(str(recordings), "is no folder of recordings", remedy)
    good = (row for row in rows.read_rows(file, asked) if not isinstance(row, CaseError))
    judged: list[Any] = []
    if args.from_recordings:
        judged = [datasets.judge_row(row, recordings / row.id) for row in good]
    else:
        recordings.mkdir(parents=True, exist_ok=True)
        with scratch(folder) as work, _executor(args) as run:
            for portion in _portions(good):
                _run_portion(args, portion, recordings, work, run)
                judged += [datasets.judge_row(row, recordings / row.id) for row in portion]
    dataset = datasets.make_dataset(
        judged, broken, least_accuracy=args.accuracy, least_pairs=args.pairs,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), program=__version__, name=name, file=file.name,
        model=model, sae=sae,
    )  # fmt: skip
    if judged:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / datasets.FILE, datasets.dataset_json(dataset))
    if args.json is not None:
        write_whole(args.json, datasets.dataset_json(dataset))
    on_github = wants_github(args)
    if on_github:
        append_summary(github.dataset_summary(dataset))
    for line in _table(dataset):
        print(line)
    if judged:
        page = folder / "index.html"
        print(f"page                 {page}, once `vsp-report build --out {shlex.quote(str(args.out))}` has made it")
    for line in github.dataset_annotations(dataset, str(file)) if on_github else ():
        print(line)
    print(dataset.said)
    return dataset.code


def _portions(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while portion := list(itertools.islice(rows, PORTION)):
        yield portion


@contextlib.contextmanager
def _executor(args: argparse.Namespace) -> Iterator[Any]:
    """What runs steps: one pool for all portions, so that its kernels keep their models."""
    from vsp_report.run import batch, executors
    from vsp_report.run.progress import Progress

    progress = _Counted(Progress())
    with executors.cluster(args.cluster) if args.cluster else executors.here(args.jobs) as pool:
        around = None

        def run(cases: Sequence[Any], wanted: Any) -> None:
            nonlocal around  # all portions have the same model
            around = around or (batch.look_there(pool, cases) if args.cluster else batch.look_around())
            steps = batch.plan(cases, wanted, around)
            batch.run(steps, wanted, lambda: contextlib.nullcontext(pool), progress, around)

        try:
            yield run
        finally:
            progress.close()


class _Counted:
    """A progress that counts over all portions."""

    def __init__(self, progress: Any) -> None:
        self._progress, self._tasks = progress, 0
        self.ended, self.runs, self.close = progress.ended, progress.runs, progress.close

    def begins(self, tasks: int) -> None:
        if not self._tasks:
            self._progress.begins(tasks)
        self._tasks += tasks
        self._progress.grows(self._tasks)


def _run_portion(args: argparse.Namespace, portion: Sequence[Any], recordings: Path, work: Path, run: Any) -> None:
    """Each row as a case file with its picture beside it, for as long as it runs."""
    from vsp_report.audit import rows
    from vsp_report.case import load_case
    from vsp_report.run import batch

    place = work / "cases"
    place.mkdir()
    try:
        cases = []
        for row in portion:
            case, picture = rows.beside(row)
            if picture:
                shutil.copyfile(row.image, place / picture)
            file = place / f"{row.id}.yaml"
            file.write_text(json.dumps(case.resolved()), encoding="utf-8")  # JSON is YAML
            cases.append(load_case(file))
        device = None if args.device == "auto" else args.device
        notebook = paths.templates_dir() / "notebooks" / "row.ipynb"
        run(cases, batch.Wanted(recordings, notebook=notebook, force=args.force, device=device, seconds=args.timeout))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _table(dataset: Any) -> Iterator[str]:
    from vsp_report.audit.datasets import in_words
    from vsp_report.audit.words import mode_name

    for row in dataset.rows:
        if row.says == "error":
            yield f"{dataset.file}:{row.line}: {row.id}: {row.fault}"
    yield f"right                {in_words(dataset.accuracy)}"
    yield f"both of a pair       {in_words(dataset.pairs)}"
    yield f"right is likelier    {in_words(dataset.prefers)}"
    yield f"neither answer       {in_words(dataset.neither)}"
    for mode, found in dataset.modes.items():
        yield f"  {mode_name(mode):<19}{in_words(found)} of those not right"
    for group, found in dataset.groups.items():
        yield f"  {group:<19}{in_words(found)} right"
    sys.stdout.flush()
