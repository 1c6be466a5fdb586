"""Autoencoders: which taps of the trained models get one, the states they learn from, and their training."""

from __future__ import annotations

import json
import time
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


BACKGROUND = 0.25
"""The share of the background's patches that a vision tap's autoencoder learns from: most are alike."""

SAES = {
    "vision.3": SaePlan("vision.3", k=20, steps=1.2, dead="revive"),
    "vision.3-relu": SaePlan("vision.3", "standard", steps=0.7),
    "vision.0": SaePlan("vision.0", steps=0.6),
    "vision.2": SaePlan("vision.2", steps=0.6),
    "text.2": SaePlan("text.2", k=24, steps=0.6),
}
"""By bundled name: the main tap twice (TopK, and ReLU + L1 as in the paper), an early and a middle one, and one on the
language model's residual stream, over image and text positions."""


@torch.no_grad()
def tap_states(
    llava: LlavaForConditionalGeneration, scenes: list[Scene], pixels: np.ndarray, tap: str, device: str
) -> torch.Tensor:
    """(rows, width) in half precision: the state of every patch, and for a text tap of every text position too."""
    place, _, number = tap.partition(".")
    of_batch = _vision_states if place == "vision" else _text_states
    parts = []
    for i in range(0, len(pixels), BATCH):
        with torch.autocast(device, torch.bfloat16):
            seen = llava.model.vision_tower(normalized(pixels[i : i + BATCH], device), output_hidden_states=True)
            parts.append(of_batch(llava, seen.hidden_states, scenes[i : i + BATCH], int(number), i).half().cpu())
    return torch.cat(parts)


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
    states = {}  # one tap's at a time: they fill gigabytes
    saes = {}
    for name, plan in SAES.items():
        kept, notes = stages / name, stages / f"{name}.json"
        if notes.exists():
            record.curve.append(json.loads(notes.read_text()))
            saes[name] = load_sae(kept)
            continue
        if plan.tap not in states:
            states = {plan.tap: tap_states(llava, scenes, pixels, plan.tap, device)}
        unseen = len(states[plan.tap]) // 20
        started, steps = time.monotonic(), max(2, int(recipe.sae_steps * plan.steps))
        seen = states[plan.tap][unseen:]
        if plan.tap.startswith("vision"):
            rng = np.random.default_rng(recipe.seed + 2)
            seen = seen[torch.from_numpy((shown | (rng.random(len(shown)) < BACKGROUND))[unseen:])]
        sae = train_sae(
            seen, architecture=plan.architecture, k=plan.k, l1=plan.l1, steps=steps,
            seed=recipe.seed + 2, device=device, dead=plan.dead,
        )  # fmt: skip
        found = quality(sae.cpu(), states[plan.tap][:unseen])
        record.note(f"sae {name}", steps, seconds=time.monotonic() - started, **found._asdict())
        saes[name] = sae.replace(tap=plan.tap, name=f"sketchworld/{name}")
        save_sae(saes[name], kept, dtype=torch.float32)
        notes.write_text(json.dumps(record.curve[-1]))
    return saes
