"""Recipe: the numbers of a training run, and the record of what came of it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field

import numpy as np
import torch
import transformers


@dataclass(frozen=True)
class Recipe:
    scenes: int = 56_000
    tower_steps: int = 2_200
    tower_batch: int = 64
    tower_rate: float = 1e-3
    words_steps: int = 1_500
    words_batch: int = 256
    words_rate: float = 1e-3
    language_steps: int = 7_000
    language_batch: int = 24
    language_rate: float = 1.5e-3
    sae_scenes: int = 14_000
    sae_steps: int = 2_500
    seed: int = 0


QUICK = Recipe(
    scenes=96,
    tower_steps=3,
    tower_batch=16,
    words_steps=3,
    words_batch=16,
    language_steps=3,
    language_batch=8,
    sae_scenes=32,
    sae_steps=4,
)
"""Seconds instead of an hour: proves that the recipe runs, and trains nothing worth using."""


@dataclass
class Record:
    """The training record: what was run, what came out while it ran, and how long it took."""

    recipe: Recipe
    device: str
    versions: dict[str, str] = field(default_factory=lambda: {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "numpy": np.__version__,
    })  # fmt: skip
    threads: int = field(default_factory=torch.get_num_threads)
    seconds: dict[str, float] = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)
    tell: InitVar[Callable[[str], object]] = lambda _: None
    """Hears each row of the curve as it comes; no part of the record."""

    def __post_init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell

    def note(self, stage: str, step: int, **figures: float) -> None:
        row = {"stage": stage, "step": step, **{k: round(float(v), 4) for k, v in figures.items()}}
        self.curve.append(row)
        self._tell(" ".join(f"{k}={v}" for k, v in row.items()))
