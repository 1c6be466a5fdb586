"""Bench: a change of the states does to the contrast what the same steering does, and a turned one is as large."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vsp_report.errors import SteeringError
from vsp_report.maths.edits import ALL, Contrast, Edit, Region, Steering
from vsp_report.model import bench
from vsp_report.model.attribution import attribute
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.class_lists import ClassList
from vsp_report.model.classify import classify, load_clip
from vsp_report.model.sae import Sae
from vsp_report.model.steering import steer
from vsp_report.model.vlm import load_vlm
from vsp_report.paths import bundled
from vsp_report.sketchworld.planted import plant

CONTRASTS = {
    "one token": Contrast("standing", "sitting"),
    "a common beginning": Contrast("on a hand", "on a surface"),
    "different lengths": Contrast("a red chair", "sitting"),
}


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("sketchworld")


@pytest.fixture(scope="module")
def sae() -> Sae:
    return load_sae(bundled("sketchworld/vision.3"))


@pytest.fixture(scope="module")
def asked(vlm):
    planted = plant("misleading-cue", "chair", 1)
    return vlm.prepare(planted.scene.draw(192), planted.question)


def _steerings(sae: Sae, latents: list[int]) -> list[Steering]:
    here = Region(((20.0, 20.0, 120.0, 150.0),))
    return [
        Steering("ablated", (Edit(tuple(latents[:10]), "set", 0.0),)),
        Steering("stronger", (Edit(tuple(latents[:5]), "scale", 3.0, here),)),
        Steering("all there", (Edit(ALL, "set", 0.0, here),)),
        Steering("remade", (Edit(tuple(latents[5:9]), "add", 1.0),), mode="reconstruct"),
    ]


def _active(held: bench.Bench) -> list[int]:
    return np.unique(held.latents().indices)[::7].tolist()


def _nearly(moved: np.ndarray, predicted: torch.Tensor) -> None:
    """To first order: within a tenth of the largest."""
    expected = predicted.double().numpy()
    assert moved == pytest.approx(expected, abs=1e-3 + 0.1 * float(np.abs(expected).max()))


@pytest.mark.parametrize("contrast", CONTRASTS.values(), ids=CONTRASTS)
def test_a_change_does_what_its_steering_does(vlm, sae, asked, contrast: Contrast) -> None:
    held = bench.answering(vlm, sae, asked, contrast)
    steerings = _steerings(sae, _active(held))
    steered = steer(vlm, sae, asked, steerings, contrast=contrast, max_new_tokens=0)
    assert held.shifts(held.changes(steerings)) == pytest.approx([one.change for one in steered.after], abs=2e-4)
    still = torch.zeros_like(held.states_SD)
    assert held.log_odds([still])[0] == pytest.approx(steered.before.log_odds, abs=2e-4)
    assert (held.log_probs([still]) < 0).all()


def test_gradients_are_those_of_attribute(vlm, sae, asked) -> None:
    contrast = CONTRASTS["a common beginning"]
    mine, theirs = bench.answering(vlm, sae, asked, contrast).attribution(), attribute(vlm, sae, asked, contrast)
    assert mine.log_odds == pytest.approx(theirs.log_odds, abs=1e-4)
    assert torch.allclose(mine.effects(), theirs.effects(), atol=1e-4)


def test_with_a_steering_in_place_the_gradient_is_that_of_what_it_leaves(vlm, sae, asked) -> None:
    held = bench.answering(vlm, sae, asked, CONTRASTS["one token"])
    latents = _active(held)
    base = _steerings(sae, latents)[0]
    told = held.attribution(base)
    assert told.log_odds == pytest.approx(held.log_odds([held.change(base)])[0], abs=1e-4)
    effects = told.effects("scale", 0.98)
    strong = [k for k in effects.abs().argsort(descending=True).tolist() if k not in latents[:10]][:8]
    small = [Steering(str(k), (*base.edits, Edit((k,), "scale", 0.98))) for k in strong]
    moved = held.log_odds(held.changes(small)) - told.log_odds
    _nearly(moved, effects[strong])


def test_a_turned_change_keeps_its_length_everywhere_and_its_shape(vlm, sae, asked) -> None:
    held = bench.answering(vlm, sae, asked, CONTRASTS["one token"])
    change_SD = held.change(_steerings(sae, _active(held))[0])
    one, other, again = (next(bench.turned(change_SD, [seed])) for seed in (1, 2, 1))
    gram_SS = change_SD @ change_SD.T
    for turned_SD in (one, other):
        assert torch.allclose(turned_SD @ turned_SD.T, gram_SS, atol=1e-4 * float(gram_SS.abs().max()))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=0.1)


def test_turned_changes_point_everywhere() -> None:
    change_SD = torch.zeros(3, 6)
    change_SD[0, 0], change_SD[1, 0] = 1.0, 2.0
    made_ND = torch.stack([turned_SD[0] for turned_SD in bench.turned(change_SD, range(600))])
    assert made_ND.mean(0).abs().max() < 0.08
    assert torch.allclose(made_ND.T @ made_ND / 600, torch.eye(6) / 6, atol=0.04)


def test_turning_nothing_is_nothing() -> None:
    assert not next(bench.turned(torch.zeros(4, 5), [0])).any()


def test_a_classification_is_held_in_the_same_way(sae) -> None:
    clip = load_clip("sketchworld-clip")
    image = plant("hidden-cue", "duck-cat", 1).scene.draw(192)
    classes = clip.classes(ClassList("animals", ("duck", "cat", "goat"), ("a {}",)))
    held = bench.classifying(clip, sae, clip.read(image), classes, Contrast("duck", "cat"))
    steerings = _steerings(sae, _active(held))
    told = classify(clip, image, classes, sae=sae, steerings=steerings)
    expected = [one.log_odds("duck", "cat") for one in told.after]
    assert held.log_odds(held.changes(steerings)) == pytest.approx(expected, abs=2e-4)
    gradients = held.attribution()
    assert gradients.log_odds == pytest.approx(told.before.log_odds("duck", "cat"), abs=2e-4)
    effects = gradients.effects("scale", 0.9)
    strong = effects.abs().argsort(descending=True)[:8].tolist()
    _nearly(held.shifts(held.changes([Steering(str(k), (Edit((k,), "scale", 0.9),)) for k in strong])), effects[strong])


def _odds(likely_V: np.ndarray, choice: int) -> float:
    """Log-odds against all else, the long way."""
    return float(likely_V[choice] - np.log(np.delete(np.exp(likely_V), choice).sum()))


@pytest.mark.parametrize("contrast", list(CONTRASTS.values())[:2], ids=list(CONTRASTS)[:2])
def test_what_else_may_be_said_is_known_where_the_answers_part(vlm, sae, asked, contrast: Contrast) -> None:
    held = bench.answering(vlm, sae, asked, contrast)
    right, wrong = held.parting
    assert {held.word(right), held.word(wrong)} == {contrast.right.split()[-1], contrast.wrong.split()[-1]}
    changes = list(held.changes(_steerings(sae, _active(held))))
    likely_NV = held.likely(changes)
    assert np.exp(likely_NV).sum(1) == pytest.approx(np.ones(len(changes)), abs=1e-4)
    assert likely_NV[:, right] - likely_NV[:, wrong] == pytest.approx(held.log_odds(changes), abs=2e-4)


def test_answers_of_which_one_begins_with_the_other_never_part(vlm, sae, asked) -> None:
    assert bench.answering(vlm, sae, asked, Contrast("on a hand with a mitten", "on a hand")).parting is None


def test_pulls_are_what_small_edits_do_to_the_odds_against_all_else(vlm, sae, asked) -> None:
    held = bench.answering(vlm, sae, asked, CONTRASTS["one token"])
    base = _steerings(sae, _active(held))[0]
    choices = [held.parting[0], int(held.likely([held.change(base)])[0].argsort()[-3])]
    pulls_CL = held.pulls(choices, base)
    start_V = held.likely([held.change(base)])[0]
    for choice, pulls_L in zip(choices, pulls_CL, strict=True):
        free = [k for k in np.argsort(-np.abs(pulls_L)).tolist() if k not in base.edits[0].latents][:6]
        small = [Steering(str(k), (*base.edits, Edit((k,), "scale", 0.98))) for k in free]
        moved_N = [_odds(likely_V, choice) - _odds(start_V, choice) for likely_V in held.likely(held.changes(small))]
        _nearly(np.array(moved_N), torch.as_tensor(0.02 * pulls_L[free]))


def test_a_text_is_read_token_by_token_under_a_change(vlm, sae, asked) -> None:
    held = bench.answering(vlm, sae, asked, CONTRASTS["one token"])
    ids = vlm.tokenizer("a person sitting on a chair", add_special_tokens=False)["input_ids"]
    steering = _steerings(sae, _active(held))[0]
    odds_NT = held.read([torch.zeros_like(held.states_SD), held.change(steering)], ids)
    likely_T = vlm.replay(asked, [ids])[0].log_probs_N.double().numpy()
    assert odds_NT.shape == (2, len(ids)) and not np.allclose(odds_NT[0], odds_NT[1], atol=1e-3)
    assert -np.log1p(np.exp(-odds_NT[0])) == pytest.approx(likely_T, abs=1e-4)


def test_classes_are_what_else_a_classification_may_say(sae) -> None:
    clip = load_clip("sketchworld-clip")
    classes = clip.classes(ClassList("animals", ("duck", "cat", "goat"), ("a {}",)))
    picture = clip.read(plant("hidden-cue", "duck-cat", 1).scene.draw(192))
    held = bench.classifying(clip, sae, picture, classes, Contrast("duck", "cat"))
    assert held.parting == (0, 1) and held.word(2) == "goat"
    assert np.exp(held.likely([torch.zeros_like(held.states_SD)])).sum() == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_held_is_refused(vlm, sae, asked) -> None:
    text = load_sae(bundled("sketchworld/text.2"))
    with pytest.raises(SteeringError, match="text tap"):
        bench.answering(vlm, text, asked, CONTRASTS["one token"])
    with pytest.raises(SteeringError, match="none to score"):
        bench.answering(vlm, sae, asked, None).log_odds([])


def test_the_model_is_left_as_it_was(vlm, sae, asked) -> None:
    before = vlm.logits(asked)
    held = bench.answering(vlm, sae, asked, CONTRASTS["one token"])
    held.attribution()
    held.shifts(held.changes(_steerings(sae, _active(held))))
    assert torch.equal(vlm.logits(asked), before)
