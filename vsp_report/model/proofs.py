"""Proofs: what must hold of a set-up before its figures mean anything, measured on the set-up itself.

Each function measures one thing on one picture and one prompt, by a second way that is slow and shares nothing with
the first: attention against eager attention, the image-token map against perturbed pixels and patches, editing nothing
against not editing, the model afterwards against the model before. `study.doctor` says what the figures mean.

Axes: T positions, I image tokens, S sites, P patches, D width.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from vsp_report.errors import CaseError, ModelError
from vsp_report.maths.edits import ALL, Contrast, Edit, Steering
from vsp_report.model import taps
from vsp_report.model.answers import contrast_ids
from vsp_report.model.capture import capture
from vsp_report.model.memory import free_bytes, row_bytes
from vsp_report.model.sae import Sae
from vsp_report.model.sites import Editor, Row, Sites
from vsp_report.model.steering import see_states, tap_of
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Prompt, Vlm, load_image

MOVED = 1e-5
"""A token that moves by less than this share of the token that moves most, does not move: it is rounding."""
TRIED = 50
"""So many of the likeliest first tokens are looked at for two that can be said as answers."""


# --- attention ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def attention_apart(vlm: Vlm, prompt: Prompt) -> float:
    """The largest difference between captured and eager attention, over all text tokens of one prompt."""
    positions = prompt.positions(0, "template", "system", "prompt")
    with capture(vlm, prompt) as seen:
        vlm.logits(prompt)
    captured = seen.attention.of(0, positions)
    return float((captured - _eager_attention(vlm, prompt)[positions]).abs().max())


def _eager_attention(vlm: Vlm, prompt: Prompt) -> torch.Tensor:
    """(T, I): the mean over layers and heads. One layer's weights are held at a time; asked for all of them with
    `output_attentions`, a large model would fill the memory."""
    modules = [m for m in map(vlm.family.attention, vlm.family.text_layers(vlm.model)) if m is not None]
    columns_I = torch.as_tensor(prompt.images[0].columns_I, device=vlm.device)
    parts: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise ModelError(type(module).__name__, "gives no attention weights in eager mode", "Skip this check.")
        parts.append(weights[0, :, :, columns_I].float().mean(0).cpu())

    text = vlm.model.get_decoder().config
    before, hooks = text._attn_implementation, [module.register_forward_hook(keep) for module in modules]
    try:
        vlm.model.set_attn_implementation({"text_config": "eager"})
        vlm.logits(prompt)
    finally:
        vlm.model.set_attn_implementation({"text_config": before})
        for hook in hooks:
            hook.remove()
    return torch.stack(parts).mean(0)


# --- the image-token map -----------------------------------------------------------------------------------------


class Probed(NamedTuple):
    pixels_right: int
    """painting over a patch's box moved a patch there most"""
    tokens_right: int
    """moving a patch moved the image tokens that are made of it, and no others"""
    tried: int


@torch.no_grad()
def probe_map(vlm: Vlm, image: Any, question: str, n: int = 4, seed: int = 0) -> Probed:
    """Perturb some patches, first in the picture and then in the tower, and see what moves."""
    picture = load_image(image)
    prompt = vlm.prepare(picture, question)
    (image_map,) = prompt.images
    generator = np.random.default_rng(seed)
    shown = np.flatnonzero(np.isfinite(image_map.grid.boxes_P4).all(1))
    # Only patches that some token is made of: others are seen by the tower and by nobody after it.
    shown = shown[np.asarray((image_map.tokens_IP[:, shown] > 0).sum(0)).ravel() > 0]
    chosen = generator.choice(shown, min(n, len(shown)), replace=False)
    return Probed(
        _pixels_right(vlm, prompt, picture, question, chosen), _tokens_right(vlm, prompt, chosen, seed), len(chosen)
    )


