"""Capture: which patches each word looked at, and states at any tap, out of one ordinary run.

Text -> image attention is averaged over all layers and heads, unless some are chosen (the paper's
definition). It is summed up layer by layer inside a registered attention function, while the model runs as it
always does: no `output_attentions`, no eager attention, and what is kept is text x image numbers, not layers
x heads x length².

Two conventions say which row belongs to a token:

    own          the token being read looks at the image. The last token that `generate` says is never read by
    the
                 model and has no such row; a replay reads it.
    predicting   the row that produced the token, one position earlier. The first token has none.

A row that does not exist is NaN. What a sliding window has dropped was looked at with 0. In a model that
cross-attends, tokens before the image marker have rows as well, because transformers lets them look.

Both registrations below are needed. Without the second, transformers gives the function no mask at all,
without an error: padding, windows and prefixes are lost, and on small models even the words stay the same.
There is a test.

Axes: B samples, H heads, K key heads, G heads per key head, Q queries of a step, N keys, R rows kept of a
step, D head width, T kept rows in all, I image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vsp_report.errors import ModelError
from vsp_report.model import taps as places
from vsp_report.model.taps import Clock, Tap
from vsp_report.model.vlm import Prompt, Vlm

NAME = "vsp_capture"  # transformers reads meaning into names with "flash", and into "paged|"
SLOT = "vsp_recorder"
SCORES_BYTES = 64 << 20
"""Rows are scored in pieces, so that no more than this is held at once."""

Row = Literal["own", "predicting"]


@dataclass(frozen=True, eq=False)
class Attention:
    """Text -> image attention of a batch, on the CPU."""

    rows_BTI: torch.Tensor
    positions_T: torch.Tensor
    """positions of the rows in the padded sequence"""
    columns: tuple[torch.Tensor, ...]
    """of each sample: its image tokens, in the order of its ImageMap"""

    def of(self, sample: int, positions: Sequence[int], row: Row = "own") -> torch.Tensor:
        """(len(positions), I): how the tokens at `positions` looked at this sample's image tokens."""
        if row not in ("own", "predicting"):
            raise ValueError(f"row is {row!r}; there are own and predicting")
        wanted = torch.as_tensor(list(positions), dtype=torch.long) - int(row == "predicting")
        index = torch.searchsorted(self.positions_T, wanted).clamp(max=max(len(self.positions_T) - 1, 0))
        result = self.rows_BTI[sample][index, : len(self.columns[sample])].clone()
        result[self.positions_T[index] != wanted] = float("nan")
        return result


@dataclass
class Captured:
    """Filled when the capture closes."""

    attention: Attention | None = None
    states: dict[Tap, torch.Tensor] = field(default_factory=dict)
    """vision and connector: as the module gave them; text: (B, positions, width), prompt first"""

    def at(self, tap: Tap, prompt: Prompt, sample: int) -> torch.Tensor:
        """(S, width): the states of one sample's sites, in the order of its ImageMap."""
        sites, states = prompt.images[sample].at(tap.place), self.states[tap]
        states = states[sample] if tap.place == "text" else states.flatten(0, -2)
        return states[torch.as_tensor(sites.rows_S, device=states.device)]


