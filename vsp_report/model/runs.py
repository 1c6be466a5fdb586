"""Runs: SAEs for several taps trained at once from one stream, which can be stopped and go on.

A checkpoint is one safetensors file, renamed into place: the weights, the optimiser's moments, what every generator of
random numbers is at, where the stream is and what it carries. On a CPU a run that was stopped, or killed, and goes on
ends with the same bits as one that was not; the same number of threads given.

Axes: B rows of a step, D width.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import vsp_report
from vsp_report.errors import CheckpointError
from vsp_report.model.sae import Sae
from vsp_report.model.streams import Position, Stream
from vsp_report.model.training import DEAD_AFTER, Recipe, Step, Team, Trainer

FORMAT = 1
POINTS = 100
"""How many steps the record keeps, evenly."""
LAST = 5
"""A run's figures are the mean over so many of the last of them."""
CURVE = ("step", "loss", "explained_variance", "mean_l0", "dead_share")


class Stopped(KeyboardInterrupt):
    """Asked to stop, and stopped where the run can go on. `step`: how many are done; None: there is no run yet."""

    def __init__(self, step: int | None = None) -> None:
        super().__init__("stopped" if step is None else f"stopped after {step} steps")
        self.step = step


class Trained(NamedTuple):
    sae: Sae
    figures: dict[str, float]


class _Progress(NamedTuple):
    """What a checkpoint holds besides the trainers' states."""

    step: int
    positions: list[Position]
    curves: dict[str, list[list[float]]]