def _pixels_right(vlm: Vlm, prompt: Prompt, picture: Image.Image, question: str, chosen: np.ndarray) -> int:
    grid, first, right = prompt.images[0].grid, Tap("vision", 0), 0
    rows_P = torch.as_tensor(prompt.images[0].at("vision").rows_S, device=vlm.device)
    clean_PD = see_states(vlm, prompt, [first])[first].flatten(0, -2)[rows_P]
    for p in chosen:
        x0, y0, x1, y1 = grid.boxes_P4[p]
        pixels = np.array(picture)
        window = slice(int(y0), max(int(np.ceil(y1)), int(y0) + 1)), slice(int(x0), max(int(np.ceil(x1)), int(x0) + 1))
        pixels[window] += 128  # around the circle of 256: no colour stays as it was
        painted = vlm.prepare(Image.fromarray(pixels), question)
        states_PD = see_states(vlm, painted, [first])[first].flatten(0, -2)[rows_P]
        most = int((states_PD - clean_PD).float().norm(dim=1).argmax())
        a0, b0, a1, b1 = grid.boxes_P4[most]
        right += bool(min(a1, x1 + 1) > max(a0, x0 - 1) and min(b1, y1 + 1) > max(b0, y0 - 1))
    return right


def _tokens_right(vlm: Vlm, prompt: Prompt, chosen: np.ndarray, seed: int) -> int:
    (image_map,) = prompt.images
    layers = taps.layers_at(vlm, "vision")
    last = Tap("vision", vlm.family.reading(vlm.model.config, len(layers)).last)
    states = see_states(vlm, prompt, [last, *taps.read_below(vlm, last)])
    generator, right = torch.Generator().manual_seed(seed), 0
    clean_ID = _image_tokens(vlm, prompt)
    for p in chosen:
        # Some towers give transposed states, of which `flatten` would be a copy: what is written there is lost.
        moved = states[last].clone(memory_format=torch.contiguous_format)
        noise_D = torch.randn(moved.shape[-1], generator=generator).to(moved)
        moved.flatten(0, -2)[image_map.at("vision").rows_S[p]] += 5 * noise_D * moved.float().std().to(moved)
        with taps.starting_from(vlm, {**states, last: moved}):
            change_I = (_image_tokens(vlm, prompt) - clean_ID).abs().amax(1)
        seen = (change_I > MOVED * change_I.max()).cpu().numpy()
        meant = image_map.tokens_IP[:, [p]].toarray()[:, 0] > 0
        if vlm.family.cross:  # class tokens and padding are keys as well, and made of no patch
            known = np.diff(image_map.tokens_IP.indptr) > 0
            seen, meant = seen[known], meant[known]
        right += bool((seen == meant).all() and seen.any())
    return right


class _Enough(Exception):
    """The language model is about to run."""


def _image_tokens(vlm: Vlm, prompt: Prompt) -> torch.Tensor:
    """(I, D): what the language model is given for the image."""
    if vlm.family.cross:
        connector = Tap("connector")
        states = see_states(vlm, prompt, [connector])[connector].flatten(0, -2)
        return states[prompt.images[0].first_output + prompt.images[0].columns_I].float()
    given: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given.append(kwargs["inputs_embeds"][0, prompt.images[0].columns_I].float())
        raise _Enough

    hook = vlm.model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with suppress(_Enough):
            vlm.logits(prompt)
    finally:
        hook.remove()
    return given[0]


# --- editing nothing ---------------------------------------------------------------------------------------------


class Nothing(NamedTuple):
    states_equal: bool
    """what an edit that changes no latent makes of the states is what they were, to the last bit"""
    logits_apart: float
    """the largest difference in what the model then says"""


@torch.no_grad()
def edit_nothing(vlm: Vlm, sae: Sae, prompt: Prompt, *, tap: Tap | str | None = None) -> Nothing:
    """Every latent times 1, on every site, by the same way that steerings go."""
    tap = tap_of(vlm, sae, tap)
    sites = Sites.of(vlm, prompt, tap)
    steering = Steering("nothing", (Edit(ALL, "scale", 1.0),), cls=True)
    row, editor, equal = Row.of(steering, sites), Editor(sae, (steering,), vlm.device), []

    def edit(states: torch.Tensor, start: int) -> torch.Tensor:
        new = states.clone(memory_format=torch.contiguous_format)
        flat = new.flatten(0, -2)
        flat[sites.rows_S] = editor.edited(editor.codes(flat[sites.rows_S]), row)
        equal.append(torch.equal(new, states))
        return new

    plain = vlm.logits(prompt)
    with taps.editing(vlm, tap, edit):
        edited = vlm.logits(prompt)
    return Nothing(all(equal), float((edited - plain).abs().max()))


