"""Audit: what cases expect, held against what is measured, for people and for continuous integration."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vsp_report import __version__
from vsp_report.cli import datasets
from vsp_report.cli.words import (
    DEVICES,
    append_summary,
    check_writable,
    command,
    counted,
    positive,
    seconds,
    share,
    wants_github,
    write_whole,
)
from vsp_report.errors import InputError

SECONDS = 3600.0


def add(rooms: Any) -> None:
    audit = command(rooms, "audit", "run what is stale, and hold it against what the cases expect", _audit)
    audit.add_argument(
        "cases",
        nargs="*",
        type=Path,
        metavar="CASE",
        help="a file, a folder, or the name of a case (default: the folder cases)",
    )
    audit.add_argument("--only", action="append", default=[], metavar="WORD", help="of these, only the cases with "
                       "this name (paper-*), tag, or failure mode; may be given again for more")  # fmt: skip
    audit.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="the site: its recordings, and "
                       "the audit's history (default: %(default)s)")  # fmt: skip
    audit.add_argument("--from-recordings", action="store_true", help="run nothing, check what is recorded")
    audit.add_argument("--recordings", type=Path, metavar="DIR", help="(default: the folder recordings in --out)")
    audit.add_argument("--update", action="store_true", help="write the baselines that moved further than their "
                       "tolerance, and say how far; never in CI")  # fmt: skip
    audit.add_argument("--fail-on", choices=("unstable",), help="exit with 4 where a case is unstable: what it expects "
                       "holds with some seeds and not with others (drift is that of the case's own seed)")  # fmt: skip
    made = audit.add_argument_group("reports")
    made.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    made.add_argument("--sarif", type=Path, metavar="FILE", help="write SARIF 2.1.0, at the lines of the case files")
    made.add_argument("--json", type=Path, metavar="FILE", help="write it all as JSON (schema: `vsp-report schema "
                      "--audit`)")  # fmt: skip
    made.add_argument("--github", action=argparse.BooleanOptionalAction, default=None, help="a job summary and "
                      "annotations (default: on GitHub)")  # fmt: skip
    made.add_argument("--no-history", action="store_true", help="leave the history of the site as it is")
    runs = audit.add_argument_group("what is run")
    runs.add_argument("--force", action="store_true", help="run what is recorded already, too")
    runs.add_argument("--device", choices=DEVICES, default="auto", help="(default: what the case says)")
    runs.add_argument("--timeout", type=seconds, default=SECONDS, metavar="S", help="seconds that one case may take "
                      "(default: %(default)g)")  # fmt: skip
    where = runs.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=positive, default=1, metavar="N", help="how many at once (default: %(default)s)")
    where.add_argument("--cluster", metavar="ADDRESS", help="on the workers of a Dask cluster")
    many = audit.add_argument_group("a data set instead of cases")
    many.add_argument("--dataset", type=Path, metavar="FILE", help="rows of pictures and questions (.csv, .jsonl): "
                      "image, question, right, wrong, and more (see vsp_report/audit/rows.py)")  # fmt: skip
    many.add_argument("--model", metavar="NAME", help="(default: sketchworld)")
    many.add_argument("--sae", metavar="NAME", help="(default: sketchworld/vision.3)")
    many.add_argument("--name", metavar="NAME", help="its name in the site (default: the file's)")
    many.add_argument("--accuracy", type=share, metavar="SHARE", help="exit with 1 if fewer rows are right: 60%%")
    many.add_argument("--pairs", type=share, metavar="SHARE", help="exit with 1 if in fewer pairs both are right")
    many.add_argument("--diagnosis", action=argparse.BooleanOptionalAction, help="look for the failure "
                      "mode of what is not right (default: yes)")  # fmt: skip


def _audit(args: argparse.Namespace) -> int:
    _check_words(args)
    if args.dataset is not None:
        return datasets.audit_dataset(args)
    from vsp_report.audit import account as accounts
    from vsp_report.audit import history
    from vsp_report.case import load_cases

    given = args.cases or [Path("cases")]
    if not args.cases and not Path("cases").is_dir():
        raise InputError("cases", "is not a folder here", "Write a case with `vsp-report new NAME`, or name some.")
    empty = [word for word in given if word.is_dir() and not any(f.suffix in (".yaml", ".yml") for f in word.iterdir())]
    cases = load_cases([word for word in given if word not in empty]) if len(empty) < len(given) else []
    cases = [case for case in cases if _selected(case, args.only)]
    past = history.load_history(args.out)  # what is wrong with it is said before the long part
    recordings = args.recordings or args.out / "recordings"
    if not args.from_recordings and cases:
        _run_stale(args, cases, recordings)
    elif cases:
        _check_places(args, recordings)
    if args.update:
        _update(cases, recordings)
    account = accounts.make_account(
        cases,
        recordings,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        program=__version__,
        was=history.last_verdicts(past),
        fail_on_unstable=args.fail_on == "unstable",
    )
    if cases and not args.no_history:
        history.append(args.out, account)
    _report(args, account)
    print(account.said)
    return account.code


def _check_words(args: argparse.Namespace) -> None:
    if args.recordings is not None and not args.from_recordings:
        remedy = "Add --from-recordings, or name the site with --out."
        raise InputError("--recordings", "is for checking without running", remedy)
    ways = {"--force": args.force, "--cluster": args.cluster, "--jobs": args.jobs != 1,
            "--device": args.device != "auto", "--timeout": args.timeout != SECONDS}  # fmt: skip
    if args.from_recordings and any(ways.values()):
        raise InputError("--from-recordings", "runs nothing", f"Leave {_listed(ways)} away.")
    if args.update and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        remedy = "Run it on your machine, look at what changes, and commit it."
        raise InputError("--update", "writes no baselines in CI (the variable CI is set)", remedy)
    of_cases = {"CASE": args.cases, "--only": args.only, "--update": args.update, "--junit": args.junit,
                "--sarif": args.sarif, "--fail-on": args.fail_on, "--recordings": args.recordings,
                "--no-history": args.no_history}  # fmt: skip
    of_rows = {"--model": args.model is not None, "--sae": args.sae is not None, "--name": args.name is not None,
               "--accuracy": args.accuracy is not None, "--pairs": args.pairs is not None,
               "--diagnosis": args.diagnosis is True, "--no-diagnosis": args.diagnosis is False}  # fmt: skip
    if args.dataset is not None and any(of_cases.values()):
        raise InputError("--dataset", "is audited by itself", f"Leave {_listed(of_cases)} away.")
    if args.dataset is None and any(of_rows.values()):
        raise InputError(_listed(of_rows), "is of a data set", "Name it with --dataset.")
    for file in (args.junit, args.sarif, args.json):
        check_writable(file)


def _listed(given: dict[str, Any]) -> str:
    """The words that were given."""
    *more, last = [word for word, value in given.items() if value]
    return f"{', '.join(more)} and {last}" if more else last


def _check_places(args: argparse.Namespace, recordings: Path) -> None:
    """A mistyped folder is no audit in which everything is missing, and is not made."""
    if not recordings.is_dir():
        where = "--recordings" if args.recordings is not None else "--out"
        raise InputError(str(recordings), "is no folder of recordings", f"Name another one with {where}.")
    if not args.no_history and not args.out.is_dir():
        remedy = "Name the site with --out, or add --no-history."
        raise InputError(str(args.out), "is no folder, and holds no history", remedy)


def _selected(case: Any, words: list[str]) -> bool:
    return not words or any(
        fnmatchcase(case.id, word) or word in case.tags or word == (case.failure or "") for word in words
    )


def _run_stale(args: argparse.Namespace, cases: Any, recordings: Path) -> None:
    """What fails here has a recording that says so, and is an error of the audit."""
    from vsp_report.run import batch, executors

    device = None if args.device == "auto" else args.device
    wanted = batch.Wanted(recordings, force=args.force, device=device, seconds=args.timeout)
    if args.cluster is None:
        _run_steps(batch.plan(cases, wanted), wanted, lambda: executors.here(args.jobs), None)
        return
    with executors.cluster(args.cluster) as pool:
        around = batch.look_there(pool, cases)
        _run_steps(batch.plan(cases, wanted, around), wanted, lambda: contextlib.nullcontext(pool), around)


def _run_steps(steps: Any, wanted: Any, executor: Any, around: Any) -> None:
    from vsp_report.run import batch
    from vsp_report.run.progress import Progress

    if not any(step.state != "done" for step in steps):
        return
    progress = Progress()
    try:
        batch.run(steps, wanted, executor, progress, around)
    finally:
        progress.close()


def _update(cases: Any, recordings: Path) -> None:
    """All baselines or none: what cannot be written is found before the first is."""
    from vsp_report.audit import account as accounts
    from vsp_report.audit import baselines

    updates = []
    for case in cases:
        if not case.expect.baseline:
            continue
        try:
            recording = accounts.find_recording(case, recordings)
        except InputError:  # the audit says so, below
            continue
        updates.append(baselines.update_of(case, recording))
    needed = [one for one in updates if one is not None and one.needed]
    for one in needed:
        baselines.save_baseline(one)
        for moved in one.moved:
            was = "none" if moved.before is None else f"{moved.before:.6g}"
            print(f"baseline: {one.case.id}: {moved.figure}: {was} -> {moved.after:.6g}")
        if not one.moved:
            print(f"baseline: {one.case.id}: was {one.fault}; its figures stay")
    print(f"{counted(len(needed), 'baseline')} written" if needed else "no baseline has moved")


def _report(args: argparse.Namespace, account: Any) -> None:
    from vsp_report.audit import github, history, junit, sarif, terminal

    for file, make in (
        (args.junit, junit.junit),
        (args.sarif, sarif.sarif),
        (args.json, history.account_json),
    ):
        if file is not None:
            write_whole(file, make(account))
    on_github = wants_github(args)
    if on_github:
        append_summary(github.summary(account))
    # Files first: who reads what is printed may stop in the middle.
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 400
    for line in terminal.table(account, width):
        print(line)
    for line in github.annotations(account) if on_github else ():
        print(line)
