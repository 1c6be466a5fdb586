"""Training: what a step costs, states read from a cache and all, against the bare matrix products of an autoencoder.

    floor    the five products of a dense step, in the precision that training uses: encode, decode, the gradients of
             both matrices and of the latents; no selection, no loss, no optimiser, no data
    ours     a batch from the stream, which reads a memory-mapped cache, and a step of the trainer, for every
             architecture

A TopK step multiplies densely only once, to encode: it can be faster than the floor. `one product` is that one alone.
Ways are run in turn, a buffer's worth of steps at a time, and medians are taken.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--size small | clip-b | clip-l] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from measuring import Figures, measured, where

from vsp_report.model.activation_cache import CachedRows, Identity, write_cache
from vsp_report.model.learning import fast_dtype
from vsp_report.model.streams import BUFFER_BATCHES, Stream
from vsp_report.model.training import TRAINED, Recipe, Trainer


class Size(NamedTuple):
    width: int
    latents: int
    k: int
    batch: int


SIZES = {
    "tiny": Size(32, 256, 8, 256),  # whether the script runs, not how fast
    "small": Size(112, 3584, 16, 4096),  # SketchWorld's main tap
    "clip-b": Size(768, 24576, 32, 4096),
    "clip-l": Size(1024, 32768, 32, 4096),
}


class Drawn:
    """States of nobody: a few directions of each row, drawn chunk by chunk."""

    taps, skipped = ("vision.0",), {}

    def __init__(self, size: Size) -> None:
        self.size, self.chunks = size, BUFFER_BATCHES
        self.directions = torch.randn(4 * size.width, size.width, generator=torch.Generator().manual_seed(0))

    def load(self, chunk: int, then: int | None = None) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(chunk)
        n, width, _ = self.size.batch, *self.directions.shape[::-1]
        picked = torch.randint(len(self.directions), (n, 8), generator=g)
        amounts = torch.rand(n, 8, 1, generator=g)
        rows = (self.directions[picked] * amounts).sum(1) + 0.1 * torch.randn(n, width, generator=g)
        return {"vision.0": rows.half()}


def floor(size: Size, device: str, products: int) -> Callable[[], None]:
    g, dtype = torch.Generator().manual_seed(0), fast_dtype(device)
    x_BD = torch.randn(size.batch, size.width, generator=g).to(device, dtype)
    W_LD = torch.randn(size.latents, size.width, generator=g).to(device, dtype)

    def step() -> None:
        h_BL = torch.nn.functional.linear(x_BD, W_LD)
        if products == 5:
            e_BD = h_BL @ W_LD
            h_BL.T @ e_BD  # of the decoder
            g_BL = torch.nn.functional.linear(e_BD, W_LD)  # of the latents
            g_BL.T @ x_BD  # of the encoder

    return step


def ours(size: Size, device: str, architecture: str, cached: CachedRows) -> Callable[[], None]:
    stream = Stream(cached, size.batch, 0)
    recipe = Recipe(
        architecture, expansion=size.latents // size.width, k=size.k, steps=10_000, batch=size.batch, lr=1e-4, l1=0.1
    )
    trainer = Trainer(recipe, stream.sample()["vision.0"], device=device)

    def step() -> None:
        trainer.step(next(stream)["vision.0"])

    return step


def steps_of(way: Callable[[], None], device: str, steps: int) -> Figures:
    def work() -> None:
        for _ in range(steps):
            way()

    return measured(work, device)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="what a step of training costs")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=BUFFER_BATCHES, help="in a round (default: a buffer's worth)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    size, found = SIZES[args.size], {}
    with tempfile.TemporaryDirectory() as folder:
        ways = {"floor: five products": floor(size, args.device, 5), "one product": floor(size, args.device, 1)}
        identity = Identity("random", "drawn", "", "float16", 1)
        cached = write_cache(Path(folder) / "cache", identity, Drawn(size))
        ways |= {name: ours(size, args.device, name, cached) for name in TRAINED}
        for way in ways.values():
            steps_of(way, args.device, 2)
        rounds = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                rounds[name].append(steps_of(way, args.device, args.steps))
    for name, figures in rounds.items():
        found[name] = median(f.cpu_seconds if args.device == "cpu" else f.wall_seconds for f in figures) / args.steps
    bare, one = found["floor: five products"], found["one product"]
    print(f"{args.size}: {size.batch} rows x {size.width} -> {size.latents} latents on {where(args.device)}, "
          f"{str(fast_dtype(args.device)).removeprefix('torch.')}; medians of {args.rounds}")  # fmt: skip
    print(f"{'':24}{'ms a step':>12}{'steps / s':>12}{'to floor':>10}{'to one product':>16}")
    for name, seconds in found.items():
        print(f"{name:24}{1000 * seconds:>12.1f}{1 / seconds:>12.2f}{seconds / bare:>10.2f}{seconds / one:>16.2f}")
    ratios = {"cpu_ratio_to_floor": found["standard"] / bare}
    ratios |= {f"{name}_cpu_ratio_to_floor": found[name] / bare for name in TRAINED}
    ratios["topk_cpu_ratio_to_one_product"] = found["topk"] / one
    for name, ratio in ratios.items():
        print(f"{name} = {ratio:.3f}")
    if args.json:
        told = {**ratios, "seconds_a_step": found, "asked": {"size": args.size, "rounds": args.rounds},
                "where": where(args.device), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
