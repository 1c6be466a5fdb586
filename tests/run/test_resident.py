"""What a case may leave on a model, and what may not stay there unseen."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch

from vsp_report.run import resident

GROUND = resident.Ground("", {}, [], [], frozenset(t.ident for t in threading.enumerate()))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A model that a cell has just loaded; no other one of this process is watched."""
    monkeypatch.setattr(resident, "_known", weakref.WeakKeyDictionary())
    made = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).eval()
    made.register_buffer("table", torch.zeros(1000, 100))
    monkeypatch.setattr(resident, "_modules", lambda kind: made.modules())
    resident._after_cell(None)
    return made


def add_inside_no_grad(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model[0].bias.add_(1)


LEAKS = {
    "hook": lambda m: m[0].register_forward_hook(lambda *args: None),
    "pre-hook": lambda m: m[0].register_forward_pre_hook(lambda *args: None),
    "backward hook": lambda m: m[0].register_full_backward_hook(lambda *args: None),
    "weights past the counter": lambda m: m[0].weight.data.mul_(2),
    "weights": add_inside_no_grad,
    "other weights": lambda m: setattr(m[0], "weight", torch.nn.Parameter(m[0].weight.detach().clone())),
    "buffer": lambda m: m[1].running_mean.add_(1),
    "one of a buffer's many numbers": lambda m: m.table[777].zero_(),
    "exchanged module": lambda m: m.__setitem__(1, torch.nn.Identity()),
    "forward": lambda m: setattr(m[0], "forward", lambda x: x),
    "mode": lambda m: m.train(),
    "frozen": lambda m: m.requires_grad_(False),
    "half": lambda m: m.half(),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_what_stays_on_a_model_is_seen(model: torch.nn.Module, leak) -> None:
    resident.check(GROUND)
    leak(model)
    with pytest.raises(resident.Tainted):
        resident.check(GROUND)


def test_using_a_model_leaves_nothing(model: torch.nn.Module) -> None:
    handle = model[0].register_forward_hook(lambda module, args, output: output * 2)
    model(torch.ones(2, 4)).sum().backward()
    handle.remove()
    resident.check(GROUND)
    assert model[0].weight.grad is None


def test_a_librarys_own_hook_is_no_leak(model: torch.nn.Module) -> None:
    def hook(*args: object) -> None: ...

    hook.__module__ = "transformers.utils.output_capturing"
    model[0].register_forward_hook(hook)
    resident.check(GROUND)


def test_models_are_found_without_a_registry() -> None:
    kept = torch.nn.Linear(2, 2)
    assert any(module is kept for module in resident._modules(torch.nn.Module))


def test_a_thread_that_still_runs_is_seen(model: torch.nn.Module) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="leftover")
    thread.start()
    try:
        with pytest.raises(resident.Tainted, match="leftover"):
            resident.check(GROUND)
    finally:
        end.set()
        thread.join()
    resident.check(GROUND)
