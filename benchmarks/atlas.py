"""Atlas: what a survey costs, against keeping all activations, and against the floor under both.

    floor      the vision tower up to the tap, and one dense encode: what any statistic of latents has to pay
    survey     the same pictures through a survey's engine, without and with the untrained SAE beside
    dense      the same pictures the straightforward way: every activation is kept, then looked through with numpy

All three are given pictures that are ready for the tower, so that neither decoding nor drawing dilutes the ratios;
`pictures` says what reading them costs besides. A survey keeps a small JPEG of each picture until it is known whether
it is a reference; making it is the survey's own work and counts there. Here it is made of a scene of 192 pixels a side;
of a larger photograph it takes more, as reading it does. Each way runs in a process of its own and is warmed up by one
batch before it is measured; rounds go in turn, and medians are taken. Memory is the highest resident set above the
loaded model, and for the survey at several numbers of pictures, between which it should not move.

The survey's own part is `cpu_ratio_to_floor`; with the control it is held against a floor of two encodes.

At the end the same for ImageNet-1k, a CLIP-L/14 at 336 px and 32,768 latents, by arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import MIB, measured, where
from transformers.utils import logging

from vsp_report.maths.tallies import BINS, Tally
from vsp_report.model import feeding
from vsp_report.model.feeding import Feeder
from vsp_report.model.vlm import Prompt
from vsp_report.study import photographs, sheets, survey, survey_plan
from vsp_report.study.photographs import Photograph

SAE = "sketchworld/vision.3"
POOL = 64
"""So many pictures are made ready and shown again and again: which ones they are is nothing to time or memory."""
BATCH = 64
SMALL_BYTES = 3500
"""Of a small picture while it waits."""


def plans(folder: str) -> dict[bool, str]:
    """Without control and with it; made once, for all processes."""
    found = {}
    for control in (False, True):
        asked = survey.Asked("sketchworld", (SAE,), photographs.Scenes(POOL), device="cpu", control=control)
        found[control] = str(survey.plan(asked, folder).folder)
    return found


class Ready:
    """A surveyor of the bundled model, and pictures that are ready for it."""

    def __init__(self, folder: str, pictures: int) -> None:
        plan = survey.Plan.read(folder)
        self.surveyor = survey.Surveyor(plan)
        read = photographs.batches(plan.source, range(POOL), BATCH)
        self.images = [one.image for batch in read for one in batch]
        self.prompts = [self.surveyor.feeder.prompt(image) for image in self.images]
        self.boxes = [feeding.view_of(prompt.images[0]).box for prompt in self.prompts]
        self.cell_px = plan.facts["cell_px"]
        self.batches = [list(range(k, min(k + BATCH, pictures))) for k in range(0, pictures, BATCH)]
        # The truth is known of scenes only: a user's pictures have none, and it is no part of the comparison.
        self.surveyor.dictionaries = [one._replace(frame=replace(one.frame, concepts=0))
                                      for one in self.surveyor.dictionaries]  # fmt: skip

    def of(self, numbers: list[int]) -> list[Prompt]:
        return [self.prompts[n % len(self.prompts)] for n in numbers]

    def small(self, numbers: list[int]) -> list[bytes]:
        """As a survey keeps them, with the box of each one's patches."""
        at = [n % len(self.images) for n in numbers]
        return [sheets.packed(photographs.grid_crop(self.images[n], self.boxes[n], self.cell_px)) for n in at]


def floor(ready: Ready) -> None:
    feeder: Feeder = ready.surveyor.feeder
    with torch.no_grad():
        for numbers in ready.batches:
            fed = feeder.see(ready.of(numbers))
            for one in ready.surveyor.dictionaries:
                one.sae.encode(fed.states[one.tap])


def engine(ready: Ready) -> None:
    tallies = ready.surveyor.tallies()
    for numbers in ready.batches:
        batch = [Photograph(number, None) for number in numbers]
        ready.small(numbers)
        ready.surveyor.add(tallies, batch, ready.surveyor.feeder.see(ready.of(numbers)))
    for tally in tallies:
        tally.arrays()


