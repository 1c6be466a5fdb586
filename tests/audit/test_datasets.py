"""Data sets: rows of the bundled world and of pictures, in pairs, read with located faults, run, resumed, and shown."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from PIL import Image

from tests.audit.conftest import Project, Run
from vsp_report import cli
from vsp_report.audit import datasets
from vsp_report.audit.rows import Asked, Row, read_rows
from vsp_report.errors import CaseError, InputError
from vsp_report.recording import Answered, load_recording, recordings_in

ASKED = Asked("sketchworld", "sketchworld/vision.3")
HEAD = "pair,image,question,right,wrong,failure,tags\n"
SITTING = "Is the person sitting or standing?,standing,sitting"
ANIMAL = "What animal is this?,a goat,a pig"


def read(folder: Path, text: str, name: str = "rows.csv") -> tuple[list[Row], list[str]]:
    (folder / name).write_text(text, encoding="utf-8")
    found = list(read_rows(folder / name, ASKED))
    faults = [str(one).removeprefix(str(folder) + "/") for one in found if isinstance(one, CaseError)]
    return [one for one in found if isinstance(one, Row)], faults


# --- reading ------------------------------------------------------------------------------------------------------


def test_rows_are_cases(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    rows, faults = read(tmp_path, HEAD + f"a,scene:misleading-cue/chair/1,{SITTING},misleading-cue,people chairs\n"
                        f"a,red.png,\"What,\nindeed?\",one,two,,\n,scene:animals/3,{ANIMAL},,\n")  # fmt: skip
    assert faults == [] and [(r.id, r.line, r.pair) for r in rows] == [
        ("row-1", 2, "a"), ("row-2", 3, "a"), ("row-3", 5, "")]  # fmt: skip
    assert rows[0].case.image.scene.variation == "chair" and rows[0].case.tags == ("people", "chairs")
    assert rows[1].image == tmp_path / "red.png" and rows[1].case.prompt == "What,\nindeed?"
    assert rows[2].case.image.scene.family == "animals" and rows[2].case.contrast.right == "a goat"


def test_mmvps_own_columns_are_read(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.jpg")
    rows, faults = read(tmp_path, "lndex,Question,Options,Correct Answer\n"
                        "1,Is it open?,(a) Open (b) Closed,(a)\n2,Is it open?,(a) Open (b) Closed,(b)\n"
                        "3,Is it open?,(a) Open (b) Closed,(c)\n")  # fmt: skip
    assert [r.pair for r in rows] == ["1", "1"] and [r.image.name for r in rows] == ["1.jpg", "2.jpg"]
    assert rows[0].case.prompt == "Is it open? (a) Open (b) Closed"
    assert (rows[1].case.contrast.right, rows[1].case.contrast.wrong) == ("(b) Closed", "(a) Open")
    assert faults == ["rows.csv:4: the correct answer is '(c)'; the options are (a), (b). Name one of them."]


def test_json_lines_take_whole_scenes(tmp_path: Path) -> None:
    scene = {"scene": {"family": "people", "seed": 4}, "size": 64}
    data = {"id": "one", "image": scene, "question": "?", "right": "a", "wrong": "b"}
    text = (
        json.dumps(data) + "\n\n{\n" + json.dumps(data | {"id": "two", "image": {"scene": {"family": "cows"}}}) + "\n"
    )
    rows, faults = read(tmp_path, text + json.dumps(data), "rows.jsonl")
    assert [row.case.image.size for row in rows] == [64]
    assert [fault.split(" ")[0] for fault in faults] == ["rows.jsonl:3:", "rows.jsonl:4:", "rows.jsonl:5:"]
    assert "image.scene.family" in faults[1] and "id is 'one', as on line 1" in faults[2]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("a,../out.png,?,x,y,,", "'../out.png'"),
        ("a,/etc/passwd,?,x,y,,", "'/etc/passwd'"),
        ("a,link.png,?,x,y,,", "leads out of the data set's folder"),
        ("a,folder/there.png,?,x,y,,", "leads out of the data set's folder"),
        ("a,gone.png,?,x,y,,", "is missing"),
        ("a,scene:nothing/chair/1,?,x,y,,", "image.scene.mode is 'nothing'"),
        ("a,scene:people,?,x,y,,", "scene:MODE/VARIATION/SEED"),
        ("a,,?,x,y,,", "image is empty"),
        ("a,scene:people/1,,x,y,,", "question is empty"),
        ("a,scene:people/1,?,x,,,", "wrong is empty"),
        ("a,scene:people/1,?,x,X,,", "contrast.wrong is the right answer"),
        ("a,scene:people/1,?,x,y,sadness,", "failure is 'sadness'"),
        ("a,scene:people/1,?,x,y", "has 5 values; there are 7 columns"),
    ],
)
def test_a_broken_row_is_named_with_its_line(tmp_path: Path, values: str, told: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "out.png")
    (tmp_path / "there.png").write_bytes((tmp_path / "out.png").read_bytes())
    os.symlink(tmp_path / "out.png", folder / "link.png")
    os.symlink(tmp_path, folder / "folder")
    rows, faults = read(folder, f"{HEAD}a,scene:people/1,?,x,y,,\n{values}\nb,scene:people/2,?,x,y,,\n")
    assert [row.line for row in rows] == [2, 4] and len(faults) == 1
    assert faults[0].startswith("rows.csv:3: ") and told in faults[0]


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "gone.csv"])
def test_what_is_no_data_set_is_refused_as_a_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.csv").write_text("image,question\n")
    with pytest.raises(InputError, match=r"rows\.csv:1|is no data set|is not a file"):
        list(read_rows(tmp_path / name, ASKED))


# --- figures ------------------------------------------------------------------------------------------------------


def test_the_interval_is_wilsons() -> None:
    """Its ends are where the count is exactly 1.96 standard errors away: the definition, solved by bisection."""

    def end(count: int, of: int, low: float, high: float) -> float:
        p, sign = count / of, 1 if low == 0 else -1
        for _ in range(80):
            q = (low + high) / 2
            far = sign * (p - q) > 1.959963984540054 * math.sqrt(q * (1 - q) / of)
            low, high = (q, high) if far == (sign > 0) else (low, q)
        return low

    for count, of in ((3, 10), (49, 50), (150, 300)):
        found = datasets.wilson(count, of)
        assert found.low == pytest.approx(end(count, of, 0, count / of), abs=1e-9)
        assert found.high == pytest.approx(end(count, of, count / of, 1), abs=1e-9)
    assert (datasets.wilson(0, 9).low, datasets.wilson(9, 9).high) == (0.0, 1.0)
    assert datasets.wilson(0, 0).share is None


@pytest.mark.parametrize(
    ("said", "right", "wrong", "which"),
    [
        ("Standing.", "standing", "sitting", "right"),
        ("The person is sitting.", "standing", "sitting", "wrong"),
        ("not standing but sitting", "standing", "sitting", "neither"),
        ("outstanding", "standing", "sitting", "neither"),
        ("(a)", "(a) Open", "(b) Closed", "right"),
        ("(b) Closed", "(a) Open", "(b) Closed", "wrong"),
        ("It is open", "(a) Open", "(b) Closed", "right"),
        ("on a hand with a mitten", "on a hand with a mitten", "on a hand", "right"),
        ("", "a", "b", "neither"),
    ],
)
def test_what_an_answer_says(said: str, right: str, wrong: str, which: str) -> None:
    assert datasets.says(Answered(said), right, wrong) == which


OPTIONS = ("(a) Open", "(b) Closed")


@pytest.mark.parametrize(
    ("said", "contrast", "which"),
    [
        *[(said, OPTIONS, "wrong") for said in ("(b)", "b", "B.", "b)", "(B).", "Closed", "closed.", "(b) Closed",
          "b. closed", "B: Closed", "The answer is (b).", "The answer is b", "Option B: it is closed",
          "Answer: b", "It is closed, like a box")],
        *[(said, OPTIONS, "right") for said in ("(a)", "a", "A.", "Open.", "(a) open", "a) Open", "It is a open box",
          "(a) Open, and not closed")],
        *[(said, OPTIONS, "") for said in ("(c)", "c", "a box", "Is it a door?", "unopened", "(a) Closed", "b. Open",
          "(a) Open (b) Closed", "")],
        ("a dog", ("(a) cat", "(b) dog"), "wrong"), ("a", ("(b) 3", "(a) 4"), "wrong"),
        ("B", ("A", "B"), "wrong"), ("(A)", ("A", "B"), "right"), ("A bag", ("A", "B"), ""),
        ("b. left", ("A. Right", "B. Left"), "wrong"), ("e.g. a cat", ("a cat", "a dog"), "right"),
    ],
)  # fmt: skip
def test_a_letter_is_an_answer_of_options(said: str, contrast: tuple[str, str], which: str) -> None:
    """Whoever reads it, and whichever of the two is the right one."""
    from vsp_report.study.diagnose import Contrast, verdict

    turned = {"right": "wrong", "wrong": "right"}
    for (right, wrong), told in ((contrast, which), (contrast[::-1], turned.get(which, ""))):
        assert verdict(said, Contrast(right, wrong)) == told
        assert datasets.says(Answered(said), right, wrong) == (told or "neither")
    for margin, meant in ((1.0, "right"), (-1.0, "wrong")):  # where both are in it, for both readers
        found = verdict(said, Contrast(*contrast), margin)
        assert found == (datasets.says(Answered(said, margin=margin), *contrast)).replace("neither", "")
        assert found == which or found == meant


def test_a_row_answered_by_the_wrong_letter_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted as not right is what a row's own run diagnoses."""
    from vsp_report.study import evidence, rows

    monkeypatch.setattr(evidence, "diagnose", lambda inquiry: "looked into")
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    (row,), _ = read(tmp_path, "index,question,options,correct answer\n1,Is it open?,(a) Open (b) Closed,(a)\n")
    contrast = row.case.contrast
    for said in ("(b)", "b", "B.", "Closed", "a door", "(a)", "A", "open"):
        clean = Answered(said, margin=-1.0)
        inquiry = SimpleNamespace(case=row.case, clean=clean, subject=SimpleNamespace(look=lambda: None))
        looked_into = rows.explain(inquiry) == "looked into"
        assert looked_into == (datasets.says(clean, contrast.right, contrast.wrong) != "right")
        assert looked_into == (said not in ("(a)", "A", "open"))


