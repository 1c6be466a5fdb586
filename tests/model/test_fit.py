"""Fit: streamed sums against all states at once, and each way in which a checkpoint may not belong where it is put."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.tiny_families import picture, tiny
from vsp_report import paths
from vsp_report.errors import CheckpointError, ImageError, SteeringError
from vsp_report.model import taps
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.fit import Fit, Fitting, measure_fit
from vsp_report.model.sae import Sae, quality
from vsp_report.model.sites import Sites
from vsp_report.model.steering import see_states
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Vlm, load_vlm
from vsp_report.sketchworld import rules


def pictures(n: int = 3):
    return [picture(40 + 9 * k, 70, seed=k) for k in range(n)]


def scenes(n: int = 6):
    return [rules.sample_scene(1_500_000_000 + k, "objects").draw(192) for k in range(n)]


@pytest.fixture(scope="module")
def world() -> Vlm:
    return load_vlm("sketchworld")


@pytest.fixture(scope="module")
def sae() -> Sae:
    return load_sae(paths.bundled("sketchworld/vision.3"))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "llava_onevision", "mllama"])
def test_streamed_sums_are_those_of_all_states_at_once(name: str) -> None:
    vlm, sae = tiny(name), Sae.untrained(3, 24, 96, k=5)
    found = measure_fit(vlm, sae, iter(pictures()), tap="vision.1", prompt="what is it ?")
    rows = []
    for image in pictures():
        prompt = vlm.prepare(image, "what is it ?")
        sites = Sites.of(vlm, prompt, Tap("vision", 1))
        states = see_states(vlm, prompt, [Tap("vision", 1)])[Tap("vision", 1)].flatten(0, -2)
        rows.append(states[sites.rows_S][~sites.class_S])
    expected = quality(sae, torch.cat(rows))
    assert (found.images, found.rows) == (3, len(torch.cat(rows)))
    assert found.sae.explained_variance == pytest.approx(1 - expected.unexplained_variance, abs=1e-5)
    assert (found.sae.mean_l0, found.sae.dead_share) == pytest.approx((expected.mean_l0, expected.dead_share), abs=1e-6)
    read = vlm.family.reading(vlm.model.config, len(taps.layers_at(vlm, "vision"))).last + 1
    assert list(found.elsewhere) == [f"vision.{k}" for k in range(read)]
    assert not found.fits and "does not fit vision.1" in found.findings[0].fault


@pytest.mark.parametrize("tap", ["connector", "text.2"])
def test_other_places_than_the_tower(tap: str) -> None:
    found = measure_fit(tiny("llava"), Sae.untrained(3, 32, 64, k=5), pictures(2), tap=tap, prompt="what ?")
    assert found.tap == tap and found.rows > 2 * 16 - (tap == "connector") and found.sae.mean_l0 <= 5
    assert list(found.elsewhere) == (["connector"] if tap == "connector" else [f"text.{k}" for k in range(4)])


def test_a_trained_one_fits_where_it_was_trained(world: Vlm, sae: Sae) -> None:
    found = measure_fit(world, sae, scenes())
    assert found.fits and found.findings == ()
    assert found.sae.explained_variance > found.untrained.explained_variance


def test_at_another_layer_it_is_told_where_it_belongs(world: Vlm, sae: Sae) -> None:
    found = measure_fit(world, sae, scenes(), tap="vision.1")
    assert any("explains more at vision.3" in finding.fault for finding in found.findings)


def test_a_missing_normalisation_is_found(world: Vlm, sae: Sae) -> None:
    """As if it had been trained on states of another length, and nobody had written that down."""
    found = measure_fit(world, sae.on_raw(0.0, 3.0), scenes())
    assert "its normalisation is missing: with " in found.findings[0].fault


def test_an_untrained_one_does_not_fit(world: Vlm, sae: Sae) -> None:
    found = measure_fit(world, Sae.untrained(5, like=sae), scenes(), tap="vision.3")
    assert not found.fits and any("does not fit vision.3" in finding.fault for finding in found.findings)


@pytest.mark.parametrize(("d_in", "remedy"), [(128, "text.0 to text.3"), (40, "trained on this model")])
def test_another_width_is_one_line(world: Vlm, d_in: int, remedy: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        measure_fit(world, Sae.untrained(0, d_in, 64), scenes(1), tap="vision.3")
    assert f"{d_in} wide" in str(caught.value) and remedy in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_measured_is_one_line(world: Vlm, sae: Sae) -> None:
    with pytest.raises(ImageError, match="there are none"):
        measure_fit(world, sae, [])
    with pytest.raises(ImageError, match="no such file"):
        measure_fit(world, sae, ["nowhere.png"])
    with pytest.raises(SteeringError, match="names none"):
        measure_fit(world, sae.replace(tap=""), scenes(1))


def test_pictures_are_read_one_at_a_time_and_no_word_is_read(world: Vlm, sae: Sae) -> None:
    told, ran = [], []

    def source():
        for image in scenes(3):
            told.append("read")
            yield image

    handle = taps.layers_at(world, "text")[0].register_forward_hook(lambda *a: ran.append(1))
    try:
        measure_fit(world, sae, source(), on_image=told.append)
    finally:
        handle.remove()
    assert told == ["read", 1, "read", 2, "read", 3] and not ran


FINE = Fitting(
    "vision.3", 4, 400, 100, Fit(0.9, 10.0, 0.1), Fit(0.2, 10.0, 0.1), {"vision.3": 0.9}, {"layer_norm": 0.1}
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"sae": Fit(0.3, 10.0, 0.1)}, ["does not fit vision.3"]),
        ({"sae": Fit(float("nan"), 0.0, 1.0)}, ["does not fit vision.3"]),
        ({"elsewhere": {"vision.3": 0.9, "vision.2": 0.95}}, ["explains more at vision.2"]),
        ({"elsewhere": {"vision.3": 0.9, "vision.2": 0.92}}, []),
        ({"elsewhere": {"vision.3": -4.0, "vision.2": 0.1}}, []),
        ({"normalised": {"layer_norm": 0.97}}, ["normalisation is missing: with layer_norm"]),
        ({"sae": Fit(0.9, 60.0, 0.1)}, ["is not sparse here: 60 of 100"]),
    ],
)
def test_what_is_found_is_said(change: dict, said: list[str]) -> None:
    found = replace(FINE, **change).findings
    assert len(found) == len(said) and all(part in f.fault for part, f in zip(said, found, strict=True))
    assert all(finding.remedy.endswith(".") for finding in found)
