"""Evidence: bundled cases become whole recordings, step by step; a step that fails leaves what was found before it."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import papermill
import pytest
import yaml
from PIL.PngImagePlugin import PngImageFile

from vsp_report import paths
from vsp_report.case import make_case
from vsp_report.errors import ImageError, SteeringError, VspError
from vsp_report.maths.effects import flip_point
from vsp_report.maths.heatmap import CLUSTERINGS
from vsp_report.model.checkpoints import save_sae
from vsp_report.model.sae import Sae
from vsp_report.recording import NOTEBOOK, comparable, load_recording
from vsp_report.study import evidence, glance, subjects
from vsp_report.study.inquiry import Inquiry
from vsp_report.study.observe import load_sae
from vsp_report.study.steer import steer

CHAIR = {
    "title": "Standing beside a chair",
    "model": "sketchworld",
    "sae": "sketchworld/vision.3",
    "image": {"scene": {"mode": "misleading-cue", "variation": "chair", "seed": 1}, "size": 192},
    "prompt": "Is the person sitting or standing?",
    "contrast": {"right": "standing", "wrong": "sitting"},
    "heatmap": {"top": 8, "k": 3},
    "steer": {
        "strongest": [{"latents": {"top": 6, "by": "attribution", "supports": "wrong"}, "set": 0}],
        "again": {
            "onto": "strongest",
            "edits": [{"latents": {"top": 3, "by": "attribution", "supports": "wrong"}, "set": 0}],
        },
        "covered": [{"latents": "all", "set": 0, "where": {"thing": "chair"}}],
        "remade": {"mode": "reconstruct", "edits": [{"latents": {"top": 4, "by": "attention"}, "scale": 2}]},
        "of-a-cluster": [{"latents": {"cluster": 0}, "set": 0}],
        "there": [{"latents": {"top": 4, "by": "activation", "where": {"thing": 1}}, "add": 1}],
        "numbers": [{"latents": [3, 5], "set": 1, "where": {"box": [10, 10, 60, 60]}}],
    },
    "sweep": [{"of": "again", "factors": [0, 1, 2]}],
    "controls": {"draws": 20, "prompts": ["What color is the shirt?"]},
    "rephrase": {"other-order": "Is the person standing or sitting?"},
}


def written(folder: Path, id: str = "chair", **changes) -> Path:
    data = {key: value for key, value in {**CHAIR, **changes}.items() if value is not None}
    (folder / f"{id}.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / f"{id}.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def inquiry(folder: Path) -> Inquiry:
    """Everything done, and saved."""
    inquiry = evidence.open_case(written(folder), folder / "chair")
    for one in (evidence.look, evidence.cluster, evidence.attribute, evidence.steer_all, evidence.sweep,
                evidence.rephrase, evidence.diagnose, evidence.save):  # fmt: skip
        one(inquiry)
    return inquiry


@pytest.fixture(scope="module")
def recording(inquiry: Inquiry):
    return load_recording(inquiry.folder)


def test_a_case_becomes_a_whole_recording(recording, inquiry: Inquiry) -> None:
    assert recording.status == "ok" and recording.stop is None and recording.id == "chair"
    assert recording.asked().computed() == inquiry.case.computed()
    assert recording.clean.text in ("sitting", "standing") and recording.clean.margin
    assert recording.reconstructed.margin != recording.clean.margin
    assert [one.name for one in recording.steered] == list(CHAIR["steer"])
    assert (recording.grid.rows, recording.grid.columns, recording.grid.patches) == (12, 12, 144)
    assert recording.image.width_px == 192 and (inquiry.folder / recording.image.file).is_file()
    assert sum(f.stat().st_size for f in inquiry.folder.rglob("*") if f.is_file()) < 2_000_000


def test_probabilities_and_margins_are_of_one_piece(recording) -> None:
    answered = [recording.clean, recording.reconstructed, *(one.after for one in recording.steered)]
    answered += [one.answered for one in recording.rephrased] + [d.answered for d in recording.swept[0].doses]
    for one in answered:
        assert np.log(one.p_right / one.p_wrong) == pytest.approx(one.margin, abs=1e-3)
    for one in recording.steered:
        assert one.change == pytest.approx(one.after.margin - recording.clean.margin, abs=1e-4)
        base = recording.reconstructed if one.mode == "reconstruct" else recording.clean
        assert one.flipped == (one.after.text != base.text)


def test_the_heatmap_is_attention_times_activation(recording) -> None:
    heatmap, arrays = recording.heatmap, recording.arrays
    maps_LP = arrays.maps_LP[list(heatmap.columns)].astype(float)
    attention_TP = arrays.predicting_TP[list(heatmap.rows)].astype(float)
    assert np.allclose(attention_TP @ maps_LP.T, arrays.heatmap_TL, rtol=0.02, atol=1e-3)
    assert {recording.tokens[t].kind for t in heatmap.rows} == {"prompt", "answer"}
    assert {(one.cluster, one.distance) for one in heatmap.clusterings} == set(CLUSTERINGS)
    assert (heatmap.clusterings[0].cluster, heatmap.clusterings[0].distance) == ("hierarchical", "correlation")
    for one in heatmap.clusterings:
        assert len(one.names) == len(set(one.clusters)) <= 3
    assert not any(recording.latents[column].noisy for column in heatmap.columns)


def test_latents_are_what_their_maps_say(recording) -> None:
    for latent, map_P in zip(recording.latents, recording.arrays.maps_LP.astype(float), strict=True):
        assert latent.total == pytest.approx(map_P.sum(), rel=0.02, abs=0.01)
    numbers = [latent.number for latent in recording.latents]
    assert len(set(numbers)) == len(numbers)


def test_words_become_latents(recording, inquiry: Inquiry) -> None:
    edits = {one.name: one.edits[0] for one in recording.steered}
    effects_L = inquiry.effects_L
    assert edits["strongest"].latents == tuple(np.argsort(-effects_L, kind="stable")[:6])
    assert edits["strongest"].asked == "top 6 by attribution supporting the wrong answer"
    assert not set(edits["again"].latents) & set(edits["strongest"].latents)
    assert edits["covered"].latents == "all" and edits["covered"].boxes
    columns = recording.heatmap.columns
    first = recording.heatmap.clusterings[0]
    mine = {recording.latents[columns[c]].number for c, cluster in enumerate(first.clusters) if cluster == 0}
    assert set(edits["of-a-cluster"].latents) == mine
    assert edits["numbers"].latents == (3, 5) and edits["numbers"].boxes == ((10, 10, 60, 60),)


def test_a_thing_is_the_patches_that_show_it(inquiry: Inquiry) -> None:
    boxes = next(one for one in inquiry.steered if one.name == "covered").edits[0].boxes
    region = np.zeros((12, 12), bool)
    for x0, y0, x1, y1 in np.array(boxes) / 16:
        assert (x0, y0, x1, y1) == tuple(map(round, (x0, y0, x1, y1)))
        region[int(y0) : int(y1), int(x0) : int(x1)] = True
    coverage = inquiry.seen.scene.coverage(12, 12)[0]
    assert (region == (coverage >= 0.12)).mean() > 0.97


def _own(one, draws) -> tuple[float, list[float]]:
    """What the edits of a steering do and those of its controls, both without the SAE's own error."""
    own = one.change if one.beyond_reconstruction is None else one.beyond_reconstruction
    return own, [change - (one.change - own) for change in draws.changes]


