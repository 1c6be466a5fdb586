"""Attribution: the first order is the derivative, in every family and at every kind of tap; what it predicts is held
against true steering; and the model is left as it was."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.model.tiny_families import FAMILIES, picture, tiny
from vsp_report.errors import CheckpointError, SteeringError
from vsp_report.maths.edits import Contrast, Region
from vsp_report.model import taps
from vsp_report.model.answers import contrast_ids
from vsp_report.model.attribution import attribute, confirm, sample
from vsp_report.model.proofs import print_of
from vsp_report.model.sae import Sae
from vsp_report.model.vlm import Prompt, Vlm

ONE, SEVERAL = Contrast("sitting", "standing"), Contrast("sitting on a chair", "standing")
LAYER = {"vision": "vision.1", "connector": "connector", "text": "text.1"}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch):
    """Models in double precision, in which finite differences leave no doubt. Norms and softmax that ask for single
    precision on their way are not given it."""
    to, single, softmax = torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax

    def kept(z: torch.Tensor, *args, **more):
        return z if z.dtype == torch.float64 and torch.float32 in args else to(z, *args, **more)

    monkeypatch.setattr(torch.Tensor, "to", kept)
    monkeypatch.setattr(torch.Tensor, "float", lambda z: z if z.dtype == torch.float64 else single(z))
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda z, dim, dtype=None, **more: softmax(z, dim=dim))
    return lambda name: replace(tiny(name), model=copy.deepcopy(tiny(name).model).double())


def asked(vlm: Vlm) -> Prompt:
    return vlm.prepare(picture(40, 70), "what is the person doing ?")


def width_at(vlm: Vlm, prompt: Prompt, tap: str) -> int:
    seen = {}
    with torch.no_grad(), taps.editing(vlm, tap, lambda z, start: seen.update(d=z.shape[-1]) or z):
        vlm.logits(prompt)
    return seen["d"]


def autoencoder(vlm: Vlm, prompt: Prompt, tap: str, seed: int = 0, L: int = 64) -> Sae:
    """TopK with a bias in the middle of the data: its latents are neither all on nor all off."""
    return Sae.untrained(seed, width_at(vlm, prompt, tap), L, k=6).to(vlm.model.dtype).replace(tap=tap)


@torch.no_grad()
def reference(vlm: Vlm, prompt: Prompt, contrast: Contrast, tap: str, move) -> float:
    """Log-odds of whole answers from bare logits, in double precision, states moved by a plain hook."""
    result = []
    for ids in contrast_ids(vlm, contrast):
        longer = vlm.continued(prompt, [ids])
        with taps.editing(vlm, tap, lambda z, start: move(z)):
            likely = vlm.logits(longer, len(ids) + 1).log_softmax(-1)[0]
        result.append(sum(float(likely[n, token]) for n, token in enumerate(ids)))
    return result[0] - result[1]


@pytest.mark.parametrize("place", LAYER)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_order_is_the_derivative(name: str, place: str, double) -> None:
    """Along the way to zero, in double precision, for the strongest latents and for a sum of all."""
    vlm, tap = double(name), LAYER[place]
    prompt = asked(vlm)
    contrast = SEVERAL if name in ("llava", "paligemma", "qwen2_vl") else ONE
    sae = autoencoder(vlm, prompt, tap)
    found = attribute(vlm, sae, prompt, contrast)
    effects = found.effects()
    active = set((found.peaks_L > 0).nonzero()[:, 0].tolist())
    assert found.log_odds == pytest.approx(reference(vlm, prompt, contrast, tap, lambda z: z), abs=1e-4)
    rows, T = found.sites.rows_S[torch.as_tensor(~found.sites.class_S)], prompt.ids_BT.shape[1]
    strongest = effects.abs().topk(3).indices.tolist()
    assert set(strongest) <= active
    for chosen in ([strongest[0]], [strongest[1]], strongest):

        def towards_zero(share: float, chosen=chosen) -> float:
            def move(z: torch.Tensor) -> torch.Tensor:
                flat = (z[0] if place == "text" else z.flatten(0, -2)).clone()
                at = torch.cat([rows, torch.arange(T, len(flat))]) if place == "text" else rows
                h = sae.encode(flat[at])[:, chosen]
                flat[at] -= share * h @ sae.W_dec[chosen]
                return flat.view_as(z)

            return reference(vlm, prompt, contrast, tap, move)

        step = 1e-5
        slope = (towards_zero(step) - towards_zero(-step)) / (2 * step)
        assert float(effects[chosen].sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8), chosen


@pytest.mark.parametrize("place", LAYER)
@pytest.mark.parametrize("name", FAMILIES)
def test_small_steerings_do_what_is_predicted(name: str, place: str, double) -> None:
    """Through `steer` itself. What is left over shrinks with the strength: it is curvature, and no mistake."""
    vlm, tap = double(name), LAYER[place]
    prompt = asked(vlm)
    sae = autoencoder(vlm, prompt, tap)
    found = attribute(vlm, sae, prompt, ONE)
    held = confirm(vlm, prompt, found, op="scale", value=0.9999, n=6)
    assert held.agreement.slope == pytest.approx(1, abs=3e-3)
    assert np.allclose(held.measured_N, held.predicted_N, rtol=0, atol=3e-3 * np.abs(held.predicted_N).max())


def case(name: str = "llava", tap: str = "vision.1", **options):
    vlm = tiny(name, gain=1.0)
    prompt = asked(vlm)
    return vlm, prompt, attribute(vlm, autoencoder(vlm, prompt, tap), prompt, ONE, **options)


@pytest.mark.parametrize("tap", LAYER.values())
def test_true_ablations_rank_as_predicted(tap: str) -> None:
    """Full strength, on a model whose attention is not peaked. On one where it is, they may well not: that is what
    the agreement is measured for."""
    vlm, prompt, found = case(tap=tap)
    held = confirm(vlm, prompt, found)
    assert held.agreement.spearman > 0.95 and 0.7 < held.agreement.slope < 1.4
    again = confirm(vlm, prompt, found)
    assert again.latents_N == held.latents_N and np.array_equal(again.measured_N, held.measured_N)
    assert confirm(vlm, prompt, found, seed=1).latents_N != held.latents_N


def test_a_latent_that_is_never_active_has_no_effect() -> None:
    vlm, prompt, found = case()
    silent = (found.peaks_L == 0).nonzero()[:, 0].tolist()
    assert silent and found.effects()[silent].abs().max() == 0
    assert found.effects("add", 1.0)[silent].abs().min() > 0  # it can still be added
    measured_N = confirm(vlm, prompt, found, latents=silent[:2]).measured_N
    assert measured_N == pytest.approx([0, 0], abs=1e-6)  # rows of a batch differ in the last bit


def around(boxes: np.ndarray) -> Region:
    """A region that meets just these patches."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    return Region(tuple((x - 0.1, y - 0.1, x + 0.1, y + 0.1) for x, y in middle.tolist()))