# --- running ------------------------------------------------------------------------------------------------------


ROWS = (f"sitting,scene:misleading-cue/chair/1,{SITTING},misleading-cue,people",
        f"sitting,small.png,{SITTING},,people",
        f"animal,scene:none/animals/1,{ANIMAL},,animals")  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set that was run, by a kernel and its executor."""
    from vsp_report.sketchworld import planted

    folder = tmp_path_factory.mktemp("data")
    planted.plant("none", "people", 3).scene.draw(96).save(folder / "small.png")
    (folder / "pairs.csv").write_text("\n".join([HEAD.strip(), *ROWS, "animal,gone.png,?,a,b,,", ""]))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.main(["audit", "--dataset", "pairs.csv", "--no-diagnosis"]) == 3
    finally:
        os.chdir(before)
    return folder


def again(ran: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *words: str) -> Run:
    monkeypatch.chdir(ran)
    capsys.readouterr()
    return Run(cli.main(["audit", "--dataset", "pairs.csv", "--no-diagnosis", *words]), *capsys.readouterr())


def test_a_data_set_is_counted_in_rows_and_pairs(ran: Path, capsys, monkeypatch) -> None:
    run = again(ran, capsys, monkeypatch, "--from-recordings", "--json", "out.json")
    assert run.code == 3 and "error: pairs.csv:5: image 'gone.png' is missing" in run.err
    assert run.last.startswith("audit: could not run (3): right ") and run.last.endswith("1 could not be asked")
    data = json.loads((ran / "out.json").read_text())
    jsonschema.validate(data, datasets.dataset_schema())
    recordings = [load_recording(folder) for folder in recordings_in(ran / "site/datasets/pairs/recordings")]
    assert [one.id for one in recordings] == ["row-1", "row-2", "row-3"]
    told = [datasets.says(one.clean, *one.case["contrast"].values()) for one in recordings]
    assert [row["says"] for row in data["rows"]] == told
    assert data["accuracy"]["count"] == told.count("right") and data["accuracy"]["of"] == 3
    # The pair with the broken row is none of two; the other one is right only if both are.
    assert (data["pairs"]["of"], data["pairs"]["count"]) == (1, int(told[:2] == ["right", "right"]))
    assert data["groups"]["people"]["of"] == 2 and set(data["modes"]) <= {"not diagnosed"}


def test_rows_are_recorded_lightly(ran: Path) -> None:
    for folder in recordings_in(ran / "site/datasets/pairs/recordings"):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        recording = load_recording(folder)
        assert size < 40_000 and recording.clean.margin is not None and recording.latents == ()
        assert recording.image.width_px <= 160
    assert not [entry for entry in (ran / "site/datasets/pairs").iterdir() if entry.name.startswith(".")]


def test_what_is_recorded_is_not_run_again(ran: Path, capsys, monkeypatch) -> None:
    from vsp_report.run import batch

    states: list[str] = []
    plan = batch.plan
    monkeypatch.setattr(batch, "plan", lambda *words: (steps := plan(*words), states.extend(s.state for s in steps))[0])
    assert again(ran, capsys, monkeypatch).code == 3
    assert states == ["done"] * 3
    before = (ran / "small.png").read_bytes()
    Image.new("RGB", (96, 96), "blue").save(ran / "small.png")
    states.clear()
    monkeypatch.setattr(batch, "run", lambda *words: [])
    again(ran, capsys, monkeypatch)
    assert sorted(states) == ["done", "done", "run"]
    # And what was recorded of the picture before is no answer about this one.
    run = again(ran, capsys, monkeypatch, "--from-recordings", "--json", "out.json")
    told = {row["id"]: row for row in json.loads((ran / "out.json").read_text())["rows"]}
    assert told["row-2"]["says"] == "error" and "row-3" in told and told["row-3"]["says"] != "error"
    assert "row-2: its recording is of another picture than small.png is now; run it without" in run.out
    (ran / "small.png").write_bytes(before)


def test_goals_decide_the_code(ran: Path, capsys, monkeypatch) -> None:
    (ran / "pairs.csv").write_text("\n".join([HEAD.strip(), *ROWS, ""]))
    run = again(ran, capsys, monkeypatch, "--from-recordings")
    assert run.code == 0 and run.last.startswith("audit: met (0): right ")
    share = json.loads((ran / "site/datasets/pairs/dataset.json").read_text())["accuracy"]["share"]
    assert again(ran, capsys, monkeypatch, "--from-recordings", "--accuracy", f"{share}").code == 0
    run = again(ran, capsys, monkeypatch, "--from-recordings", "--accuracy", "100%", "--pairs", "1/1")
    assert run.code == 1 and run.last.startswith("audit: not met (1): ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["chair"], "Leave CASE away."),
        (["--update"], "Leave --update away."),
        (["--only", "x", "--fail-on", "unstable"], "Leave --only and --fail-on away."),
        (["--recordings", "x", "--from-recordings"], "Leave --recordings away."),
        (["--no-history"], "Leave --no-history away."),
        (["--junit", "j.xml"], "Leave --junit away."),
        (["--accuracy", "110%"], "is no share"),
        (["--model", ""], "needs a model"),
    ],
)
def test_usage_of_data_sets(project: Project, words: list[str], told: str) -> None:
    Path("pairs.csv").write_text(HEAD)
    run = project.audit("--dataset", "pairs.csv", *words)
    assert run.code == 2 and run.err.startswith("error: ") and told in run.err


def test_a_mistyped_site_of_a_data_set_is_not_made(project: Project) -> None:
    Path("pairs.csv").write_text(HEAD + "a,scene:people/1,?,x,y,,\n")
    run = project.audit("--dataset", "pairs.csv", "--from-recordings", "--out", "siet")
    assert run.code == 2 and "siet/datasets/pairs/recordings: is no folder of recordings." in run.err
    assert not Path("siet").exists()


def test_a_data_set_alone_makes_a_site(ran: Path, capsys, monkeypatch, tmp_path: Path) -> None:
    """With no case beside it; the command that the audit names is the one that makes its page."""
    run = again(ran, capsys, monkeypatch, "--from-recordings")
    (said,) = [line for line in run.out.splitlines() if line.startswith("page ")]
    page, command = re.fullmatch(r"page +(\S+), once `vsp-report (.*)` has made it", said).groups()
    assert not (ran / "site" / "recordings").exists()
    assert cli.main(command.split()) == 0 and "0 cases" in capsys.readouterr().out
    html = Path(page).read_text()
    assert html.count("<tr id=") == 3 and "datasets/pairs/index.html" in Path("site/audit.html").read_text()
    assert 'href="audit.html"' in Path("site/index.html").read_text()
    # A folder that is named and is not there is still a mistake, and so is a site with nothing in it.
    for words in (["--recordings", "gone"], ["--out", str(tmp_path / "empty")]):
        assert cli.main(["build", *words]) == 2
        assert "is no folder of recordings" in capsys.readouterr().err
    assert not (tmp_path / "empty").exists()


def test_github_is_told_of_a_data_set(ran: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (ran / "summary.md").unlink(missing_ok=True)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    text = (ran / "pairs.csv").read_text()
    (ran / "pairs.csv").write_text(
        "\n".join([HEAD.strip(), *ROWS, f"x,scene:people/77,{SITTING},,", "y,gone.png,?,a,b,,"])
    )
    run = again(ran, capsys, monkeypatch, "--from-recordings", "--accuracy", "100%")
    commands = [line for line in run.out.splitlines() if line.startswith("::")]
    assert [re.match(r"::error file=pairs.csv,line=(\d+),title=([a-z0-9-]+)::", one).groups() for one in commands] == [
        ("5", "row-4"), ("6", "pairs")]  # fmt: skip
    told = (ran / "summary.md").read_text()
    assert told.startswith("### audit") and "| right |" in told and "row&#45;4" in told and "gone.png" in told
    (ran / "pairs.csv").write_text("\n".join([HEAD.strip(), *ROWS, ""]))
    run = again(ran, capsys, monkeypatch, "--from-recordings", "--pairs", "100%", "--accuracy", "100%")
    assert run.code == 1 and "::error file=pairs.csv,line=1,title=pairs::audit: not met (1): right" in run.out
    assert "::" not in again(ran, capsys, monkeypatch, "--from-recordings", "--no-github").out
    (ran / "pairs.csv").write_text(text)


def test_a_data_set_without_rows_has_none_to_audit(project: Project) -> None:
    Path("pairs.csv").write_text(HEAD)
    run = project.audit("--dataset", "pairs.csv", "--from-recordings")
    assert (run.code, run.last) == (5, "audit: no cases selected (5)")
