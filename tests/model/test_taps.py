"""Taps: one word for a place; edits there count; what lies below can be skipped, and nothing tells the difference."""

from __future__ import annotations

import pytest
import torch

from tests.model.tiny_families import FAMILIES, picture, tiny
from vsp_report.errors import ModelError, SteeringError
from vsp_report.model import taps
from vsp_report.model.capture import capture
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Asked, Prompt, Vlm


def batch(vlm: Vlm) -> Prompt:
    return vlm.prepare_batch(
        [Asked(picture(40, 70), "what is it ?"), Asked(picture(50, 30, seed=1), "what ?")]
    )


def last_read(vlm: Vlm) -> int:
    return vlm.family.reading(vlm.model.config, len(taps.layers_at(vlm, "vision"))).last


@pytest.mark.parametrize("word", ["vision.18", "vision.-2", "connector", "text.0", "text.-1"])
def test_a_word_names_a_place_and_the_place_its_word(word: str) -> None:
    assert str(Tap.parse(word)) == word and Tap.parse(Tap.parse(word)) == Tap.parse(word)


NO_TAPS = [
    "vison.3",
    "vision",
    "vision.",
    "vision.x",
    "vision.99999",
    "connector.1",
    "text.1.2",
    " text.1",
    7,
    None,
]


@pytest.mark.parametrize("word", NO_TAPS)
def test_another_word_is_an_error_with_its_place(word: object) -> None:
    with pytest.raises(ModelError) as caught:
        Tap.parse(word, "cases/cup.yaml:7: tap")
    assert str(caught.value).startswith(f"cases/cup.yaml:7: tap: {word!r} is no tap. Write vision.N")


def test_layers_count_from_either_end_and_no_further() -> None:
    vlm = tiny("llava")
    assert taps.resolve(vlm, "vision.-1") == taps.resolve(vlm, "vision.3") == Tap("vision", 3)
    assert taps.resolve(vlm, "text.-4") == Tap("text", 0)
    for word in ("vision.4", "vision.-5", "text.4"):
        with pytest.raises(ModelError, match=r"which has (vision|text)\.0 to (vision|text)\.3"):
            taps.resolve(vlm, word)
    assert taps.resolve(tiny("mllama"), "vision.-1") == Tap("vision", 5)  # the global layers come last