def test_controls_are_of_every_kind_that_there_can_be(recording) -> None:
    kinds = {one.name: [draws.kind for draws in one.controls] for one in recording.steered}
    assert kinds["strongest"] == ["latents", "directions", "untrained"]
    assert kinds["covered"] == ["directions", "untrained"]  # there are no other latents than all
    for one in recording.steered:
        for draws in one.controls:
            assert len(draws.changes) == 20 and 0 <= draws.flips <= 1 and draws.p >= 1 / 21
            own, own_N = _own(one, draws)
            assert draws.p == pytest.approx((1 + sum(abs(c) >= abs(own) - 1e-5 for c in own_N)) / 21)
            silent = draws.kind != "latents" or one.name == "numbers"  # which are active elsewhere in the picture
            assert (draws.mass_ratio is None) == silent
        if one.p is not None:
            own, own_N = _own(one, one.controls[0])
            reach = sorted(map(abs, own_N))[-1]  # of twenty, the furthest
            assert one.interval == pytest.approx((own - reach, own + reach)) and one.p == one.controls[0].p
        assert [other.prompt for other in one.collateral] == ["What color is the shirt?"]


def test_what_is_ablated_for_the_wrong_answer_matters_more_than_its_controls(recording) -> None:
    strongest = recording.steering("strongest")
    assert strongest.change > 0 and strongest.p <= 3 / 21
    assert (strongest.interval[0] > 0) == (strongest.p <= 0.05)
    assert all(np.median(np.abs(draws.changes)) < strongest.change / 2 for draws in strongest.controls)
    by = {one.by: one for one in recording.agreements}
    assert set(by) == {"attribution", "attention", "activation"}
    assert by["attribution"].spearman > 0.6


