"""Steering: many steerings of one prompt, in as few batches as memory allows.

One clean run of the vision tower gives the states at the tap. Each row of a batch then goes on with states of
its own, from the tap upwards: what lies below is never run again, and of a tower that a text tap leaves as it
is, nothing is. What comes out of the connector is kept, so that saying an answer and scoring a contrast do not
run the rest of the tower twice either.

Every batch carries a row that nothing was done to, and changes are taken against that row, because in low
precision a matrix product depends on how many rows it has. A `reconstruct` steering puts the SAE's own error
into the model besides its edits, so its batch also carries a row that was reconstructed with nothing edited.

Where an edit acts:

    vision.N, connector    the patches; class tokens only if `cls` is set, and then by edits without a region
    text.N                 with a region, the image tokens that it meets. Without one, every position of the
                           prompt, image and text, and every token that is said after it, but not the token
                           that opens the sequence, unless `cls` is set: it is to text what a class token is
                           to patches, a place to look at for want of a better one.

Axes: B rows of a batch, S sites, E edits of a steering, T positions of the prompt, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vsp_report.errors import CheckpointError, ModelError, SteeringError
from vsp_report.maths import edits
from vsp_report.maths.edits import Contrast, Steering
from vsp_report.model import answers, taps
from vsp_report.model.capture import capture
from vsp_report.model.memory import free_bytes, row_bytes
from vsp_report.model.sae import Sae
from vsp_report.model.sites import Codes, Editor, Row, Sites
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Answer, Prompt, Vlm

States = Mapping[Tap, torch.Tensor]


# --- what comes out ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What the model said under one steering, or under none."""

    name: str
    text: str
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    """of each token when it was said"""
    ended: bool
    """the model ended it; else it was cut at the length allowed"""
    log_odds: float | None = None
    """of the contrast; None if none was declared"""
    change: float | None = None
    """of the log-odds, against the unedited row of the same batch"""
    beyond_reconstruction: float | None = None
    """the same against "reconstructed, nothing edited": what the edits did, without the SAE's error"""


@dataclass(frozen=True)
class Steered:
    tap: str
    before: Said
    """nothing edited"""
    reconstructed: Said | None
    """reconstructed, nothing edited; None where no steering reconstructs"""
    after: tuple[Said, ...]
    """one for each steering, in their order"""
    batches: int

    def __getitem__(self, name: str) -> Said:
        found = next((said for said in self.after if said.name == name), None)
        if found is None:
            known = ", ".join(said.name for said in self.after)
            raise SteeringError(name, "is not among what was steered", f"There are {known}.")
        return found


# --- the one way in ----------------------------------------------------------------------------------------------


@torch.no_grad()
def steer(
    vlm: Vlm,
    sae: Sae,
    prompt: Prompt,
    steerings: Sequence[Steering],
    *,
    contrast: Contrast | None = None,
    max_new_tokens: int = 64,
    budget_bytes: int | None = None,
    tap: Tap | str | None = None,
    states: States | None = None,
) -> Steered:
    """What the model answers to one prompt under each of `steerings`. The model is left as it was found.

    `tap` is the SAE's own unless given. `budget_bytes` is what a batch may take; a large part of what is free,
    by default. With `max_new_tokens=0` nothing is said, and only the contrast is scored. `states` are those of
    `clean_states` for the same prompt, for who steers it again and again.
    """
    tap = tap_of(vlm, sae, tap)
    _check(sae, prompt, steerings, contrast, max_new_tokens)
    wanted = contrast and answers.contrast_ids(vlm, contrast)
    sites = Sites.of(vlm, prompt, tap)
    rows = [Row.of(steering, sites) for steering in steerings]
    states = clean_states(vlm, prompt, tap) if states is None else states
    check_width(vlm, sae, tap, states)
    run = _Run(vlm, prompt, tap, sites, Editor(sae, steerings, vlm.device), states, max_new_tokens, contrast, wanted)
    longest = max(map(len, wanted)) if wanted else 0
    budget = free_bytes(vlm.device) if budget_bytes is None else budget_bytes
    room = budget // row_bytes(vlm, prompt, states, max_new_tokens, longest)
    befores, baselines, after = [], [], {}
    while rows or not befores:
        batch, rest = _batch(rows, sites, room)
        said = _within_memory(run, batch)
        if said is None:  # the estimate was too low; half of it will do
            room = len(batch) // 2
            continue
        rows, before = rest, said[0]
        remade = {row.cls: one for row, one in zip(batch, said, strict=True) if row.is_baseline}
        befores.append(before)
        baselines += [_compared(one, before) for one in remade.values()]
        for row, one in zip(batch, said, strict=True):
            if row.steering is not None:
                against = remade[row.cls] if row.remade_S is not None else None
                after[row.name] = _compared(one, before, against)
    said = tuple(after[steering.name] for steering in steerings)
    return Steered(str(tap), befores[0], baselines[0] if baselines else None, said, len(befores))