def dense(ready: Ready) -> None:
    """Every activation of every patch, and then numpy."""
    kept, one = [], ready.surveyor.dictionaries[0]
    with torch.no_grad():
        for numbers in ready.batches:
            fed = ready.surveyor.feeder.see(ready.of(numbers))
            kept.append(one.sae.encode(fed.states[one.tap]).reshape(len(numbers), -1, one.sae.d_sae).numpy())
    acts = np.concatenate(kept)
    strength = acts.max(1)
    found = {"frequency": (strength > 0).mean(0), "patches": (acts > 0).mean((0, 1)), "mean": acts.mean((0, 1)),
             "max": strength.max(0), "references": np.argsort(-strength, axis=0, kind="stable")[:16]}  # fmt: skip
    grids = acts[found["references"], :, np.arange(one.sae.d_sae)]
    edges = one.frame.edges
    for latent in range(one.sae.d_sae):
        values = acts[..., latent]
        np.histogram(values[values > 0], edges)
    del grids


def pictures(ready: Ready) -> None:
    """Reading: scenes drawn and made ready for the tower."""
    for numbers in ready.batches:
        for batch in photographs.batches(ready.surveyor.plan.source, [n % POOL for n in numbers], BATCH):
            for one in batch:
                ready.surveyor.feeder.prompt(one.image)


WAYS = {"floor": (floor, False), "survey": (engine, False), "floor, two SAEs": (floor, True),
        "survey with control": (engine, True), "dense": (dense, False), "pictures": (pictures, False)}  # fmt: skip


ADDING = "adding up"


def child(way: str, folder: str, count: int) -> None:
    ready = Ready(folder, count)
    if way == ADDING:
        return print(json.dumps({"ns": ns_an_entry(ready)}))
    work, _ = WAYS[way]
    batches, ready.batches = ready.batches, ready.batches[:1]
    work(ready)
    ready.batches = batches
    print(json.dumps(measured(lambda: work(ready), "cpu")._asdict()))


def run(way: str, folder: str, count: int, exact: bool = False) -> dict[str, float]:
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"} if exact else {}
    command = [sys.executable, __file__, "--only", way, "--plan", folder, "--count", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | at_once)
    return json.loads(done.stdout.splitlines()[-1])


def ns_an_entry(ready: Ready) -> float:
    """CPU time of adding up alone, for an active entry: no tower, no encode, no truth."""
    one, spent, entries = ready.surveyor.dictionaries[0], 0.0, 0
    for numbers in ready.batches:
        fed = ready.surveyor.feeder.see(ready.of(numbers))
        moment = feeding.moments(fed, one.tap)
        embeddings = ready.surveyor.plan.embedded(moment.state_BS / fed.patches_B[:, None])
        found = feeding.read(one.sae, fed, one.tap, numbers)
        explained = moment.explained(found.error_B)
        started = time.process_time()
        sums = Tally(one.frame)
        sums.add(found.entries, embeddings_BD=embeddings, explained=explained)
        spent, entries = spent + time.process_time() - started, entries + len(found.entries.value_E)
    return 1e9 * spent / entries