@pytest.mark.parametrize("tap", ["vision.1", "connector"])
@pytest.mark.parametrize(("op", "value"), [("set", 0.0), ("set", 2.0), ("scale", 3.0), ("add", -1.0)])
def test_effects_add_up_over_regions_and_sites(op: str, value: float, tap: str) -> None:
    _, _, found = case(tap=tap)
    boxes = found.sites.boxes_S4[~found.sites.class_S]
    parts = [found.effects(op, value, around(some)) for some in (boxes[:3], boxes[3:11], boxes[11:])]
    whole = found.effects(op, value)
    assert torch.allclose(sum(parts), whole, atol=1e-5)
    assert torch.allclose(found.at_sites(range(64), op, value).sum(0), whole, atol=1e-5)
    assert torch.allclose(found.at_sites([5], op, value, around(boxes[:3])).sum(0), parts[0][5], atol=1e-5)


def test_what_is_predicted_for_each_operation() -> None:
    _, _, found = case()
    zero = found.effects()
    assert torch.allclose(found.effects("scale", 0.0), zero) and found.effects("scale", 1.0).abs().max() == 0
    assert torch.allclose(found.effects("scale", 3.0), -2 * zero)
    unit = found.effects("add", 1.0)
    assert torch.allclose(found.effects("set", 2.0), 2 * unit + zero, atol=1e-6)


@pytest.mark.parametrize("normalise", ["layer_norm", "constant_norm_rescale"])
def test_an_sae_that_normalises_its_input(normalise: str, double) -> None:
    vlm = double("llava")
    prompt = asked(vlm)
    sae = autoencoder(vlm, prompt, "vision.1").replace(normalise=normalise)
    held = confirm(vlm, prompt, attribute(vlm, sae, prompt, ONE), op="scale", value=0.9999, n=6)
    assert held.agreement.slope == pytest.approx(1, abs=3e-3)