def tap_of(vlm: Vlm, sae: Sae, tap: Tap | str | None = None) -> Tap:
    """Where an SAE is used: where it is told to, or else where it says itself."""
    if tap is None and not sae.tap:
        raise SteeringError("tap", f"{sae.name or 'the SAE'} names none", "Say where it belongs, as tap='vision.N'.")
    found = taps.resolve(vlm, tap or sae.tap)
    taps.check_read(vlm, found)
    return found


def check_width(vlm: Vlm, sae: Sae, tap: Tap, states: States) -> None:
    width = vlm.model.get_decoder().config.hidden_size if tap.place == "text" else states[tap].shape[-1]
    if sae.d_in != width:
        raise CheckpointError(
            sae.name or "sae",
            f"reads states {sae.d_in} wide; {tap} of {vlm.name} gives {width}",
            "Take an SAE of this tap.",
        )


@torch.no_grad()
def clean_states(vlm: Vlm, prompt: Prompt, tap: Tap) -> States:
    """All that steering a prompt at a tap needs to have seen of it."""
    return see_states(vlm, prompt, _starts(vlm, tap))


def see_states(vlm: Vlm, prompt: Prompt, wanted: Sequence[Tap]) -> dict[Tap, torch.Tensor]:
    """Vision and connector states of a prompt, the topmost tap first. Nothing is run that they do not need: not
    the language model, and none of the layers at the end of a tower that LLaVAs have and do not read."""
    layers = taps.layers_at(vlm, "vision")
    last = vlm.family.reading(vlm.model.config, len(layers)).last
    with ExitStack() as stack:
        seen = stack.enter_context(capture(vlm, prompt, taps=wanted, attention=False))
        stack.callback(taps.module_at(vlm, wanted[0]).register_forward_hook(_stop).remove)
        if wanted[0].layer is None:
            for layer in layers[last + 1 :]:
                stack.enter_context(taps._covered(layer, taps._first_argument))
        with suppress(_Enough):
            vlm.logits(prompt)
    return seen.states


class _Enough(Exception):
    """All that was wanted has been seen."""


def _stop(module: Any, args: tuple, output: Any) -> None:
    raise _Enough


def _starts(vlm: Vlm, tap: Tap) -> list[Tap]:
    """The states that a run from `tap` on has to be given."""
    start = Tap("connector") if tap.place == "text" else tap
    return [start, *taps.read_below(vlm, start)]


def _check(
    sae: Sae, prompt: Prompt, steerings: Sequence[Steering], contrast: Contrast | None, max_new_tokens: int
) -> None:
    if len(prompt) != 1:
        raise SteeringError("prompt", f"{len(prompt)} of them in one batch", "Steer one prompt at a time.")
    if max_new_tokens < 0 or (max_new_tokens == 0 and contrast is None):
        raise SteeringError("max_new_tokens", f"is {max_new_tokens}", "Let it say something, or give a contrast.")
    names = [steering.name for steering in steerings]
    for steering in steerings:
        if names.count(steering.name) > 1:
            raise SteeringError(steering.name, "names more than one steering", "Give each a name of its own.")
        edits.check(steering, sae.d_sae)


def _batch(rows: Sequence[Row], sites: Sites, room: int) -> tuple[list[Row], Sequence[Row]]:
    """As many rows as there is room for behind an unedited one, and the rest; one steering there always is."""
    batch = [Row.unedited(sites)]
    for done, row in enumerate(rows):
        known = row.remade_S is None or any(other.is_baseline and other.cls == row.cls for other in batch)
        if done and len(batch) + (1 if known else 2) > room:
            return batch, rows[done:]
        batch += [row] if known else [Row.baseline(sites, row.cls), row]
    return batch, ()


def _within_memory(run: _Run, batch: list[Row]) -> list[Said] | None:
    """None if the batch is too large for the accelerator and could be smaller."""
    with suppress(torch.OutOfMemoryError):
        return run(batch)
    # Here and not while the error is at hand, which holds on to what the batch had taken.
    torch.cuda.empty_cache()
    if sum(row.steering is not None for row in batch) > 1:
        return None
    raise ModelError(
        run.vlm.name,
        f"has no memory for {len(batch)} answers of {run.max_new_tokens} tokens at once",
        "Ask for a shorter answer, give a smaller picture, or load it in bfloat16.",
    )


def _compared(one: Said, before: Said, against: Said | None = None) -> Said:
    if one.log_odds is None:
        return one
    beyond = None if against is None else one.log_odds - against.log_odds
    return replace(one, change=one.log_odds - before.log_odds, beyond_reconstruction=beyond)


