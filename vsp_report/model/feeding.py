"""Feeding: photographs in, states of their patches out. A batch at a time, at several taps, in one forward pass.

A model's processor lays an image out anew for each prompt, text and all. Here the prompt is always the same, so it is
laid out once for each size of picture, and after that only the picture's pixels are worked out; that both ways give the
same is looked at once for each model, and where they do not, the long way is taken.

Of a model that cuts a picture in tiles the view of the whole picture counts, which is the largest tile.

Axes: B pictures, P patches of one picture, N patches of all of them, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from vsp_report.errors import ModelError
from vsp_report.maths.tallies import Entries, Explained
from vsp_report.model import taps as places
from vsp_report.model.fit import PROMPT
from vsp_report.model.latents import LATENTS_BYTES
from vsp_report.model.sae import Sae
from vsp_report.model.steering import see_states
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Prompt, Vlm

KEPT = 64
"""So many layouts are kept."""


class Fed(NamedTuple):
    """The patches of a batch, picture after picture, row by row."""

    states: dict[Tap, torch.Tensor]
    """(N, D)"""
    grids_B2: np.ndarray
    """rows and columns of patches"""
    boxes_B4: np.ndarray
    """the part of each picture that its patches cover, in pixels"""

    @property
    def patches_B(self) -> np.ndarray:
        return self.grids_B2.prod(1)


class Feeder:
    """One model, and the taps that are read in each pass."""

    def __init__(self, vlm: Vlm, taps: Sequence[Tap]) -> None:
        self.vlm = vlm
        self.taps = sorted(dict.fromkeys(taps), key=lambda tap: -tap.layer)
        self._layouts: dict[tuple[int, int], Prompt] = {}
        self._checked: bool | None = None

    @property
    def top(self) -> Tap:
        return self.taps[0]

    def prompt(self, image: Any) -> Prompt:
        """As `vlm.prepare` makes it."""
        size = (image.height, image.width)
        if size not in self._layouts:
            if len(self._layouts) >= KEPT:
                self._layouts.clear()
            self._layouts[size] = self.vlm.prepare(image, PROMPT)
            return self._layouts[size]
        if not self._short_way(image, size):
            return self.vlm.prepare(image, PROMPT)
        known = self._layouts[size]
        return replace(known, inputs={**known.inputs, **self._pixels(image)})

    def _short_way(self, image: Any, size: tuple[int, int]) -> bool:
        """Whether the image processor alone gives what the whole processor gives."""
        if self._checked is None:
            whole, part = self.vlm.prepare(image, PROMPT).inputs, self._pixels(image)
            known = self._layouts[size].inputs
            same = all(key in whole and torch.equal(whole[key], value) for key, value in part.items())
            rest = all(torch.equal(value, known[key]) for key, value in whole.items() if key not in part)
            self._checked = same and rest and "pixel_values" in part
        return self._checked

    def _pixels(self, image: Any) -> dict[str, torch.Tensor]:
        made = self.vlm.processor.image_processor(images=[image], return_tensors="pt")
        dtype = self.vlm.model.dtype
        return {
            key: value.to(self.vlm.device, dtype if value.is_floating_point() else None)
            for key, value in made.items() if isinstance(value, torch.Tensor)
        }  # fmt: skip

    @torch.no_grad()
    def see(self, prompts: Sequence[Prompt]) -> Fed:
        """A batch of pictures that are made ready."""
        parts = [self._see(joined(list(alike))) for _, alike in groupby(prompts, key=shape_of)]
        states = {tap: torch.cat([part.states[tap] for part in parts]) for tap in self.taps}
        return Fed(states, *(np.concatenate([getattr(p, name) for p in parts]) for name in ("grids_B2", "boxes_B4")))

    def _see(self, prompt: Prompt) -> Fed:
        seen = see_states(self.vlm, prompt, self.taps)
        views = [view_of(image) for image in prompt.images]
        rows = [image.first_state + image.layout.states_P[image.grid.tile_P == view.tile]
                for image, view in zip(prompt.images, views, strict=True)]  # fmt: skip
        rows_N = torch.as_tensor(np.concatenate(rows), device=self.vlm.device)
        states = {tap: seen[tap].flatten(0, -2)[rows_N] for tap in self.taps}
        self._check_finite(states)
        return Fed(states, np.array([view.grid for view in views], np.int64),
                   np.array([view.box for view in views], float))  # fmt: skip

    def _check_finite(self, states: dict[Tap, torch.Tensor]) -> None:
        """Half precision overflows in a few channels of some towers. One sum for each tap, in double precision, which
        is finite where all states are."""
        sums = torch.stack([part.sum(dtype=torch.float64) for part in states.values()]).tolist()
        for tap, total in zip(states, sums, strict=True):
            if not math.isfinite(total):
                raise ModelError(str(tap), f"{self.vlm.name} gives states that are not finite", "Try another --dtype.")


class View(NamedTuple):
    """What is read of one picture."""

    tile: int
    """its number"""
    grid: tuple[int, int]
    """rows and columns of patches"""
    box: tuple[float, float, float, float]
    """the part of the picture that they cover, in pixels"""


def view_of(image: Any) -> View:
    """The view of the whole picture: its largest tile."""
    tiles = image.grid.tiles
    largest = int(np.argmax([(tile.x1 - tile.x0) * (tile.y1 - tile.y0) for tile in tiles]))
    tile, (height, width) = tiles[largest], image.size
    box = (max(tile.x0, 0), max(tile.y0, 0), min(tile.x1, width), min(tile.y1, height))
    return View(largest, (tile.rows, tile.cols), box)


def shape_of(prompt: Prompt) -> tuple:
    """Prompts of the same can be one batch."""
    return tuple(sorted((key, tuple(value.shape[1:])) for key, value in prompt.inputs.items()))


def joined(prompts: list[Prompt]) -> Prompt:
    """Several prompts of one picture each as one batch."""
    if len(prompts) == 1:
        return prompts[0]
    inputs = {key: torch.cat([p.inputs[key] for p in prompts]) for key in prompts[0].inputs}
    images, states, outputs = [], 0, 0
    for prompt in prompts:
        for image in prompt.images:
            images.append(replace(image, first_state=image.first_state + states,
                                  first_output=image.first_output + outputs))  # fmt: skip
        states += sum(image.layout.n_states for image in prompt.images)
        outputs += sum(image.layout.n_outputs for image in prompt.images)
    return Prompt(inputs, tuple(images), tuple(kinds for prompt in prompts for kinds in prompt.kinds))


def vision_taps(vlm: Vlm, taps: Iterable[Tap | str]) -> list[Tap]:
    """The same places, counted from 0; an error for what a survey does not read."""
    found = [places.resolve(vlm, tap) for tap in taps]
    for tap in found:
        if tap.place != "vision":
            raise ModelError(str(tap), "a survey reads vision taps", "Give an SAE of vision.N.")
        places.check_read(vlm, tap)
    return found


# --- what a survey takes from a batch ----------------------------------------------------------------------------


class Read(NamedTuple):
    """What one SAE makes of a batch."""

    entries: Entries
    error_B: np.ndarray
    """the squared distances between states and their reconstructions, summed over each picture's patches"""


