"""Diagnosis: SketchWorld plants failures whose cause is known; how often does the diagnosis name it?

    OMP_NUM_THREADS=1 python benchmarks/diagnosis.py [--n 100] [--jobs 2] [--first 90000] [--json FILE]

Three failure modes with `--n` cases each, spread evenly over their variations; as many cases in which nothing is
wrong; half as many in which what is asked about stands behind a curtain; and half as many in which nothing is wrong
but the two answers of the contrast are exchanged, so that a right answer is called wrong. The diagnosis is given what
a user has: a case with its contrast, rephrasings, model and SAE. It is not given the world's parts or its reasons.

Every mode has rephrasings: of a covered part, the one in explicit words; of everything else, another order of the
words or another question that comes to the same. So it is not their being there that gives a mode away.

A planted scene that the model answers rightly is no failure, and one that it answers with a third thing is another
failure than the planted one; both are counted apart, and further seeds are drawn, up to three times as many as asked
for. Behind a curtain any answer but the right one will do: a user writes down what the model said.

Seeds below 10,000 are those that the rule was made on, with other weights. The default, from 90,000 on, was not looked
at before. Earlier forms of it were measured from 50,000, 60,000 and 70,000 on, and what they missed there was the
reason to look again; its present form with the weights before these from 80,000 on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np
import torch

from vsp_report.case import make_case
from vsp_report.maths.edits import Contrast
from vsp_report.recording import Rephrased
from vsp_report.sketchworld.planted import MODES, Planted, plant
from vsp_report.study.diagnose import diagnose, minimal_set, verdict
from vsp_report.study.pictures import load_picture
from vsp_report.study.resolve import Rankings
from vsp_report.study.subjects import Asking, load_subject

FAILURES = ("limited-alignment", "misleading-cue", "hidden-cue")
EXCHANGED = "exchanged"
ROWS = (*FAILURES, "cue-missing", "none", EXCHANGED)
TRUTH = {**{mode: mode for mode in FAILURES}, "cue-missing": "perception-missing", "none": "none",
         EXCHANGED: "perception-missing"}  # fmt: skip
COLUMNS = ("limited-alignment", "misleading-cue", "hidden-cue", "perception-missing", "none", "undetermined")
TRIES = 3
SIZE_PX = 192
NEW_TOKENS = 24


class Asked(NamedTuple):
    row: str
    variation: str
    seed: int


class Found(NamedTuple):
    """What came of one scene. `kind`: failing, right, or other for a third answer."""

    row: str
    variation: str
    seed: int
    kind: str
    said: str
    mode: str = ""
    runs: int = 0
    seconds: float = 0.0
    minimal: int | None = None
    minimal_runs: int | None = None
    active: int = 0


# --- one scene ---------------------------------------------------------------------------------------------------


def rephrasings(planted: Planted) -> Iterator[tuple[str, str, tuple[str, str] | None]]:
    """The question in other words that come to the same: name, question, and its answers if they differ."""
    asked = planted.question
    if planted.explicit is not None:
        yield "named", planted.explicit.text, (planted.explicit.answer, planted.wrong)
    elif asked.startswith("Is the person"):
        yield "other-order", "Is the person standing or sitting?", None
    elif asked.startswith("What animal"):
        yield "shorter", "What is this?", None
        yield "described", "Describe the image.", None
    elif asked.startswith("Which bar"):
        yield "other-order", "Which is the tallest bar?", None
    elif asked.startswith("What color"):
        yield "other-word", asked.replace("What", "Which", 1), None
    elif asked.startswith("Is the cup on a surface or on a "):
        name = asked.removeprefix("Is the cup on a surface or on a ").rstrip("?")
        yield "other-order", f"Is the cup on a {name} or on a surface?", None


def subject_of(asked: Asked, right: str, wrong: str) -> Asking:
    mode = "none" if asked.row == EXCHANGED else asked.row
    scene = {"mode": mode, "variation": asked.variation, "seed": asked.seed}
    question = plant(**scene).question
    case = make_case(
        {"title": "planted", "model": "sketchworld", "sae": "sketchworld/vision.3", "prompt": question,
         "image": {"scene": scene, "size": SIZE_PX}, "contrast": {"right": right, "wrong": wrong},
         "decoding": {"max_new_tokens": NEW_TOKENS}},
        "planted",
    )  # fmt: skip
    return load_subject(case, load_picture(case).image)[0]


def examined(asked: Asked) -> Found:
    torch.set_num_threads(1)
    planted = plant("none" if asked.row == EXCHANGED else asked.row, asked.variation, asked.seed)
    right, wrong = planted.right, planted.wrong
    if asked.row == EXCHANGED:
        right, wrong = wrong, right
    subject = subject_of(asked, right, wrong)
    clean = subject.answers([]).clean
    said = verdict(clean.text, Contrast(right, wrong), clean.margin)
    if said == "" and asked.row == "cue-missing":  # a user writes down what the model said
        subject = subject_of(asked, right, clean.text)
        clean, said = subject.answers([]).clean, "wrong"
    kind = {"wrong": "failing", "right": "right", "": "other"}[said]
    if kind == "other" or (kind == "right" and asked.row != "none"):
        return Found(*asked, kind, clean.text)
    rephrased = []
    for name, question, own in rephrasings(planted):
        answered = subject.asked(question, Contrast(*own) if own else subject.contrast).answers([]).clean
        rephrased.append(Rephrased(name, question, answered, own))
    bench = subject.bench
    patches = np.flatnonzero(~bench.sites.class_S)
    ranks = Rankings(bench.latents()[patches], (), np.zeros((0, len(patches))))
    started = time.process_time()
    minimal = minimal_set(subject, ranks, asked.seed)
    found = diagnose(subject, ranks, clean, rephrased, minimal, asked.seed)
    return Found(
        *asked, kind, clean.text, found.mode, found.runs, round(time.process_time() - started, 2),
        minimal and len(minimal.latents), minimal and minimal.runs, int((ranks.mass_L > 0).sum()),
    )  # fmt: skip


# --- all of them -------------------------------------------------------------------------------------------------


def row_of(row: str, wanted: int, first: int, pool: ProcessPoolExecutor | None) -> list[Found]:
    """Scenes of one row until enough of them fail as wanted, in the same order however many processes there are."""
    mode = "none" if row == EXCHANGED else row
    turns = cycle(MODES[mode])
    scenes = [Asked(row, next(turns), first + n // len(MODES[mode])) for n in range(TRIES * wanted)]
    made = map(examined, scenes) if pool is None else pool.map(examined, scenes)
    found, counted = [], 0
    for one in made:
        found.append(one)
        counted += bool(one.mode)
        show(f"\r{row}: {counted} of {wanted}, {len(found)} scenes drawn ")
        if counted >= wanted:
            break
    show("\n")
    return found


def show(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def summary(found: list[Found]) -> dict:
    judged = [one for one in found if one.mode]
    failing = [one for one in judged if one.row in (*FAILURES, "cue-missing")]
    planted = [one for one in failing if one.row in FAILURES]
    told = [one for one in failing if one.mode != "undetermined"]
    nothing = [one for one in judged if one.row == "none"]
    claimed = [one for one in nothing if one.mode not in ("none", "undetermined")]
    exchanged = [one for one in judged if one.row == EXCHANGED]
    cheap = [one.minimal_runs / one.active for one in judged if one.minimal_runs]

    def right(ones: list[Found]) -> float | None:
        return sum(one.mode == TRUTH[one.row] for one in ones) / len(ones) if ones else None

    def share(some: int, of: list) -> float | None:
        return some / len(of) if of else None

    return {
        "right_among_diagnosed": right(told),
        "undetermined": share(len(failing) - len(told), failing),
        "undetermined_of_planted_failures": share(
            sum(one.mode == "undetermined" for one in planted), planted),
        "false_claims_on_nothing_wrong": share(len(claimed), nothing),
        "cues_claimed_where_answers_are_exchanged": share(
            sum(one.mode in FAILURES for one in exchanged), exchanged),
        "runs_mean": mean(one.runs for one in failing) if failing else None,
        "runs_median": median(one.runs for one in failing) if failing else None,
        "cpu_seconds_median": median(one.seconds for one in failing) if failing else None,
        "smallest_set_runs_over_active_latents_worst": max(cheap, default=None),
        "rows": {
            row: {
                "right_among_diagnosed": right([one for one in told if one.row == row]) if row in TRUTH else None,
                "diagnosed": dict(Counter(one.mode for one in judged if one.row == row)),
                "not_failing": dict(Counter(one.kind for one in found if one.row == row and not one.mode)),
                "by_variation": {
                    name: dict(Counter(one.mode for one in judged if (one.row, one.variation) == (row, name)))
                    for name in MODES["none" if row == EXCHANGED else row]
                },
            }
            for row in ROWS
        },
    }  # fmt: skip


def report(told: dict) -> None:
    print(f"{'planted':20}" + "".join(f"{name.split('-')[0]:>14}" for name in COLUMNS) + f"{'right':>10}{'third':>8}")
    for row, one in told["rows"].items():
        counts = "".join(f"{one['diagnosed'].get(name, 0):>14}" for name in COLUMNS)
        apart = one["not_failing"]
        print(f"{row:20}{counts}{apart.get('right', 0):>10}{apart.get('other', 0):>8}")
    for key, value in told.items():
        if key != "rows" and value is not None:
            print(f"{key} = {value:.3f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="cases of each failure mode")
    parser.add_argument("--first", type=int, default=90_000, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only", choices=ROWS, action="append", help="of these rows only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    pool = ProcessPoolExecutor(args.jobs, get_context("spawn")) if args.jobs > 1 else None
    half = {"cue-missing", EXCHANGED}
    found: list[Found] = []
    try:
        for row in args.only or ROWS:
            found += row_of(row, max(1, args.n // 2) if row in half else args.n, args.first, pool)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    told = summary(found)
    report(told)
    if args.json:
        asked = {"n": args.n, "first": args.first, "only": args.only}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"asked": asked, **told, "cases": [one._asdict() for one in found]}, indent=1)
        args.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
