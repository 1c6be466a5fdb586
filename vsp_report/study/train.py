"""Train: pictures, a model and taps in; sparse autoencoders on disk out.

    states    out of one forward pass for all taps, streamed or from a cache that is written first
    training  every tap's at once, from the same rows
    out/      vision.3/ …, each an SAE that `load_sae` and SAELens read; until they are there, the run's checkpoint

With a cache that is whole no model is loaded, where all taps are counted from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from vsp_report import paths
from vsp_report.errors import InputError
from vsp_report.model.activation_cache import CachedRows, Identity, open_cache, write_cache
from vsp_report.model.checkpoints import save_sae
from vsp_report.model.devices import check_device
from vsp_report.model.runs import Stopped, Trained, device_named, stopping, train_taps
from vsp_report.model.sae import Sae
from vsp_report.model.streams import BUFFER_BATCHES, DTYPES, PictureRows, Source, Stream, trained_taps
from vsp_report.model.taps import WORD, Tap
from vsp_report.model.training import Recipe, Step, UnusableRecipe
from vsp_report.model.vlm import load_vlm
from vsp_report.recording import folder_sha, sha
from vsp_report.study.image_sets import image_set
from vsp_report.study.observe import load_sae

CHECKPOINT = "checkpoint.safetensors"
ANY_WIDTH = 1 << 20
"""What a recipe says is checked before there is a model; what depends on its width, again later."""


@dataclass(frozen=True)
class Plan:
    model: str
    taps: tuple[str, ...]
    images: str
    """a folder, or sketchworld"""
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    n: int | None = None
    prompt: str = "Describe the image."
    cache: Path | None = None
    states: str = "float16"
    per_pass: int = 8
    buffer: int = BUFFER_BATCHES
    """batches that are mixed"""
    resume: bool = False
    onto: str = ""
    """an SAE, or a run's folder with one for each tap, whose living latents are kept; "" for none"""
    every: int = 500
    device: str = "auto"
    dtype: str | None = None
    team: bool = False


class Told(NamedTuple):
    """How far it is."""

    what: str
    """pictures, while a cache is written; steps"""
    done: int
    of: int
    steps: Mapping[str, Step] = {}


class Outcome(NamedTuple):
    folders: dict[str, Path]
    trained: dict[str, Trained]
    skipped: dict[str, str]
    """pictures that could not be read, and why"""
    rank: int = 0
    """in a team; the first writes and speaks"""


def train(
    plan: Plan, words: Mapping[str, Any] | None = None, on_progress: Callable[[Told], None] = lambda told: None
) -> Outcome:
    """Raises Stopped when it was asked to stop; then a checkpoint is in `plan.out`."""
    _check(plan)
    check_device(plan.device)
    held = _held(plan)
    recipe, checkpoint = plan.recipe, plan.out / CHECKPOINT
    if held:
        recipe = replace(recipe, dead="revive")
    pictures = image_set(plan.images, plan.n)
    team = _team(plan)
    rank = team.rank if team else 0
    if rank:
        on_progress = _say_nothing
    device = device_named(plan.device) if team is None else str(team.device).replace("cpu:0", "cpu")
    with stopping() as check, _recipes_faults():
        source, identity = _source(plan, pictures, device, team, check, on_progress)
        _check_free(plan, source.taps)  # once more: vision.-1 has a number now
        onto = _first_lives(plan, held, source.taps)
        share = (rank, team.size if team else 1)
        batch = recipe.batch // share[1]
        # In a team, one that leaves its load would let the others wait for ever.
        stream = Stream(source, batch, recipe.seed, buffer=plan.buffer * batch, share=share,
                        check=check if team is None else lambda: None)  # fmt: skip
        asked = {
            "model": identity.model, "images": identity.images, "taps": list(source.taps), "prompt": plan.prompt,
            "states": plan.states, "per-pass": plan.per_pass, "buffer": plan.buffer,
            "onto": {tap: _identity(sae) for tap, sae in onto.items()}, **_plain(recipe),
        }  # fmt: skip
        plan.out.mkdir(parents=True, exist_ok=True)
        done = _steps_told(on_progress, recipe.steps)
        trained = train_taps(
            stream, recipe, asked=asked, words=words, device=device, team=team, checkpoint=checkpoint,
            resume=plan.resume, onto=onto, every=plan.every, check=check, on_step=done,
        )  # fmt: skip
        folders = {tap: plan.out / tap for tap in trained}
        if rank == 0:
            for tap, one in trained.items():
                save_sae(one.sae.replace(name=f"{plan.out.name}/{tap}"), folders[tap], DTYPES["float32"])
            checkpoint.unlink(missing_ok=True)
    if team is not None:
        team.close()
    return Outcome(folders, trained, dict(source.skipped), rank)


def _check(plan: Plan) -> None:
    """What can be said before a model is loaded."""
    with _recipes_faults():
        plan.recipe.completed(ANY_WIDTH)
    checkpoint, taps = plan.out / CHECKPOINT, [str(Tap.parse(word, "--tap")) for word in plan.taps]
    if plan.out.exists() and not plan.out.is_dir():
        raise InputError(str(plan.out), "is a file", "Name a folder.")
    if checkpoint.exists() and not plan.resume:
        fault = "holds a run that was stopped"
        raise InputError(str(plan.out), fault, "Go on with --resume, or name another --out.")
    if plan.resume and not checkpoint.exists():
        raise InputError(str(plan.out), "holds no run that was stopped", "Leave out --resume, or name its --out.")
    _check_free(plan, taps)
    if plan.states not in DTYPES:
        raise InputError("--states", f"is {plan.states!r}", f"Expected one of {', '.join(DTYPES)}.")
    if plan.onto and plan.recipe.architecture != "topk":
        raise InputError("--onto", f"is for topk, and this is {plan.recipe.architecture}", "Leave one of them out.")
    if plan.onto and plan.recipe.dead not in ("", "revive"):
        raise InputError("--onto", f"revives the dead, and --dead is {plan.recipe.dead}", "Leave one of them out.")