@torch.no_grad()
def read(sae: Sae, fed: Fed, tap: Tap, numbers: Sequence[int]) -> Read:
    """The active latents of every patch, without a dense copy where the SAE allows; no more rows at once than fit."""
    z_ND, at_once = fed.states[tap], max(1, LATENTS_BYTES // (4 * sae.d_sae))
    rows, latents, values, errors = [], [], [], []
    for start in range(0, len(z_ND), at_once):
        z_PD = z_ND[start : start + at_once].to(sae.device)
        found = sae.active(z_PD)
        error_PD = sae.decode_active(found, z_PD).float() - z_PD.float()
        errors.append(error_PD.square_().sum(1).cpu())
        rows.append(found.row_E.cpu().numpy() + start)
        latents.append(found.latent_E.cpu().numpy())
        values.append(found.value_E.float().cpu().numpy())
    row_E, patches_B = np.concatenate(rows), fed.patches_B
    first_B = patches_B.cumsum() - patches_B
    picture_N = np.repeat(np.arange(len(patches_B)), patches_B)
    picture_E = picture_N[row_E]
    entries = Entries(np.asarray(numbers, np.int64), patches_B, picture_E, row_E - first_B[picture_E],
                      np.concatenate(latents), np.concatenate(values))  # fmt: skip
    error_N = torch.cat(errors).double().numpy()
    return Read(entries, np.add.reduceat(error_N, first_B))


class Moments(NamedTuple):
    """Of the states of each picture at one tap, summed over its patches."""

    state_BS: np.ndarray
    square_B: np.ndarray

    def explained(self, error_B: np.ndarray) -> Explained:
        return Explained(*self, error_B)


@torch.no_grad()
def moments(fed: Fed, tap: Tap) -> Moments:
    parts = [part.double() for part in fed.states[tap].split(fed.patches_B.tolist())]
    return Moments(torch.stack([part.sum(0) for part in parts]).cpu().numpy(),
                   torch.stack([part.square().sum() for part in parts]).cpu().numpy())  # fmt: skip


@torch.no_grad()
def mean_states(fed: Fed, tap: Tap) -> np.ndarray:
    """(B, D): of each picture, over its patches."""
    parts = fed.states[tap].split(fed.patches_B.tolist())
    return np.stack([part.double().mean(0).cpu().numpy() for part in parts])


@torch.no_grad()
def longest(fed: Fed, tap: Tap) -> float:
    """The largest length of a state."""
    return float(fed.states[tap].float().norm(dim=1).max())