@pytest.mark.parametrize("place", ["vision", "connector", "text"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_an_edit_counts_where_the_model_last_reads(name: str, place: str) -> None:
    """Also on a model that has run before: transformers' own collectors are hooked in by then."""
    vlm = tiny(name)
    prompt = batch(vlm)
    clean = vlm.logits(prompt)
    word = {"vision": f"vision.{last_read(vlm)}", "connector": "connector", "text": "text.-1"}[place]
    generator = torch.Generator().manual_seed(0)
    with taps.editing(vlm, word, lambda z, start: z + torch.randn(z.shape, generator=generator)):
        edited = vlm.logits(prompt)
    with taps.editing(vlm, word, lambda z, start: z):
        same = vlm.logits(prompt)
    assert (edited - clean).abs().max() > 1e-3
    assert torch.equal(same, clean)
    assert torch.equal(vlm.logits(prompt), clean)


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl"])
def test_an_edit_that_nothing_reads_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny(name)
    monkeypatch.setattr(vlm.model.config, "vision_feature_layer", -2)
    with pytest.raises(SteeringError, match=r"reads vision\.2 and nothing above it"):
        taps.check_read(vlm, Tap("vision", 3))
    with pytest.raises(SteeringError), taps.editing(vlm, "vision.-1", lambda z, start: z):
        pass


def test_a_text_edit_is_told_where_it_is() -> None:
    vlm = tiny("llava")
    prompt, seen = batch(vlm), []
    with taps.editing(vlm, "text.1", lambda z, start: seen.append((start, z.shape[1])) or z):
        vlm.generate(prompt, 3)
    T = prompt.ids_BT.shape[1]
    assert seen == [(0, T), (T, 1), (T + 1, 1)]


@pytest.mark.parametrize("where", ["first", "middle", "last", "connector"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_starting_from_a_tap_is_editing_at_it(name: str, where: str) -> None:
    """Three steerings in one batch, layers below skipped, against one at a time with everything computed."""
    vlm = tiny(name)
    prompt = vlm.prepare(picture(40, 70), "what is it ?")
    layer = {"first": 0, "middle": 1, "last": last_read(vlm), "connector": None}[where]
    tap = Tap("connector") if layer is None else Tap("vision", layer)
    below = taps.read_below(vlm, tap)
    with capture(vlm, prompt, taps=[tap, *below], attention=False) as seen:
        clean = vlm.logits(prompt)
    z = seen.states[tap]
    deltas = [torch.zeros_like(z), torch.randn_like(z), torch.randn_like(z)]
    singly = []
    for delta in deltas:
        with taps.editing(vlm, tap, lambda states, start, delta=delta: states + delta):
            singly.append(vlm.logits(prompt))
    states = {tap: torch.cat([z + delta for delta in deltas])}
    states |= {side: torch.cat([seen.states[side]] * 3) for side in below}
    with taps.starting_from(vlm, states):
        together = vlm.logits(prompt.repeat(3))
    assert torch.allclose(singly[0], clean, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-4
    assert torch.allclose(together, torch.cat(singly), atol=1e-4)
    assert torch.equal(vlm.logits(prompt), clean)


def test_what_is_skipped_is_not_computed() -> None:
    vlm = tiny("llava")
    prompt = vlm.prepare(picture(40, 70), "what is it ?")
    with capture(vlm, prompt, taps=["vision.2"], attention=False) as seen:
        vlm.logits(prompt)
    ran = []
    layers = taps.layers_at(vlm, "vision")
    handles = [
        layer.mlp.register_forward_hook(lambda m, a, o, k=k: ran.append(k)) for k, layer in enumerate(layers)
    ]
    with taps.starting_from(vlm, seen.states):
        vlm.logits(prompt)
    for handle in handles:
        handle.remove()
    assert ran == [3]


def test_layers_read_past_the_tap_must_be_given() -> None:
    qwen, mllama = tiny("qwen3_vl"), tiny("mllama")
    assert taps.read_below(qwen, "vision.2") == (Tap("vision", 0),)
    assert taps.read_below(qwen, "connector") == (Tap("vision", 0), Tap("vision", 2))
    assert taps.read_below(mllama, "vision.-1") == (Tap("vision", 1), Tap("vision", 3))
    assert taps.read_below(mllama, "connector") == taps.read_below(tiny("llava"), "vision.2") == ()
    with pytest.raises(SteeringError, match=r"the states of vision\.0 are read past it"):
        with taps.starting_from(qwen, {"vision.2": torch.zeros(1)}):
            pass
    with (
        pytest.raises(SteeringError, match="can be started from"),
        taps.starting_from(qwen, {"text.1": torch.zeros(1)}),
    ):
        pass


def test_layers_run_again_after_an_exception() -> None:
    vlm = tiny("llava")
    with (
        pytest.raises(RuntimeError, match="cut"),
        taps.starting_from(vlm, {"vision.2": torch.zeros(1, 17, 24)}),
    ):
        raise RuntimeError("cut")
    assert not any("forward" in layer.__dict__ for layer in taps.layers_at(vlm, "vision"))


def test_gradients_reach_an_edit() -> None:
    """One backward pass for attribution: only what is edited asks for a gradient."""
    vlm = tiny("llava")
    prompt = vlm.prepare(picture(40, 70), "what is it ?")
    dz = torch.zeros(1, 17, 24, requires_grad=True)
    with taps.editing(vlm, "vision.1", lambda z, start: z + dz):
        logits = vlm.logits(prompt)[0, -1]
    (logits[5] - logits[6]).backward()
    assert dz.grad.abs().sum() > 0 and all(p.grad is None for p in vlm.model.parameters())
