"""CLI: the commands. Each reads its words, calls one room, and says what came out.

A room is imported inside the command that needs it, so that `--help` never waits for torch.

Exit codes: 0 done; 1 measured, and a goal is not met; 2 the user's mistake; 3 it could not run; 130
interrupted. A crash of our own is 3 as well, not Python's 1: a job that reads 1 as "not met" must not read a
crash so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from vsp_report import __version__, paths
from vsp_report.errors import InputError, ModelError, VspError

NOT_MET, COULD_NOT_RUN, INTERRUPTED = 1, 3, 130
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UNSEEN = 1_500_000_000
"""The first seed of scenes to measure on: neither training nor the evaluation draws from there on."""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        args = _parser().parse_args(argv)
        code = args.command(args)
        sys.stdout.flush()
        return code
    except VspError as error:
        return _said(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _said("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Who reads us has enough (`… | head`). Python would flush into the closed pipe once more as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:  # not about a file: a library's own failure, which needs its traceback
            traceback.print_exc()
        return _said(str(VspError(error.filename or "system", error.strerror or str(error))), COULD_NOT_RUN)
    except Exception as error:
        traceback.print_exc()
        return _said(f"{type(error).__name__}: {error}", COULD_NOT_RUN)


def _said(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


# --- cases ---------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    from vsp_report import case

    read = case.read_cases(case.case_files(args.cases or [Path("cases")]))
    if not read.faults:
        print(f"{_counted(read.files, 'case')} checked, nothing is wrong")
        return 0
    for fault in read.faults:
        _said(str(fault), fault.exit_code)
    wrong = read.files - len(read.cases)
    print(f"{_counted(len(read.faults), 'fault')} in {wrong} of {_counted(read.files, 'case')}", file=sys.stderr)
    return InputError.exit_code


def _new(args: argparse.Namespace) -> int:
    from vsp_report import case

    file = case.write_starter(args.name, args.template, args.folder)
    print(f"written: {file}")
    return 0


def _schema(args: argparse.Namespace) -> int:
    if args.recording:
        from vsp_report import recording

        schema = recording.recording_schema()
    else:
        from vsp_report import case

        schema = case.case_schema()
    print(json.dumps(schema, indent=2, ensure_ascii=False))
    return 0


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# --- run -----------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from vsp_report import case

    if args.demo and args.cases:
        raise InputError("--demo", "is given with cases", "It runs the bundled ones; leave one of the two away.")
    words = args.cases or [paths.cases_dir() if args.demo else Path("cases")]
    if not args.cases and not args.demo and not Path("cases").is_dir():
        raise InputError("cases", "is not a folder here", "Write a case with `vsp-report new NAME`, or try --demo.")
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
            around = executors.ask(pool, batch.look_around)
            code = _run_steps(args, cases, wanted, lambda: contextlib.nullcontext(pool), around)
    else:
        code = _run_steps(args, cases, wanted, lambda: executors.here(args.jobs), None)
    if args.demo:  # one command from nothing to pages
        args.recordings = args.templates = None
        return max(code, _build(args))
    return code


def _run_steps(args: argparse.Namespace, cases: Any, wanted: Any, executor: Any, around: Any) -> int:
    from vsp_report.run import batch

    steps = batch.plan(cases, wanted, around)
    todo = [step for step in steps if step.state != "done"]
    if not todo:
        none_failed = args.only_failed and not steps
        print("nothing to run: " + ("no case has failed" if none_failed else
              f"{_counted(len(steps), 'case')} recorded in {wanted.recordings}"))  # fmt: skip
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
    print(f"{_counted(len(steps), 'case')}: {counts}")
    return NOT_MET if found["error"] else 0


# --- site ----------------------------------------------------------------------------------------------------


def _build(args: argparse.Namespace) -> int:
    from vsp_report.render import site

    recordings = args.recordings or args.out / site.RECORDINGS
    built = site.build(recordings, args.out, force=args.force, templates=args.templates)
    for fault in built.faults:
        _said(str(fault), fault.exit_code)
    changed = f"{_counted(len(built.written), 'part')} written" if built.written else "nothing was stale"
    print(f"{args.out / 'index.html'}: {_counted(built.cases, 'case')}, {changed}")
    return InputError.exit_code if built.faults else 0


def _serve(args: argparse.Namespace) -> int:
    from vsp_report.render import preview

    def say(address: str) -> None:
        print(f"serving {args.out} at {address} (Ctrl-C ends it)", flush=True)

    preview.serve(args.out, args.port, say)
    return 0


def _publish(args: argparse.Namespace) -> int:
    from vsp_report import hosting

    sent = hosting.parcel(args.out, args.remote, args.branch)
    what = f"{_counted(sent.files, 'file')}, {sent.size_bytes / 2**20:.1f} MiB, to {sent.branch} of {sent.address}"
    if args.dry_run:
        print(f"would publish {what}")
        return 0
    hosting.push(sent)
    print(f"published {what}")
    return 0


def _init_ci(args: argparse.Namespace) -> int:
    from vsp_report import hosting

    for file in hosting.write_workflows(Path()):
        print(f"written: {file}")
    return 0


# --- sketchworld --------------------------------------------------------------------------------------------


def _sketchworld_train(args: argparse.Namespace) -> int:
    from vsp_report.sketchworld import train

    train.train(args.out, work=args.work, device=args.device, seed=args.seed, quick=args.quick)
    print(f"written: {args.out}")
    return 0


def _sketchworld_eval(args: argparse.Namespace) -> int:
    weights = args.weights or paths.weights_dir()
    if not weights.is_dir():
        raise ModelError(weights, "no weights are here", "`vsp-report sketchworld train` makes them.")
    _check_writable(args.json)
    card = _Card.read(weights / "README.md") if args.card else None
    from vsp_report.sketchworld import evaluate

    figures = evaluate.evaluate(weights, scenes=args.scenes, device=args.device)
    table = evaluate.table(figures)
    print(table)
    if args.json is not None:
        _write_json(args.json, figures)
    if card is not None:
        _write_whole(card.path, f"{card.before}\n{table}\n{card.after}")
    return NOT_MET if any(figure["met"] is False for figure in figures.values()) else 0


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
            raise InputError(
                path, "has no place for figures", f"Write {opening} and {closing} where they go."
            )
        return cls(path, before + opened, closed + after)


def _sketchworld_draw(args: argparse.Namespace) -> int:
    if (args.mode is None) != (args.variation is None):
        raise InputError("--mode, --variation", "only one of them is given", "A planted failure needs both.")
    if args.mode is not None and args.family is not None:
        raise InputError("--family, --mode", "both are given", "Draw ordinary scenes or planted ones.")
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
        _write_json(args.out / f"{name}.json", scene.to_dict())
        print(f"{args.out / name}.png{asked}")
    return 0


def _sketchworld_rules(args: argparse.Namespace) -> int:
    from vsp_report.sketchworld.rules import RULES

    for number, rule in enumerate(RULES, start=1):
        print(f"{number}. {rule}")
    return 0


# --- sae ----------------------------------------------------------------------------------------------------


def _sae_check(args: argparse.Namespace) -> int:
    model = args.model or ("sketchworld" if paths.bundled(args.path) else None)
    for given, option in ((args.images, "--images"), (args.n, "--n"), (args.tap, "--tap"), (args.json, "--json")):
        if given is not None and model is None:
            raise InputError(option, "is for measuring, which needs a model", "Give --model.")
    if model is not None and args.images is None and model != "sketchworld":
        raise InputError("--images", "is not given", "Name a folder of pictures, such as the model was made for.")
    _check_writable(args.json)
    _quiet()
    from vsp_report.model import checkpoints

    sae = checkpoints.load_sae(_bundled_or_path(args.path))
    lengths = sae.directions.float().norm(dim=1)
    facts = {
        "name": sae.name or "-",
        "tap": sae.tap or "-",
        "architecture": sae.architecture + (f", k = {sae.k}" if sae.k else ""),
        "size": f"{sae.d_in} wide, {sae.d_sae} latents",
        "normalisation": sae.normalise,
        "directions": f"{float(lengths.min()):.3g} to {float(lengths.max()):.3g} long",
    }
    _print_facts(facts)
    if model is None:
        _print_facts({"fit": "not measured; --model and --images measure it"})
        return 0
    pictures = _pictures(args.images or "sketchworld", 64 if args.n is None else args.n)
    from vsp_report.model.fit import measure_fit, table
    from vsp_report.model.vlm import load_vlm

    vlm = load_vlm(model, device=args.device, dtype=args.dtype)
    with _Bar(len(pictures), "pictures") as bar:
        found = measure_fit(vlm, sae, (make() for make in pictures), tap=args.tap, on_image=bar.at)
    _print_facts({"measured": f"{found.images} pictures, {found.rows} rows at {found.tap} of {vlm.name}"})
    print(f"\n{table(found)}")
    if args.json is not None:
        _write_json(args.json, {"facts": facts, "model": vlm.name, **found.to_dict()})
    return NOT_MET if found.findings else 0


def _print_facts(facts: dict[str, str]) -> None:
    for name, fact in facts.items():
        print(f"{name:<22}{fact}")


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

    checkpoints.save_sae(checkpoints.load_sae(_bundled_or_path(args.source)), args.destination)
    print(f"written: {args.destination}")
    return 0


def _bundled_or_path(name: str) -> Path | str:
    return paths.bundled(name) or name


# --- doctor -------------------------------------------------------------------------------------------------


def _doctor(args: argparse.Namespace) -> int:
    if (args.right is None) != (args.wrong is None):
        raise InputError("--right, --wrong", "only one of them is given", "A contrast needs both.")
    _check_writable(args.json)
    _quiet()
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
    sae = checkpoints.load_sae(_bundled_or_path(args.sae))
    contrast = None if args.right is None else doctor.Contrast(args.right, args.wrong)
    with _Bar(len(doctor.CHECKS), "checks") as bar:
        found = doctor.examine(
            vlm, sae, image, question, tap=args.tap, contrast=contrast, on_check=lambda check: bar.at()
        )
    print(doctor.table(found, shutil.get_terminal_size((100, 24)).columns))
    if args.json is not None:
        _write_json(args.json, found.to_dict())
    return NOT_MET if found.failed else 0


# --- what is typed and what is written ----------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are ours: one line, with place, fault and remedy."""

    def error(self, message: str) -> NoReturn:
        raise InputError(self.prog, message, f"`{self.prog} --help` lists what it takes.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vsp-report",
        description="Shows where a vision-language model goes wrong, and whether steering puts it right.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vsp-report {__version__}")
    rooms = parser.add_subparsers(metavar="COMMAND", required=True)

    check_cases = _command(rooms, "check", "say what is wrong with case files, all of it", _check)
    check_cases.add_argument(
        "cases",
        nargs="*",
        type=Path,
        metavar="CASE",
        help="a file, a folder, or the name of a case (default: the folder cases)",
    )
    new = _command(rooms, "new", "write a case to start from, with comments", _new)
    new.add_argument("name", metavar="NAME", help="its name in the report, and its file's")
    new.add_argument(
        "--from",
        dest="template",
        default="question",
        metavar="TEMPLATE",
        help="question, classification, or a bundled case (default: %(default)s)",
    )
    new.add_argument(
        "--folder", type=Path, default=Path("cases"), metavar="DIR", help="where (default: %(default)s)"
    )
    schema = _command(rooms, "schema", "print the JSON Schema of case files, for editors", _schema)
    schema.add_argument("--recording", action="store_true", help="of recording.json instead")

    run = _command(rooms, "run", "run cases, and record what is seen; what is recorded already is left", _run)
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
    run.add_argument("--timeout", type=_seconds, default=3600.0, metavar="S", help="seconds that one case may take "
                     "(default: %(default)g)")  # fmt: skip
    where = run.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=_positive, default=1, metavar="N", help="how many at once (default: %(default)s)")
    where.add_argument("--cluster", metavar="ADDRESS", help="on the workers of a Dask cluster: its scheduler's "
                       "address, or its scheduler file (.json)")  # fmt: skip
    run.add_argument("--cold", action="store_true", help="a new kernel for each case, by papermill's stock engine")
    run.add_argument("--notebook", type=Path, metavar="FILE", help="run this notebook instead of the bundled one")

    build = _command(rooms, "build", "make the site from recordings; only what is stale is made again", _build)
    build.add_argument("--recordings", type=Path, metavar="DIR", help="(default: the folder recordings in --out)")
    build.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="(default: %(default)s)")
    build.add_argument("--templates", type=Path, metavar="DIR", help="templates of your own, before the bundled")
    build.add_argument("--force", action="store_true", help="make every page again, over any file in the way")
    serve = _command(rooms, "serve", "show the site in a browser on this machine", _serve)
    serve.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="(default: %(default)s)")
    serve.add_argument(
        "--port", type=_natural, default=8000, metavar="N", help="0 finds a free one (default: %(default)s)"
    )

    publish = _command(rooms, "publish", "push the site to GitHub Pages", _publish)
    publish.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="(default: %(default)s)")
    publish.add_argument("--remote", default="origin", metavar="NAME", help="(default: %(default)s)")
    publish.add_argument("--branch", default="gh-pages", metavar="NAME", help="(default: %(default)s)")
    publish.add_argument("--dry-run", action="store_true", help="say what would be pushed, and push nothing")
    _command(rooms, "init-ci", "write GitHub workflows that publish the site and audit the cases", _init_ci)

    world = _group(rooms, "sketchworld", "the bundled world, whose models fail for known reasons")
    train = _command(world, "train", "make the models from nothing", _sketchworld_train)
    train.add_argument(
        "--out",
        type=Path,
        default=Path("sketchworld-weights"),
        metavar="DIR",
        help="where the weights go (default: %(default)s)",
    )
    train.add_argument(
        "--work", type=Path, metavar="DIR", help="keep finished stages here, and go on from them"
    )
    train.add_argument("--device", choices=DEVICES, default="auto", help="(default: %(default)s)")
    train.add_argument("--seed", type=_natural, default=0, metavar="N", help="(default: %(default)s)")
    train.add_argument(
        "--quick",
        action="store_true",
        help="a few steps of every stage: proves that the recipe runs, trains nothing",
    )

    measure = _command(world, "eval", "measure the models against their goals", _sketchworld_eval)
    measure.add_argument("--weights", type=Path, metavar="DIR", help="(default: the bundled weights)")
    measure.add_argument(
        "--scenes",
        type=_positive,
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

    draw = _command(
        world, "draw", "draw scenes: a picture, and the scene as JSON beside it", _sketchworld_draw
    )
    draw.add_argument("--family", metavar="F", help="ordinary scenes of one family (default: of all)")
    draw.add_argument("--mode", metavar="M", help="planted failures of this mode, with --variation")
    draw.add_argument("--variation", metavar="V", help="which of the mode's variations")
    draw.add_argument(
        "--seed", type=_natural, default=0, metavar="N", help="the first seed (default: %(default)s)"
    )
    draw.add_argument("--count", type=_positive, default=1, metavar="N", help="(default: %(default)s)")
    draw.add_argument("--size", type=_positive, default=384, metavar="PX", help="(default: %(default)s)")
    draw.add_argument(
        "--out", type=Path, default=Path("sketchworld-scenes"), metavar="DIR", help="(default: %(default)s)"
    )

    _command(world, "rules", "say what training never shows", _sketchworld_rules)

    sae = _group(rooms, "sae", "sparse autoencoders on disk")
    check = _command(sae, "check", "read one and say what it is", _sae_check)
    check.add_argument(
        "path", metavar="PATH", help="a folder, a file, or a bundled name such as sketchworld/vision.3"
    )
    check.add_argument("--model", metavar="M", help="measure it on this model (a bundled SAE: on its own)")
    check.add_argument(
        "--images", metavar="DIR", help="on the pictures of this folder, or on scenes of sketchworld"
    )
    check.add_argument("--n", type=_positive, metavar="N", help="how many pictures (default: 64)")
    check.add_argument("--tap", metavar="TAP", help="where, such as vision.18 (default: what the file says)")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    _add_machine(check)
    convert = _command(sae, "convert", "write one again in the format of this package", _sae_convert)
    convert.add_argument("source", metavar="SRC", help="a folder, a file, or a bundled name")
    convert.add_argument("destination", type=Path, metavar="DST", help="a folder that is not there yet")

    doctor = _command(rooms, "doctor", "prove that a model, an SAE and this machine fit together", _doctor)
    doctor.add_argument("--model", default="sketchworld", metavar="M", help="(default: %(default)s)")
    doctor.add_argument("--sae", default="sketchworld/vision.3", metavar="S", help="(default: %(default)s)")
    doctor.add_argument("--image", metavar="FILE", help="a picture (default: a scene of sketchworld)")
    doctor.add_argument("--prompt", metavar="P", help="a short question about it")
    doctor.add_argument("--tap", metavar="TAP", help="where, such as vision.18 (default: what the SAE says)")
    doctor.add_argument("--right", metavar="ANSWER", help="with --wrong: the two answers to measure between")
    doctor.add_argument("--wrong", metavar="ANSWER", help="(default: the two likeliest)")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="write what was found here too")
    _add_machine(doctor)
    return parser