def test_class_tokens_count_if_they_are_asked_for(double) -> None:
    vlm = double("llava")
    prompt = asked(vlm)
    sae = autoencoder(vlm, prompt, "vision.1")
    without, with_ = (attribute(vlm, sae, prompt, ONE, cls=cls) for cls in (False, True))
    assert with_.cls and not torch.allclose(with_.effects(), without.effects())
    held = confirm(vlm, prompt, with_, op="scale", value=0.9999, n=6)
    assert held.agreement.slope == pytest.approx(1, abs=3e-3)


def test_what_lies_below_the_tap_runs_once_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("llava")
    prompt = asked(vlm)
    ran, during = [], set()
    for parameter in vlm.model.parameters():
        parameter.requires_grad_(True)
    hooks = [
        layer.mlp.register_forward_hook(lambda m, a, out, k=k: ran.append((k, out.requires_grad)))
        for k, layer in enumerate(taps.layers_at(vlm, "vision"))
    ]
    text = vlm.model.get_decoder()
    hooks.append(text.register_forward_hook(lambda m, a, out: during.add(text.config._attn_implementation)))
    try:
        attribute(vlm, autoencoder(vlm, prompt, "vision.1"), prompt, SEVERAL)
        assert all(p.requires_grad and p.grad is None for p in vlm.model.parameters())
    finally:
        for hook in hooks:
            hook.remove()
        vlm.model.requires_grad_(False)
    graph = [k for k, asks in ran if asks]
    assert set(graph) == {2, 3} and during == {"sdpa"}


def test_the_model_is_left_as_it_was() -> None:
    vlm = tiny("llava")
    prompt = asked(vlm)
    before = vlm.logits(prompt)
    sae = autoencoder(vlm, prompt, "text.1")
    found = attribute(vlm, sae, prompt, SEVERAL)
    confirm(vlm, prompt, found, n=3)
    with pytest.raises(SteeringError):
        confirm(vlm, prompt, found, where=Region(((900, 900, 901, 901),)))
    assert torch.equal(vlm.logits(prompt), before)
    assert not any(layer.__dict__.keys() & {"forward"} for layer in taps.layers_at(vlm, "vision"))


@pytest.mark.parametrize("tap", LAYER.values())
@pytest.mark.parametrize("cut", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_is_cut_leaves_the_model_as_it_was(cut: type, tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("llava")
    prompt = asked(vlm)
    before, sae, first = print_of(vlm), autoencoder(vlm, prompt, tap), vlm.logits(prompt)

    def broken(*args):
        vlm.logits(prompt)
        raise cut

    monkeypatch.setattr("vsp_report.model.attribution.log_odds", broken)
    with pytest.raises(cut):
        attribute(vlm, sae, prompt, ONE)
    assert before.changes(print_of(vlm)) == () and torch.equal(vlm.logits(prompt), first)


def test_a_sample_has_both_ends_and_the_middle() -> None:
    predicted, active = np.arange(100.0), np.arange(10, 90)
    for seed in range(5):
        chosen = sample(predicted, active, 8, seed)
        assert [k // 10 for k in chosen] == list(range(1, 9))
    assert sample(predicted, active[:3], 8) == (10, 11, 12) and sample(predicted, active[:0], 8) == ()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"sae": Sae.untrained(0, 20, 8, k=2)}, CheckpointError, "20 wide"),
        ({"sae": Sae.untrained(0, 24, 8, k=2), "tap": None}, SteeringError, "names none"),
        ({"tap": "vision.9"}, Exception, "vision.9"),
        ({"contrast": Contrast("sitting", "sitting")}, Exception, "the same in tokens"),
    ],
)
def test_what_cannot_be_attributed_is_one_line(change: dict, error: type, said: str) -> None:
    vlm = tiny("llava")
    given = {"sae": Sae.untrained(0, 24, 8, k=2), "prompt": asked(vlm), "contrast": ONE, "tap": "vision.1"} | change
    with pytest.raises(error) as caught:
        attribute(vlm, **given)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_questions_of_a_batch_are_attributed_one_by_one() -> None:
    vlm = tiny("llava")
    prompt = asked(vlm)
    with pytest.raises(SteeringError, match="one prompt at a time"):
        attribute(vlm, autoencoder(vlm, prompt, "vision.1"), prompt.repeat(2), ONE)
    found = attribute(vlm, autoencoder(vlm, prompt, "vision.1"), prompt, ONE)
    for op, value, said in (("drop", 0.0, "op"), ("set", float("nan"), "finite")):
        with pytest.raises(SteeringError, match=said):
            found.effects(op, value)
    with pytest.raises(SteeringError, match="no latent"):
        found.at_sites([64])