def test_a_sweep_leaves_at_one_what_it_stands_on(recording) -> None:
    (swept,) = recording.swept
    at = {dose.factor: dose.answered.margin for dose in swept.doses}
    assert at[1.0] == pytest.approx(recording.steering("strongest").after.margin, abs=1e-3)
    assert at[0.0] == pytest.approx(recording.steering("again").after.margin, abs=1e-3)


def test_strength_one_is_what_a_steering_stands_on_and_not_the_model_as_it_is(inquiry: Inquiry, recording) -> None:
    """Where an earlier steering, or the SAE, is in place, nothing but this one's own latents is left alone."""
    at = {one.name: evidence._untouched(inquiry, inquiry.resolved[one.name]) for one in recording.steered}
    assert at["strongest"] == at["covered"] == recording.clean.margin
    assert at["again"] == pytest.approx(recording.steering("strongest").after.margin, abs=1e-3)
    assert at["remade"] == pytest.approx(recording.reconstructed.margin, abs=1e-3)
    case = make_case({**CHAIR, "sweep": [{"of": "again", "factors": [0.5, 3]}]}, "chair")
    (swept,) = evidence.sweep(replace(inquiry, case=case, swept=()))
    low, high = (dose.answered.margin for dose in swept.doses)
    expected = flip_point([0.5, 1, 3], [low, at["again"], high])
    assert swept.flip_factor == (None if expected is None else pytest.approx(expected, abs=1e-3))
    assert expected != flip_point([0.5, 1, 3], [low, recording.clean.margin, high])


def test_provenance_says_what_it_was_made_of(recording) -> None:
    told = recording.provenance
    for name in ("run_key", "case_sha", "image_sha", "model_sha", "sae_sha", "notebook_sha", "package_sha"):
        assert len(getattr(told, name)) == 64, name
    assert told.tap == "vision.3" and told.device_class == "cpu" and told.dtype == "float32" and told.seconds > 0
    assert {"python", "vsp_report", "torch", "transformers"} <= told.versions.keys()


def test_the_same_case_gives_the_same_recording_and_loads_nothing_anew(inquiry: Inquiry, recording) -> None:
    again = evidence.record(inquiry.case.path, inquiry.folder.with_name("chair-again"))
    assert comparable(load_recording(inquiry.folder.with_name("chair-again"))) == comparable(recording)
    assert again.status == "ok"
    other = evidence.open_case(inquiry.case.path, inquiry.folder.with_name("never-saved"))
    assert other.subject.vlm is inquiry.subject.vlm and other.subject.sae is inquiry.subject.sae


def test_glances_show_what_there_is(inquiry: Inquiry) -> None:
    tables = ("answers", "tokens", "clusters", "predictions", "agreements", "steerings", "controls", "doses", "asked")
    assert all(getattr(glance, name)(inquiry) for name in tables)
    for drawn in (glance.picture(inquiry), glance.attention(inquiry)):
        assert drawn.startswith(b"\xff\xd8")
    assert glance.heatmap(inquiry).startswith(b"\x89PNG")


# --- other kinds of case -----------------------------------------------------------------------------------------


