"""The command line: what it prints, what it returns, what it loads, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import vsp_report
from vsp_report import cli, paths, sketchworld
from vsp_report.errors import CaseError, ModelError, VspError

HEAVY = ("torch", "transformers", "altair", "numpy")
COMMANDS = [
    [],
    ["sketchworld"],
    *(["sketchworld", name] for name in ("train", "eval", "draw", "rules")),
    ["sae"],
    *(["sae", name] for name in ("check", "convert")),
    *([name] for name in ("audit", "check", "new", "schema")),
]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def no_bars_of_others():
    """A command's own process asks libraries for quiet before they are imported; here they may have been."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch):
    """Put a room of one's own in place of a module of sketchworld: `room("evaluate", evaluate=…)`."""

    def furnish(name: str, **functions):
        monkeypatch.setattr(sketchworld, name, types.SimpleNamespace(**functions), raising=False)

    return furnish


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with a file of each name that is measured."""
    for name in cli.world.NEEDED:
        file = tmp_path / "weights" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "weights"


@pytest.fixture
def evaluated(room):
    """An evaluation that returns these figures, and keeps what it was asked."""

    def furnish(figures: dict) -> dict:
        asked = {}

        def evaluate(weights, **rest):
            asked.update(rest, weights=weights)
            return figures

        room(
            "evaluate",
            evaluate=evaluate,
            table=lambda figures: f"table of {len(figures)}",
        )
        return asked

    return furnish


MET = {"animals": {"value": 0.99, "goal": 0.9, "met": True}}
UNMET = MET | {"cups": {"value": 0.5, "goal": 0.9, "met": False}}
NO_GOAL = MET | {"seconds": {"value": 3.0, "goal": None, "met": None}}


# --- help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom vsp_report.cli import main\n"
        f"try: main({[*words, '--help']!r})\n"
        f"finally: print('loaded:', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: vsp-report")
    assert run.stdout.splitlines()[-1] == "loaded:"


def test_help_is_instant() -> None:
    # Processor time, not the clock: other work on the machine must not fail this test.
    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    best = float("inf")
    for _ in range(3):
        before = seconds()
        assert python("-m", "vsp_report", "--help").returncode == 0
        best = min(best, seconds() - before)
    assert best < 0.3


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert (done.value.code, capsys.readouterr().out) == (0, f"vsp-report {vsp_report.__version__}\n")


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nonsense"], "nonsense"),
        (["sketchworld", "eval", "--scenes", "0"], "'0' is not a whole number from 1 upwards"),
        (["sketchworld", "eval", "--scenes", "many"], "'many'"),
        (["sketchworld", "train", "--seed", "-1"], "--seed"),
        (["sketchworld", "train", "--device", "tpu"], "'tpu'"),
        (["sketchworld", "draw", "--mode", "hidden-cue"], "--variation"),
        (["sketchworld", "draw", "--family", "f", "--mode", "m", "--variation", "v"], "--family, --mode"),
        (["sketchworld", "draw", "--size", "100000"], "'100000' is not a whole number from 32 to 4096"),
        (["sketchworld", "draw", "--size", "31"], "'31' is not a whole number from 32 to 4096"),
        (["sketchworld", "eval", "--weights", "nowhere"], "nowhere: no weights are here"),
        (["sketchworld", "eval", "--we", "nowhere"], "--we"),
        (["sae", "convert", "one"], "DST"),
        (["sae", "check", "x", "--images", "sketchworld"], "--images: is for measuring, which needs a model"),
        (["sae", "check", "x", "--json", "f.json"], "--json: is for measuring"),
        (["sae", "check", "x", "--model", "m"], "--images: is not given"),
        (["sae", "check", "sketchworld/vision.3", "--n", "0"], "'0' is not a whole number"),
        (["sae", "check", "sketchworld/vision.3", "--json", "no/f.json"], "its folder does not exist"),
        (["doctor", "--json", "no/f.json"], "its folder does not exist"),
        (["doctor", "--right", "yes"], "--right, --wrong: only one of them is given"),
        (["doctor", "--model", "nowhere"], "nowhere: is neither a bundled model"),
        (["doctor", "--sae", "nowhere"], "nowhere"),
        (["doctor", "--image", "nowhere.png"], "nowhere.png: there is no such file"),
        (["doctor", "--tap", "vision.77"], "vision.77"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_2(words, said, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (
            CaseError("a.yaml:14", "expected a number", "Write 0."),
            2,
            "a.yaml:14: expected a number. Write 0.",
        ),
        (ModelError("a", "two\nlines"), 2, "a: two lines."),
        (VspError("cuda", "out of memory", "Try --device cpu."), 3, "cuda: out of memory. Try --device cpu."),
        (PermissionError(13, "Permission denied", "out"), 3, "out: Permission denied."),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_with_its_code(raised, code, line, room, capsys) -> None:
    def train(*args, **kwargs):
        raise raised

    room("train", train=train)
    assert cli.main(["sketchworld", "train"]) == code
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_a_crash_of_our_own_is_3_with_its_traceback(room, capsys) -> None:
    room("train", train=lambda *args, **kwargs: 1 / 0)
    assert cli.main(["sketchworld", "train"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1] == "error: ZeroDivisionError: division by zero"


def test_a_reader_who_leaves_is_no_error() -> None:
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m vsp_report sketchworld rules | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


# --- sketchworld --------------------------------------------------------------------------------------------


def test_train_hands_over_what_is_typed(room, tmp_path, capsys) -> None:
    asked = []
    room("train", train=lambda *args, **kwargs: asked.append((args, kwargs)))
    words = ["--out", str(tmp_path / "w"), "--work", "k", "--device", "cpu", "--seed", "7", "--quick"]
    assert cli.main(["sketchworld", "train", *words]) == 0
    told = {"work": Path("k"), "device": "cpu", "seed": 7, "quick": True, "tell": cli.world._tell}
    assert asked == [((tmp_path / "w",), told)]


@pytest.mark.parametrize(("figures", "code"), [(MET, 0), (NO_GOAL, 0), (UNMET, 1)])
def test_eval_returns_1_when_a_goal_is_not_met(figures, code, evaluated, weights, capsys) -> None:
    asked = evaluated(figures)
    assert cli.main(["sketchworld", "eval", "--weights", str(weights), "--scenes", "5", "--device", "cpu"]) == code
    assert asked == {"weights": weights, "scenes": 5, "device": "cpu", "tell": cli.world._tell}
    assert capsys.readouterr().out == f"table of {len(figures)}\n"


def test_eval_writes_its_figures(evaluated, weights, tmp_path, capsys) -> None:
    evaluated(MET)
    file = tmp_path / "figures.json"
    assert cli.main(["sketchworld", "eval", "--weights", str(weights), "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == MET
    assert set(tmp_path.iterdir()) == {file, weights}


@pytest.mark.parametrize("missing", [None, "clip/model.safetensors", "saes/vision.3/sae_weights.safetensors"])
def test_eval_of_a_folder_without_weights_says_what_is_missing(evaluated, weights, tmp_path, capsys, missing) -> None:
    asked = evaluated(MET)
    (tmp_path / "empty").mkdir()
    if missing is not None:
        (weights / missing).unlink()
    assert cli.main(["sketchworld", "eval", "--weights", str(weights if missing else tmp_path / "empty")]) == 2
    out, err = capsys.readouterr()
    assert f"is no folder of weights: it has no {missing or 'sketchworld/config.json'}. Name a folder" in err
    assert (out, asked, err.count("\n")) == ("", {}, 1)


def test_the_bundled_weights_are_whole() -> None:
    assert all((paths.weights_dir() / name).is_file() for name in cli.world.NEEDED)


def test_eval_puts_its_table_into_the_model_card(evaluated, weights, capsys) -> None:
    asked = evaluated(MET)
    card = weights / "README.md"
    words = ["sketchworld", "eval", "--weights", str(weights), "--card"]
    assert cli.main(words) == 2 and asked == {}  # no card: said before anything is measured
    card.write_text("a\n<!-- figures -->\nold\n<!-- /figures -->\nz\n")
    assert cli.main(words) == cli.main(words) == 0
    assert card.read_text() == "a\n<!-- figures -->\ntable of 1\n<!-- /figures -->\nz\n"


def test_eval_refuses_a_place_it_cannot_write_before_it_measures(evaluated, weights, tmp_path, capsys) -> None:
    asked = evaluated(MET)
    file = tmp_path / "nowhere" / "figures.json"
    assert cli.main(["sketchworld", "eval", "--weights", str(weights), "--json", str(file)]) == 2
    assert asked == {} and "its folder does not exist" in capsys.readouterr().err


def test_what_cannot_be_written_whole_is_not_written(evaluated, weights, tmp_path, capsys) -> None:
    file = tmp_path / "figures.json"
    file.write_text("before")
    evaluated({"animals": {"value": object(), "goal": None, "met": None}})
    assert cli.main(["sketchworld", "eval", "--weights", str(weights), "--json", str(file)]) == 3
    assert file.read_text() == "before" and set(tmp_path.iterdir()) == {file, weights}


def test_draw_writes_a_picture_and_its_scene(tmp_path, capsys) -> None:
    words = [
        "--family",
        "objects",
        "--seed",
        "3",
        "--count",
        "2",
        "--size",
        "96",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(["sketchworld", "draw", *words]) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["objects-3.json", "objects-3.png", "objects-4.json", "objects-4.png"]
    assert json.loads((tmp_path / "out/objects-3.json").read_text())["family"] == "objects"
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / f"out/objects-{seed}.png") for seed in (3, 4)
    ]


@pytest.mark.parametrize(
    "words", [["sketchworld", "draw", "--out"], ["run", "--demo", "--out"], ["new", "a-case", "--folder"]], ids=" ".join
)
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_place_of_a_folder_is_a_mistake_with_a_remedy(words, below, tmp_path, capsys) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert cli.main([*words, str(file / below)]) == 2
    said = f"error: {words[-1]}: {file} is a file, and a folder is wanted. Name another place, or move it away.\n"
    assert capsys.readouterr() == ("", said)
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


def test_the_largest_scene_is_as_large_as_a_cases() -> None:
    from vsp_report import case

    size = case.case_schema()["$defs"]["SceneImage"]["properties"]["size"]
    assert (size["minimum"], size["maximum"]) == cli.world.SIDES_PX


def test_draw_tells_what_is_asked_of_a_planted_scene(tmp_path, capsys) -> None:
    words = ["--mode", "hidden-cue", "--variation", "duck-cat", "--size", "48", "--out", str(tmp_path)]
    assert cli.main(["sketchworld", "draw", *words]) == 0
    assert "right: a duck; wrong: a cat" in capsys.readouterr().out


def test_draw_of_an_unknown_family_leaves_nothing(tmp_path, capsys) -> None:
    assert cli.main(["sketchworld", "draw", "--family", "ghosts", "--out", str(tmp_path / "out")]) == 2
    assert "ghosts" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_rules_are_numbered(capsys) -> None:
    from vsp_report.sketchworld.rules import RULES

    assert cli.main(["sketchworld", "rules"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{i}. {rule}" for i, rule in enumerate(RULES, 1)]


# --- sae ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sae(tmp_path) -> Path:
    """A folder with a sparse autoencoder of four latents, made by the room that knows the format."""
    import torch

    from vsp_report.model.checkpoints import save_sae
    from vsp_report.model.sae import Sae

    matrix = torch.eye(4)
    return save_sae(
        Sae("topk", W_enc=matrix, W_dec=matrix, k=2, tap="vision.3", name="small"), tmp_path / "small"
    )


def test_check_says_what_an_autoencoder_is(sae, capsys) -> None:
    assert cli.main(["sae", "check", str(sae)]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["tap"] == "vision.3" and facts["architecture"] == "topk, k = 2"
    assert facts["size"] == "4 wide, 4 latents"


def test_check_measures_a_bundled_one_on_scenes(tmp_path, capsys) -> None:
    file = tmp_path / "fit.json"
    assert cli.main(["sae", "check", "sketchworld/vision.3", "--n", "3", "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert ["this", "untrained"] in lines and "fits vision.3" in out and "3 pictures, 432 rows at vision.3" in out
    assert "\r" not in err  # no bar where nobody watches
    figures = json.loads(file.read_text())
    assert figures["images"] == 3 and figures["findings"] == [] and figures["facts"]["tap"] == "vision.3"
    assert figures["sae"]["explained_variance"] > figures["untrained"]["explained_variance"]


def test_check_of_one_that_does_not_fit_is_1(tmp_path, capsys) -> None:
    from PIL import Image

    for k in range(3):
        Image.new("RGB", (50, 40), (80 * k, 10, 200)).save(tmp_path / f"{k}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    words = ["--model", "sketchworld", "--images", str(tmp_path), "--n", "2", "--tap", "vision.1"]
    assert cli.main(["sae", "check", "sketchworld/vision.3", *words]) == 1
    out, _ = capsys.readouterr()
    assert "2 pictures, 288 rows at vision.1" in out and "vision.1" in out.splitlines()[-1]


def test_check_of_another_width_says_which_taps_have_it(capsys) -> None:
    assert cli.main(["sae", "check", "sketchworld/text.2", "--n", "1", "--tap", "vision.3"]) == 2
    err = capsys.readouterr().err
    assert "does not fit" in err and "Of its width are text.0 to text.3" in err and err.count("\n") == 1


@pytest.mark.parametrize(("name", "said"), [("nowhere", "is no folder"), ("empty", "holds no picture")])
def test_check_needs_pictures(name, said, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    words = ["--model", "sketchworld", "--images", str(tmp_path / name)]
    assert cli.main(["sae", "check", "sketchworld/vision.3", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_bar_is_for_terminals(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with cli.words.Bar(4, "pictures") as bar:
        bar.at(2)
        bar.at()
    err = capsys.readouterr().err
    assert "2 of 4 pictures" in err and "3 of 4 pictures" in err and err.endswith("\r\033[K")


def test_check_refuses_what_is_not_there(tmp_path, capsys) -> None:
    assert cli.main(["sae", "check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_convert_writes_the_same_autoencoder_again_and_overwrites_nothing(sae, tmp_path, capsys) -> None:
    copy = tmp_path / "copy"
    assert cli.main(["sae", "convert", str(sae), str(copy)]) == 0
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert before == {file.name: file.read_bytes() for file in sae.iterdir()}
    assert cli.main(["sae", "convert", str(sae), str(copy)]) == 2
    assert "is there already" in capsys.readouterr().err


# --- doctor -------------------------------------------------------------------------------------------------


def test_doctor_finds_the_bundled_model_well(tmp_path, capsys) -> None:
    file = tmp_path / "doctor.json"
    words = ["--right", "red", "--wrong", "blue", "--json", str(file)]
    assert cli.main(["doctor", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "7 passed"
    found = json.loads(file.read_text())
    assert found["passed"] and found["tap"] == "vision.3" and len(found["checks"]) == 7


def test_doctor_returns_1_when_a_check_fails(tmp_path, capsys) -> None:
    """An untrained SAE on a picture of one's own: the failure is told with its remedy, and the rest still passes."""
    from PIL import Image

    from vsp_report.model.checkpoints import save_sae
    from vsp_report.model.sae import Sae

    folder = save_sae(Sae.untrained(0, 112, 256, k=8).replace(tap="vision.3", name="random"), tmp_path / "random")
    Image.effect_noise((60, 40), 90).save(tmp_path / "noise.png")
    words = ["--sae", str(folder), "--image", str(tmp_path / "noise.png"), "--prompt", "Describe the image."]
    assert cli.main(["doctor", *words]) == 1
    out = capsys.readouterr().out
    assert "failed   SAE fits the tap" in out and "remedy: " in out and out.splitlines()[-1] == "6 passed, 1 failed"