def device_named(word: str) -> str:
    """`auto` is cuda where there is one."""
    return word if word != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """While open, Ctrl-C or a termination is kept until what is yielded is called, which then raises Stopped.

    A second one interrupts at once.
    """
    asked = []

    def remember(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    def check() -> None:
        if asked:
            raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_taps(
    stream: Stream,
    recipe: Recipe,
    *,
    asked: Mapping[str, Any],
    words: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    team: Team | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    onto: Mapping[str, Sae] | None = None,
    every: int = 500,
    check: Callable[[], None] = lambda: None,
    on_step: Callable[[dict[str, Step]], None] = lambda told: None,
) -> dict[str, Trained]:
    """An SAE for every tap of the stream, all from the same rows.

    `asked`: what the run depends on, as plain data; a checkpoint is gone on from only if it says the same. `words`:
    how that was said, to be repeated. `onto`: by tap, whose living latents are kept. A checkpoint is written `every` so
    many steps, and when `check`, called between two steps, raises Stopped.
    """
    taps, known = stream.source.taps, None
    if resume:
        known, states = _read(checkpoint, asked, taps, team.size if team else 1)
        stream.go_to(known.positions[team.rank if team else 0])
    sample = stream.sample()
    trainers = {
        tap: Trainer(recipe, sample[tap], device=device, team=team, onto=(onto or {}).get(tap)) for tap in taps
    }
    curves: dict[str, list[list[float]]] = known.curves if known else {tap: [] for tap in taps}
    for tap in taps if known else ():
        trainers[tap].restore(states[tap])
    del sample
    step = known.step if known else 0

    def keep() -> None:
        if checkpoint is not None:
            positions = team.gathered(stream.position) if team else [stream.position]
            if team is None or team.rank == 0:
                _write(checkpoint, asked, words or {}, trainers, _Progress(step, positions, curves))

    try:
        while step < recipe.steps:
            _check_all(check, team)
            rows = next(stream)
            told = {tap: trainer.step(rows[tap]) for tap, trainer in trainers.items()}
            step += 1
            if step % max(1, recipe.steps // POINTS) == 0 or step == recipe.steps:
                for tap, one in told.items():
                    point = (one.loss, 1 - one.unexplained_variance, one.mean_l0, one.dead_share)
                    curves[tap].append([step, *(float(f"{value:.6g}") for value in point)])
            on_step(told)
            if step % every == 0 and step < recipe.steps:
                keep()
    except Stopped as stopped:
        keep()
        raise Stopped(step) from stopped
    return {tap: _trained(trainer, tap, curves[tap], asked, stream) for tap, trainer in trainers.items()}


def _check_all(check: Callable[[], None], team: Team | None) -> None:
    """A team stops together, or those who go on would wait for ever."""
    if team is None:
        return check()
    asked = False
    try:
        check()
    except Stopped:
        asked = True
    if bool(team.any(torch.tensor([asked], device=getattr(team, "device", "cpu")))):
        raise Stopped


def _trained(trainer: Trainer, tap: str, curve: list[list[float]], asked: Mapping[str, Any], stream: Stream) -> Trained:
    sae, last = trainer.finished(), curve[-LAST:]
    figures = {name: sum(point[k] for point in last) / len(last) for k, name in enumerate(CURVE) if k}
    record = {
        "asked": dict(asked),
        "rows": trainer.steps_done * trainer.recipe.batch,
        "epochs": stream.epoch + 1,
        "dead_after_rows": DEAD_AFTER,
        "normalisation": {"scale": trainer.scale, "length_of_mean": float(trainer.mean_D.norm())},
        "figures": {name: float(f"{value:.6g}") for name, value in figures.items()},
        "curve": {name: [point[k] for point in curve] for k, name in enumerate(CURVE)},
        "versions": {
            "vsp_report": vsp_report.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return Trained(sae.replace(tap=tap, provenance=sae.provenance | record), figures)


# --- checkpoints -------------------------------------------------------------------------------------------------


def _write(
    path: Path,
    asked: Mapping[str, Any],
    words: Mapping[str, Any],
    trainers: Mapping[str, Trainer],
    progress: _Progress,
) -> None:
    tensors, places = {}, []
    for tap, trainer in trainers.items():
        tensors |= {f"{tap}|{name}": tensor for name, tensor in trainer.state().items()}
    for rank, at in enumerate(progress.positions):
        places.append([at.epoch, at.first, at.batches])
        tensors |= {f"carried {rank}|{tap}": rows.contiguous() for tap, rows in at.carried.items()}
    told = {"format": FORMAT, "asked": asked, "words": words, "step": progress.step, "positions": places,
            "curves": progress.curves}  # fmt: skip
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, beside, metadata={"run": json.dumps(told)})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _read(
    path: Path, asked: Mapping[str, Any], taps: tuple[str, ...], size: int
) -> tuple[_Progress, dict[str, dict[str, torch.Tensor]]]:
    told, tensors = _opened(path)
    for name, wanted in json.loads(json.dumps(asked)).items():
        if (found := told["asked"].get(name)) != wanted:
            fault = f"is of another run: {name} was {_said(found)}, and is {_said(wanted)} now"
            raise CheckpointError(str(path), fault, "Repeat what it was started with, or name another --out.")
    if len(told["positions"]) != size:
        fault = f"was written by {len(told['positions'])} processes, and this run has {size}"
        raise CheckpointError(str(path), fault, "Start as many.")
    states = {tap: {k.partition("|")[2]: v for k, v in tensors.items() if k.startswith(f"{tap}|")} for tap in taps}
    positions = []
    for rank, place in enumerate(told["positions"]):
        start = f"carried {rank}|"
        positions.append(
            Position(*place, {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
        )
    return _Progress(told["step"], positions, told["curves"]), states


def words_of(path: Path) -> dict[str, Any]:
    """How the run in a checkpoint was asked for."""
    return _opened(path, tensors=False)[0]["words"]


def _opened(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise CheckpointError(str(path), "there is no run to go on with", "Leave out --resume, or name its --out.")
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["run"])
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}
            known = told["format"] == FORMAT
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        fault = (
            f"is damaged, or no run's checkpoint ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        )
        raise CheckpointError(str(path), fault, "Start anew in another folder.") from error
    if not known:
        raise CheckpointError(str(path), "is of another version of this package", "Start anew in another folder.")
    return told, found


def _said(value: Any) -> str:
    return "not given" if value is None else str(value)