def test_a_classification_goes_the_same_way(folder: Path) -> None:
    path = written(
        folder, "classes", model="sketchworld-clip", prompt=None, rephrase=None,
        image={"scene": {"mode": "hidden-cue", "variation": "duck-cat", "seed": 1}},
        classify={"classes": ["duck", "cat", "goat"], "templates": ["a {}"]},
        contrast={"right": "duck", "wrong": "cat"}, controls={"draws": 10},
        steer={
            "off": [{"latents": {"top": 8, "by": "attribution", "supports": "wrong"}, "set": 0}],
            "remade": {"mode": "reconstruct", "edits": [{"latents": {"top": 3, "by": "activation"}, "set": 0}]},
        },
        sweep=[{"of": "off", "factors": [0, 1]}],
    )  # fmt: skip
    made = evidence.record(path, folder / "classes")
    assert load_recording(folder / "classes") == made or made.status == "ok"
    assert made.tokens == () and made.heatmap is None and made.arrays.predicting_TP is None
    assert [one.name for one in made.classified.scores] == ["clean", "reconstructed", "off", "remade"]
    for one in made.classified.scores:
        assert sum(one.probabilities) == pytest.approx(1)
    assert made.steering("off").change > 0
    assert [draws.kind for draws in made.steering("off").controls] == ["latents", "directions", "untrained"]
    assert made.swept[0].doses[1].answered.margin == pytest.approx(made.clean.margin, abs=1e-4)
    remade = made.steering("remade")
    assert remade.change == pytest.approx(remade.after.margin - made.clean.margin, abs=1e-4)
    assert remade.beyond_reconstruction == pytest.approx(remade.after.margin - made.reconstructed.margin, abs=1e-4)


def test_a_classification_at_the_last_layer_is_refused_before_it_is_run(folder: Path) -> None:
    path = written(
        folder, "last", model="sketchworld-clip", prompt=None, rephrase=None, tap="vision.5", steer=None, sweep=None,
        classify={"classes": ["duck", "rabbit"], "templates": ["a {}"]}, controls=None,
        contrast={"right": "duck", "wrong": "rabbit"},
    )  # fmt: skip
    with pytest.raises(SteeringError) as caught:
        evidence.open_case(path, folder / "last")
    assert str(caught.value) == (
        "vision.5: is the last layer of sketchworld-clip, whose patches nobody reads, and a case edits patches. "
        "Take a layer below."
    )


def test_what_the_sae_destroys_is_not_taken_for_what_edits_do(folder: Path) -> None:
    """Through an SAE that was never trained the answer is another one, whatever is edited or nothing at all."""
    untrained = Sae.untrained(0, like=load_sae("sketchworld/vision.3"))
    save_sae(untrained.replace(name="untrained"), folder / "untrained")
    remaking = {
        name: {
            "mode": "reconstruct",
            "cls": cls,
            "edits": [{"latents": {"top": 3, "by": "activation"}, "scale": factor}],
        }
        for name, factor, cls in (("nothing", 1, False), ("class-too", 1, True), ("some", 0, False))
    }
    path = written(
        folder, "destroyed", sae=str(folder / "untrained"), sweep=None, rephrase=None, controls={"draws": 20},
        steer=remaking, image={"scene": {"mode": "none", "variation": "objects", "seed": 1}},
        prompt="How many objects are there?", contrast={"right": "three", "wrong": "two"},
    )  # fmt: skip
    inquiry = evidence.open_case(path, folder / "destroyed")
    evidence.look(inquiry)
    clean, remade = inquiry.clean, inquiry.reconstructed
    assert clean.text != remade.text and (clean.margin > 0) != (remade.margin > 0)
    nothing, class_too, some = evidence.steer_all(inquiry)
    for one in (nothing, class_too):
        assert abs(one.change) > 1 and one.beyond_reconstruction == pytest.approx(0, abs=1e-4)
        assert one.p == 1 and not one.flipped and one.interval[0] <= 0 <= one.interval[1]
        assert [draws.kind for draws in one.controls] == ["latents", "directions", "untrained"]
        assert all(draws.flips == 0 and draws.p == 1 for draws in one.controls)
    assert some.beyond_reconstruction == pytest.approx(some.after.margin - remade.margin, abs=1e-4)
    assert some.flipped == (some.after.text != remade.text)
    for draws in some.controls:
        over = [(clean.margin + change > 0) != (remade.margin > 0) for change in draws.changes]
        assert draws.flips == pytest.approx(np.mean(over))


