"""SAEs: sparse autoencoders on disk, checked and converted; and the doctor, who proves that one fits."""

from __future__ import annotations

import argparse
import shutil
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
    group,
    positive,
    print_facts,
    quiet,
    write_json,
)
from vsp_report.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UNSEEN = 1_500_000_000
"""The first seed of scenes to measure on: neither training nor the evaluation draws from there on."""


def add(rooms: Any) -> None:
    sae = group(rooms, "sae", "sparse autoencoders on disk")
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


def _sae_check(args: argparse.Namespace) -> int:
    model = args.model or ("sketchworld" if paths.bundled(args.path) else None)
    for given, option in ((args.images, "--images"), (args.n, "--n"), (args.tap, "--tap"), (args.json, "--json")):
        if given is not None and model is None:
            raise InputError(option, "is for measuring, which needs a model", "Give --model.")
    if model is not None and args.images is None and model != "sketchworld":
        raise InputError("--images", "is not given", "Name a folder of pictures, such as the model was made for.")
    check_writable(args.json)
    quiet()
    from vsp_report.model import checkpoints

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
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(source, "is no folder", "Name a folder of pictures, or sketchworld.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and file.name[0] != ".")
    if not files:
        raise InputError(source, "holds no picture", f"Put some there ({', '.join(PICTURES)}).")
    n = min(n, len(files))
    return [partial(Path, files[k * len(files) // n]) for k in range(n)]


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
    from vsp_report.model import checkpoints
    from vsp_report.model.vlm import load_vlm
    from vsp_report.study import doctor

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
