"""Capture: what it costs to see what every word looked at, against the plain way and against not looking at all.

    plain    eager attention with `output_attentions`, averaged over layers and heads
    ours     `capture` around `generate`
    floor    a bare `generate`

    python benchmarks/capture.py [--size mid | llava-next-8b] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys

import torch
from measuring import QUESTION, SIZES, Figures, arguments, make_picture, make_vlm, measured, report, run

from vsp_report.model.capture import capture
from vsp_report.model.vlm import Prompt, Vlm


def prepared(args: argparse.Namespace) -> tuple[Vlm, Prompt]:
    size = SIZES[args.size]
    vlm = make_vlm(size, args.device)
    prompt = vlm.prepare(make_picture(size), QUESTION)
    vlm.generate(prompt, 2)
    return vlm, prompt


def plain(args: argparse.Namespace) -> Figures:
    vlm, prompt = prepared(args)
    vlm.model.set_attn_implementation("eager")
    return measured(lambda: attention_the_plain_way(vlm, prompt, args.new_tokens), args.device)


@torch.no_grad()
def attention_the_plain_way(vlm: Vlm, prompt: Prompt, new_tokens: int) -> torch.Tensor:
    made = vlm.model.generate(
        **prompt.inputs, max_new_tokens=new_tokens, output_attentions=True, return_dict_in_generate=True,
        disable_compile=True,
    )  # fmt: skip
    columns = torch.as_tensor(prompt.images[0].columns_I, device=vlm.device)
    steps = [torch.stack([layer.mean(1)[0][:, columns] for layer in step]).mean(0) for step in made.attentions]
    return torch.cat(steps).cpu()


def ours(args: argparse.Namespace) -> Figures:
    vlm, prompt = prepared(args)

    def work() -> None:
        with capture(vlm, prompt) as seen:
            vlm.generate(prompt, args.new_tokens)
        assert seen.attention is not None

    return measured(work, args.device)


def floor(args: argparse.Namespace) -> Figures:
    vlm, prompt = prepared(args)
    return measured(lambda: vlm.generate(prompt, args.new_tokens), args.device)


WAYS = {"plain": plain, "ours": ours, "floor": floor}


def main(argv: list[str] | None = None) -> int:
    _, args = arguments("what it costs to see what every word looked at", argv)
    found = run(__file__, WAYS, args, dict.fromkeys(WAYS, 1))
    if found is not None:
        spent = {way: f.cpu_seconds if args.device == "cpu" else f.wall_seconds for way, f in found.items()}
        bare = found["floor"].extra_mib
        report(
            found, args,
            cpu_ratio_to_plain=spent["ours"] / spent["plain"],
            cpu_ratio_to_floor=spent["ours"] / spent["floor"],
            memory_ratio_to_plain=found["ours"].extra_mib / found["plain"].extra_mib,
            memory_over_floor_ratio_to_plain=(found["ours"].extra_mib - bare) / (found["plain"].extra_mib - bare),
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
