"""Atlas: the command that surveys pictures, and writes what is known of every latent of one or several SAEs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vsp_report.cli.words import Bar, add_machine, command, counted, natural, positive, print_facts, quiet
from vsp_report.errors import InputError

DEMO = {"model": "sketchworld", "sae": [f"sketchworld/vision.{layer}" for layer in (0, 2, 3)], "images": "sketchworld"}
CLIP = "sketchworld-clip"
BROKEN_SHOWN = 20
SLOW_SECONDS = 30
MOST_JOBS = 4


def add(rooms: Any) -> None:
    atlas = command(rooms, "atlas", "survey pictures: what makes each latent fire", _atlas)
    atlas.add_argument("--demo", action="store_true", help="the bundled model's three taps over scenes of sketchworld; "
                       "this is what happens without --model, --sae and --images too")  # fmt: skip
    atlas.add_argument("--model", metavar="M", help="a bundled name, a directory, or a Hub id@revision")
    atlas.add_argument(
        "--sae", action="append", metavar="S", help="likewise, or a file; several are surveyed in one pass"
    )
    atlas.add_argument(
        "--tap", action="append", metavar="TAP", help="where, one for each --sae (default: what it says)"
    )
    atlas.add_argument("--images", metavar="DIR", help="a folder of pictures, or sketchworld")
    atlas.add_argument("--n", type=positive, metavar="N", help="how many (default: all; of sketchworld 5000)")
    atlas.add_argument("--labels", action="append", metavar="CSV", help="image,label or latent,label (default for "
                       "pictures: the names of their folders)")  # fmt: skip
    atlas.add_argument("--words", type=Path, metavar="FILE", help="one word a line; a CLIP says which fits a latent")
    atlas.add_argument("--clip", metavar="M", help="the CLIP for --words (with the bundled model: sketchworld-clip)")
    atlas.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="(default: %(default)s)")
    atlas.add_argument("--jobs", type=positive, metavar="N", help="processes (default: 4 or the cores, 1 with a GPU)")
    atlas.add_argument("--cluster", metavar="ADDRESS", help="a Dask cluster instead, with storage that it shares")
    atlas.add_argument(
        "--memory", type=positive, metavar="MIB", help="what a batch may take (default: 1024; GPU: 8192)"
    )
    atlas.add_argument("--no-control", action="store_true", help="without the untrained SAE beside each")
    atlas.add_argument("--seed", type=natural, default=0, metavar="N", help="(default: %(default)s)")
    add_machine(atlas)


def _atlas(args: argparse.Namespace) -> int:
    given = [name for name in ("model", "sae", "images") if getattr(args, name)]
    if args.demo and given:
        raise InputError(f"--{given[0]}", "goes against --demo, which has its own", "Leave one of the two out.")
    if not given:
        for name, value in DEMO.items():
            setattr(args, name, value)
    for name in ("model", "sae", "images"):
        if not getattr(args, name):
            raise InputError(f"--{name}", "is not given", "Give --model, --sae and --images, or none of them.")
    if args.cluster and args.jobs is not None:
        raise InputError("--jobs", "goes against --cluster", "Leave one of the two out.")
    clip = _clip(args)
    quiet()
    from vsp_report.model.devices import check_device
    from vsp_report.study import photographs, survey, survey_atlas, survey_leftovers

    check_device(args.device)
    tables = [photographs.read_labels(path) for path in args.labels or ()]
    pictures = {key: label for table in tables if table.of == "image" for key, label in table.labels.items()}
    latents = {int(key): label for table in tables if table.of == "latent" for key, label in table.labels.items()}
    told = ", ".join(Path(path).name for path in args.labels or ())
    if pictures and args.images == photographs.SCENES:
        raise InputError("--labels", "labels pictures, and sketchworld's are known", "Label latents, or leave it out.")
    if latents and len(args.sae) > 1:
        raise InputError("--labels", f"labels latents, and there are {len(args.sae)} SAEs", "Survey one at a time.")
    words = _words(args.words) if args.words else ()
    source = photographs.open_source(args.images, args.n, pictures or None, told, _say)
    if words:
        from vsp_report.study.survey_words import check_clip, name_by_words

        check_clip(clip, words, args.words.name)
    memory_bytes = args.memory and args.memory << 20
    asked = survey.Asked(
        args.model, tuple(args.sae), source, tuple(args.tap or ()), args.device, args.dtype, args.seed,
        control=not args.no_control, memory_bytes=memory_bytes, highest_label=max(latents, default=-1),
        labels_from=told,
    )  # fmt: skip
    parent = args.out / "atlas"
    started = time.monotonic()
    with Bar(what="first pictures looked at") as pace:
        plan = survey.plan(asked, parent, pace.at)
    _say(survey_leftovers.told(survey_leftovers.leftovers(plan.folder.parent, plan.folder)))
    for place in survey_atlas.places(plan, args.out):
        _say(place.note)
    there = sum(len(plan.numbers(k)) for first, last, _ in survey.sound(plan) for k in range(first, last + 1))
    if there:
        _say(f"going on: {there} of {len(source)} pictures are surveyed")
    try:
        with Bar(what="pictures") as pace, _workers(args, plan.facts["device_class"]) as executor:
            on_progress = lambda p: pace.at(p.done, p.total, p.fresh)  # noqa: E731
            tallies = survey.survey(plan, executor, on_progress, memory_bytes)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    rate, fresh = pace.rate, pace.fresh
    named = None
    if words:
        named = partial(name_by_words, source, words, clip, args.words.name, device=args.device)
    with Bar() as pace:
        folders = survey_atlas.make_atlases(
            plan, tallies, args.out, command=_command(args), words=named, on_step=partial(_step, pace),
            given=survey_atlas.Given(told, latents) if latents else None,
        )  # fmt: skip
    broken = survey_atlas.broken_pictures(plan, tallies)
    survey_leftovers.forget(plan)
    _tell(folders, broken, {"pictures": f"{len(source) - len(broken)} of {args.images}",
                            "pace": f"{rate:.1f} pictures a second" if fresh else "-",
                            "time": f"{time.monotonic() - started:.0f} s"})  # fmt: skip
    return 0


def _clip(args: argparse.Namespace) -> str:
    if args.words is None and args.clip is not None:
        raise InputError("--clip", "compares words, and there are none", "Give --words FILE.")
    if args.words is not None and args.clip is None and args.model != "sketchworld":
        raise InputError("--clip", "is not given", "Name the CLIP that is to compare the words, by its id@revision.")
    return args.clip or CLIP


def _words(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), "cannot be read as text", "Give a file with one word a line.") from error
    words = tuple(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if len(words) < 2:
        raise InputError(str(path), "has fewer than two words", "Write one word a line.")
    if long := [word for word in words if len(word) > 80]:
        raise InputError(str(path), f"{long[0][:40]!r}… is too long", "Write words of up to 80 letters.")
    return words


def _command(args: argparse.Namespace) -> str:
    """The command that makes it again, without folders of this machine: all that changes what an atlas says, but not
    how fast it is made."""
    from vsp_report.study.photographs import SCENES, title_of

    said = ["vsp-report", "atlas", "--demo"]
    if {name: getattr(args, name) for name in DEMO} != DEMO:
        saes = [word for name in args.sae for word in ("--sae", _portable(name))]
        images = args.images if args.images == SCENES else title_of(args.images)
        said = ["vsp-report", "atlas", "--model", _portable(args.model), *saes, "--images", images]
    said += [word for tap in args.tap or () for word in ("--tap", tap)]
    said += [word for path in args.labels or () for word in ("--labels", Path(path).name)]
    if args.words:
        said += ["--words", args.words.name, "--clip", _portable(args.clip or CLIP)]
    for name, otherwise in (("n", None), ("device", "auto"), ("dtype", None), ("seed", 0)):
        if (value := getattr(args, name)) != otherwise:
            said += [f"--{name}", str(value)]
    return shlex.join(said + ["--no-control"] * args.no_control)


def _portable(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


@contextlib.contextmanager
def _workers(args: argparse.Namespace, device_class: str) -> Iterator[Any]:
    from vsp_report.run import executors

    cores = min(os.cpu_count() or 1, MOST_JOBS) if device_class == "cpu" else 1
    jobs = cores if args.jobs is None else args.jobs
    if args.cluster:
        with executors.cluster(args.cluster) as executor:
            yield executor
    elif jobs > 1:
        with executors.processes(jobs) as executor:
            yield executor
    else:
        yield None


def _tell(folders: list[Path], broken: list[str], facts: dict[str, str]) -> None:
    from vsp_report.atlas import load_atlas

    print_facts(facts)
    for folder in folders:
        atlas = load_atlas(folder)
        print(f"\n{folder}")
        print(f"{'':<46}{'this':>10}{'untrained':>12}")
        for measure in atlas.quality:
            print(f"{measure.name:<46}{_figure(measure.value):>10}{_figure(measure.untrained):>12}")
        alive = counted(atlas.d_sae - atlas.dead, "latent")
        print(f"{alive} alive of {atlas.d_sae}, in {counted(len(atlas.clusters), 'cluster')}")
    if broken:
        print(f"\n{counted(len(broken), 'picture')} could not be read:")
        print("\n".join(broken[:BROKEN_SHOWN] + ([f"and {len(broken) - BROKEN_SHOWN} more, named in the atlas"]
                                                 if len(broken) > BROKEN_SHOWN else [])))  # fmt: skip


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _say(note: str) -> None:
    if note:
        print(note, file=sys.stderr)


def _step(pace: Bar, step: str, seconds: float) -> None:
    """What is being done; of what takes long, how long, and that in a pipe too."""
    if seconds < SLOW_SECONDS:
        return pace.says(step)
    said = f"{step}: about {_span(seconds)}; kept for the next time"
    if pace.shown:
        pace.says(said)
    else:
        _say(said)


def _span(seconds: float) -> str:
    return f"{round(seconds / 60)} min" if seconds >= 90 else f"{round(seconds)} s"
