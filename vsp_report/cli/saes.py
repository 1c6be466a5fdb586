"""SAEs: sparse autoencoders trained, checked and converted; and the doctor, who proves that one fits."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vsp_report import paths
from vsp_report.cli.words import (
    NOT_MET,
    Bar,
    add_machine,
    bundled_or_path,
    check_writable,
    command,
    counted,
    group,
    natural,
    positive,
    print_facts,
    quiet,
    write_json,
)
from vsp_report.errors import InputError

ARCHITECTURES = ("topk", "standard", "batchtopk", "matryoshka")
TRAIN = {
    "model": None, "tap": None, "images": None, "n": None, "architecture": "topk", "expansion": 32, "k": 32,
    "l1": 0.05, "prefixes": (), "dead": "", "steps": 20_000, "batch": 4096, "lr": 1e-3, "seed": 0,
    "prompt": "Describe the image.", "cache": None, "states": "float16", "per_pass": 8, "save_every": 500,
    "whiten": 0.0, "onto": "", "dtype": None,
}  # fmt: skip
"""What `sae train` does where it is not told."""
UNSEEN = 1_500_000_000
"""The first seed of scenes to measure on: neither training nor the evaluation draws from there on."""


def add(rooms: Any) -> None:
    sae = group(rooms, "sae", "sparse autoencoders: train, check and convert them")
    check = command(sae, "check", "read one and say what it is", _sae_check)
    check.add_argument("path", metavar="PATH", help="a folder, a file, or a bundled name such as sketchworld/vision.3")
    check.add_argument("--model", metavar="M", help="measure it on this model (a bundled SAE: on its own)")
    check.add_argument("--images", metavar="DIR", help="on the pictures of this folder, or on scenes of sketchworld")
    check.add_argument("--n", type=positive, metavar="N", help="how many pictures (default: 64)")
    check.add_argument("--tap", metavar="TAP", help="where, such as vision.18 (default: what the file says)")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_machine(check)
    convert = command(sae, "convert", "write one again in the format of this package", _sae_convert)
    convert.add_argument("source", metavar="SRC", help="a folder, a file, or a bundled name")
    convert.add_argument("destination", type=Path, metavar="DST", help="a folder that is not there yet")

    _add_train(sae)

    doctor = command(rooms, "doctor", "prove that a model, an SAE and this machine fit together", _doctor)
    doctor.add_argument("--model", default="sketchworld", metavar="M", help="(default: %(default)s)")
    doctor.add_argument("--sae", default="sketchworld/vision.3", metavar="S", help="(default: %(default)s)")
    doctor.add_argument("--image", metavar="FILE", help="a picture (default: a scene of sketchworld)")
    doctor.add_argument("--prompt", metavar="P", help="a short question about it")
    doctor.add_argument("--tap", metavar="TAP", help="where, such as vision.18 (default: what the SAE says)")
    doctor.add_argument("--right", metavar="ANSWER", help="with --wrong: the two answers to measure between")
    doctor.add_argument("--wrong", metavar="ANSWER", help="(default: the two likeliest)")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="write what was found here too")
    add_machine(doctor)


def _add_train(sae: Any) -> None:
    train = command(sae, "train", "train one for each tap, from one forward pass for all", _sae_train)
    add = train.add_argument
    add("--model", metavar="M", help="a bundled name, a directory, or a Hub id@revision")
    add("--tap", action="append", metavar="TAP", help="where, such as vision.18, text.16 or connector; may be repeated")
    add("--images", metavar="DIR", help="a folder of pictures, or sketchworld for scenes of it")
    # torchrun takes --n for one of its own options, also behind the module that it starts
    add("--n", "--pictures", type=positive, metavar="N", help="how many pictures (default: all; 2000 scenes)")
    add("--out", type=Path, required=True, metavar="DIR", help="gets a folder for each tap, and the run's checkpoint")
    add("--resume", action="store_true", help="go on with the run that was stopped in --out, with the same options")
    add("--architecture", choices=ARCHITECTURES, help=f"(default: {TRAIN['architecture']}; the paper's is standard)")
    add("--expansion", type=positive, metavar="N", help=f"latents for each number of a state{_default('expansion')}")
    add("--k", type=positive, metavar="K", help=f"latents of a patch, but for standard{_default('k')}")
    add("--l1", type=_number, metavar="X", help=f"the penalty of standard{_default('l1')}")
    add("--prefixes", type=_sizes, metavar="N,N", help="matryoshka: so many first latents have to explain all alone")
    add(
        "--dead",
        choices=("auxiliary", "revive", "resample", "leave"),
        help="dead latents (default: auxiliary; standard: resample); revive keeps most alive",
    )
    add("--onto", metavar="SAE", help="keep the living latents of this one (of a run's --out: the one's at each tap), "
        "and teach all others what those leave over")  # fmt: skip
    add(
        "--whiten",
        type=_number,
        metavar="X",
        help="even directions out, from 0 (not) to 1 (fully); 0.5 keeps more alive",
    )
    add("--steps", type=positive, metavar="N", help=_default("steps").strip())
    add("--batch", type=positive, metavar="N", help=f"states in a step{_default('batch')}")
    add("--lr", type=_number, metavar="X", help=f"learning rate, before it decays{_default('lr')}")
    add("--seed", type=natural, metavar="N", help=_default("seed").strip())
    add("--prompt", metavar="P", help=f"beside each picture; text taps depend on it{_default('prompt')}")
    add("--cache", type=Path, metavar="DIR", help="keep states here: written once, then read instead of the pictures")
    add("--states", choices=("float16", "bfloat16", "float32"), help=f"states are kept in{_default('states')}")
    add("--per-pass", type=positive, metavar="N", help=f"pictures in one forward pass{_default('per_pass')}")
    add("--save-every", type=positive, metavar="N", help=f"steps between checkpoints{_default('save_every')}")
    add(
        "--accelerate",
        action="store_true",
        help="one of several processes, as accelerate launch or torchrun start them",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_machine(train)


def _default(name: str) -> str:
    return f" (default: {TRAIN[name]})"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def _sae_train(args: argparse.Namespace) -> int:
    check_writable(args.json)
    quiet()
    from vsp_report.model.runs import Stopped, words_of
    from vsp_report.study import train

    given = {name: value for name in TRAIN if (value := getattr(args, name)) is not None}
    if args.resume and (args.out / train.CHECKPOINT).exists():
        given = words_of(args.out / train.CHECKPOINT) | given
    words = TRAIN | given
    for name in ("model", "tap", "images"):
        if not words[name]:
            raise InputError(f"--{name}", "is not given", "`vsp-report sae train --help` lists what it takes.")
    recipe = train.Recipe(
        words["architecture"], words["expansion"], words["k"], words["l1"], tuple(words["prefixes"]), words["dead"],
        words["steps"], words["batch"], words["lr"], words["seed"], words["whiten"],
    )  # fmt: skip
    plan = train.Plan(
        words["model"], tuple(words["tap"]), words["images"], args.out, recipe, n=words["n"], prompt=words["prompt"],
        cache=words["cache"] and Path(words["cache"]), states=words["states"], per_pass=words["per_pass"],
        resume=args.resume, onto=words["onto"], every=words["save_every"], device=args.device, dtype=words["dtype"],
        team=args.accelerate,
    )  # fmt: skip
    bars: dict[str, Bar] = {}

    def on_progress(told: Any) -> None:
        if told.what not in bars:
            for bar in bars.values():
                bar.__exit__()
            bars[told.what] = Bar(told.of, told.what)
        steps = list(told.steps.values())
        if steps:  # the mean over taps
            loss, unexplained, l0, dead = (
                sum(getattr(step, name) for step in steps) / len(steps)
                for name in ("loss", "unexplained_variance", "mean_l0", "dead_share")
            )
            figures = f"loss {loss:<8.3g} explained {1 - unexplained:6.3f}  L0 {l0:6.1f}  dead {dead:4.0%}"
            bars[told.what].what = f"steps  {figures} "
        bars[told.what].at(told.done)

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in words.items()}
    try:
        found = train.train(plan, plain, on_progress)
    except Stopped as stopped:
        for bar in bars.values():
            bar.__exit__()
        how = "the same command goes on"
        if stopped.step is not None:
            how = f"after {counted(stopped.step, 'step')}; --resume goes on"
        print(f"stopped: {how}", file=sys.stderr)
        raise
    finally:
        for bar in bars.values():
            bar.__exit__()
    if found.rank:
        return 0
    for name, reason in found.skipped.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    print(f"{'':<14}{'loss':>10}{'explained':>11}{'L0':>8}{'dead':>7}")
    for tap, one in found.trained.items():
        figures = one.figures
        print(f"{tap:<14}{figures['loss']:>10.4g}{figures['explained_variance']:>11.3f}"
              f"{figures['mean_l0']:>8.1f}{figures['dead_share']:>7.1%}")  # fmt: skip
    for folder in found.folders.values():
        print(f"written: {folder}")
    if args.json is not None:
        write_json(args.json, {tap: one.figures for tap, one in found.trained.items()})
    return 0


def _sae_check(args: argparse.Namespace) -> int:
    model = args.model or ("sketchworld" if paths.bundled(args.path) else None)
    for given, option in ((args.images, "--images"), (args.n, "--n"), (args.tap, "--tap"), (args.json, "--json")):
        if given is not None and model is None:
            raise InputError(option, "is for measuring, which needs a model", "Give --model.")
    if model is not None and args.images is None and model != "sketchworld":
        raise InputError("--images", "is not given", "Name a folder of pictures, such as the model was made for.")
    check_writable(args.json)
    quiet()
    from vsp_report.model import checkpoints, devices

    devices.check_device(args.device)
    sae = checkpoints.load_sae(bundled_or_path(args.path))
    lengths = sae.directions.float().norm(dim=1)
    facts = {
        "name": sae.name or "-",
        "tap": sae.tap or "-",
        "architecture": sae.architecture + (f", k = {sae.k}" if sae.k else ""),
        "size": f"{sae.d_in} wide, {sae.d_sae} latents",
        "normalisation": sae.normalise,
        "directions": f"{float(lengths.min()):.3g} to {float(lengths.max()):.3g} long",
    }
    print_facts(facts)
    if model is None:
        print_facts({"fit": "not measured; --model and --images measure it"})
        return 0
    pictures = _pictures(args.images or "sketchworld", 64 if args.n is None else args.n)
    from vsp_report.model.fit import measure_fit, table
    from vsp_report.model.vlm import load_vlm

    vlm = load_vlm(model, device=args.device, dtype=args.dtype)
    with Bar(len(pictures), "pictures") as bar:
        found = measure_fit(vlm, sae, (make() for make in pictures), tap=args.tap, on_image=bar.at)
    print_facts({"measured": f"{found.images} pictures, {found.rows} rows at {found.tap} of {vlm.name}"})
    print(f"\n{table(found)}")
    if args.json is not None:
        write_json(args.json, {"facts": facts, "model": vlm.name, **found.to_dict()})
    return NOT_MET if found.findings else 0


def _pictures(source: str, n: int) -> list[Callable[[], Any]]:
    """What makes each picture, when it is its turn: `n` scenes of the bundled world, or of a folder's pictures."""
    if source == "sketchworld":
        from vsp_report.sketchworld import rules

        return [partial(lambda seed: rules.sample_scene(seed).draw(384), UNSEEN + k) for k in range(n)]
    from vsp_report.study.photographs import evenly, pictures_of

    return [partial(Path, file) for file in evenly(pictures_of(source), n)]


