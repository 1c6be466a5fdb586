"""On a GPU: steering, its controls and attribution find what they find on a CPU. `--device cuda` runs these."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model import test_attribution, test_steering
from tests.model.tiny_families import FAMILIES, tiny
from vsp_report.maths.edits import Edit, Steering
from vsp_report.model.attribution import attribute, confirm
from vsp_report.model.bench import answering, turned
from vsp_report.model.steering import steer

pytestmark = pytest.mark.cuda
SOLO = Steering("three", (Edit((1, 2, 3), "add", 3.0),))


@pytest.mark.parametrize("tap", ["vision.1", "text.1"])
@pytest.mark.parametrize("name", FAMILIES)
def test_steering_is_what_it_is_on_the_cpu(name: str, tap: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        vlm = tiny(name, device=device)
        prompt = test_steering.asked(vlm)
        sae = test_steering.made(tiny(name), tap)
        wanted = [s for s in test_steering.STEERINGS if tap != "text.1" or s.name in ("off", "all")]
        found.append(steer(vlm, sae, prompt, wanted, contrast=test_steering.CONTRAST, max_new_tokens=3))
    cpu, cuda = found
    for one, other in zip((cpu.before, *cpu.after), (cuda.before, *cuda.after), strict=True):
        assert one.log_odds == pytest.approx(other.log_odds, abs=2e-3), one.name
        if one.ids == other.ids:  # in an untrained model two words may be as likely as each other
            assert np.allclose(one.log_probs, other.log_probs, atol=2e-3), one.name


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_edited_is_the_same_to_the_last_bit(name: str) -> None:
    vlm = tiny(name, device="cuda")
    same = [Steering("none", ()), Steering("once", (Edit("all", "scale", 1.0),), cls=True)]
    prompt, sae = test_steering.asked(vlm), test_steering.made(tiny(name), "vision.1")
    result = steer(vlm, sae, prompt, same, contrast=test_steering.CONTRAST, max_new_tokens=4)
    for said in result.after:
        assert said.ids == result.before.ids and abs(said.change) < 1e-5


@pytest.mark.parametrize("tap", ["vision.1", "text.1"])
@pytest.mark.parametrize("name", FAMILIES)
def test_attribution_is_what_it_is_on_the_cpu(name: str, tap: str) -> None:
    effects = []
    for device in ("cpu", "cuda"):
        vlm = tiny(name, device=device)
        prompt = test_attribution.asked(vlm)
        sae = test_attribution.autoencoder(tiny(name), test_attribution.asked(tiny(name)), tap)
        found = attribute(vlm, sae, prompt, test_attribution.ONE)
        assert found.effects().device.type == "cpu"
        effects.append(found.effects().double().numpy())
        assert len(confirm(vlm, prompt, found, n=3).measured_N) <= 3
    assert np.allclose(*effects, atol=2e-3 * max(1.0, float(np.abs(effects[0]).max())))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_bench_scores_changes_as_on_the_cpu(name: str) -> None:
    shifts = []
    for device in ("cpu", "cuda"):
        vlm = tiny(name, device=device)
        sae = test_steering.made(tiny(name), "vision.1")
        bench = answering(vlm, sae, test_steering.asked(vlm), test_steering.CONTRAST)
        change_SD = bench.change(SOLO)
        assert change_SD.device.type == device
        shifts.append(bench.shifts([change_SD, *turned(change_SD, range(2))]))
        assert bench.attribution().effects().isfinite().all()
        assert bench.latents().shape == (len(bench.states_SD), sae.d_sae)
    assert np.allclose(*shifts, atol=2e-3)


def test_after_a_run_the_model_is_as_it_was() -> None:
    vlm = tiny("llava", device="cuda")
    prompt, sae = test_steering.asked(vlm), test_steering.made(tiny("llava"), "vision.1")
    left, logits = test_steering.state_of(vlm), vlm.logits(prompt)
    steer(vlm, sae, prompt, test_steering.STEERINGS, contrast=test_steering.CONTRAST, max_new_tokens=2)
    assert test_steering.state_of(vlm) == left and torch.equal(vlm.logits(prompt), logits)