@contextmanager
def capture(
    vlm: Vlm,
    prompt: Prompt,
    *,
    taps: Sequence[Tap | str] = (),
    attention: bool = True,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Iterator[Captured]:
    """While open, one `generate`, `replay` or `logits` on `prompt` is captured. The model is left as it was
    found.

    `layers` and `heads` choose text layers and heads by their numbers, negative ones from the end; all by
    default.
    """
    seen, taps = Captured(), [places.resolve(vlm, tap) for tap in taps]
    states: dict[Tap, list[torch.Tensor]] = {tap: [] for tap in taps}
    with ExitStack() as stack:
        recorder = stack.enter_context(_recording(vlm, prompt, layers, heads)) if attention else None

        def tick(start: int, length: int) -> None:
            for tap in taps:
                if tap.place == "text" and start == 0:
                    states[tap].clear()
            if recorder is not None:
                recorder.step(start, length)

        stack.enter_context(Clock.of(vlm, tick))
        for tap in taps:
            # After every edit, which is hooked in before: what is captured is what the model went on with.
            stack.callback(places.module_at(vlm, tap).register_forward_hook(_keep(states[tap], tap)).remove)
        yield seen
    for tap, kept in states.items():
        if kept:
            seen.states[tap] = torch.cat(kept, dim=1) if tap.place == "text" else kept[0]
    if recorder is not None:
        seen.attention = recorder.result()


def _keep(kept: list[torch.Tensor], tap: Tap) -> Any:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        if tap.place != "text":
            kept.clear()
        kept.append(places.tensor_of(output).detach())

    return hook


@contextmanager
def _recording(
    vlm: Vlm, prompt: Prompt, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> Iterator[Recorder]:
    found = {k: vlm.family.attention(layer) for k, layer in enumerate(vlm.family.text_layers(vlm.model))}
    looking = {k: module for k, module in found.items() if module is not None}
    chosen = looking if layers is None else [_counted("layers", k, len(found), vlm.name) for k in layers]
    modules = [looking[k] for k in dict.fromkeys(chosen) if k in looking]
    if not modules:
        raise ModelError(
            "layers",
            f"none of them looks at the image; in {vlm.name} these do: {list(looking)}",
            "Choose among them.",
        )
    text = vlm.model.get_decoder().config
    if heads is not None:
        heads = sorted({_counted("heads", h, text.num_attention_heads, vlm.name) for h in heads})
        if not heads:
            raise ModelError("heads", "none is chosen", "Leave it out to average over all heads.")
    recorder, before = Recorder(prompt, len(modules), heads, vlm.family.cross), text._attn_implementation
    if before == NAME:
        raise ModelError(vlm.name, "is being captured already", "Close one capture before you open another.")
    try:
        # The vision tower keeps its own kernel, and the text model its sdpa arithmetic.
        vlm.model.set_attn_implementation({"text_config": NAME})
        for module in modules:
            setattr(module, SLOT, recorder)
        yield recorder
    finally:
        for module in modules:
            module.__dict__.pop(SLOT, None)
        vlm.model.set_attn_implementation({"text_config": before})


def _counted(what: str, number: int, n: int, name: str) -> int:
    if not -n <= number < n:
        raise ModelError(what, f"{number} is not in {name}, which has 0 to {n - 1}", "Choose among them.")
    return number % n


class Recorder:
    """Sums up attention rows as the layers go by; one block of rows for each step of the model."""

    def __init__(self, prompt: Prompt, n_layers: int, heads: list[int] | None, cross: bool) -> None:
        self.n_layers, self.heads, self.cross = n_layers, heads, cross
        self.columns = tuple(torch.as_tensor(image.columns_I) for image in prompt.images)
        widest = max(map(len, self.columns))
        device = prompt.ids_BT.device
        self.columns_BI = torch.full((len(self.columns), widest), -1)
        for b, columns_I in enumerate(self.columns):
            self.columns_BI[b, : len(columns_I)] = columns_I
        self.columns_BI = self.columns_BI.to(device)
        text_BT = torch.tensor([[kind not in ("padding", "image") for kind in row] for row in prompt.kinds])
        wanted_T = text_BT.any(0)
        # The row before a text token predicts it, even where it is the image's last.
        wanted_T[:-1] |= wanted_T[1:].clone()
        self.wanted_T = wanted_T
        self.blocks: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.start = self.length = 0

    def step(self, start: int, length: int) -> None:
        if start == 0:  # the prompt; or, without a cache, everything once more
            self.blocks.clear()
        self.start, self.length = start, length
        positions = torch.arange(start, start + length)
        known = positions < len(self.wanted_T)
        kept = ~known
        kept[known] = self.wanted_T[positions[known]]
        rows_R = positions[kept]
        self.rows_R = (rows_R - start).to(self.columns_BI.device)  # once for all layers
        B, widest = self.columns_BI.shape
        self.blocks.append((rows_R, torch.zeros(B, len(rows_R), widest, device=self.columns_BI.device)))

    @torch.no_grad()
    def record(self, scores: Scores) -> None:
        if scores.query.shape[0] != len(self.columns):
            raise ModelError(
                "capture",
                f"{len(self.columns)} prompts run as {scores.query.shape[0]} sequences; beams "
                "and several answers per prompt are not supported",
                "Generate greedily.",
            )
        if scores.query.shape[2] != self.length:
            raise ModelError(
                "capture",
                f"{self.length} tokens arrive as {scores.query.shape[2]} queries",
                "Capture with an uncompiled model and an ordinary cache.",
            )
        _, sums_BRI = self.blocks[-1]
        n = scores.key.shape[2]
        # A cache that slides has dropped its first keys; one of fixed length has room for more to come.
        dropped = max(0, self.start + self.length - n) if not self.cross else 0
        at_BI = self.columns_BI - dropped
        held_BI = (at_BI >= 0) & (at_BI < n) & (self.columns_BI >= 0)
        scores = scores.of_heads(self.heads)
        done = 0
        for rows in self.rows_R.split(scores.rows_at_once()):
            p_BRN = scores.softmax(rows).mean((1, 2))
            index = at_BI.clamp(0, n - 1)[:, None].expand(-1, len(rows), -1)
            sums_BRI[:, done : done + len(rows)] += p_BRN.gather(2, index) * held_BI[:, None]
            done += len(rows)

    def result(self) -> Attention | None:
        if not self.blocks:
            return None
        positions, sums = zip(*self.blocks, strict=True)
        rows_BTI = torch.cat(sums, dim=1).div_(self.n_layers).cpu()
        return Attention(rows_BTI, torch.cat(positions), self.columns)


@dataclass(frozen=True, eq=False)
class Scores:
    """One layer's attention, computed for as many rows at a time as fit."""

    query: torch.Tensor
    """(B, H, Q, D)"""
    key: torch.Tensor
    """(B, K, N, D)"""
    mask: torch.Tensor | None
    """(B or 1, H or 1, Q or 1, at least N): what may be seen, or what is added"""
    scaling: float
    softcap: float | None
    causal: bool

    def of_heads(self, heads: list[int] | None) -> Scores:
        if heads is None:
            return self
        group = self.query.shape[1] // self.key.shape[1]
        mask = self.mask if self.mask is None or self.mask.shape[1] == 1 else self.mask[:, heads]
        key = self.key[:, [h // group for h in heads]]
        return Scores(self.query[:, heads], key, mask, self.scaling, self.softcap, self.causal)

    def rows_at_once(self) -> int:
        B, H, _, _ = self.query.shape
        return max(1, SCORES_BYTES // (4 * B * H * self.key.shape[2]))

    def softmax(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, K, G, R, N) in float32, for the given rows of this step."""
        (B, H, Q, D), (_, K, N, _) = self.query.shape, self.key.shape
        query = self.query[:, :, rows].float().view(B, K, H // K, len(rows), D)
        s = (query @ self.key.float().mT[:, :, None]) * self.scaling
        if self.softcap is not None:
            s = torch.tanh(s / self.softcap) * self.softcap
        if self.mask is not None:
            mask = (self.mask if self.mask.shape[2] == 1 else self.mask[:, :, rows])[..., :N]
            mask = mask[:, :, None] if mask.shape[1] == 1 else mask.unflatten(1, (K, H // K))
            seen = mask.dtype == torch.bool
            s = s.masked_fill(~mask, torch.finfo(s.dtype).min) if seen else s + mask.float()
        elif self.causal and Q > 1:
            # as sdpa aligns it: from the first key on, which is where a longer, still empty cache begins
            later = torch.arange(N, device=s.device) > rows[:, None]
            s = s.masked_fill(later, float("-inf"))
        return s.softmax(-1)

    def attend(self, value: torch.Tensor) -> torch.Tensor:
        """(B, Q, H, D): the layer's output. Softcapped attention is the one kind that sdpa does not compute."""
        B, H, Q, _ = self.query.shape
        rows = torch.arange(Q, device=self.query.device).split(self.rows_at_once())
        parts = [self.softmax(r).to(value.dtype) @ value[:, :, None] for r in rows]
        return torch.cat(parts, dim=3).reshape(B, H, Q, -1).transpose(1, 2).contiguous()


def capturing_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in place of its own attention function."""
    if more.get("s_aux") is not None or more.get("position_bias") is not None:
        raise ModelError(
            type(module).__name__,
            "its attention has sinks or a bias, which a capture does not know",
            "Run it without a capture.",
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(query, key, attention_mask, scaling, softcap, causal)
    if softcap is None:
        more |= {"dropout": dropout, "scaling": scaling, "is_causal": causal}
        output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **more)
    else:
        output = scores.attend(value)
    if (recorder := module.__dict__.get(SLOT)) is not None:
        recorder.record(scores)
    return output, None


AttentionInterface.register(NAME, capturing_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
