"""Steering: what many steerings of one prompt cost, against the plain way and against a bare batched run.

    plain                one `generate` per steering: eager attention with `output_attentions`, all latents
                         encoded, and decoded twice for the difference
    plain, no attention  the same without asking for attention
    ours                 `steer`: all of them, with log-probabilities and an unedited row in every batch
    ours, two rows at a time    the same in the smallest batches there are: one steering, and the unedited row
    floor                one bare `generate` of as many rows, nothing edited
    floor, one row; floor, two rows    the same of so many rows; only their memory is asked for

    python benchmarks/steering.py [--size mid | llava-next-8b] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import torch
from capture import attention_the_plain_way, prepared
from measuring import SIZES, Figures, arguments, make_sae, measured, report, run

from vsp_report.maths.edits import Edit, Steering
from vsp_report.model import taps
from vsp_report.model.sae import Sae
from vsp_report.model.steering import steer
from vsp_report.model.vlm import Prompt, Vlm

LATENTS_EACH = 5


def asked(args: argparse.Namespace) -> tuple[Vlm, Prompt, Sae, list[Steering]]:
    vlm, prompt = prepared(args)
    size = SIZES[args.size]
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(0, size.latents, (args.steerings, LATENTS_EACH), generator=generator).tolist()
    steerings = [Steering(str(k), (Edit(tuple(latents), "set", 0.0),)) for k, latents in enumerate(chosen)]
    return vlm, prompt, make_sae(size, args.device), steerings


def plain(args: argparse.Namespace, attention: bool = True) -> Figures:
    vlm, prompt, sae, steerings = asked(args)
    module = taps.module_at(vlm, sae.tap)
    if attention:
        vlm.model.set_attn_implementation("eager")

    @torch.no_grad()
    def work() -> None:
        for steering in steerings:
            latents = list(steering.edits[0].latents)

            def hook(module: Any, args: tuple, z: torch.Tensor, latents: list[int] = latents) -> torch.Tensor:
                h = sae.encode(z)
                new = h.clone()
                new[..., latents] = 0
                return z + (sae.decode(new) - sae.decode(h)).to(z.dtype)

            handle = module.register_forward_hook(hook, prepend=True)
            if attention:
                attention_the_plain_way(vlm, prompt, args.new_tokens)
            else:
                vlm.generate(prompt, args.new_tokens)
            handle.remove()

    return measured(work, args.device)


def plain_without_attention(args: argparse.Namespace) -> Figures:
    return plain(args, attention=False)


def ours(args: argparse.Namespace, budget_bytes: int | None = None) -> Figures:
    vlm, prompt, sae, steerings = asked(args)
    work = lambda: steer(vlm, sae, prompt, steerings, max_new_tokens=args.new_tokens, budget_bytes=budget_bytes)  # noqa: E731
    return measured(work, args.device)


def ours_two_rows(args: argparse.Namespace) -> Figures:
    return ours(args, budget_bytes=0)


def floor(args: argparse.Namespace, rows: int | None = None) -> Figures:
    vlm, prompt, _, _ = asked(args)
    return measured(lambda: vlm.generate(prompt.repeat(rows or args.steerings), args.new_tokens), args.device)


WAYS = {
    "plain": plain,
    "plain, no attention": plain_without_attention,
    "ours": ours,
    "ours, two rows at a time": ours_two_rows,
    "floor": floor,
    "floor, one row": partial(floor, rows=1),
    "floor, two rows": partial(floor, rows=2),
}
# One steering after another takes as much for two as for many.
HELD = dict.fromkeys(WAYS, 2) | {"ours": None, "floor": None}


def main(argv: list[str] | None = None) -> int:
    _, args = arguments("what many steerings of one prompt cost", argv)
    found = run(__file__, WAYS, args, {way: n or args.steerings for way, n in HELD.items()})
    if found is not None:
        spent = {way: f.cpu_seconds if args.device == "cpu" else f.wall_seconds for way, f in found.items()}
        held = {way: f.extra_mib for way, f in found.items()}
        over = {"one row": held["plain"] - held["floor, one row"],
                "two rows": held["ours, two rows at a time"] - held["floor, two rows"]}  # fmt: skip
        report(
            found, args,
            cpu_ratio_to_plain=spent["ours"] / spent["plain"],
            cpu_ratio_to_floor=spent["ours"] / spent["floor"],
            cpu_ratio_to_plain_without_attention=spent["ours"] / spent["plain, no attention"],
            memory_over_floor_ratio_to_plain=over["two rows"] / over["one row"],
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
