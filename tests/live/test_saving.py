"""A round becomes a case file that reads back as what was tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.test_asked import AROUND, run
from vsp_report.case import load_case
from vsp_report.errors import CaseError, InputError
from vsp_report.live.asked import case_of
from vsp_report.live.saving import STEERING, Seen, case_text, save_case
from vsp_report.recording import Answered

TITLE = 'It said: "no" # really\n- {a: 1} ’äöü 🦆'
SEEN = Seen(Answered("yes", margin=-3.0), Answered("no", margin=2.0), 0.01)
EDITS = [
    {"latents": {"top": 3, "by": "attribution", "supports": "wrong"}, "set": 0},
    {"latents": [7, 5], "scale": -1.5, "where": {"boxes": [[0, 0, 32, 32]]}},
]


def test_a_saved_round_reads_back(tmp_path: Path) -> None:
    tried = case_of(run(edits=EDITS), AROUND, (1, 2))
    file = save_case(tmp_path, "mine", case_text("mine", TITLE, tried, SEEN))
    case = load_case(file)
    assert case.title == " ".join(TITLE.split()) and case.prompt == "Why?"
    assert case.steer[0].name == STEERING and case.steer[0].edits == tried.steer[0].edits
    assert (case.model, case.sae, case.image, case.contrast) == (
        AROUND.model,
        AROUND.sae,
        AROUND.image,
        AROUND.contrast,
    )
    checks = {(check.where, check.metric, check.op): check.wanted for check in case.expect.checks}
    assert checks["before", "answer", "is"] == "yes" and checks["before", "margin", "lt"] == 0
    after = f"after.{STEERING}"
    assert checks[after, "answer", "is"] == "no" and checks[after, "p", "le"] == 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_what_was_not_seen_is_not_expected(tmp_path: Path) -> None:
    case = load_case(save_case(tmp_path, "mine", case_text("mine", "", case_of(run(), AROUND, ()), None)))
    assert not case.expect.checks and not case.steer and case.title == "mine"
    cut = Seen(Answered("and so on", ended=False), None, None)
    case = load_case(save_case(tmp_path, "cut", case_text("cut", "", case_of(run(), AROUND, ()), cut)))
    assert not case.expect.checks


def test_reconstruction_is_kept(tmp_path: Path) -> None:
    tried = case_of(run(edits=EDITS, mode="reconstruct"), AROUND, ())
    assert load_case(save_case(tmp_path, "mine", case_text("mine", "", tried, None))).steer[0].mode == "reconstruct"


def test_nothing_is_written_over(tmp_path: Path) -> None:
    text = case_text("mine", "", case_of(run(), AROUND, ()), None)
    (tmp_path / "mine.yml").write_text("theirs")
    with pytest.raises(CaseError, match="is there already"):
        save_case(tmp_path, "mine", text)
    with pytest.raises(InputError, match="is no folder"):
        save_case(tmp_path / "none", "mine", text)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yml"]


def test_a_picture_goes_with_its_case(tmp_path: Path) -> None:
    text = case_text("mine", "", case_of(run(), AROUND, ()), None, "images/own.png")
    file = save_case(tmp_path, "mine", text, ("images/own.png", b"\x89PNG"))
    assert load_case(file).image_path.read_bytes() == b"\x89PNG"
