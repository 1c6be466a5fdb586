"""Fit: whether a sparse autoencoder belongs to a tap, measured on pictures.

A checkpoint can be whole, of the right width, and still be of another layer, of another model, or in want of the
normalisation that it was trained with; its latents then light up and mean nothing. So it is held against three things:
an untrained one of the same shape on the same states, itself at the other layers of the same width, and itself with
its input normalised in the ways that formats forget to write down.

Pictures stream through: sums are kept, not states, except a few rows of the first pictures for what is tried besides.

Axes: N rows (patches; at a text tap, positions), S sites of one picture, D model width, L latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from vsp_report.errors import CheckpointError, ImageError
from vsp_report.model import taps
from vsp_report.model.capture import capture
from vsp_report.model.sae import NORMALISATIONS, Sae, mean_row, quality
from vsp_report.model.sites import Editor, Sites
from vsp_report.model.steering import see_states, tap_of
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Prompt, Vlm

PROMPT = "Describe the image."
PROBE_IMAGES, PROBE_ROWS = 8, 128
"""What other layers and other normalisations are tried on: so many rows of each of the first pictures."""
AT_MOST = 0.8
"""Of what an untrained one leaves unexplained, or of all there is if that is less, one that fits leaves less than
this share. Trained ones leave 0.05 to 0.3 and untrained ones about 1, so that little hangs on the number."""
BETTER = 0.7
"""Another layer, or another normalisation, that leaves less than this share unexplained is said to be the better one.
Between neighbouring layers of its own model a trained SAE leaves some four times as much at the wrong one."""
CONTROL_SEED = 20_240
"""Not one that an untrained SAE of somebody's own is likely to have."""
DENSE = 0.25
"""A share of all latents; more than that in one patch is no sparse code."""


class Fit(NamedTuple):
    explained_variance: float
    """1 is all; 0 is what the mean would explain; a code that is worse than that is below 0"""
    mean_l0: float
    """latents active per patch"""
    dead_share: float
    """share of the latents that nothing activates"""