# --- a contrast to measure by --------------------------------------------------------------------------------------


@torch.no_grad()
def likely_contrast(vlm: Vlm, prompt: Prompt) -> Contrast:
    """The two likeliest beginnings of an answer that can be said by themselves."""
    said: list[str] = []
    added = set(vlm.tokenizer.added_tokens_decoder)
    for token in vlm.logits(prompt)[0, -1].topk(TRIED).indices.tolist():
        word = vlm.tokenizer.decode([token]).strip()
        if not word or word in said or token in added:
            continue
        with suppress(CaseError):
            contrast_ids(vlm, Contrast(word, said[0] if said else f"{word} {word}"))
            said.append(word)
        if len(said) == 2:
            return Contrast(*said)
    raise CaseError("contrast", f"{vlm.name} has no two likely answers of one word", "Give a contrast.")


# --- memory ------------------------------------------------------------------------------------------------------


class Room(NamedTuple):
    weights_bytes: int
    row_bytes: int
    """of one more steering in a batch"""
    latents_bytes: int
    """all latents of all patches, if they are wanted at once"""
    free_bytes: int

    @property
    def rows(self) -> int:
        return self.free_bytes // max(self.row_bytes, 1)


def room_for(vlm: Vlm, sae: Sae, prompt: Prompt, *, tap: Tap | str | None = None, new_tokens: int = 64) -> Room:
    tap = tap_of(vlm, sae, tap)
    start = Tap("connector") if tap.place == "text" else tap
    states = see_states(vlm, prompt, [start, *taps.read_below(vlm, start)])
    tensors = [*vlm.model.parameters(), *vlm.model.buffers(), *sae.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    latents = len(prompt.images[0].grid) * sae.d_sae * sae.dtype.itemsize
    return Room(weights, row_bytes(vlm, prompt, states, new_tokens), latents, free_bytes(vlm.device))


# --- the model afterwards ------------------------------------------------------------------------------------------


class Print(NamedTuple):
    """All of a model that a run could leave changed."""

    weights: tuple[tuple[str, int, bool, bool], ...]
    """name, sum of the bits, whether it asks for a gradient, whether it holds one"""
    hooks: tuple[tuple[str, int], ...]
    covered: tuple[str, ...]
    """modules with a `forward` of their own, or anything else that is set on them and not in their class"""
    attention: tuple[str, ...]
    training: bool

    def changes(self, after: Print) -> tuple[str, ...]:
        return tuple(field for field, old, new in zip(self._fields, self, after, strict=True) if old != new)


def print_of(vlm: Vlm) -> Print:
    """To be taken after a first run, which lets transformers install hooks of its own."""
    named = dict(vlm.model.named_modules())
    tensors = [*vlm.model.named_parameters(), *vlm.model.named_buffers()]
    return Print(
        tuple((name, _sum_of_bits(t), t.requires_grad, t.grad is not None) for name, t in tensors),
        tuple((name, len(m._forward_hooks) + len(m._forward_pre_hooks)) for name, m in named.items()),
        tuple(name for name, m in named.items() if "forward" in m.__dict__ or any("vsp" in key for key in m.__dict__)),
        tuple(str(getattr(m.config, "_attn_implementation", "")) for m in named.values() if hasattr(m, "config")),
        vlm.model.training,
    )


def _sum_of_bits(tensor: torch.Tensor) -> int:
    tensor = tensor.detach()
    if tensor.is_floating_point():
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        tensor = tensor.view(whole)
    return int(tensor.sum(dtype=torch.int64))
