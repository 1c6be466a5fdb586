"""Resident: what stays in a warm kernel between cases, and holds it to what it was. Runs inside the kernel.

What a case leaves behind must not reach the next. Most of it is put back: variables, working folder, environment,
import path, random numbers, gradients. What cannot be put back with certainty is looked for: hooks on a model, edited
weights, exchanged modules, threads. `Tainted` says what was found; who started this kernel then throws it away.

Models are found by asking the garbage collector after each cell, not by a registry, so whoever loads one need not
know of this. A model's fingerprint is taken at the end of the cell in which it first appears; what that same cell did
to its weights is not seen, but any hook still is. Nothing here imports torch: where no case has, there is no model.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

LIBRARIES = ("transformers", "torch", "accelerate")
"""Whose hooks are no leak: transformers hangs some on a model at its first call and leaves them there."""
SAMPLES = 32
"""How many numbers of each tensor go into its checksum."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Tainted(Exception):
    """Something of one case would reach the next."""


class Ground(NamedTuple):
    """The kernel as it was before its first case."""

    folder: str
    environment: dict[str, str]
    path: list[str]
    arguments: list[str]
    threads: frozenset[int]


_ground: Ground | None = None
_known: weakref.WeakKeyDictionary[Any, tuple[Any, ...]] = weakref.WeakKeyDictionary()


def prepare(shell: Any) -> None:
    """Make the kernel ready for a case; raises `Tainted` if the one before left something that stays."""
    global _ground
    if _ground is None:
        threads = frozenset(t.ident for t in threading.enumerate())
        _ground = Ground(os.getcwd(), dict(os.environ), list(sys.path), list(sys.argv), threads)
        shell.events.register("pre_run_cell", _before_cell)
        shell.events.register("post_run_cell", _after_cell)
    else:
        _put_back(shell, _ground)
        check(_ground)
    _seed()


def _put_back(shell: Any, ground: Ground) -> None:
    shell.reset(new_session=True, aggressive=False)
    os.chdir(ground.folder)
    if dict(os.environ) != ground.environment:
        os.environ.clear()
        os.environ.update(ground.environment)
    sys.path[:], sys.argv[:] = ground.path, ground.arguments
    # The traceback of a caught error keeps a whole frame, and with it whatever stood there.
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    if widgets := sys.modules.get("ipywidgets"):
        widgets.Widget.close_all()
    if plots := sys.modules.get("matplotlib.pyplot"):
        plots.close("all")
    gc.collect()


def _seed() -> None:
    """A case seeds what it draws itself; this makes a forgotten seed the same in every case."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def check(ground: Ground) -> None:
    for thread in threading.enumerate():
        if thread.ident not in ground.threads and not thread.daemon and thread.is_alive():
            raise Tainted(f"the thread {thread.name} is still running")
    for module, before in list(_known.items()):
        name = type(module).__name__
        if hooks := list(_strangers(module)):
            raise Tainted(f"{name} still has a hook: {hooks[0]}")
        for what, was, now in zip(Fingerprint._fields, before, _fingerprint(module), strict=True):
            if was != now:
                raise Tainted(f"{name}: {what} changed")
        for parameter in module.parameters(recurse=False):
            parameter.grad = None


# --- models ------------------------------------------------------------------------------------------------------


class Fingerprint(NamedTuple):
    """Of one module without those inside it, which have their own."""

    children: tuple[int, ...]
    methods: tuple[int, ...]
    """forward, and how it is called: of the instance where it has its own, and of the class"""
    mode: tuple[bool, ...]
    """training, and whether each parameter wants a gradient"""
    tensors: tuple[Any, ...]
    """where each parameter lies, its shape, and how often it was written to"""
    numbers: tuple[float, ...]
    """sampled from parameters and buffers, for what is written past the counter"""


_began = 0.0
SHORT_SECONDS = 0.05
"""A cell this short has loaded no model; looking for one takes longer. What it made is found after the next."""


def _before_cell(info: Any) -> None:
    global _began
    _began = time.monotonic()


def _after_cell(result: Any) -> None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "nn") or time.monotonic() - _began < SHORT_SECONDS:
        return
    for module in _modules(torch.nn.Module):
        if module not in _known:
            _known[module] = _fingerprint(module)


def _modules(kind: type) -> list[Any]:
    # Hundreds of thousands of things, after each cell: so by their types, of which there are few, and not one by one
    # with `isinstance`, which would also ask proxies, and those answer by doing work.
    things = gc.get_objects()
    kinds = {of for of in set(map(type, things)) if issubclass(of, kind)}
    return [thing for thing in things if type(thing) in kinds and "_parameters" in thing.__dict__] if kinds else []


def _fingerprint(module: Any) -> Fingerprint:
    own, of = vars(module), type(module)
    parameters = list(module.parameters(recurse=False))
    buffers = list(module.buffers(recurse=False))
    return Fingerprint(
        children=tuple(id(child) for child in module.children()),
        methods=(id(own.get("forward")), id(of.forward), id(of.__call__)),
        mode=(module.training, *(p.requires_grad for p in parameters)),
        tensors=tuple((t.data_ptr(), tuple(t.shape), t._version) for t in (*parameters, *buffers)),
        numbers=tuple(number for tensor in (*parameters, *buffers) for number in _sampled(tensor)),
    )


def _sampled(tensor: Any) -> list[float]:
    if tensor.is_meta or tensor.layout is not sys.modules["torch"].strided or not tensor.numel():
        return []
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    step = max(1, flat.numel() // SAMPLES)
    return [repr(number) for number in flat[::step][:SAMPLES].tolist()]  # repr: NaN is not equal to itself


def _strangers(module: Any) -> Iterator[str]:
    for name in _HOOKS:
        for hook in getattr(module, name, {}).values():
            home = getattr(hook, "__module__", None) or type(hook).__module__
            if home.partition(".")[0] not in LIBRARIES:
                yield f"{home}.{getattr(hook, '__qualname__', type(hook).__name__)}"
