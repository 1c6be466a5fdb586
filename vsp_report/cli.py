"""CLI: the commands. Each reads its words, calls one room, and says what came out.

A room is imported inside the command that needs it, so that `--help` never waits for torch.

Exit codes: 0 done; 1 measured, and a goal is not met; 2 the user's mistake; 3 it could not run; 130
interrupted. A crash of our own is 3 as well, not Python's 1: a job that reads 1 as "not met" must not read a
crash so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from vsp_report import __version__, paths
from vsp_report.errors import InputError, ModelError, VspError

NOT_MET, COULD_NOT_RUN, INTERRUPTED = 1, 3, 130
DEVICES = ("auto", "cpu", "cuda")


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
    # What cannot be written is said before the long part.
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise InputError(args.json, "its folder does not exist", "Make it first.")
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
    for name, fact in facts.items():
        print(f"{name:<22}{fact}")
    return 0


def _sae_convert(args: argparse.Namespace) -> int:
    if args.destination.exists():
        raise InputError(args.destination, "is there already", "Name a folder that is not.")
    from vsp_report.model import checkpoints

    checkpoints.save_sae(checkpoints.load_sae(_bundled_or_path(args.source)), args.destination)
    print(f"written: {args.destination}")
    return 0


def _bundled_or_path(name: str) -> Path | str:
    return paths.bundled(name) or name


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
    convert = _command(sae, "convert", "write one again in the format of this package", _sae_convert)
    convert.add_argument("source", metavar="SRC", help="a folder, a file, or a bundled name")
    convert.add_argument("destination", type=Path, metavar="DST", help="a folder that is not there yet")
    return parser


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


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} upwards")
    return number


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