def on_paper(ns: float, gpu_tflops: float = 200.0, decode_ms: float = 8.0) -> dict[str, float]:
    """ImageNet-1k, CLIP-L/14 at 336 px up to layer 18 of 24, one SAE of 32,768 latents with its control.

    `ns`, what one core takes to add up an active entry, is measured here; the GPU's rate and what a core takes to
    decode a photograph of 110 kB are assumed.
    """
    images, patches, width, latents, layers, grid, active = 1_281_167, 576, 1024, 32_768, 19, 12, 300
    kept, shard = survey_plan.KEPT, survey_plan._shard_size(1_281_167)
    tower = images * (patches + 1) * layers * (24 * width**2 + 4 * width * (patches + 1))
    encode = images * patches * 2 * width * latents
    projected = survey_plan._width(width, latents)
    tally = latents * (8 * (5 + BINS + survey_plan.CANDIDATES + projected) + 16 * (24 + 6 * grid))
    batch = survey_plan.MOST_AT_ONCE * 4 * (patches + 1) * (16 * width + 2 * 16 * (patches + 1))
    atlas = latents * (4 * 7 + BINS * 2 + kept * (8 + 8 + 3 * grid) + survey_plan.NEIGHBOURS * 12 + 30)
    small = min(images, latents * kept) * 1100
    shards = -(-images // shard)
    return {
        "tower PFLOP": tower / 1e15, "encode PFLOP, each of two": encode / 1e15,
        f"GPU hours at {gpu_tflops:g} TFLOP/s": (tower + 2 * encode) / gpu_tflops / 1e12 / 3600,
        f"core hours to decode, {decode_ms:g} ms each": images * decode_ms / 3.6e6,
        "core hours to add up, both": 2 * images * patches * active * ns / 3.6e12,
        "GB of photographs read": images * 110e3 / 1e9,
        "active entries a picture": patches * active, "tally MiB, each of two": tally / MIB,
        "GPU MiB of a batch, at most": min(batch, 8 << 30) / MIB, "shards": shards,
        "disk GiB while it runs, at most":
            most_on_disk(shards, lambda n: 2 * tally + min(n * shard, images, latents * kept) * SMALL_BYTES) / 2**30,
        "all activations in float32, TiB": images * patches * latents * 4 / 2**40,
        "atlas MiB before compression": atlas / MIB, "reference pictures MiB, at most": small / MIB,
    }  # fmt: skip


def most_on_disk(shards: int, size: Callable[[int], float]) -> float:
    """Bytes of all files at the worst moment of a survey whose shards come one after the other; `size` is that of a
    file of so many shards. What waits is one less of each size than make the next. The worst moment is a merge: all of
    its parts are there, and the whole."""
    at_once = survey.MERGED_AT_ONCE
    steps = [at_once**k for k in range(shards) if at_once**k < shards]
    waiting, most = 0.0, size(shards)
    for step in reversed(steps):
        most = max(most, waiting + at_once * size(step) + size(min(step * at_once, shards)))
        waiting += min(at_once - 1, shards // step) * size(step)
    return most


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=1024, metavar="N", help="to time (default: %(default)s)")
    parser.add_argument("--dense", type=int, default=128, metavar="N", help="for the dense way (default: %(default)s)")
    parser.add_argument("--memory", type=int, nargs="*", default=[1024, 4096], metavar="N",
                        help="numbers of pictures to measure memory at (default: 1024 4096)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", choices=[*WAYS, ADDING], help="run one way in this process and print its figures")
    parser.add_argument("--count", type=int, default=256, help="how many pictures, with --only")
    parser.add_argument("--plan", help="a survey's folder, with --only")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    if args.only:
        return child(args.only, args.plan, args.count)
    found, counts = {}, {way: args.dense if way == "dense" else args.pictures for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        made = plans(folder)
        rounds = [{way: run(way, made[WAYS[way][1]], counts[way]) for way in WAYS} for _ in range(args.rounds)]
        sizes = (("survey", args.memory), ("dense", (args.dense // 2, args.dense)))
        memory = {way: {n: run(way, made[False], n, exact=True)["extra_mib"] for n in of} for way, of in sizes}
        paper = on_paper(run(ADDING, made[False], 512)["ns"])
    for way in WAYS:
        found[way] = {key: median(one[way][key] for one in rounds) for key in rounds[0][way]}
        found[way] |= {"pictures": counts[way], "ms_a_picture": 1000 * found[way]["cpu_seconds"] / counts[way]}
    base = found["floor"]["ms_a_picture"]
    ratios = {
        "cpu_ratio_to_floor": found["survey"]["ms_a_picture"] / base,
        "cpu_ratio_to_floor_with_control":
            found["survey with control"]["ms_a_picture"] / found["floor, two SAEs"]["ms_a_picture"],
        "cpu_ratio_to_dense": found["survey"]["ms_a_picture"] / found["dense"]["ms_a_picture"],
    }  # fmt: skip
    print(f"{SAE} on {where('cpu')}; medians of {args.rounds}")
    print(f"{'':24}{'pictures':>10}{'CPU ms each':>14}{'to floor':>10}{'pictures per CPU s':>20}")
    for way, one in found.items():
        each = one["ms_a_picture"]
        print(f"{way:24}{one['pictures']:>10}{each:>14.2f}{each / base:>10.2f}{1000 / each:>20.1f}")
    for way, of in memory.items():
        print(f"memory of {way}: " + ", ".join(f"{mib:.0f} MiB for {count}" for count, mib in of.items()))
    for key, value in ratios.items():
        print(f"{key} = {value:.3f}")
    print("\nImageNet-1k, CLIP-L/14 at 336 px, 32,768 latents, by arithmetic:")
    for key, value in paper.items():
        print(f"  {key:40}{value:>14,.1f}")
    if args.json:
        told = {**ratios, "ways": found, "memory_mib": memory, "on_paper": paper, "where": where("cpu"),
                "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
