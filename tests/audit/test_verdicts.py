"""Verdicts and exit codes: each of them from runs that were truly made, by what a case expects of them.

No figure is written down here: expectations are made of what was measured, on one side of it or on the other.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.audit.conftest import SEEDS, Project
from vsp_report.audit.verdicts import VERDICTS, judge, verdict
from vsp_report.case import load_case
from vsp_report.recording import load_recording, restate, save_recording


def line_of(file: Path, text: str) -> int:
    return next(n for n, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def holds(project: Project) -> dict:
    """What is true of the chair."""
    return {
        "before": {"answer": project.figure("before.answer"),
                   "margin": {"about": {"value": project.figure("before.margin"), "abs": 0.01}}},
        "after": {"ten": {"answer": project.figure("after.ten.answer")}},
        "controls": {"flips": {"le": project.figure("controls.flips")}},
    }  # fmt: skip


# --- verdicts -----------------------------------------------------------------------------------------------------


def test_confirmed_is_met(project: Project) -> None:
    project.case("chair", holds(project))
    run = project.check()
    assert (run.code, run.last) == (0, "audit: met (0): 1 confirmed")
    assert "confirmed  chair  5 expectations hold" in run.out


def expectation(project: Project, verdict: str) -> dict:
    """What is not true of the chair, so that it comes to this."""
    margin, before = project.figure("before.margin"), project.figure("before.answer")
    after, flips = project.figure("after.ten.margin"), project.figure("controls.flips")
    return {
        "not reproduced": {"before": {"answer": before, "margin": {"gt": margin}}},
        "not corrected": {"before": {"answer": before}, "after": {"ten": {"margin": {"gt": after}}}},
        "side effect": {"before": {"answer": before}, "controls": {"flips": {"lt": flips}}},
    }[verdict]


@pytest.mark.parametrize("verdict", ["not reproduced", "not corrected", "side effect"])
def test_what_is_not_met_says_so_with_the_line(project: Project, verdict: str) -> None:
    file = project.case("chair", expectation(project, verdict))
    run = project.check()
    assert (run.code, run.last) == (1, f"audit: not met (1): 1 {verdict}")
    at = line_of(file, "lt:" if verdict == "side effect" else "gt:")
    assert f"cases/chair.yaml:{at}: " in run.out and "(by " in run.out


def test_a_rephrasing_and_a_diagnosis_have_their_verdicts(project: Project) -> None:
    said, found = project.figure("rephrase.turned.answer"), project.figure("diagnosis")
    other = "none" if found != "none" else "hidden-cue"
    project.case("turned", {"rephrase": {"turned": {"answer": {"lacks": said}}}})
    project.case("same", {"diagnosis": found})
    project.case("other", {"before": {"answer": project.figure("before.answer")}, "diagnosis": other})
    run = project.check("--json", "audit.json")
    told = {one["id"]: one["verdict"] for one in json.loads(Path("audit.json").read_text())["cases"]}
    assert told == {"other": "not reproduced", "same": "confirmed", "turned": "not corrected"} and run.code == 1


def test_what_was_not_measured_was_not_checked(project: Project) -> None:
    """A steering of all latents has no matched ones to be compared with."""
    file = project.case("chair", {"after": {"covered": {"p": {"le": 0.05}}}})
    run = project.check()
    assert (run.code, run.last) == (3, "audit: could not run (3): 1 error")
    assert f"cases/chair.yaml:{line_of(file, ' le:')}: covered: p among controls" in run.out
    assert "observed not measured" in run.out


def test_a_run_that_stopped_is_an_error_and_outranks_what_is_not_met(project: Project) -> None:
    project.case("beyond", {"before": {"answer": "sitting"}}, of="beyond")
    project.case("chair", expectation(project, "not corrected"))
    run = project.check()
    assert (run.code, run.last) == (3, "audit: could not run (3): 1 error, 1 not corrected")
    assert "steer.beyond[0]" in run.out and "is no latent of an SAE" in run.out


@pytest.mark.parametrize("how", ["missing", "other", "damaged"])
def test_what_is_not_recorded_cannot_be_checked(project: Project, how: str) -> None:
    if how == "other":
        project.case("chair", holds(project), prompt="What is the person doing?")
    else:
        project.case("chair", holds(project), of="chair" if how == "damaged" else "nothing")
    if how == "damaged":
        place = project.recordings / "chair" / "recording.json"
        place.write_text(place.read_text().replace("sitting", "sitTing", 1))
    run = project.check()
    assert (run.code, run.last) == (3, "audit: could not run (3): 1 error")
    told = {"missing": "holds no whole recording", "other": "of another question", "damaged": "was changed after"}
    assert told[how] in run.out


def test_a_recording_of_another_picture_confirms_nothing(project: Project) -> None:
    picture = project.folder / "cases" / "photo.png"
    shutil.copy(project.made["photo"] / "images" / "input.png", picture)
    project.case("photo", holds(project), of="photo")
    assert project.check().last == "audit: met (0): 1 confirmed"
    Image.new("RGB", (96, 96), "blue").save(picture)
    project.case("photo", holds(project) | {"baseline": held(project)["baseline"]}, of="photo")
    run = project.check("--update")
    assert (run.code, run.last) == (3, "audit: could not run (3): 1 error")
    told = "photo: is of another picture than photo.png is now. `vsp-report run photo` makes it again."
    assert told in run.out and not (project.folder / "cases" / "baselines").exists()
    # What is not here cannot be compared.
    picture.unlink()
    project.case("photo", holds(project), of="photo", needs="image")
    assert project.check().last == "audit: met (0): 1 confirmed"


@pytest.mark.parametrize("part", ["model", "SAE"])
def test_a_recording_of_another_model_confirms_nothing(project: Project, part: str) -> None:
    project.case("chair", holds(project))
    recording = load_recording(project.recordings / "chair")
    made = {"model": "model_sha", "SAE": "sae_sha"}[part]
    sha = getattr(recording.provenance, made)
    for other, code in (("0" * 64, 3), ("0" * 40, 0), ("", 0), (sha, 0)):  # a commit of a hub is believed
        provenance = replace(recording.provenance, **{made: other})
        name = recording.image.file
        save_recording(project.recordings / "chair", replace(recording, provenance=provenance),
                       {name: project.made["chair"] / name})  # fmt: skip
        run = project.check()
        assert run.code == code, run.out
        assert (f"is of another {part} than sketchworld" in run.out) == (code == 3)


def test_what_expects_nothing_is_new(project: Project) -> None:
    project.case("chair")
    run = project.check()
    assert (run.code, run.last) == (0, "audit: met (0): 1 new")


def test_what_needs_what_is_not_here_is_no_success(project: Project) -> None:
    project.case("far", holds(project), of="nothing", needs="weights", model="nobody/has-this")
    run = project.audit()
    assert (run.code, run.last) == (3, "audit: could not run (3): 1 not run")
    project.case("chair", holds(project))
    run = project.check()
    assert (run.code, run.last) == (0, "audit: met (0): 1 confirmed, 1 not run")


# --- seeds --------------------------------------------------------------------------------------------------------


def varying(project: Project) -> tuple[str, list[float]]:
    """A steering whose p-value is another one with another seed, and its p-values, the smallest first."""
    recording = project.recording("seeds")
    runs = [recording.figures(), *(one.figures for one in recording.repeats)]
    for name in ("weak-1", "weak-2", "weak-3"):
        found = sorted(run[f"after.{name}.p"] for run in runs)
        if found[0] < found[-1]:
            return name, found
    raise AssertionError("no control of this case depends on its seed")


def test_the_seed_changes_controls_and_no_answer(project: Project) -> None:
    recording = project.recording("seeds")
    assert [one.seed for one in recording.repeats] == [1, 2]
    for one in recording.repeats:
        same = {name: figure for name, figure in one.figures.items() if not name.endswith((".p", "flips"))}
        assert same == {name: recording.figures()[name] for name in same}
    # What no expectation asks for is not looked for again.
    assert {*recording.figures()} - {"diagnosis"} == {*recording.repeats[0].figures}
    varying(project)


def test_between_all_and_none_is_unstable(project: Project) -> None:
    name, found = varying(project)
    some = {"after": {name: {"p": {"le": found[0]}}}}
    met = sum(p <= found[0] for p in found)
    project.case("some", some, of="seeds")
    run = project.check()
    assert (run.code, run.last) == (0, "audit: met (0): 1 unstable")
    assert f"{met} of 3 runs met everything" in run.out
    run = project.check("--fail-on", "unstable")
    assert (run.code, run.last) == (4, "audit: unstable (4): 1 unstable")


def test_enough_seeds_agree_whichever_way(project: Project) -> None:
    name, found = varying(project)
    most = {"repeat": SEEDS | {"agree": "1/3"}, "after": {name: {"p": {"le": found[0]}}}}
    project.case("enough", most, of="seeds")
    project.case("never", {"after": {name: {"p": {"lt": found[0]}}}}, of="seeds")
    run = project.check("--fail-on", "unstable")
    assert (run.code, run.last) == (1, "audit: not met (1): 1 not corrected, 1 confirmed")


def test_seeds_are_a_part_of_the_question(project: Project) -> None:
    """Other expectations are held against what is there; more seeds have to be run first."""
    project.case("chair", {"repeat": SEEDS, "before": {"answer": project.figure("before.answer")}})
    run = project.check()
    assert run.code == 3 and "of another question" in run.out
    fewer = SEEDS | {"agree": "1/3"}
    project.case("seeds", {"repeat": fewer, "before": {"answer": project.figure("before.answer")}}, of="seeds")
    assert project.check("seeds").code == 0


# --- baselines ----------------------------------------------------------------------------------------------------


def held(project: Project, **more: dict) -> dict:
    return {"before": {"answer": project.figure("before.answer")},
            "baseline": {"before.margin": {"abs": 0.5}, "after.ten.change": {"rel": "5%"}, **more}}  # fmt: skip


def move(project: Project, figure: str, by: float, id: str = "chair") -> Path:
    file = project.folder / "cases" / "baselines" / f"{id}.json"
    data = json.loads(file.read_text())
    data["figures"][figure] += by
    file.write_text(json.dumps(data))
    return file


def test_a_missing_baseline_is_written_and_then_met(project: Project) -> None:
    project.case("chair", held(project))
    run = project.check()
    assert (run.code, run.last) == (6, "audit: baseline missing or stale (6): 1 new")
    run = project.check("--update")
    margin = project.figure("before.margin")
    assert (run.code, run.last) == (0, "audit: met (0): 1 confirmed")
    assert f"baseline: chair: before.margin: none -> {margin:.6g}\n" in run.out and "1 baseline written" in run.out
    assert project.check().code == 0
    run = project.check("--update")
    assert run.code == 0 and "no baseline has moved" in run.out


def test_a_figure_that_moved_has_drifted(project: Project) -> None:
    file = project.case("chair", held(project))
    project.check("--update")
    move(project, "before.margin", 0.4)
    assert project.check().code == 0
    move(project, "before.margin", 0.2)
    run = project.check()
    assert (run.code, run.last) == (1, "audit: not met (1): 1 drifted")
    assert f"cases/chair.yaml:{line_of(file, 'before.margin')}: clean: log-odds from baseline" in run.out
    assert "± 0.50" in run.out


def test_update_keeps_what_is_near_enough(project: Project) -> None:
    project.case("chair", held(project))
    project.check("--update")
    move(project, "before.margin", 0.4)
    near = json.loads(move(project, "after.ten.change", 100).read_text())["figures"]
    run = project.check("--update")
    now = json.loads((project.folder / "cases/baselines/chair.json").read_text())["figures"]
    assert run.code == 0 and now["before.margin"] == near["before.margin"]
    assert now["after.ten.change"] == pytest.approx(project.figure("after.ten.change"), rel=1e-5)
    assert "after.ten.change: " in run.out and "before.margin" not in run.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"before.p_right": {"abs": 0.1}}, "it lacks before.p_right"),
        ("question", "it is of another question"),
        ("garbage", "it cannot be read"),
        ("fewer", "the case no longer holds before.margin"),
    ],
)
def test_a_stale_baseline_is_told_from_a_missing_one(project: Project, change: dict | str, told: str) -> None:
    project.case("chair", held(project))
    project.check("--update")
    file = project.folder / "cases" / "baselines" / "chair.json"
    if isinstance(change, dict):
        project.case("chair", held(project, **change))
    elif change == "question":
        file.write_text(file.read_text().replace('"question": "', '"question": "0'))
    elif change == "garbage":
        file.write_text('{"schema": 1, "question": "", "figures": {"before.margin": NaN}}')
    else:
        expect = held(project)
        del expect["baseline"]["before.margin"]
        project.case("chair", expect)
    run = project.check()
    assert (run.code, run.last) == (6, "audit: baseline missing or stale (6): 1 new")
    assert f"stale: {told}" in run.out
    assert project.check("--update").code == 0 and project.check().code == 0


def test_no_baseline_is_written_in_ci(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.case("chair", held(project))
    monkeypatch.setenv("CI", "true")
    run = project.check("--update")
    assert run.code == 2 and run.err.startswith("error: --update: writes no baselines in CI")
    assert not (project.folder / "cases" / "baselines").exists()
    assert project.check().code == 6


def test_a_baseline_is_of_the_picture_that_was_seen(project: Project) -> None:
    shutil.copy(project.made["photo"] / "images" / "input.png", "cases/photo.png")
    project.case("photo", held(project), of="photo")
    assert project.check("--update").code == 0
    # The same bytes under another name would be the same picture; a baseline of other bytes is of another.
    file = project.folder / "cases" / "baselines" / "photo.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"picture": "0" * 64}))
    run = project.check()
    assert (run.code, run.last) == (6, "audit: baseline missing or stale (6): 1 new")
    assert "stale: it is of another picture than photo.png" in run.out
    assert project.check("--update").code == 0 and json.loads(file.read_text()) == data


def test_baselines_are_written_all_or_none(project: Project) -> None:
    project.case("a", held(project))
    file = project.case("b", held(project, **{"after.covered.p": {"abs": 0.1}}))
    run = project.check("--update")
    at = line_of(file, "after.covered.p")
    assert run.code == 2 and f"b.yaml:{at}: after.covered.p was not measured, and no baseline" in run.err
    assert not (project.folder / "cases" / "baselines").exists() and "->" not in run.out


# --- selection and usage ------------------------------------------------------------------------------------------


def test_selection_by_name_tag_and_failure_mode(project: Project) -> None:
    project.case("one", holds(project))
    project.case("two", holds(project), tags=["cups"], failure="hidden-cue")
    for word, count in (("one", 1), ("t*", 1), ("people", 1), ("hidden-cue", 1), ("*", 2)):
        assert project.check("--only", word).last == f"audit: met (0): {count} confirmed"
    assert project.check("--only", "cups", "--only", "people").last == "audit: met (0): 2 confirmed"
    assert project.check("one").last == "audit: met (0): 1 confirmed"
    run = project.check("--only", "nothing")
    assert (run.code, run.last) == (5, "audit: no cases selected (5)")


def test_a_folder_without_cases_has_none_to_select(project: Project) -> None:
    run = project.check()
    assert (run.code, run.last) == (5, "audit: no cases selected (5)")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--recordings", "there"], "--recordings: is for checking without running."),
        (["--from-recordings", "--force"], "--from-recordings: runs nothing."),
        (["--from-recordings", "--jobs", "2", "--device", "cpu"], "Leave --jobs and --device away."),
        (["--from-recordings", "--junit", "nowhere/j.xml"], "its folder does not exist"),
        *((["--from-recordings", word, "cases"], "error: cases: is a folder.") for word in ("--junit", "--sarif",
          "--json")),
        (["--from-recordings", "--out", "siet"], "siet/recordings: is no folder of recordings."),
        (["--from-recordings", "--out", "siet", "--recordings", "site/recordings"], "siet: is no folder, and holds"),
        *(([*word.split(), "--from-recordings"], f"error: {word.split()[0]}: is of a data set. Name it with --dataset.")
          for word in ("--accuracy 60%", "--pairs 1", "--model x", "--sae x", "--name x", "--no-diagnosis",
                       "--diagnosis")),
        (["--from-recordings", "no-such-case"], "no-such-case: is no case file"),
        (["--fail-on", "rain"], "invalid choice"),
    ],
)  # fmt: skip
def test_usage(project: Project, words: list[str], told: str) -> None:
    project.case("chair", holds(project))
    before = sorted(project.folder.rglob("*"))
    run = project.audit(*words)
    assert run.code == 2 and told in run.err and run.err.startswith("error: ") and run.out == ""
    assert sorted(project.folder.rglob("*")) == before  # and nothing is left behind


def test_an_unknown_metric_is_an_error_with_its_line(project: Project) -> None:
    file = project.case("chair", {"before": {"answer": "sitting", "marign": {"lt": 0}}})
    run = project.check()
    assert run.code == 2
    at = line_of(file, "marign")
    assert f"cases/chair.yaml:{at}: expect.before.marign is unknown. Did you mean margin?" in run.err
    file = project.case("chair", {"baseline": {"before.marign": {"abs": 1}}})
    run = project.check()
    told = f"chair.yaml:{line_of(file, 'marign')}: expect.baseline.before.marign is no figure. Did you mean before.mar"
    assert run.code == 2 and told in run.err
    file = project.case("chair", {"before": {"margin": {"near": 3}}})
    assert project.check().code == 2


def test_a_review_that_is_due_is_said_and_fails_nothing(project: Project) -> None:
    file = project.case("chair", holds(project) | {"review_by": "2020-02-29"})
    run = project.check()
    assert run.code == 0 and f"cases/chair.yaml:{line_of(file, 'review_by:')}: to be reviewed by 2020-02-29" in run.out
    project.case("chair", holds(project) | {"review_by": "2999-12-31"})
    assert "reviewed" not in project.check().out
    project.case("chair", {"review_by": "2021-02-29"})
    assert "is 2021-02-29, which is no day" in project.check().err


# --- without a model ----------------------------------------------------------------------------------------------


def test_recordings_are_checked_without_torch(project: Project) -> None:
    project.case("chair", holds(project) | {"baseline": {"before.margin": {"abs": 1}}})
    code = (
        "import sys; from vsp_report import cli; code = cli.main(sys.argv[1:]); "
        "heavy = [m for m in ('torch', 'transformers', 'papermill', 'altair') if m in sys.modules]; "
        "print(code, heavy)"
    )
    words = ["audit", "--from-recordings", "--update", "--junit", "j.xml", "--sarif", "s.sarif", "--json", "a.json"]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 []"


def test_a_page_and_an_audit_say_the_same(project: Project) -> None:
    """Pages judge a recording by its own words; after a run those are the case's."""
    for name in ("not reproduced", "not corrected", "side effect"):
        file = project.case("chair", expectation(project, name))
        project.check("--json", "audit.json")
        restated = restate(project.recordings / "chair", load_case(file))
        from vsp_report.recording import load_recording
        from vsp_report.render import findings

        recording = load_recording(restated)
        assert findings.verdict(recording) == verdict(recording) == judge(recording).verdict == name
        assert json.loads(Path("audit.json").read_text())["cases"][0]["verdict"] == name


def test_every_verdict_is_explained() -> None:
    assert all(tone in ("good", "bad", "plain") and means.endswith(".") for tone, means in VERDICTS.values())
