"""Cases beside an atlas: latents by label, the noise filter, and what a recording hangs on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vsp_report.atlas import (
    SCHEMA,
    Arrays,
    Atlas,
    Labelling,
    Provenance,
    Sheets,
    save_atlas,
    save_sheets,
)
from vsp_report.case import load_case
from vsp_report.errors import SteeringError
from vsp_report.run.plan import foresee, look_around
from vsp_report.study.evidence import cluster, look, open_case, steer_all
from vsp_report.study.inquiry import Inquiry
from vsp_report.study.shelved import noisy_in
from vsp_report.study.survey_atlas import make_atlases

CASE = """
title: Standing beside a chair
failure: misleading-cue
model: sketchworld
sae: sketchworld/vision.3
image: {scene: {mode: misleading-cue, variation: chair, seed: 1}}
prompt: Is the person sitting or standing?
contrast: {right: standing, wrong: sitting}
device: cpu
steer:
  no-seat: [{latents: {label: seat, top: 4}, set: 0}]
controls: {draws: 0, kinds: []}
"""


def shelve(site: Path, seats: list[int], common: list[int], inquiry: Inquiry) -> None:
    """An atlas, made by hand, in which some latents are seats and others are on in every picture."""
    L = inquiry.looked.latents_PL.shape[1]
    frequency_L = np.zeros(L)
    frequency_L[seats], frequency_L[common] = 0.25, 1.0
    alive_L, one = frequency_L > 0, np.zeros((L, 1))
    references_LR = np.where(alive_L[:, None], 0, -1)
    arrays = Arrays(
        frequency_L, frequency_L / 9, 2.0 * alive_L, frequency_L * 2, 3.0 * alive_L, one.astype(int), one[:, 0],
        one[:, 0], one[:, 0], references_LR, 1.5 * (references_LR >= 0), np.append(0, alive_L.cumsum()),
        np.zeros(alive_L.sum(), int), np.full(alive_L.sum(), 255), np.array([[12, 12]]), one.astype(int) - 1, one, one,
        np.zeros((L, 2)), one[:, 0] - 1, np.where(np.isin(np.arange(L), seats), 0, -1)[None], one.T,
    )  # fmt: skip
    made = Provenance("sketchworld", inquiry.model.sha, "sketchworld/vision.3", inquiry.sae.sha, "vision.3", "topk",
                      "sketchworld", "", 4, 576, 0, "", {}, "cpu", "float32", "by hand")  # fmt: skip
    sheets = Sheets(save_sheets(site / "atlas", [b"a sheet"]), ("000.webp",), 8, 1, 1)
    save_atlas(site / "atlas", Atlas(SCHEMA, "sketchworld-vision.3", made, (0.0, 1.0), "by hand", (), (),
                                     (Labelling("given", "by hand", "", ("seat",)),), (), ("scene 1",), ("",), sheets,
                                     arrays))  # fmt: skip


def test_a_case_names_latents_by_label_and_its_recording_knows_them(tmp_path: Path) -> None:
    """With an atlas beside the recordings; without one, and for a word that it has not, an error that says where."""
    case, recording = tmp_path / "cases" / "seat.yaml", tmp_path / "site" / "recordings" / "seat"
    case.parent.mkdir()
    case.write_text(CASE)
    inquiry = open_case(case, recording)
    look(inquiry)
    with pytest.raises(
        SteeringError, match=r"seat.yaml:\d+: steer.*names latents by the label 'seat'.*vsp-report atlas"
    ):
        steer_all(inquiry)
    strongest = np.argsort(-inquiry.ranks.mass_L, kind="stable")[:160].tolist()
    seats, common = strongest[:6], strongest[6:]
    shelve(tmp_path / "site", seats, common, inquiry)
    inquiry = open_case(case, recording)
    look(inquiry)
    heat = cluster(inquiry)
    # of 160 latents that live, the two per cent that are on most often tie with all others that always are
    assert heat is not None and not set(seats) & heat.noisy
    (steered,) = steer_all(inquiry)
    assert steered.edits[0].latents == tuple(seats[:4])
    known = {one.number: one for one in inquiry.recording().latents}
    assert (known[seats[0]].label, known[seats[0]].frequency, known[seats[0]].mean_activation) == ("seat", 0.25, 2.0)
    assert [(one.id, one.activation) for one in known[seats[0]].references] == [("scene 1", 1.5)]
    assert known[common[0]].label == "" and known[common[0]].frequency == 1.0
    case.write_text(CASE.replace("label: seat", "label: seet"))
    inquiry = open_case(case, recording)
    look(inquiry)
    with pytest.raises(SteeringError, match=r"'seet'.*Did you mean seat\?"):
        steer_all(inquiry)


def test_the_atlas_is_part_of_what_a_recording_hangs_on(tmp_path: Path, whole: tuple, drawn_map: None) -> None:
    (tmp_path / "seat.yaml").write_text(CASE)
    case, around = load_case(tmp_path / "seat.yaml"), look_around()
    key = lambda: foresee(case, around, notebook_sha="", site=tmp_path).run_key  # noqa: E731
    before = key()
    make_atlases(*whole, tmp_path, command="here")
    assert key() != before
    assert foresee(case, around, notebook_sha="").run_key == before


def test_the_papers_noise_filter() -> None:
    """The top share of the living by frequency or by mean, wherever a picture has them."""
    frequency_L, mean_L = (
        np.r_[np.zeros(100), np.linspace(0.01, 0.5, 100)],
        np.r_[np.zeros(100), np.linspace(3, 1, 100)],
    )
    stub = SimpleNamespace(
        d_sae=200, alive_L=frequency_L > 0, arrays=SimpleNamespace(frequency_L=frequency_L, mean_L=mean_L)
    )
    assert np.flatnonzero(noisy_in(stub, 0.02)).tolist() == [100, 101, 198, 199]
