"""World: SketchWorld is drawn, its models are trained and measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from vsp_report import paths
from vsp_report.cli.words import (
    DEVICES,
    NOT_MET,
    check_folder,
    check_writable,
    command,
    group,
    natural,
    positive,
    write_json,
    write_whole,
)
from vsp_report.errors import InputError, ModelError

SIDES_PX = 32, 4096
"""What a scene is drawn at; a case's is held to the same."""
NEEDED = (
    "sketchworld/config.json",
    "sketchworld/model.safetensors",
    "clip/config.json",
    "clip/model.safetensors",
    "saes/vision.3/cfg.json",
    "saes/vision.3/sae_weights.safetensors",
)
"""What is measured, in a folder of weights."""


def add(rooms: Any) -> None:
    world = group(rooms, "sketchworld", "the bundled world, whose models fail for known reasons")
    train = command(world, "train", "make the models from nothing", _sketchworld_train)
    train.add_argument(
        "--out",
        type=Path,
        default=Path("sketchworld-weights"),
        metavar="DIR",
        help="where the weights go (default: %(default)s)",
    )
    train.add_argument("--work", type=Path, metavar="DIR", help="keep finished stages here, and go on from them")
    train.add_argument("--device", choices=DEVICES, default="auto", help="(default: %(default)s)")
    train.add_argument("--seed", type=natural, default=0, metavar="N", help="(default: %(default)s)")
    train.add_argument(
        "--quick",
        action="store_true",
        help="a few steps of every stage: proves that the recipe runs, trains nothing",
    )

    measure = command(world, "eval", "measure the models against their goals", _sketchworld_eval)
    measure.add_argument("--weights", type=Path, metavar="DIR", help="(default: the bundled weights)")
    measure.add_argument(
        "--scenes",
        type=positive,
        default=1000,
        metavar="N",
        help="how many scenes to ask about (default: %(default)s)",
    )
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    measure.add_argument("--device", choices=DEVICES, default="auto", help="(default: %(default)s)")
    measure.add_argument(
        "--card",
        action="store_true",
        help="write the table into the model card, README.md beside the weights",
    )

    draw = command(world, "draw", "draw scenes: a picture, and the scene as JSON beside it", _sketchworld_draw)
    draw.add_argument("--family", metavar="F", help="ordinary scenes of one family (default: of all)")
    draw.add_argument("--mode", metavar="M", help="planted failures of this mode, with --variation")
    draw.add_argument("--variation", metavar="V", help="which of the mode's variations")
    draw.add_argument("--seed", type=natural, default=0, metavar="N", help="the first seed (default: %(default)s)")
    draw.add_argument("--count", type=positive, default=1, metavar="N", help="(default: %(default)s)")
    draw.add_argument("--size", type=_pixels, default=384, metavar="PX", help="(default: %(default)s)")
    draw.add_argument(
        "--out", type=Path, default=Path("sketchworld-scenes"), metavar="DIR", help="(default: %(default)s)"
    )

    command(world, "rules", "say what training never shows", _sketchworld_rules)


def _pixels(text: str) -> int:
    least, most = SIDES_PX
    side = int(text) if text.isdecimal() and len(text) < 9 else 0
    if not least <= side <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return side


def _sketchworld_train(args: argparse.Namespace) -> int:
    from vsp_report.sketchworld import train

    train.train(args.out, work=args.work, device=args.device, seed=args.seed, quick=args.quick, tell=_tell)
    print(f"written: {args.out}")
    return 0


def _sketchworld_eval(args: argparse.Namespace) -> int:
    weights = args.weights or paths.weights_dir()
    if not weights.is_dir():
        raise ModelError(weights, "no weights are here", "`vsp-report sketchworld train` makes them.")
    if missing := [name for name in NEEDED if not (weights / name).is_file()]:
        remedy = "Name a folder that `vsp-report sketchworld train` made, or leave --weights away."
        raise ModelError(weights, f"is no folder of weights: it has no {missing[0]}", remedy)
    check_writable(args.json)
    card = _Card.read(weights / "README.md") if args.card else None
    from vsp_report.sketchworld import evaluate

    figures = evaluate.evaluate(weights, scenes=args.scenes, device=args.device, tell=_tell)
    table = evaluate.table(figures)
    print(table)
    if args.json is not None:
        write_json(args.json, figures)
    if card is not None:
        write_whole(card.path, f"{card.before}\n{table}\n{card.after}")
    return NOT_MET if any(figure["met"] is False for figure in figures.values()) else 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Card(NamedTuple):
    """A model card, cut at the two lines that its table of figures stands between."""

    path: Path
    before: str
    after: str

    @classmethod
    def read(cls, path: Path) -> _Card:
        opening, closing = "<!-- figures -->", "<!-- /figures -->"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        before, opened, rest = text.partition(opening)
        _, closed, after = rest.partition(closing)
        if not (opened and closed):
            raise InputError(path, "has no place for figures", f"Write {opening} and {closing} where they go.")
        return cls(path, before + opened, closed + after)


def _sketchworld_draw(args: argparse.Namespace) -> int:
    if (args.mode is None) != (args.variation is None):
        raise InputError("--mode, --variation", "only one of them is given", "A planted failure needs both.")
    if args.mode is not None and args.family is not None:
        raise InputError("--family, --mode", "both are given", "Draw ordinary scenes or planted ones.")
    check_folder(args.out)
    from vsp_report.sketchworld import planted, rules

    for seed in range(args.seed, args.seed + args.count):
        if args.mode is None:
            scene = rules.sample_scene(seed, args.family)
            name, asked = f"{scene.family}-{seed}", ""
        else:
            case = planted.plant(args.mode, args.variation, seed)
            scene, name = case.scene, f"{args.mode}-{args.variation}-{seed}"
            asked = f"  {case.question} right: {case.right}; wrong: {case.wrong}"
        args.out.mkdir(parents=True, exist_ok=True)
        scene.draw(args.size).save(args.out / f"{name}.png")
        write_json(args.out / f"{name}.json", scene.to_dict())
        print(f"{args.out / name}.png{asked}")
    return 0


def _sketchworld_rules(args: argparse.Namespace) -> int:
    from vsp_report.sketchworld.rules import RULES

    for number, rule in enumerate(RULES, start=1):
        print(f"{number}. {rule}")
    return 0
