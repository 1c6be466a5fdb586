"""Steer: the engine behind one call; the bundled world, from a picture's path to a change of log-odds."""

from __future__ import annotations

from pathlib import Path

import pytest

import vsp_report
from tests.model.tiny_families import picture
from vsp_report import Contrast, Edit, Region, Steering
from vsp_report.errors import CaseError, ImageError, SteeringError
from vsp_report.model import steering as engine
from vsp_report.model.sae import Sae
from vsp_report.model.vlm import Vlm

PROMPT = "Is there a cup?"
OFF = Steering("off", (Edit("all", "set", 0.0),))
HALF = Steering("half", (Edit("all", "set", 0.0, Region(((0.0, 0.0, 56.0, 112.0),))),), mode="reconstruct")


@pytest.fixture(scope="module")
def world() -> tuple[Vlm, Sae]:
    return vsp_report.load_vlm("sketchworld"), vsp_report.load_sae("sketchworld/vision.2")


def test_a_steering_is_the_engines(world: tuple[Vlm, Sae], tmp_path: Path) -> None:
    vlm, sae = world
    picture(112, 112).save(tmp_path / "noise.png")
    contrast = Contrast("yes", "no")
    result = vsp_report.steer(
        vlm, sae, tmp_path / "noise.png", PROMPT, [OFF, HALF], contrast=contrast, max_new_tokens=6
    )
    same = engine.steer(
        vlm, sae, vlm.prepare(picture(112, 112), PROMPT), [OFF, HALF], contrast=contrast, max_new_tokens=6
    )
    assert result == same
    assert result.before.text and abs(result["off"].change) > 0.1 and result["off"].beyond_reconstruction is None
    half, remade = result["half"], result.reconstructed
    assert half.beyond_reconstruction == pytest.approx(half.log_odds - remade.log_odds)


def test_one_steering_needs_no_list(world: tuple[Vlm, Sae]) -> None:
    result = vsp_report.steer(*world, picture(112, 112), PROMPT, OFF, max_new_tokens=2)
    assert [said.name for said in result.after] == ["off"] and result.tap == "vision.2"


def test_mistakes_are_located(world: tuple[Vlm, Sae]) -> None:
    with pytest.raises(ImageError, match=r"^no\.png: there is no such file"):
        vsp_report.steer(*world, "no.png", PROMPT, OFF)
    with pytest.raises(SteeringError, match=r"^x\.edits\[0\]\.latents: 99999 is no latent"):
        vsp_report.steer(*world, picture(112, 112), PROMPT, Steering("x", (Edit((99999,), "set", 0.0),)))
    with pytest.raises(CaseError, match=r"^contrast: its answers are the same"):
        vsp_report.steer(*world, picture(112, 112), PROMPT, OFF, contrast=Contrast("Yes", "yes"))
