"""What a run depends on, as far as it can be known without running it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vsp_report.case import load_case
from vsp_report.run import plan

CPU, GPU = plan.Surroundings({"torch": "2"}), plan.Surroundings({"torch": "2"}, gpu="cuda sm_90")


def key(case, surroundings=CPU, **other) -> str:
    return plan.foresee(case, surroundings, **{"notebook_sha": "n"} | other).run_key


def test_what_changes_a_figure_changes_the_key(site, monkeypatch) -> None:
    case = load_case(site.case("one"))
    changed = [
        key(replace(case, seed=1)),
        key(replace(case, prompt="Who?")),
        key(case, replace(CPU, versions={"torch": "3"})),
        key(case, GPU),
        key(case, notebook_sha="m"),
        key(replace(case, model="other")),
    ]
    monkeypatch.setattr(plan, "_package_sha", lambda: "other")
    changed.append(key(case))
    monkeypatch.undo()
    assert len({key(case), *changed}) == 1 + len(changed)
    assert key(replace(case, title="Another", story="New", tags=("a",))) == key(case)
    assert key(case, GPU, device="cpu") == key(case)


def test_the_picture_counts_by_its_bytes(site) -> None:
    file = site.case("one")
    (site.folder / "cases" / "cup.png").write_bytes(b"1")
    file.write_text(file.read_text().replace("{scene: {family: cups, seed: 0}}", "cup.png"))
    before = key(load_case(file))
    (site.folder / "cases" / "cup.png").write_bytes(b"2")
    assert key(load_case(file)) != before


def test_weights_count_by_their_bytes_and_large_ones_by_samples(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "SMALL_FILE_BYTES", 1000)
    monkeypatch.setattr(plan, "_SAMPLE_BYTES", 100)
    model = tmp_path / "model"
    model.mkdir()
    seen = set()
    for data in (b"a" * 999, b"b" * 999, b"a" * 5000, b"a" * 5001, b"b" + b"a" * 4999, b"a" * 4999 + b"b"):
        (model / "weights").write_bytes(data)
        plan._files_sha.cache_clear()
        seen.add(plan.identity(str(model)))
    assert len(seen) == 6


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert plan.identity("some/model") == ""
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("c0ffee\n")
    assert plan.identity("some/model") == "c0ffee"
    assert plan.identity("some/model@" + "a" * 40) == "a" * 40
    assert plan.identity("some/model/layers/3") == plan.identity("some/model/layers/3@main") == "c0ffee"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "models--some--model").rename(tmp_path / "moved")
    (tmp_path / "cache" / "huggingface" / "hub").mkdir()
    (tmp_path / "moved").rename(tmp_path / "cache" / "huggingface" / "hub" / "models--some--model")
    assert plan.identity("some/model") == "c0ffee"


def test_a_commit_that_is_named_is_not_yet_here(site, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    file, commit = site.case("one"), "a" * 40
    asked = file.read_text().replace("model: sketchworld", f"model: some/model@{commit}")
    file.write_text(asked + "needs: [weights]\n")
    assert plan.unmet(load_case(file), CPU) == ["weights"]
    (tmp_path / "models--some--model" / "snapshots" / commit).mkdir(parents=True)
    assert plan.unmet(load_case(file), CPU) == []


def test_weights_are_where_they_are_asked_for(site, monkeypatch, tmp_path: Path) -> None:
    """On a cluster: the disk that plans has none of the Hub's models, its workers have."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    file = site.case("one")
    file.write_text(file.read_text().replace("model: sketchworld", "model: some/model") + "needs: [weights]\n")
    case = load_case(file)
    assert plan.of_the_hub([case]) == ("some/model",)
    there = replace(CPU, found={"some/model": ("c0ffee", True)})
    assert (plan.unmet(case, CPU), plan.unmet(case, there)) == (["weights"], [])
    assert plan.foresee(case, there, notebook_sha="n").model_sha == "c0ffee"


def test_a_recording_of_a_case_that_this_version_cannot_read_is_made_again(site, ran) -> None:
    file = site.case("one")
    ran()
    there = site.recordings / "one" / "recording.json"
    told = json.loads(there.read_text())
    told["case"]["from_another_version"] = 1
    there.write_text(json.dumps(told))
    (step,) = plan.make_plan([load_case(file)], site.recordings, CPU, notebook_sha="n")
    assert (step.state, step.why) == ("run", "it has no recording")
    assert ran()["one"].status == "ok"


def test_the_command_can_be_typed_again(site) -> None:
    file = site.case("one")
    spaced = file.with_name("my cases")
    spaced.mkdir()
    case = load_case(file.rename(spaced / "one.yaml"))
    told = plan.foresee(case, CPU, notebook_sha="n", shown=plan.shown_path(case), notebook="other one.ipynb")
    assert told.command == "vsp-report run 'cases/my cases/one.yaml' --force --notebook 'other one.ipynb'"


@pytest.mark.parametrize(("needs", "here", "missing"), [("gpu", CPU, ["gpu"]), ("gpu", GPU, []), ("image", CPU, [])])
def test_what_is_missing_is_what_the_case_needs(site, needs: str, here: plan.Surroundings, missing: list[str]) -> None:
    file = site.case("one")
    file.write_text(file.read_text() + f"needs: [{needs}]\n")
    assert plan.unmet(load_case(file), here) == missing


def test_a_recording_made_elsewhere_is_worth_more_than_none(site, ran) -> None:
    file = site.case("one")
    ran()
    file.write_text(file.read_text() + "needs: [gpu]\n")
    (step,) = plan.make_plan([load_case(file)], site.recordings, CPU, notebook_sha="other")
    assert step.state == "restate"
    file.write_text(file.read_text().replace("Where", "Who"))
    (step,) = plan.make_plan([load_case(file)], site.recordings, CPU, notebook_sha="other")
    assert (step.state, step.why) == ("not-run", "needs a GPU")


def test_no_folder_of_this_machine_is_shown(site, monkeypatch) -> None:
    case = load_case(site.case("one"))
    assert plan.shown_path(case) == "cases/one.yaml"
    case = replace(case, path=case.path.absolute())
    monkeypatch.chdir("/")
    assert plan.shown_path(case).count("/") != 1 or not plan.shown_path(case).startswith("/")
    (site.folder / "elsewhere").mkdir()
    monkeypatch.chdir(site.folder / "elsewhere")
    assert plan.shown_path(case) == "one"