def _sae_convert(args: argparse.Namespace) -> int:
    if args.destination.exists():
        raise InputError(args.destination, "is there already", "Name a folder that is not.")
    from vsp_report.model import checkpoints

    checkpoints.save_sae(checkpoints.load_sae(bundled_or_path(args.source)), args.destination)
    print(f"written: {args.destination}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    if (args.right is None) != (args.wrong is None):
        raise InputError("--right, --wrong", "only one of them is given", "A contrast needs both.")
    check_writable(args.json)
    quiet()
    from vsp_report.model import checkpoints, devices
    from vsp_report.model.vlm import load_vlm
    from vsp_report.study import doctor

    devices.check_device(args.device)

    if args.image is None:
        # Also for a model that has never seen such a scene: what is checked does not depend on its answer.
        from vsp_report.sketchworld import rules

        scene = rules.sample_scene(UNSEEN, "objects")
        image, question = scene.draw(384), args.prompt or rules.questions(scene, UNSEEN)[1].text
    else:
        image, question = args.image, args.prompt or "What is this?"
    vlm = load_vlm(args.model, device=args.device, dtype=args.dtype)
    sae = checkpoints.load_sae(bundled_or_path(args.sae))
    contrast = None if args.right is None else doctor.Contrast(args.right, args.wrong)
    with Bar(len(doctor.CHECKS), "checks") as bar:
        found = doctor.examine(
            vlm, sae, image, question, tap=args.tap, contrast=contrast, on_check=lambda check: bar.at()
        )
    print(doctor.table(found, shutil.get_terminal_size((100, 24)).columns))
    if args.json is not None:
        write_json(args.json, found.to_dict())
    return NOT_MET if found.failed else 0
