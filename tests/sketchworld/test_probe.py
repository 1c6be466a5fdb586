"""The evaluation's short way says what the ordinary way says, and its edits are exactly what they claim to be."""

import shutil

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForImageTextToText, AutoProcessor

from vsp_report.errors import VspError
from vsp_report.sketchworld import evaluate, language, rules
from vsp_report.sketchworld.models import FEATURE_LAYER, normalized
from vsp_report.sketchworld.planted import plant
from vsp_report.sketchworld.probe import Edit, Probe, belonging, patches_of
from vsp_report.sketchworld.rules import Question


@pytest.fixture(scope="module")
def probe(shipped_weights) -> Probe:
    return Probe.load(shipped_weights)


@pytest.mark.parametrize("part", ["sketchworld/model", "clip/model", "saes/vision.3/sae_weights"])
def test_damaged_weights_are_an_error_that_names_them(shipped_weights, tmp_path, part):
    weights = tmp_path / "weights"
    shutil.copytree(shipped_weights, weights)
    file = weights / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(VspError) as caught:
        Probe.load(weights)
    assert str(file.parent) in str(caught.value)


@pytest.fixture(scope="module")
def planted():
    return [plant("misleading-cue", v, s) for v in ("chair", "sofa", "highlight") for s in range(4)]


@pytest.fixture(scope="module")
def states(probe, planted):
    return probe.states(probe.pixels([p.scene for p in planted]))


def test_answers_are_those_of_generate(probe, shipped_weights):
    model = AutoModelForImageTextToText.from_pretrained(shipped_weights / "sketchworld", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(shipped_weights / "sketchworld", backend="pil")
    scenes = [rules.sample_scene(5_000 + i, family) for family in rules.FAMILIES for i in range(3)]
    questions = [rules.questions(scene, i)[i % 2].text for i, scene in enumerate(scenes)]
    expected = []
    for scene, question in zip(scenes, questions, strict=True):
        prompt = processor.apply_chat_template(language.conversation(question), add_generation_prompt=True)
        inputs = processor(images=scene.draw(384), text=prompt, return_tensors="pt")
        out = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.decode(out, skip_special_tokens=True))
    features = probe.features(probe.states(probe.pixels(scenes)))
    assert probe.answers(features, questions) == expected
    said = probe.says(
        features, [[Question(q, a), Question(q, "a bucket")] for q, a in zip(questions, expected, strict=True)]
    )
    assert all(row[0] for row in said) and sum(row[1] for row in said) <= 1


def test_features_continue_the_tower_exactly(probe, planted, states):
    pixels = normalized(probe.pixels([p.scene for p in planted]), "cpu")
    whole = probe.llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER][:, 1:]
    assert torch.equal(probe.features(states), whole)


def test_an_empty_edit_changes_nothing(probe, states):
    latents = probe.encoded(states)
    assert torch.equal(probe.edited(states, latents, [Edit.of()] * len(states)), states)
    unit = Edit.of(amplify=range(50), factor=1.0)
    assert torch.allclose(probe.edited(states, latents, [unit] * len(states)), states, atol=1e-5)


def test_an_edit_is_the_dense_difference_of_reconstructions(probe, states):
    latents = probe.encoded(states)
    chosen = latents.sum((0, 1)).topk(12).indices
    edit = Edit.of(chosen[:6].tolist(), chosen[6:].tolist(), 2.5)
    changed = latents.clone()
    changed[..., chosen[:6]] = 0
    changed[..., chosen[6:]] *= 2.5
    dense = states.clone()
    dense[:, 1:] += probe.sae.decode(changed) - probe.sae.decode(latents)
    assert torch.allclose(probe.edited(states, latents, [edit] * len(states)), dense, atol=1e-4)
    assert torch.equal(probe.edited(states, latents, [edit] * len(states))[:, 0], states[:, 0]), "CLS is left alone"


def test_attribution_predicts_true_ablation(probe, planted, states):
    asked = [(p.question, p.right, p.wrong) for p in planted[:1]]
    latents = probe.encoded(states[:1])
    seen = probe.attribute(states[:1], latents, asked)
    active = latents[0].sum(0).topk(60).indices.tolist()
    edited = probe.edited(states[:1].expand(60, -1, -1), latents.expand(60, -1, -1), [Edit.of([k]) for k in active])
    margins = probe.log_odds(probe.features(edited), asked * 60)
    true = (margins - seen.margin_B).detach().numpy()
    assert spearmanr(seen.effect_BL[0][active].numpy(), true).statistic > 0.8


def test_controls_are_other_latents_as_active(probe, planted, states):
    rng = np.random.default_rng(0)
    latents = probe.encoded(states)
    edits = evaluate.repairs(probe, planted, states, latents, amplify=False)
    for row, (case, edit) in enumerate(zip(planted, edits, strict=True)):
        control = evaluate.matched(edit, latents[row], rng)
        assert len(control.latents) == len(edit.latents) <= evaluate.LATENTS
        assert not set(control.latents) & set(edit.latents) and len(set(control.latents)) == len(control.latents)
        total = latents[row].sum(0)
        assert (total[control.latents] > 0).all()
        share = belonging(latents[row], patches_of(case.scene, case.cause))
        assert (share[edit.latents] >= 0.5).all()


def test_a_topic_counts_as_removed_only_when_the_others_stay():
    scene = next(s for s in (rules.sample_scene(i, "objects") for i in range(99)) if len(s.things) == 3)
    parts = rules.caption(scene).split(" and ")
    assert evaluate.removed(scene, 1, f"{parts[0]} and {parts[2]}")
    assert not evaluate.removed(scene, 1, " and ".join(parts))
    assert not evaluate.removed(scene, 1, parts[0])
    wrong_color = "a green" if "green" not in parts[0] else "a blue"
    assert not evaluate.removed(scene, 1, f"{wrong_color} {parts[0].split()[-1]} and {parts[2]}")