def _held(plan: Plan) -> dict[str, Sae]:
    """What --onto names, by tap; "" if it does not say of which it is."""
    if not plan.onto:
        return {}
    run = Path(plan.onto)
    inside = [place for place in run.iterdir() if re.fullmatch(WORD, place.name)] if run.is_dir() else []
    held = {place.name: load_sae(place) for place in inside}
    if not held:
        sae = load_sae(plan.onto)
        held = {sae.tap: sae}
    numbered = [str(tap) for tap in map(Tap.parse, plan.taps) if (tap.layer or 0) >= 0]
    _first_lives(plan, held, tuple(numbered))  # a wrong one is said before pictures are read
    return held


def _first_lives(plan: Plan, held: Mapping[str, Sae], taps: tuple[str, ...]) -> dict[str, Sae]:
    """Of each tap, whose living latents are kept."""
    if not held:
        return {}
    if len(taps) == 1 and "" in held:
        return {taps[0]: held[""]}
    if missing := [tap for tap in taps if tap not in held]:
        fault = f"{plan.onto} holds none for {', '.join(missing)}"
        raise InputError("--onto", fault, "Name a run's folder that has one for each tap.")
    return {tap: held[tap] for tap in taps}


def _identity(sae: Sae) -> str:
    return sha(b"".join(tensor.numpy().tobytes() for tensor in sae.state_dict().values()))[:16]


def _check_free(plan: Plan, taps: Iterable[str]) -> None:
    there = [tap for tap in taps if (plan.out / tap).exists()]
    if there and not plan.resume:
        raise InputError(str(plan.out / there[0]), "is there already", "Name another --out.")


@contextmanager
def _recipes_faults() -> Iterator[None]:
    try:
        yield
    except UnusableRecipe as error:
        remedy = f"{error.remedy[:1].upper()}{error.remedy[1:]}."
        raise InputError(f"--{error.name}", error.fault, remedy) from error


def _plain(recipe: Recipe) -> dict[str, Any]:
    return asdict(recipe) | {"prefixes": list(recipe.prefixes)}


def _team(plan: Plan) -> Any:
    if not plan.team:
        return None
    from vsp_report.model.teams import Accelerated

    team = Accelerated(cpu=plan.device == "cpu")
    if plan.recipe.batch % team.size:
        fault = f"is {plan.recipe.batch}, which {team.size} processes cannot share evenly"
        raise InputError("--batch", fault, f"Take a multiple of {team.size}.")
    return team


def _source(
    plan: Plan, pictures: Any, device: str, team: Any, check: Callable[[], None], on_progress: Callable[[Told], None]
) -> tuple[Source, Identity]:
    """Where states come from: a cache that is whole, one that is written now, or the pictures each time."""
    place = paths.bundled(plan.model) or Path(plan.model)
    precision = plan.dtype or ("float32" if device == "cpu" else "its own precision")

    def identity(found: str) -> Identity:
        return Identity(f"{found} in {precision}", pictures.identity, plan.prompt, plan.states, plan.per_pass)

    named = identity(f"{Path(plan.model).name} {folder_sha(place)[:16]}") if place.is_dir() else None
    taps = tuple(dict.fromkeys(Tap.parse(word) for word in plan.taps))
    # Which layer vision.-1 is, the model knows.
    if named and plan.cache is not None and not any((tap.layer or 0) < 0 for tap in taps):
        cached = open_cache(plan.cache, named, tuple(map(str, taps)))
        if cached is not None:
            return cached, named
    vlm = load_vlm(plan.model, device=device, dtype=plan.dtype)
    taps = trained_taps(vlm, plan.taps)
    named = named or identity(f"{vlm.name.partition('@')[0]}@{getattr(vlm.model.config, '_commit_hash', None)}")
    rows = PictureRows(vlm, taps, pictures.pictures, plan.per_pass, plan.prompt, DTYPES[plan.states])
    if plan.cache is None:
        return rows, named
    if team is not None and team.size > 1:
        fault = "is not written yet, and one process of several would let the others wait"
        raise InputError(str(plan.cache), fault, "Write it with one process first, without --accelerate.")
    cached = open_cache(plan.cache, named, rows.taps)
    return cached or _written(plan.cache, named, rows, check, on_progress), named


def _written(
    folder: Path, identity: Identity, rows: PictureRows, check: Callable[[], None], on_progress: Callable[[Told], None]
) -> CachedRows:
    total = len(rows.pictures)
    return write_cache(
        folder, identity, rows, check=check,
        on_chunk=lambda done: on_progress(Told("pictures", min(total, done * rows.per_pass), total)),
    )  # fmt: skip


def _say_nothing(told: Told) -> None:
    pass


def _steps_told(on_progress: Callable[[Told], None], steps: int) -> Callable[[dict[str, Step]], None]:
    return lambda told: on_progress(Told("steps", next(iter(told.values())).step + 1, steps, told))


__all__ = ["CHECKPOINT", "Outcome", "Plan", "Stopped", "Told", "train"]
