"""Taps: the named places of a model where states are read and edited. One word in YAML, code, JSON and page.

    vision.N     the output of vision layer N
    connector    the output of the connector: what the language model is given for the image
    text.N       the residual stream after text layer N, at image and text positions

N counts from 0, or from the end if it is negative. transformers collects hidden states with forward hooks of
its own, installed at the first forward pass; an edit hooked in after them would change nothing that the
language model reads, without an error. Hence `prepend=True` here, and a test that an edit counts at every
family's last layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vsp_report.errors import ModelError, SteeringError
from vsp_report.model.vlm import Vlm

WORD = r"(?:(vision|text)\.(-?\d{1,4})|(connector))"
Edit = Callable[[torch.Tensor, int], torch.Tensor]
"""Gets the states and, for a text tap, the position of the first of them (the prompt comes first, then one
token at a time); returns states of the same shape."""


@dataclass(frozen=True)
class Tap:
    place: str
    layer: int | None = None

    @classmethod
    def parse(cls, word: Any, where: str = "tap") -> Tap:
        """`where` names the file and line, or whatever else the word came from."""
        if isinstance(word, Tap):
            return word
        match = re.fullmatch(WORD, word) if isinstance(word, str) else None
        if match is None:
            raise ModelError(
                where, f"{word!r} is no tap", "Write vision.N (such as vision.-2), text.N or connector."
            )
        return cls(match[1] or match[3], None if match[2] is None else int(match[2]))

    def __str__(self) -> str:
        return self.place if self.layer is None else f"{self.place}.{self.layer}"


def layers_at(vlm: Vlm, place: str) -> list[nn.Module]:
    return vlm.family.vision_layers(vlm.model) if place == "vision" else vlm.family.text_layers(vlm.model)


def resolve(vlm: Vlm, tap: Tap | str, where: str = "tap") -> Tap:
    """The same place, counted from 0; an error if this model does not have it."""
    tap = Tap.parse(tap, where)
    if tap.layer is None:
        return tap
    n = len(layers_at(vlm, tap.place))
    if not -n <= tap.layer < n:
        raise ModelError(
            where,
            f"{tap} is not in {vlm.name}, which has {tap.place}.0 to {tap.place}.{n - 1}",
            "Name a layer that is.",
        )
    return Tap(tap.place, tap.layer % n)


def module_at(vlm: Vlm, tap: Tap | str) -> nn.Module:
    tap = resolve(vlm, tap)
    return vlm.family.connector(vlm.model) if tap.layer is None else layers_at(vlm, tap.place)[tap.layer]


def read_below(vlm: Vlm, tap: Tap | str) -> tuple[Tap, ...]:
    """Vision layers below `tap` that are read past it (deepstack, intermediate layers, lists of feature
    layers): an edit at `tap` does not reach what they pass on, and whoever skips them must supply them."""
    tap = resolve(vlm, tap)
    if tap.place == "text":
        return ()
    n = len(layers_at(vlm, "vision"))
    reading = vlm.family.reading(vlm.model.config, n)
    below = n if tap.layer is None else tap.layer
    # Into the connector they all go; only deepstack has connectors of its own.
    beside = reading.also if tap.layer is not None or vlm.family.beside_connector else ()
    return tuple(Tap("vision", layer) for layer in beside if layer < below)


def check_read(vlm: Vlm, tap: Tap) -> None:
    """An edit where nothing reads it would be a silent nothing."""
    if tap.place == "vision":
        last = vlm.family.reading(vlm.model.config, len(layers_at(vlm, "vision"))).last
        if tap.layer > last:
            raise SteeringError(
                str(tap),
                f"{vlm.name} reads vision.{last} and nothing above it; an edit would be lost",
                f"Take vision.{last} or below.",
            )


@contextmanager
def editing(vlm: Vlm, tap: Tap | str, edit: Edit) -> Iterator[None]:
    """While open, the model goes on with `edit(states)` from `tap` on."""
    tap = resolve(vlm, tap)
    check_read(vlm, tap)
    with ExitStack() as stack:
        clock = stack.enter_context(Clock.of(vlm)) if tap.place == "text" else None

        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            states = edit(tensor_of(output), clock.start if clock else 0)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        stack.callback(module_at(vlm, tap).register_forward_hook(hook, prepend=True).remove)
        yield


@contextmanager
def starting_from(vlm: Vlm, states: Mapping[Tap | str, torch.Tensor]) -> Iterator[None]:
    """While open, the vision tower's output at a tap is given: the layers below it are skipped, not computed.

    `states` holds the tap's own states, and those of every tap that `read_below` names, for the whole batch.
    Modules stay where they are and only their `forward` is covered, so that hooks, indices of hidden states
    and captures work as before.
    """
    given = {resolve(vlm, tap): tensor for tap, tensor in states.items()}
    if not given or any(tap.place == "text" for tap in given):
        raise SteeringError(
            "tap", "only vision.N and connector can be started from", "Edit text taps instead."
        )
    top = max(given, key=lambda tap: float("inf") if tap.layer is None else tap.layer)
    check_read(vlm, top)
    if missing := set(read_below(vlm, top)) - given.keys():
        raise SteeringError(
            str(top),
            f"the states of {', '.join(map(str, missing))} are read past it and not given",
            "Capture them in the same run.",
        )
    layers = layers_at(vlm, "vision")
    with ExitStack() as stack:
        for layer, module in enumerate(layers if top.layer is None else layers[: top.layer + 1]):
            known = given.get(Tap("vision", layer))
            stack.enter_context(_covered(module, _first_argument if known is None else _constant(known)))
        if top.layer is None:
            stack.enter_context(_covered(module_at(vlm, top), _constant(given[top])))
        yield


@contextmanager
def _covered(module: nn.Module, forward: Callable) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _constant(states: torch.Tensor) -> Callable:
    return lambda *args, **kwargs: states


def _first_argument(*args: Any, **kwargs: Any) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]  # Mllama passes it by name


def tensor_of(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


class Clock:
    """Which positions the text model is at: the prompt first, then the cache's length on."""

    start = length = 0

    @classmethod
    @contextmanager
    def of(cls, vlm: Vlm, tick: Callable[[int, int], None] | None = None) -> Iterator[Clock]:
        clock = cls()

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = kwargs.get("inputs_embeds")
            given = kwargs.get("input_ids", args[0] if args else None) if given is None else given
            cache = kwargs.get("past_key_values")
            clock.start = 0 if cache is None else int(cache.get_seq_length())
            clock.length = given.shape[1]
            if tick is not None:
                tick(clock.start, clock.length)

        handle = vlm.model.get_decoder().register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield clock
        finally:
            handle.remove()