def _add_machine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=DEVICES, default="auto", help="(default: %(default)s)")
    command.add_argument(
        "--dtype", choices=DTYPES, help="(default: float32 on a CPU, the model's own elsewhere)"
    )


def _group(subparsers: Any, name: str, what: str) -> Any:
    group = subparsers.add_parser(name, help=what, description=what, allow_abbrev=False)
    return group.add_subparsers(metavar="COMMAND", required=True)


def _command(subparsers: Any, name: str, what: str, run: Any) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=what, description=what, allow_abbrev=False)
    command.set_defaults(command=run)
    return command


def _natural(text: str) -> int:
    return _whole_number(text, least=0)


def _positive(text: str) -> int:
    return _whole_number(text, least=1)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} upwards")
    return number


def _check_writable(path: Path | None) -> None:
    """What cannot be written is said before the long part."""
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(path, "its folder does not exist", "Make it first.")


def _quiet() -> None:
    """Libraries are asked to keep their bars and advice to themselves. They read this once, when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class _Bar:
    """How far a long part is; on a terminal only, and gone when it is done."""

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.done, self.shown = total, what, 0, sys.stderr.isatty()

    def __enter__(self) -> _Bar:
        return self

    def at(self, done: int | None = None) -> None:
        self.done = self.done + 1 if done is None else done
        if self.shown:
            filled = 30 * self.done // max(self.total, 1)
            bar = "#" * filled + "." * (30 - filled)
            print(f"\r{bar} {self.done} of {self.total} {self.what}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _write_json(path: Path, data: object) -> None:
    _write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """Whole or absent: written beside its place, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
