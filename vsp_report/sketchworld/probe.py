"""Probe: the bundled models taken apart, so that thousands of scenes can be asked, edited and asked again at once.

The evaluation's own short way: states at a tap of the tower go in, answers come out, and everything between is
differentiable. That it says what `generate` says is a test. Latents are edited in `delta` mode: the
autoencoder's error stays, an empty edit changes nothing.

Axes: B scenes, P patches (without CLS), D width, L latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import CLIPModel, LlavaForConditionalGeneration

from vsp_report.errors import ModelError
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.classify import load_clip
from vsp_report.model.sae import Sae
from vsp_report.model.vlm import load_vlm
from vsp_report.sketchworld import language
from vsp_report.sketchworld.language import GRID, IMAGE_PX
from vsp_report.sketchworld.models import FEATURE_LAYER, attend_fast, normalized
from vsp_report.sketchworld.packing import Packer, continued, text_logits, wrong_answers
from vsp_report.sketchworld.pool import NO_LABEL, pixels_of
from vsp_report.sketchworld.rules import Question
from vsp_report.sketchworld.scene import COVERED, Scene

REPORT_PX = 384


class Edit(NamedTuple):
    """Latents of one scene, each multiplied by its factor on every patch: 0 ablates, above 1 amplifies."""

    latents: np.ndarray
    factors: np.ndarray

    @classmethod
    def of(cls, ablate: Sequence[int] = (), amplify: Sequence[int] = (), factor: float = 1.0) -> Edit:
        latents = np.asarray([*ablate, *amplify], dtype=np.int64)
        return cls(latents, np.asarray([0.0] * len(ablate) + [factor] * len(amplify), dtype=np.float32))


class Attribution(NamedTuple):
    effect_BL: torch.Tensor
    """The predicted change of the contrast's log-odds when the latent is set to zero."""
    margin_B: torch.Tensor