# --- paths --------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An empty place for the package: `<tmp>/lib/vsp_report`."""
    place = tmp_path / "lib" / "vsp_report"
    place.mkdir(parents=True)
    monkeypatch.setattr(paths, "_PACKAGE", place)
    return place


def test_bundled_models_are_the_folders_on_disk(package) -> None:
    assert paths.bundled_names() == [] and paths.bundled("sketchworld") is None
    for folder in ("sketchworld", "clip", "saes/vision.3", "saes/text.2", "saes/.vision.3.7.partial"):
        (paths.weights_dir() / folder).mkdir(parents=True)
    (paths.weights_dir() / "saes/README.md").touch()
    assert paths.bundled_names() == [
        "sketchworld",
        "sketchworld-clip",
        "sketchworld/text.2",
        "sketchworld/vision.3",
    ]
    assert paths.bundled("sketchworld-clip") == paths.weights_dir() / "clip"
    assert paths.bundled("sketchworld/vision.3") == paths.weights_dir() / "saes" / "vision.3"


@pytest.mark.parametrize(
    "name", ["", "vision.3", "sketchworld/", "sketchworld/..", "sketchworld/../clip", "clip"]
)
def test_what_is_no_bundled_name_is_none(package, name) -> None:
    for folder in ("sketchworld", "clip", "saes/vision.3"):
        (paths.weights_dir() / folder).mkdir(parents=True)
    assert paths.bundled(name) is None


