"""What a run depends on, as far as it can be known without running it."""

from __future__ import annotations

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