@dataclass(frozen=True)
class Fitting:
    """One SAE at one tap, beside what it is measured against."""

    tap: str
    images: int
    rows: int
    d_sae: int
    sae: Fit
    untrained: Fit
    elsewhere: dict[str, float]
    """explained variance at every layer of this width, on the first pictures"""
    normalised: dict[str, float]
    """explained variance with the input normalised in other ways, on the same"""

    @property
    def fits(self) -> bool:
        return 1 - self.sae.explained_variance < AT_MOST * min(1.0, 1 - self.untrained.explained_variance)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, the most telling first; none if nothing is."""
        found, here = [], self.elsewhere[self.tap]
        tried = max(self.normalised, key=self.normalised.__getitem__, default=None)
        if tried is not None and self._is_better(self.normalised[tried]):
            fault = (f"its normalisation is missing: with {tried} it explains {self.normalised[tried]:.3f} "
                     f"instead of {here:.3f}")  # fmt: skip
            remedy = "Name the normalisation in the checkpoint's configuration, or fold it into the weights."
            found.append(Finding(fault, remedy))
        if not self.fits:
            fault = (f"does not fit {self.tap}: it explains {self.sae.explained_variance:.3f} of the variance, an "
                     f"untrained one {self.untrained.explained_variance:.3f}")  # fmt: skip
            found.append(Finding(fault, "Take an SAE that was trained on this tap of this model."))
        best = max(self.elsewhere, key=self.elsewhere.__getitem__)
        if self._is_better(self.elsewhere[best]):
            fault = f"explains more at {best} ({self.elsewhere[best]:.3f}) than at {self.tap} ({here:.3f})"
            found.append(Finding(fault, f"Look for an off-by-one in its layer, and try {best}."))
        if self.sae.mean_l0 > DENSE * self.d_sae:
            fault = f"is not sparse here: {self.sae.mean_l0:.0f} of {self.d_sae} latents are active per patch"
            found.append(Finding(fault, "Look for a threshold or a normalisation that was left out."))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        fits = {"sae": self.sae._asdict(), "untrained": self.untrained._asdict()}
        return {**asdict(self), **fits, "findings": [finding._asdict() for finding in self.findings]}

    def _is_better(self, explained: float) -> bool:
        return 1 - explained < BETTER * min(1.0, 1 - self.elsewhere[self.tap])


class Finding(NamedTuple):
    fault: str
    remedy: str


def table(fitting: Fitting) -> str:
    """For people: the figures beside those of the untrained one, and what is wrong."""
    lines = [f"{'':<22}{'this':>10}{'untrained':>12}"]
    names = ("explained variance", "L0 (active latents)", "dead share")
    for name, here, control in zip(names, fitting.sae, fitting.untrained, strict=True):
        lines.append(f"{name:<22}{here:>10.3f}{control:>12.3f}")
    said = [f"{finding.fault}. {finding.remedy}" for finding in fitting.findings]
    return "\n".join([*lines, "", *(said or [f"fits {fitting.tap}"])])


@torch.no_grad()
def measure_fit(
    vlm: Vlm,
    sae: Sae,
    images: Iterable[Any],
    *,
    tap: Tap | str | None = None,
    prompt: str = PROMPT,
    seed: int = CONTROL_SEED,
    on_image: Callable[[int], None] = lambda done: None,
) -> Fitting:
    """`images` are read one at a time, so a generator will do. The language model runs only for a text tap."""
    tap = tap_of(vlm, sae, tap)
    sae = Editor(sae, (), vlm.device).sae
    control = Sae.untrained(seed, like=sae)
    tallies, probes, done = (_Tally(sae), _Tally(control)), {}, 0
    for done, image in enumerate(images, start=1):
        states = _states(vlm, vlm.prepare(image, prompt), tap, sae, every=done <= PROBE_IMAGES)
        for tally in tallies:
            tally.add(states[tap])
        for place, states_SD in states.items() if done <= PROBE_IMAGES else ():
            step = max(1, len(states_SD) // PROBE_ROWS)
            probes.setdefault(place, []).append(states_SD[::step][:PROBE_ROWS].to(sae.dtype))
        on_image(done)
    if not done:
        raise ImageError("images", "there are none", "Name a folder of PNG or JPEG pictures.")
    rows = {place: torch.cat(parts) for place, parts in probes.items()}
    ordered = sorted(rows, key=lambda place: place.layer or 0)
    elsewhere = {str(place): 1 - quality(sae, rows[place]).unexplained_variance for place in ordered}
    normalised = {name: 1 - quality(other, rows[tap]).unexplained_variance for name, other in _others(sae, rows[tap])}
    return Fitting(str(tap), done, tallies[0].n, sae.d_sae, *(t.result() for t in tallies), elsewhere, normalised)


def _states(vlm: Vlm, prompt: Prompt, tap: Tap, sae: Sae, every: bool) -> dict[Tap, torch.Tensor]:
    """(S, D) of the tap and, if every layer is wanted, of all others of the same place and width."""
    layers = taps.layers_at(vlm, tap.place) if tap.layer is not None else ()
    if tap.place == "vision":
        layers = layers[: vlm.family.reading(vlm.model.config, len(layers)).last + 1]
    places = [Tap(tap.place, k) for k in reversed(range(len(layers)))] if every and len(layers) else [tap]
    if tap.place == "text":
        with capture(vlm, prompt, taps=places, attention=False) as seen:
            vlm.logits(prompt)
        states = seen.states
    else:
        states = see_states(vlm, prompt, places)
    if (width := states[tap].shape[-1]) != sae.d_in:
        same = [str(place) for place, z in states.items() if z.shape[-1] == sae.d_in]
        text = vlm.model.get_decoder().config.hidden_size
        same += [f"text.0 to text.{len(taps.layers_at(vlm, 'text')) - 1}"] if text == sae.d_in else []
        remedy = f"Of its width are {', '.join(same)}." if same else "Take an SAE that was trained on this model."
        fault = f"does not fit: it reads states {sae.d_in} wide, and {tap} of {vlm.name} gives {width}"
        raise CheckpointError(sae.name or "the SAE", fault, remedy)
    sites = Sites.of(vlm, prompt, tap)
    rows_S = sites.rows_S[torch.as_tensor(~sites.class_S, device=sites.rows_S.device)]
    flat = {place: z.flatten(0, -2) for place, z in states.items() if z.shape[-1] == sae.d_in}
    return {place: z[rows_S] for place, z in flat.items() if len(z) == len(flat[tap])}


def _others(sae: Sae, rows_ND: torch.Tensor) -> Iterable[tuple[str, Sae]]:
    """The SAE with its input normalised as formats do it, and this one does not."""
    for name in NORMALISATIONS:
        if name != sae.normalise:
            yield name, sae.replace(normalise=name)
    if sae.normalise == "none":
        rows_ND, mean_D = rows_ND.float(), mean_row(rows_ND)
        length, spread = float(rows_ND.norm(dim=1).mean()), float((rows_ND - mean_D).norm(dim=1).mean())
        root = sae.d_in**0.5
        if length > 0:
            yield "one factor for all rows (expected_average_only_in)", sae.on_raw(0.0, root / length)
        if spread > 0:
            yield "the mean taken away, and one factor for all rows", sae.on_raw(mean_D, root / spread)


class _Tally:
    """What adds up, picture by picture."""

    def __init__(self, sae: Sae) -> None:
        self.sae, self.n, self.error, self.active, self.squares = sae, 0, 0.0, 0, 0.0
        self.sum_D: torch.Tensor | float = 0.0
        self.alive_L = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)

    def add(self, states_SD: torch.Tensor) -> None:
        for rows in Editor(self.sae, (), self.sae.device).pieces(len(states_SD)):
            z_SD = states_SD[rows].to(self.sae.dtype)
            h_SL = self.sae.encode(z_SD)
            fired_SL = h_SL > 0
            self.error += float((self.sae.decode(h_SL, z_SD) - z_SD).double().square().sum())
            self.active += int(fired_SL.sum())
            self.alive_L |= fired_SL.any(0)
            self.sum_D = self.sum_D + z_SD.double().sum(0)
            self.squares += float(z_SD.double().square().sum())
            self.n += len(rows)

    def result(self) -> Fit:
        variance = self.squares - float(self.sum_D.square().sum()) / self.n
        explained = 1 - self.error / variance if variance > 0 else float("nan")
        return Fit(explained, self.active / self.n, 1 - float(self.alive_L.double().mean()))