@pytest.mark.parametrize(("find", "name"), [(paths.templates_dir, "templates"), (paths.cases_dir, "cases")])
def test_bundled_folders_are_found_installed_and_in_a_checkout(package, find, name) -> None:
    with pytest.raises(VspError, match="is missing"):
        find()
    (package.parent / name).mkdir()
    assert find() == package.parent / name
    (package / "_bundled" / name).mkdir(parents=True)
    assert find() == package / "_bundled" / name


def test_the_module_and_the_script_are_one_command() -> None:
    script = Path(sys.executable).with_name("vsp-report")
    assert os.access(script, os.X_OK)
    run = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert run.stdout == python("-m", "vsp_report", "--help").stdout


def test_a_demo_ends_in_pages(tmp_path, monkeypatch, capsys):
    """In a folder of nothing; the one case that is asked for needs a GPU, so nothing has to be loaded."""
    (tmp_path / "cases").mkdir()
    shutil.copy(paths.cases_dir() / "paper-duck-rabbit.yaml", tmp_path / "cases")
    monkeypatch.setattr(paths, "cases_dir", lambda: tmp_path / "cases")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "--demo"]) == 0
    assert "index.html: 1 case" in capsys.readouterr().out
    assert (tmp_path / "site" / "cases" / "paper-duck-rabbit" / "index.html").is_file()


def test_a_case_that_fails_is_3_and_one_that_needs_what_is_not_here_is_0(tmp_path, monkeypatch, capsys) -> None:
    """A failure in a cell is a run that could not be; nothing was measured that could be met or not."""
    tags = {"tags": ["parameters"]}
    cell = {"cell_type": "code", "id": "a", "metadata": tags, "outputs": [], "execution_count": None}
    cells = [cell | {"source": "case_path = ''\nout_dir = ''"}, cell | {"id": "b", "metadata": {}, "source": "1 / 0"}]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "fails.ipynb").write_text(json.dumps(notebook))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "one"]) == cli.main(["new", "two"]) == 0
    needs_more = Path("cases/two.yaml").read_text().replace("model: sketchworld ", "model: nowhere\nneeds: [weights]")
    Path("cases/two.yaml").write_text(needs_more)
    capsys.readouterr()
    assert cli.main(["run", "--notebook", "fails.ipynb"]) == 3
    out, err = capsys.readouterr()
    assert out == "2 cases: 1 failed, 1 not run here\n" and "ZeroDivisionError: division by zero" in err
    assert cli.main(["run", "two", "--force"]) == 0
