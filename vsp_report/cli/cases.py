"""Cases: written, checked and run."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vsp_report import paths
from vsp_report.cli import site
from vsp_report.cli.words import COULD_NOT_RUN, DEVICES, check_folder, command, counted, positive, said, seconds
from vsp_report.errors import InputError


def add(rooms: Any) -> None:
    check_cases = command(rooms, "check", "say what is wrong with case files, all of it", _check)
    check_cases.add_argument(
        "cases",
        nargs="*",
        type=Path,
        metavar="CASE",
        help="a file, a folder, or the name of a case (default: the folder cases)",
    )
    new = command(rooms, "new", "write a case to start from, with comments", _new)
    new.add_argument("name", metavar="NAME", help="its name in the report, and its file's")
    new.add_argument(
        "--from",
        dest="template",
        default="question",
        metavar="TEMPLATE",
        help="question, classification, or a bundled case (default: %(default)s)",
    )
    new.add_argument("--folder", type=Path, default=Path("cases"), metavar="DIR", help="where (default: %(default)s)")
    schema = command(rooms, "schema", "print the JSON Schema of case files, for editors", _schema)
    of = schema.add_mutually_exclusive_group()
    of.add_argument("--recording", action="store_true", help="of recording.json instead")
    of.add_argument("--audit", action="store_true", help="of audit.json instead")
    of.add_argument("--dataset", action="store_true", help="of dataset.json instead")

    run = command(rooms, "run", "run cases, and record what is seen; what is recorded already is left", _run)
    run.add_argument(
        "cases",
        nargs="*",
        type=Path,
        metavar="CASE",
        help="a file, a folder, or the name of a case (default: the folder cases)",
    )
    run.add_argument(
        "--out", type=Path, default=Path("site"), metavar="DIR", help="the site; recordings are in DIR/recordings "
        "(default: %(default)s)")  # fmt: skip
    run.add_argument("--demo", action="store_true", help="run the bundled cases, and build the site")
    run.add_argument("--force", action="store_true", help="run what is recorded already, too")
    run.add_argument("--only-failed", action="store_true", help="run only what failed the last time")
    run.add_argument("--device", choices=DEVICES, default="auto", help="(default: what the case says)")
    run.add_argument("--timeout", type=seconds, default=3600.0, metavar="S", help="seconds that one case may take "
                     "(default: %(default)g)")  # fmt: skip
    where = run.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=positive, default=1, metavar="N", help="how many at once (default: %(default)s)")
    where.add_argument("--cluster", metavar="ADDRESS", help="on the workers of a Dask cluster: its scheduler's "
                       "address, or its scheduler file (.json)")  # fmt: skip
    run.add_argument("--cold", action="store_true", help="a new kernel for each case, by papermill's stock engine")
    run.add_argument("--notebook", type=Path, metavar="FILE", help="run this notebook instead of the bundled one")


def _check(args: argparse.Namespace) -> int:
    from vsp_report import case

    read = case.read_cases(case.case_files(args.cases or [Path("cases")]))
    if not read.faults:
        print(f"{counted(read.files, 'case')} checked, nothing is wrong")
        return 0
    for fault in read.faults:
        said(str(fault), fault.exit_code)
    wrong = read.files - len(read.cases)
    print(f"{counted(len(read.faults), 'fault')} in {wrong} of {counted(read.files, 'case')}", file=sys.stderr)
    return InputError.exit_code


def _new(args: argparse.Namespace) -> int:
    from vsp_report import case

    check_folder(args.folder, "--folder")
    starter = case.write_starter(args.name, args.template, args.folder)
    print(f"written: {starter.file}")
    if starter.left_out:
        print(f"left out: the baseline of {args.template}, whose figures are of that case")
    return 0


def _schema(args: argparse.Namespace) -> int:
    if args.recording:
        from vsp_report import recording

        schema = recording.recording_schema()
    elif args.audit:
        from vsp_report.audit import account

        schema = account.account_schema()
    elif args.dataset:
        from vsp_report.audit import datasets

        schema = datasets.dataset_schema()
    else:
        from vsp_report import case

        schema = case.case_schema()
    print(json.dumps(schema, indent=2, ensure_ascii=False))
    return 0


def _run(args: argparse.Namespace) -> int:
    from vsp_report import case

    if args.demo and args.cases:
        raise InputError("--demo", "is given with cases", "It runs the bundled ones; leave one of the two away.")
    words = args.cases or [paths.cases_dir() if args.demo else Path("cases")]
    if not args.cases and not args.demo and not Path("cases").is_dir():
        raise InputError("cases", "is not a folder here", "Write a case with `vsp-report new NAME`, or try --demo.")
    check_folder(args.out / "recordings")
    cases = case.load_cases(words)
    from vsp_report.run import batch, executors

    wanted = batch.Wanted(
        args.out / "recordings",
        notebook=args.notebook,
        force=args.force,
        only_failed=args.only_failed,
        cold=args.cold,
        device=None if args.device == "auto" else args.device,
        seconds=args.timeout,
    )
    if args.cluster is not None:
        with executors.cluster(args.cluster) as pool:
            around = batch.look_there(pool, cases)
            code = _run_steps(args, cases, wanted, lambda: contextlib.nullcontext(pool), around)
    else:
        code = _run_steps(args, cases, wanted, lambda: executors.here(args.jobs), None)
    if args.demo:  # one command from nothing to pages
        return max(code, site.build(args.out, force=args.force))
    return code


def _run_steps(args: argparse.Namespace, cases: Any, wanted: Any, executor: Any, around: Any) -> int:
    from vsp_report.run import batch

    steps = batch.plan(cases, wanted, around)
    todo = [step for step in steps if step.state != "done"]
    if not todo:
        none_failed = args.only_failed and not steps
        print("nothing to run: " + ("no case has failed" if none_failed else
              f"{counted(len(steps), 'case')} recorded in {wanted.recordings}"))  # fmt: skip
        return 0
    from vsp_report.run.progress import Progress

    progress = Progress()
    try:
        outcomes = batch.run(steps, wanted, executor, progress, around)
    finally:
        progress.close()
    found = Counter(outcome.status for outcome in outcomes)
    found["recorded already"] = len(steps) - len(todo)
    named = {"ok": "recorded", "error": "failed", "not-run": "not run here", "recorded already": "recorded already"}
    counts = ", ".join(f"{found[status]} {word}" for status, word in named.items() if found[status])
    print(f"{counted(len(steps), 'case')}: {counts}")
    return COULD_NOT_RUN if found["error"] else 0  # what needs what is not here says so itself: that is no failure