# --- one batch ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Run:
    vlm: Vlm
    prompt: Prompt
    tap: Tap
    sites: Sites
    editor: Editor
    states: States
    """of the one clean prompt"""
    max_new_tokens: int
    contrast: Contrast | None
    wanted: tuple[tuple[int, ...], tuple[int, ...]] | None
    codes: Codes | None = field(init=False)
    """of the clean states, for all batches"""

    def __post_init__(self) -> None:
        made = None
        if self.tap.place != "text":
            made = self.editor.codes(self.states[self.tap].flatten(0, -2)[self.sites.rows_S])
        object.__setattr__(self, "codes", made)

    def __call__(self, batch: list[Row]) -> list[Said]:
        many, vlm = self.prompt.repeat(len(batch)), self.vlm
        at_once = self.wanted is not None and all(len(ids) == 1 for ids in self.wanted)
        odds, said, heard = None, [Answer((), "", False)] * len(batch), Heard()
        with self._editing(batch, many):
            if self.max_new_tokens:
                with listening(vlm) as heard:
                    said = vlm.generate(many, self.max_new_tokens)
                if at_once:
                    odds = answers.first_log_odds(heard.first_BV, *self.wanted)
            if self.contrast is not None and odds is None:
                odds = answers.log_odds(vlm, many, self.contrast)
        odds = [None] * len(batch) if odds is None else odds.tolist()
        return [
            Said(row.name, one.text, one.ids, heard.of(b, len(one.ids)), one.ended, odds[b])
            for b, (row, one) in enumerate(zip(batch, said, strict=True))
        ]

    @contextmanager
    def _editing(self, batch: list[Row], many: Prompt) -> Iterator[None]:
        """While open, row b of the batch is steered as it asks; the vision tower has been run, once."""
        vlm, n = self.vlm, len(batch)
        given = {tap: torch.cat([tensor] * n) for tap, tensor in self.states.items() if tap != self.tap}
        if self.tap.place != "text":
            given[self.tap] = torch.cat([self._states_of(row) for row in batch])
        if self.tap.place == "vision":
            with taps.starting_from(vlm, given):
                given = see_states(vlm, many, _starts(vlm, Tap("connector")))
        with ExitStack() as stack:
            stack.enter_context(taps.starting_from(vlm, given))
            if self.tap.place == "text":
                stack.enter_context(taps.editing(vlm, self.tap, self._text_edit(batch)))
            yield

    def _states_of(self, row: Row) -> torch.Tensor:
        clean = self.states[self.tap]
        if row.steering is None and not row.is_baseline:
            return clean
        states = clean.clone(memory_format=torch.contiguous_format)
        states.flatten(0, -2)[self.sites.rows_S] = self.editor.edited(self.codes, row)
        return states

    def _text_edit(self, batch: list[Row]) -> taps.Edit:
        T, rows_S = self.prompt.ids_BT.shape[1], self.sites.rows_S

        def edit(z_BTD: torch.Tensor, start: int) -> torch.Tensor:
            z_BTD = z_BTD.clone()
            for b, row in enumerate(batch):
                if row.steering is None and not row.is_baseline:
                    continue
                if start < T:  # generation reads the prompt whole
                    z_BTD[b, rows_S] = self.editor.edited(self.editor.codes(z_BTD[b, rows_S]), row)
                first = max(T - start, 0)
                if first < z_BTD.shape[1]:
                    codes = self.editor.codes(z_BTD[b, first:])
                    z_BTD[b, first:] = self.editor.edited(codes, row.later(z_BTD.shape[1] - first))
            return z_BTD

        return edit


# --- listening ---------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """What the model was thinking while it spoke. An answer is greedy: what it said, it found likeliest."""

    first_BV: torch.Tensor | None = None
    steps: list[torch.Tensor] = field(default_factory=list)

    def of(self, row: int, n: int) -> tuple[float, ...]:
        return tuple(float(step_B[row]) for step_B in self.steps[:n])


@contextmanager
def listening(vlm: Vlm) -> Iterator[Heard]:
    """While open, one `generate` is heard. It needs no replay, and so no token that a replay could not read:
    an untrained model may well say its own image token."""
    heard = Heard()

    def hook(module: Any, args: tuple, output: Any) -> None:
        logits_BV = output.logits[:, -1].float()
        if not heard.steps:
            heard.first_BV = logits_BV
        heard.steps.append((logits_BV.amax(1) - logits_BV.logsumexp(1)).cpu())

    handle = vlm.model.register_forward_hook(hook)
    try:
        yield heard
    finally:
        handle.remove()
