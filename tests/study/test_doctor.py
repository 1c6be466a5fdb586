"""Doctor: the bundled model is well, tiny random ones are well but for their SAE, and what is ill is told with its
remedy."""

from __future__ import annotations

import json

import pytest

from tests.model.tiny_families import FAMILIES, picture, tiny
from vsp_report import paths
from vsp_report.errors import CaseError, ImageError, ModelError
from vsp_report.maths.edits import Contrast
from vsp_report.model import proofs
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.sae import Sae
from vsp_report.model.vlm import load_vlm
from vsp_report.sketchworld import rules
from vsp_report.study import doctor
from vsp_report.study.doctor import CHECKS, FAILED, PASSED, SKIPPED, Check, Examination, examine, table

QUESTION = "what is the person doing ?"


def statuses(found: Examination) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


def tiny_sae() -> Sae:
    return Sae.untrained(0, 24, 64, k=6).replace(tap="vision.1", name="random")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["sketchworld/vision.3", "sketchworld/text.2"])
def test_the_bundled_model_is_well(name: str, dtype: str) -> None:
    vlm, scene = load_vlm("sketchworld", dtype=dtype), rules.sample_scene(1_500_000_000, "objects")
    told: list[Check] = []
    found = examine(
        vlm, load_sae(paths.bundled(name)), scene.draw(192), "What color is the fish?", on_check=told.append
    )
    wrong = {check.name for check in found.failed}
    # Half precision may cost the effect its slope; nothing else.
    assert wrong <= ({"a latent moves the answer"} if dtype == "bfloat16" else set()), table(found)
    assert tuple(told) == found.checks and list(statuses(found)) == list(CHECKS)
    assert json.loads(json.dumps(found.to_dict()))["passed"] is not wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_a_random_model_is_well_but_for_its_untrained_sae(name: str) -> None:
    found = examine(tiny(name, gain=1.0), tiny_sae(), picture(40, 70), QUESTION)
    assert [check.name for check in found.failed] == ["SAE fits the tap"], table(found)
    (ill,) = found.failed
    assert "does not fit vision.1" in ill.measured and "trained on this tap" in ill.remedy
    assert f"remedy: {ill.remedy[:20]}" in table(found) and table(found).endswith("6 passed, 1 failed")
    assert found.to_dict()["passed"] is False


def test_an_sae_of_another_width_fails_and_what_needs_it_is_skipped() -> None:
    sae = Sae.untrained(0, 40, 64).replace(tap="vision.1", name="wide")
    found = examine(tiny("llava"), sae, picture(40, 70), QUESTION)
    assert statuses(found) == {
        "capture is eager attention": PASSED,
        "image-token map holds": PASSED,
        "SAE fits the tap": FAILED,
        "editing nothing changes nothing": SKIPPED,
        "a latent moves the answer": SKIPPED,
        "memory is enough": SKIPPED,
        "model is left unchanged": PASSED,
    }
    (ill,) = found.failed
    assert "40 wide" in ill.measured and ill.remedy
    assert "3 skipped" in table(found)


@pytest.mark.parametrize(
    ("name", "broken", "value", "measured"),
    [
        ("capture is eager attention", "attention_apart", 0.3, "3.0e-01"),
        ("image-token map holds", "probe_map", proofs.Probed(4, 3, 4), "3 of 4 moved"),
        ("image-token map holds", "probe_map", proofs.Probed(0, 0, 0), "0 of 0"),
        ("editing nothing changes nothing", "edit_nothing", proofs.Nothing(False, 0.5), "are not the same"),
        ("memory is enough", "room_for", proofs.Room(10, 100, 5, 150), "room for 1 at once"),
    ],
)
def test_what_is_ill_is_told_with_its_remedy(name, broken, value, measured, monkeypatch) -> None:
    monkeypatch.setattr(proofs, broken, lambda *args, **more: value)
    found = examine(tiny("llava", gain=1.0), tiny_sae(), picture(40, 70), QUESTION)
    ill = next(check for check in found.failed if check.name == name)
    assert measured in ill.measured and len(ill.remedy) > 20


def test_an_effect_that_is_not_as_predicted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    true = doctor.confirm

    def doubled(*args, **more):
        held = true(*args, **more)
        return held._replace(measured_N=2 * held.measured_N)

    monkeypatch.setattr(doctor, "confirm", doubled)
    found = examine(
        tiny("llava", gain=1.0), tiny_sae(), picture(40, 70), QUESTION, contrast=Contrast("sitting", "standing")
    )
    ill = next(check for check in found.failed if check.name == "a latent moves the answer")
    assert "'sitting' against 'standing'" in ill.measured and "confirm every effect" in ill.remedy


def test_a_model_that_is_left_changed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = iter([("a",), ("b",)])
    monkeypatch.setattr(proofs, "print_of", lambda vlm: proofs.Print(next(prints), (), (), (), False))
    found = examine(tiny("llava", gain=1.0), tiny_sae(), picture(40, 70), QUESTION)
    assert found.checks[-1].status == FAILED and found.checks[-1].measured == "changed: weights"


@pytest.mark.parametrize(
    ("error", "remedy"), [(RuntimeError("CUDA out of memory. Tried"), "bfloat16"), (KeyError("x"), "report")]
)
def test_what_breaks_is_a_finding_and_the_rest_goes_on(error, remedy, monkeypatch) -> None:
    def broken(*args, **more):
        raise error

    monkeypatch.setattr(proofs, "probe_map", broken)
    found = examine(tiny("llava", gain=1.0), tiny_sae(), picture(40, 70), QUESTION)
    assert statuses(found)["image-token map holds"] == FAILED and statuses(found)["memory is enough"] == PASSED
    assert remedy in found.checks[1].remedy and type(error).__name__ in found.checks[1].measured


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image": "nowhere.png"}, ImageError),
        ({"tap": "vision.9"}, ModelError),
        ({"question": "a <image> b"}, ModelError),
        ({"contrast": Contrast("zebra", "sitting")}, CaseError),
        ({"contrast": Contrast("sitting", "sitting")}, CaseError),
    ],
)
def test_bad_input_is_raised_before_anything_is_measured(change: dict, error: type) -> None:
    given = {"vlm": tiny("llava"), "sae": tiny_sae(), "image": picture(40, 70), "question": QUESTION} | change
    with pytest.raises(error) as caught:
        examine(**given)
    assert "\n" not in str(caught.value)


def test_the_table_is_as_wide_as_it_is_told() -> None:
    found = examine(tiny("llava", gain=1.0), tiny_sae(), picture(40, 70), QUESTION)
    assert max(map(len, table(found, 90).splitlines()[1:])) <= 90