class Probe:
    """LLaVA, CLIP and the main autoencoder of one weights folder."""

    def __init__(
        self, llava: LlavaForConditionalGeneration, sae: Sae, *, clip: CLIPModel | None = None, device: str = "cpu"
    ) -> None:
        self.llava, self.clip, self.sae = llava.to(device).eval(), clip, sae.to(device)
        self.device, self.packer = device, Packer()
        attend_fast(self.llava)
        place, _, layer = sae.tap.partition(".")
        if place != "vision":
            raise ModelError(sae.tap, "the probe edits the vision tower", "Give it an autoencoder of a vision tap.")
        self.layer = int(layer)
        self.llava.requires_grad_(False)

    @classmethod
    def load(cls, weights: Path, sae: str = "vision.3", device: str = "cpu") -> Probe:
        llava = load_vlm(str(weights / "sketchworld"), device=device, dtype="float32").model
        clip = load_clip(weights / "clip", device=device).model
        return cls(llava, load_sae(weights / "saes" / sae).float(), clip=clip, device=device)

    # --- pictures to states to features --------------------------------------------------------------------------

    def pixels(self, scenes: Sequence[Scene]) -> np.ndarray:
        """As a user's picture goes in: drawn for the report, shrunk as the processor shrinks."""
        return pixels_of(scenes, REPORT_PX, IMAGE_PX)

    @property
    def layers(self) -> torch.nn.ModuleList:
        tower = self.llava.model.vision_tower
        return getattr(tower, "vision_model", tower).encoder.layers

    @torch.no_grad()
    def states(self, pixels: np.ndarray, batch: int = 128) -> torch.Tensor:
        """(B, 1 + P, D): the output of the tapped layer, CLS first."""
        parts = [
            self.llava.model.vision_tower(normalized(pixels[i : i + batch], self.device), output_hidden_states=True)
            .hidden_states[self.layer + 1]
            for i in range(0, len(pixels), batch)
        ]  # fmt: skip
        return torch.cat(parts)

    def features(self, states: torch.Tensor) -> torch.Tensor:
        """(B, P, D): what LLaVA reads, from the states at the tap on."""
        for layer in self.layers[self.layer + 1 : len(self.layers) + 1 + FEATURE_LAYER]:
            states = layer(states, attention_mask=None)
            states = states[0] if isinstance(states, tuple) else states
        return states[:, 1:]

    # --- questions -----------------------------------------------------------------------------------------------

    def log_odds(self, features: torch.Tensor, asked: Sequence[tuple[str, str, str]]) -> torch.Tensor:
        """(B,): log p(right) - log p(wrong), each answer whole, for (question, right, wrong)."""
        packed = self.packer.batch([[Question(q, right), Question(q, wrong)] for q, right, wrong in asked])
        scores = self._scores(features, packed)
        return scores[:, 0] - scores[:, 1]

    def _scores(self, features: torch.Tensor, packed: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, segments): the log-probability of every segment's answer."""
        likely = text_logits(self.llava, features, packed).float().log_softmax(-1)
        labels, segments = packed["labels"].to(self.device), packed["segments"].to(self.device)
        chosen = likely.gather(-1, labels.clamp_min(0)[..., None])[..., 0] * (labels != NO_LABEL)
        return torch.stack([(chosen * (segments == s)).sum(1) for s in range(1, int(segments.max()) + 1)], dim=1)

    @torch.no_grad()
    def says(self, features: torch.Tensor, asked: Sequence[Sequence[Question]], batch: int = 128) -> list[list[bool]]:
        """For each scene and question: whether greedy decoding gives that answer, word for word."""
        result: list[list[bool]] = []
        for i in range(0, len(asked), batch):
            packed = self.packer.batch([list(questions) for questions in asked[i : i + batch]])
            wrong = wrong_answers(text_logits(self.llava, features[i : i + batch], packed), packed)
            result += [(~row[: len(qs)]).tolist() for row, qs in zip(wrong, asked[i : i + batch], strict=True)]
        return result

    @torch.no_grad()
    def answers(self, features: torch.Tensor, questions: Sequence[str], most: int = 24, batch: int = 128) -> list[str]:
        """Greedy answers."""
        vocabulary, end = language.vocabulary(), language.vocabulary().index(language.EOS)
        prompts = [self.packer.prompt(question) for question in questions]
        result = [""] * len(prompts)
        for length in set(map(len, prompts)):
            alike = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            for some in (alike[i : i + batch] for i in range(0, len(alike), batch)):
                asked = torch.tensor([prompts[row] for row in some])
                for row, said in zip(some, continued(self.llava, features[some], asked, most, end), strict=True):
                    result[row] = " ".join(vocabulary[token] for token in said)
        return result

    # --- latents -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encoded(self, states: torch.Tensor, batch: int = 64) -> torch.Tensor:
        """(B, P, L): the latents of every patch."""
        return torch.cat([self.sae.encode(some[:, 1:]) for some in states.split(batch)])

    def attribute(
        self, states: torch.Tensor, latents_BPL: torch.Tensor, asked: Sequence[tuple[str, str, str]],
        edits: Sequence[Edit] | None = None, batch: int = 32,
    ) -> Attribution:  # fmt: skip
        """One forward and one backward pass: what zeroing each latent would do to each scene's contrast.

        With `edits`, what zeroing it as well would do: latents of the clean states, gradients of the edited.
        """
        parts = []
        for i in range(0, len(asked), batch):
            clean, latents, some = states[i : i + batch], latents_BPL[i : i + batch], slice(i, i + batch)
            z = self.edited(clean, latents, edits[some]) if edits else clean.clone()
            z.requires_grad_(True)
            margin = self.log_odds(self.features(z), asked[some])
            (gradient,) = torch.autograd.grad(margin.sum(), z)
            with torch.no_grad():
                effect = -(latents * (gradient[:, 1:] @ self.sae.W_dec.mT)).sum(1)
            parts.append(Attribution(effect, margin.detach()))
        return Attribution(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def edited(self, states: torch.Tensor, latents_BPL: Sequence[torch.Tensor], edits: Sequence[Edit]) -> torch.Tensor:
        """The states with each scene's own edit: (h' - h) W_dec is added on every patch; CLS is left alone."""
        result = states.clone()
        for row, edit in enumerate(edits):
            chosen = torch.from_numpy(edit.latents).to(self.device)
            factors = torch.from_numpy(edit.factors).to(self.device)
            result[row, 1:] += (latents_BPL[row][:, chosen] * (factors - 1)) @ self.sae.W_dec[chosen]
        return result


def patches_of(scene: Scene, parts: Sequence[int]) -> np.ndarray:
    """(P,): the patches that show any of these parts."""
    return (scene.coverage(GRID, GRID)[list(parts)].max(axis=0) >= COVERED).ravel()


def belonging(latents_PL: torch.Tensor, patches_P: np.ndarray) -> torch.Tensor:
    """(L,): the share of each latent's activation in this picture that falls on these patches."""
    mask = torch.from_numpy(patches_P).to(latents_PL.device)
    return latents_PL[mask].sum(0) / latents_PL.sum(0).clamp_min(1e-9)