def test_a_change_is_that_of_its_own_batch(inquiry: Inquiry, monkeypatch) -> None:
    """In low precision two batches do not begin from the same margin."""

    def steered(*args, **kwargs):
        made = steer(*args, **kwargs)
        if kwargs["contrast"] is None:
            return made
        after = tuple(replace(one, change=one.change + 0.5, log_odds=one.log_odds + 0.75) for one in made.after)
        return replace(made, after=after)

    monkeypatch.setattr(subjects, "steer", steered)
    found = inquiry.subject.answers([inquiry.resolved["strongest"].steering])
    assert found.changes[0] == pytest.approx(found.after[0].margin - found.clean.margin - 0.25)
    assert found.changes[0] == pytest.approx(inquiry.steered[0].change + 0.5, abs=1e-4)
    case = make_case({**CHAIR, "controls": {"draws": 0}}, "chair")
    again = evidence.steer_all(replace(inquiry, case=case, resolved={}))
    assert again[0].change == pytest.approx(inquiry.steered[0].change + 0.5, abs=1e-4)


def test_a_case_without_a_contrast_is_measured_in_words(folder: Path) -> None:
    path = written(
        folder, "caption", prompt="Describe the image.", contrast=None, sweep=None, rephrase=None,
        steer={"one": [{"latents": {"cluster": 1}, "set": 0}]}, controls={"draws": 200},
    )  # fmt: skip
    made = evidence.record(path, folder / "caption")
    (one,) = made.steered
    assert made.clean.text and made.clean.margin is None and made.attributions == () and one.change is one.p is None
    assert [(draws.kind, draws.changes, draws.p) for draws in one.controls] == [("latents", (), None)]


def test_a_text_tap_has_the_controls_that_there_can_be(folder: Path) -> None:
    path = written(
        folder, "text", sae="sketchworld/text.2", sweep=None, rephrase=None, controls={"draws": 3},
        steer={"off": [{"latents": {"top": 3, "by": "attribution"}, "set": 0}]},
    )  # fmt: skip
    made = evidence.record(path, folder / "text")
    assert made.status == "ok" and made.steering("off").change is not None
    assert [draws.kind for draws in made.steering("off").controls] == ["latents"]


def test_a_chart_over_a_table_is_drawn_as_large_as_asked(folder: Path) -> None:
    spec = {
        "mark": "bar",
        "encoding": {"x": {"field": "species", "type": "nominal"}, "y": {"aggregate": "mean", "field": "petalLength"}},
    }
    chart = {"table": "iris", "spec": spec, "width": 200, "height": 160}
    path = written(folder, "iris", image={"chart": chart}, contrast=None, steer=None, sweep=None, rephrase=None)
    inquiry = evidence.open_case(path, folder / "iris")
    assert inquiry.seen.image.size == (200, 160) and np.asarray(inquiry.seen.image).std() > 10
    evidence.look(inquiry)
    assert inquiry.clean.text


# --- what fails --------------------------------------------------------------------------------------------------


def test_a_failing_step_leaves_what_was_found_before_it(folder: Path) -> None:
    steer = {"fine": [{"latents": [7], "set": 0}], "labelled": [{"latents": {"label": "chair"}, "set": 0}]}
    path = written(folder, "labelled", steer=steer, sweep=None)
    with pytest.raises(SteeringError, match="atlas"):
        evidence.record(path, folder / "labelled")
    left = load_recording(folder / "labelled")
    assert left.status == "error" and left.stop.step == "steer labelled"
    line = [one.strip() for one in path.read_text().splitlines()].index("label: chair") + 1
    assert left.stop.message.startswith("labelled.yaml:") and abs(int(left.stop.message.split(":")[1]) - line) <= 2
    assert "Traceback" in left.stop.traceback and str(Path.cwd()) not in left.stop.traceback
    assert left.clean.text and left.heatmap and left.attributions and left.arrays.maps_LP is not None
    assert left.steered == ()


