"""Depends: one tower, one hash; what lies above the tap does not count, and all that lies below does."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from tests.model.tiny_families import FAMILIES, picture, tiny
from vsp_report.model import depends
from vsp_report.model.classify import load_clip
from vsp_report.model.depends import states_sha
from vsp_report.model.taps import module_at, resolve, tensor_of
from vsp_report.model.vlm import load_image, load_vlm


@pytest.fixture(scope="module")
def llava():
    return load_vlm("sketchworld")


@pytest.fixture(scope="module")
def clip():
    return load_clip("sketchworld-clip")


def test_a_clip_and_the_model_built_on_its_tower_have_the_same_states(llava, clip) -> None:
    image = load_image(picture(70, 110))
    assert torch.equal(clip.read(image).pixels_BCHW, llava.prepare(image, "What is this?").inputs["pixel_values"])
    shas = [states_sha(llava, f"vision.{layer}", "whole") for layer in range(6)]
    assert shas == [states_sha(clip, f"vision.{layer}", "another") for layer in range(6)]
    assert len({*shas}) == 6 and states_sha(llava, "vision.-3", "whole") == shas[3]


def test_elsewhere_the_whole_model_counts(llava) -> None:
    assert states_sha(llava, "text.2", "whole") == states_sha(llava, "connector", "whole") == "whole"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("embeddings.class_embedding", True), ("embeddings.patch_embedding.weight", True),
        ("pre_layrnorm.weight", True), ("encoder.layers.0.mlp.fc1.weight", True),
        ("encoder.layers.3.self_attn.q_proj.bias", True), ("encoder.layers.4.layer_norm1.bias", False),
        ("encoder.layers.5.mlp.fc2.weight", False), ("post_layernorm.weight", False),
    ],
)  # fmt: skip
def test_one_weight_counts_below_the_tap_and_not_above(clip, name: str, counts: bool) -> None:
    before = states_sha(clip, "vision.3", "")
    weight = clip.model.vision_model.get_parameter(name)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[-1] += 2**-10
        assert (states_sha(clip, "vision.3", "") != before) is counts
        weight.copy_(kept)
    assert states_sha(clip, "vision.3", "") == before


def test_neither_text_nor_head_counts_and_no_precision_that_keeps_the_values(clip) -> None:
    before = states_sha(clip, "vision.3", "")
    other = replace(clip, model=copy.deepcopy(clip.model))
    with torch.no_grad():
        other.model.visual_projection.weight.zero_()
        other.model.text_model.embeddings.token_embedding.weight.zero_()
    assert states_sha(other, "vision.3", "") == before
    other.model.half()  # as its file has it
    assert states_sha(other, "vision.3", "") == before
    other.model.to(torch.bfloat16)
    assert states_sha(other, "vision.3", "") != before


@pytest.mark.parametrize(
    ("setting", "value", "counts"),
    [
        ("image_mean", (0.7, 0.7, 0.7), True), ("size", {"height": 80, "width": 80}, True), ("resample", 2, True),
        ("do_resize", False, True), ("crop_size", {"height": 9, "width": 9}, False), ("do_center_crop", True, True),
    ],
)  # fmt: skip
def test_what_the_processor_does_counts(clip, setting: str, value: object, counts: bool) -> None:
    other = replace(clip, pixels=copy.deepcopy(clip.pixels))
    setattr(other.pixels, setting, value)
    assert (states_sha(other, "vision.3", "") != states_sha(clip, "vision.3", "")) is counts


def test_how_the_tower_computes_counts(clip) -> None:
    other = replace(clip, model=copy.deepcopy(clip.model))
    other.model.vision_model.config.num_attention_heads = 2
    assert states_sha(other, "vision.3", "") != states_sha(clip, "vision.3", "")


def test_weights_are_hashed_once_for_each_model(clip, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(clip, model=copy.deepcopy(clip.model))
    hashed = []
    plain = depends._tensor_sha
    monkeypatch.setattr(depends, "_tensor_sha", lambda tensor: hashed.append(1) or plain(tensor))
    for _ in range(2):
        states_sha(other, "vision.3", "")
    first = len(hashed)
    states_sha(other, "vision.2", "")
    assert len(hashed) == first > 60
    states_sha(other, "vision.5", "")
    assert len(hashed) == first + 2 * 16


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_moves_a_state_is_hashed(family: str) -> None:
    """Autograd says which weights the states at a tap are made of: each is among those that count, in every family."""
    vlm = tiny(family)
    layers = vlm.family.vision_layers(vlm.model)
    tap = resolve(vlm, f"vision.{max(len(layers) - 2, 0)}")
    tower = vlm.family.vision_tower(vlm.model)
    counted = {name for name, _ in depends._weights(vlm, tap.layer)}
    named = dict(tower.named_parameters())
    try:
        for weight in named.values():
            weight.requires_grad_(True)
        seen = []
        hook = module_at(vlm, tap).register_forward_hook(lambda module, args, output: seen.append(tensor_of(output)))
        with torch.enable_grad():
            vlm.logits(vlm.prepare(picture(40, 40), "What?"))
            found = torch.autograd.grad(seen[0].sum(), list(named.values()), allow_unused=True)
    finally:
        hook.remove()
        for weight in named.values():
            weight.requires_grad_(False)
    reached = {name for name, slope in zip(named, found, strict=True) if slope is not None}
    assert reached and reached <= counted
    # And what counts without need is little: parts that lie beside the layers.
    assert len(counted) < len(tower.state_dict())
