"""Autoencoders: which taps of the trained models get one, the states they learn from, and their training."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from vsp_report.model.checkpoints import load_sae, save_sae
from vsp_report.model.sae import Sae, quality
from vsp_report.model.training import train_sae
from vsp_report.sketchworld import rules
from vsp_report.sketchworld.models import FEATURE_LAYER, PATCHES, normalized
from vsp_report.sketchworld.packing import Packer, text_logits
from vsp_report.sketchworld.pool import Pool
from vsp_report.sketchworld.recipe import Recipe, Record
from vsp_report.sketchworld.scene import Scene

BATCH = 96


@dataclass(frozen=True)
class SaePlan:
    tap: str
    architecture: str = "topk"
    k: int = 16
    l1: float = 0.15
    steps: float = 1.0
    """In units of the recipe's steps."""
    dead: str = ""
    """What is done about dead latents; "" is the architecture's own."""
    onto: str = ""
    """The one, before it, whose living latents are kept as they are."""


BACKGROUND = 0.15
"""The share of the background's patches that a vision tap's autoencoder learns from: most are alike."""

SAES = {
    "vision.3-relu": SaePlan("vision.3", "standard", l1=0.13, steps=2.0),
    "vision.3": SaePlan("vision.3", k=32, steps=0.6, dead="revive", onto="vision.3-relu"),
    "vision.0": SaePlan("vision.0", steps=0.4),
    "vision.2": SaePlan("vision.2", steps=0.6, dead="revive"),
    "text.2": SaePlan("text.2", k=24, steps=0.8, dead="revive"),
}
"""By bundled name: the main tap twice (ReLU + L1 as in the paper, and TopK, in which the first one's living latents are
kept and its dead ones learn what those leave over), an early and a middle one, and one on the language model's residual
stream, over image and text positions."""


@torch.no_grad()
def tap_states(
    llava: LlavaForConditionalGeneration, scenes: list[Scene], pixels: np.ndarray, taps: Iterable[str], device: str
) -> dict[str, torch.Tensor]:
    """Of each tap (rows, width) in half precision: the state of every patch, and for a text tap of every text position
    too. They fill gigabytes."""
    parts: dict[str, list[torch.Tensor]] = {tap: [] for tap in taps}
    for i in range(0, len(pixels), BATCH):
        with torch.autocast(device, torch.bfloat16):
            seen = llava.model.vision_tower(normalized(pixels[i : i + BATCH], device), output_hidden_states=True)
            for tap, kept in parts.items():
                place, _, number = tap.partition(".")
                of_batch = _vision_states if place == "vision" else _text_states
                kept.append(of_batch(llava, seen.hidden_states, scenes[i : i + BATCH], int(number), i).half().cpu())
    return {tap: torch.cat(kept) for tap, kept in parts.items()}


def _vision_states(
    llava, hidden: tuple[torch.Tensor, ...], scenes: list[Scene], number: int, first: int
) -> torch.Tensor:
    return hidden[number + 1][:, 1:].flatten(0, 1)


def _text_states(llava, hidden: tuple[torch.Tensor, ...], scenes: list[Scene], number: int, first: int) -> torch.Tensor:
    """Every patch and every word of three questions; not <bos>, whose state is the same in all pictures."""
    batch = Packer().batch([rules.questions(scene, first + j)[:3] for j, scene in enumerate(scenes)])
    kept: list[torch.Tensor] = []
    layer = llava.model.language_model.layers[number]
    hook = layer.register_forward_hook(
        lambda _module, _args, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        text_logits(llava, hidden[FEATURE_LAYER][:, 1:].float(), batch)
    finally:
        hook.remove()
    image = torch.ones(len(scenes), PATCHES, dtype=torch.bool)
    bos = torch.zeros(len(scenes), 1, dtype=torch.bool)
    real = torch.cat([bos, image, batch["segments"] > 0], dim=1)
    states = torch.cat(kept, dim=1)  # the picture's, then the words'
    return states[real.to(states.device)]


def scenes_to_learn(pool: Pool, count: int) -> np.ndarray:
    """Ordinary scenes for one half, and for the other portraits, in which every kind is as frequent."""
    half = count // 2
    portraits = [i for i in range(half, len(pool.scenes)) if pool.scenes[i].family == "portraits"]
    return np.asarray([*range(min(half, len(pool.scenes))), *portraits[: count - half]])


def train_saes(
    llava: LlavaForConditionalGeneration, pool: Pool, recipe: Recipe, device: str, record: Record, stages: Path
) -> dict[str, Sae]:
    """Every planned autoencoder; those that `stages` holds already are taken from there."""
    rows = scenes_to_learn(pool, recipe.sae_scenes)
    scenes, pixels, shown = [pool.scenes[i] for i in rows], pool.pixels[rows], pool.kinds[rows].ravel() != 0
    taps = dict.fromkeys(plan.tap for name, plan in SAES.items() if not (stages / f"{name}.json").exists())
    states = tap_states(llava, scenes, pixels, taps, device) if taps else {}
    saes = {}
    for name, plan in SAES.items():
        kept, notes = stages / name, stages / f"{name}.json"
        if notes.exists():
            record.curve.append(json.loads(notes.read_text()))
            saes[name] = load_sae(kept)
            continue
        unseen = len(states[plan.tap]) // 20
        started, steps = time.monotonic(), max(2, int(recipe.sae_steps * plan.steps))
        seen = states[plan.tap][unseen:]
        if plan.tap.startswith("vision"):
            rng = np.random.default_rng(recipe.seed + 2)
            seen = seen[torch.from_numpy((shown | (rng.random(len(shown)) < BACKGROUND))[unseen:])]
        sae = train_sae(
            seen, architecture=plan.architecture, k=plan.k, l1=plan.l1, steps=steps,
            seed=recipe.seed + 2, device=device, dead=plan.dead, onto=saes.get(plan.onto),
        )  # fmt: skip
        found = quality(sae.cpu(), states[plan.tap][:unseen])
        record.note(f"sae {name}", steps, seconds=time.monotonic() - started, **found._asdict())
        saes[name] = sae.replace(tap=plan.tap, name=f"sketchworld/{name}")
        save_sae(saes[name], kept, dtype=torch.float32)
        notes.write_text(json.dumps(record.curve[-1]))
    return saes