@pytest.mark.parametrize(
    ("latents", "fault"),
    [
        ([99999], "99999 is no latent"),
        ({"cluster": 40}, "which the heatmap has not"),
        ({"top": 3, "by": "attention", "token": "zebra"}, "which is no token"),
        ({"top": 3, "by": "activation", "where": {"thing": "zebra"}}, "not in the scene"),
    ],
)
def test_latents_that_cannot_be_found_are_said_with_their_place(inquiry: Inquiry, latents, fault: str) -> None:
    case = make_case({**CHAIR, "steer": {"bad": [{"latents": latents, "set": 0}]}, "sweep": []}, "chair")
    with pytest.raises(VspError, match=fault) as caught:
        evidence._resolve(inquiry, case.steer[0])
    assert "steer.bad[0].latents" in caught.value.place


def test_a_model_that_is_not_there_is_recorded(folder: Path) -> None:
    path = written(folder, "absent", model="absent/folder/of/weights")
    with pytest.raises(VspError):
        evidence.open_case(path, folder / "absent")
    left = load_recording(folder / "absent")
    assert left.status == "error" and left.stop.step == "load" and left.clean is None and left.image is not None
    needy = written(folder, "needy", model="absent/folder/of/weights", needs=["weights"])
    with pytest.raises(VspError):
        evidence.open_case(needy, folder / "needy")
    assert load_recording(folder / "needy").status == "not-run"


def test_a_picture_of_a_gigabyte_is_refused_before_it_is_unpacked(folder: Path, monkeypatch) -> None:
    """A true PNG of 30,000 x 30,000 pixels, in a tenth of a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, side = zlib.compressobj(1), 30_000
    lines = b"".join([packer.compress(bytes((side // 8 + 1) * 1000)) for _ in range(side // 1000)] + [packer.flush()])
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    picture = folder / "vast.png"
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", lines), chunk(b"IEND", b""))
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert picture.stat().st_size < 1e6

    unpacked = []
    monkeypatch.setattr(PngImageFile, "load", lambda self: unpacked.append(self.size))
    path = written(folder, "vast", image="vast.png", steer=None, sweep=None)
    with pytest.raises(ImageError) as caught:
        evidence.open_case(path, folder / "vast")
    assert unpacked == []
    assert (Path(caught.value.place).name, caught.value.remedy) == (
        "vast.png", "Give a PNG or JPEG picture of ordinary size."
    )  # fmt: skip
    assert "900000000 pixels" in caught.value.fault and "decompression bomb" in caught.value.fault
    left = load_recording(folder / "vast")
    assert left.status == "error" and left.image is None and left.clean is None
    assert left.stop.message.startswith("…/vast.png: cannot be read as a picture (")
    assert left.stop.message.endswith("Give a PNG or JPEG picture of ordinary size.")
    assert sum(file.stat().st_size for file in (folder / "vast").rglob("*") if file.is_file()) < 1e5


# --- the notebook ------------------------------------------------------------------------------------------------


def test_the_notebook_makes_the_recording(folder: Path, tmp_path: Path) -> None:
    steer = {"strongest": CHAIR["steer"]["strongest"]}
    path = written(folder, "notebook", steer=steer, sweep=None, controls={"draws": 5})
    template = paths.templates_dir() / "notebooks" / "case.ipynb"
    parameters = {"case_path": str(path), "out_dir": str(tmp_path / "made")}
    papermill.execute_notebook(str(template), str(tmp_path / NOTEBOOK), parameters, kernel_name="python3",
                               progress_bar=False)  # fmt: skip
    made = load_recording(tmp_path / "made")
    assert made.status == "ok" and made.steering("strongest").change > 0
    evidence.record(path, tmp_path / "again")
    assert comparable(load_recording(tmp_path / "again")) == comparable(made)


def test_the_notebook_reads_well_and_holds_no_machine() -> None:
    template = paths.templates_dir() / "notebooks" / "case.ipynb"
    cells = json.loads(template.read_text())["cells"]
    for cell in cells:
        assert len(cell["source"]) <= 5 or cell["cell_type"] == "markdown", cell["id"]
        prose = [line for line in cell["source"] if line.strip() and not line.startswith("#")]
        assert len(prose) <= 5 and not cell.get("outputs"), cell["id"]
    (parameters,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert [line.partition(" =")[0] for line in parameters["source"]] == ["case_path", "out_dir", "device"]
