"""Proofs: they hold in every family, and each of them fails where what it proves is not so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tests.model.tiny_families import FAMILIES, picture, tiny
from vsp_report.errors import CaseError
from vsp_report.model import proofs, taps
from vsp_report.model.answers import contrast_ids
from vsp_report.model.capture import NAME
from vsp_report.model.families import Llava
from vsp_report.model.sae import Sae
from vsp_report.model.sites import Editor
from vsp_report.model.vlm import Vlm

QUESTION = "what is the person doing ?"


@pytest.mark.parametrize("name", FAMILIES)
def test_they_hold_and_leave_the_model_alone(name: str) -> None:
    vlm, image = tiny(name), picture(40, 70)
    prompt = vlm.prepare(image, QUESTION)
    logits = vlm.logits(prompt)
    before = proofs.print_of(vlm)
    assert proofs.attention_apart(vlm, prompt) < 1e-5
    assert proofs.probe_map(vlm, image, QUESTION, n=6) == (6, 6, 6)
    assert proofs.edit_nothing(vlm, Sae.untrained(0, 24, 64, k=6), prompt, tap="vision.1") == (True, 0.0)
    contrast = proofs.likely_contrast(vlm, prompt)
    assert contrast_ids(vlm, contrast)
    room = proofs.room_for(vlm, Sae.untrained(0, 24, 64), prompt, tap="vision.1")
    assert room.rows > 2 and room.weights_bytes > sum(p.numel() * 4 for p in vlm.model.parameters())
    assert before.changes(proofs.print_of(vlm)) == () and torch.equal(vlm.logits(prompt), logits)


def test_a_lost_mask_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The silent failure: what a sliding window has dropped is looked at."""
    vlm = tiny("gemma3")
    monkeypatch.delitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, NAME)
    assert proofs.attention_apart(vlm, vlm.prepare(picture(40, 70), QUESTION)) > 1e-3


class Shifted(Llava):
    """An adapter that is wrong by one patch."""

    def layouts(self, batch):
        made = super().layouts(batch)
        return [replace(layout, states_P=np.roll(layout.states_P, 1)) for layout in made]


def test_a_wrong_map_is_seen() -> None:
    vlm = replace(tiny("llava"), family=Shifted())
    found = proofs.probe_map(vlm, picture(40, 70), QUESTION, n=6)
    assert found.tokens_right == 0 and found.pixels_right < 6


def test_an_edit_that_is_not_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("gemma3")  # its tower gives transposed states, in which an edit is easily lost
    monkeypatch.setattr(Editor, "edited", lambda self, codes, row: codes.z_SD * 1.01)
    found = proofs.edit_nothing(
        vlm, Sae.untrained(0, 24, 64, k=6), vlm.prepare(picture(40, 70), QUESTION), tap="vision.1"
    )
    assert not found.states_equal and found.logits_apart > 0


def change_a_weight(vlm: Vlm) -> None:
    next(vlm.model.parameters()).data.view(-1)[7] += 1


def ask_for_gradients(vlm: Vlm) -> None:
    next(vlm.model.parameters()).requires_grad_(True)


def leave_a_hook(vlm: Vlm) -> None:
    taps.module_at(vlm, "vision.1").register_forward_hook(lambda *a: None)


def leave_a_cover(vlm: Vlm) -> None:
    taps.module_at(vlm, "vision.1").forward = lambda *a, **k: None


def leave_eager(vlm: Vlm) -> None:
    vlm.model.set_attn_implementation({"text_config": "eager"})


@pytest.mark.parametrize(
    ("harm", "seen"),
    [(change_a_weight, "weights"), (ask_for_gradients, "weights"), (leave_a_hook, "hooks"), (leave_a_cover, "covered"),
     (leave_eager, "attention"), (lambda vlm: vlm.model.train(), "training")],
)  # fmt: skip
def test_a_model_that_is_left_changed_is_seen(harm, seen: str) -> None:
    tiny.cache_clear()
    vlm = tiny("llava")
    before = proofs.print_of(vlm)
    try:
        harm(vlm)
        assert before.changes(proofs.print_of(vlm)) == (seen,)
    finally:
        tiny.cache_clear()  # nobody else is given the harmed one


def test_a_contrast_needs_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("llava")
    monkeypatch.setattr(proofs, "TRIED", 1)
    with pytest.raises(CaseError, match="no two likely answers"):
        proofs.likely_contrast(vlm, vlm.prepare(picture(40, 70), QUESTION))
