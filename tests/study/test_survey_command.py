"""The command of a survey: what it writes, what it refuses, and what it says first."""

from __future__ import annotations

import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.study.surveys import SAES, asked, command, written
from vsp_report import paths
from vsp_report.atlas import (
    load_atlas,
)
from vsp_report.cli import _parser, main
from vsp_report.cli.atlas import _command, _step
from vsp_report.cli.words import Bar
from vsp_report.errors import CheckpointError, ImageError, InputError
from vsp_report.maths import projection
from vsp_report.study import photographs, survey, survey_plan
from vsp_report.study.survey_atlas import make_atlases


def test_places_and_faults(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no picture"):
        photographs.open_source(str(tmp_path))
    with pytest.raises(InputError, match="is given twice"):
        survey.plan(asked(folder, (SAES[0], SAES[0])), tmp_path)
    with pytest.raises(CheckpointError, match=r"128 wide; vision.3 of sketchworld gives 112"):
        survey.plan(asked(folder, ("sketchworld/text.2",), taps=("vision.3",)), tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_text("no picture")
    with pytest.raises(ImageError, match="none of 1 pictures can be read"):
        survey.plan(asked(tmp_path / "broken", SAES[:1]), tmp_path)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--demo", "--model", "x"], "--model: goes against --demo"),
        (["--model", "sketchworld"], "--sae: is not given"),
        (["--jobs", "2", "--cluster", "tcp://localhost:1"], "--jobs: goes against --cluster"),
        (["--clip", "x"], "--clip: compares words, and there are none"),
        (["--model", "m", "--sae", "s", "--images", "i", "--words", "w"], "--clip: is not given"),
        (["--model", "sketchworld", "--sae", SAES[0], "--images", "nowhere"], "nowhere: is no folder"),
    ],
)
def test_a_command_that_cannot_be(words: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atlas", *words]) == 2
    assert fault in capsys.readouterr().err


def test_the_command(folder: Path, tmp_path: Path, drawn_map: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "sketchworld", "--sae", SAES[0], "--images", str(folder), "--out", str(tmp_path), "--jobs", "1"]
    assert main(["atlas", *words]) == 0
    told = capsys.readouterr().out
    assert "explained variance" in told and "3 pictures could not be read" in told and "b/words.jpg: " in told
    atlas = load_atlas(tmp_path / "atlas" / "sketchworld-vision.3", verify=True)
    assert str(tmp_path) not in (tmp_path / "atlas" / atlas.slug / "atlas.json").read_text()
    assert sorted(p.name for p in (tmp_path / "atlas").iterdir()) == [atlas.sheets.folder, atlas.slug]


def test_the_command_makes_the_atlas_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that changes what an atlas says stands in it, in quotes where it must, and no folder of this machine
    does."""
    said = ["--model", "sketchworld", "--sae", "/somewhere/my sae", "--images", ".", "--tap", "vision.3", "--n", "9",
            "--words", "lists/words.txt", "--dtype", "bfloat16", "--no-control", "--jobs", "2"]  # fmt: skip
    monkeypatch.chdir(folder)
    command = _command(_parser().parse_args(["atlas", *said]))
    again = shlex.split(command)[1:]
    assert str(folder) not in command and folder.name in again and "my sae" in again
    found, made = (vars(_parser().parse_args(words)) for words in (["atlas", *said], again))
    assert (made["dtype"], made["n"], made["clip"]) == ("bfloat16", 9, "sketchworld-clip")
    differ = {name for name in found if found[name] != made[name]}
    assert differ == {"sae", "images", "words", "clip", "jobs"}


def test_an_sae_of_the_same_name_has_another_folder(
    folder: Path, tmp_path: Path, in_shards: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for place, name in (("mine", SAES[0]), ("yours", SAES[1])):
        shutil.copytree(paths.bundled(name), tmp_path / place / "vision.3")
    words = ["atlas", "--model", "sketchworld", "--images", str(folder), "--out", "site", "--jobs", "1"]
    assert main([*words, "--sae", "mine/vision.3", "--sae", "yours/vision.3"]) == 2
    said = capsys.readouterr().err
    assert "mine/vision.3 and yours/vision.3 would have one folder, sketchworld-vision.3" in said
    assert not (tmp_path / "site").exists()
    assert main([*words, "--sae", "mine/vision.3"]) == 0
    first = written(tmp_path / "site" / "atlas" / "sketchworld-vision.3")
    capsys.readouterr()
    assert main([*words, "--sae", "yours/vision.3"]) == 0
    assert "sketchworld-vision.3 is the atlas of mine/vision.3 of sketchworld, and stays" in capsys.readouterr().err
    slugs = sorted(path.parent.name for path in (tmp_path / "site" / "atlas").glob("*/atlas.json"))
    assert len(slugs) == 2 and slugs[0] == "sketchworld-vision.3" and slugs[1].startswith("sketchworld-vision.3-")
    assert written(tmp_path / "site" / "atlas" / "sketchworld-vision.3") == first
    assert load_atlas(tmp_path / "site" / "atlas" / slugs[1], verify=True).provenance.sae == "yours/vision.3"


def test_mistakes_are_said_before_the_pass(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(survey_plan, "_look", None)
    (tmp_path / "mine.csv").write_text("latent,label\n3,cup\n9999,nose\n")
    assert main(command(folder, tmp_path, "--labels", str(tmp_path / "mine.csv"))) == 2
    assert "mine.csv: labels latent 9999, and the SAE has 3584" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("cup\nperson\n")
    words = ("--words", str(tmp_path / "words.txt"))
    assert main(command(folder, tmp_path, *words, "--clip", str(tmp_path))) == 2
    assert f"{tmp_path}: has no config.json" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("cup\nxylophone\n")
    assert main(command(folder, tmp_path, *words)) == 2
    assert "does not know 'xylophone'" in capsys.readouterr().err


def test_labels_that_name_no_picture_are_told(folder: Path) -> None:
    said: list[str] = []
    labels = {"a/00.png": "x", "a/elsewhere.png": "y", "b/99.png": "z"}
    photographs.open_source(str(folder), 1, labels, "labels.csv", said.append)
    assert said == ["labels.csv: 2 of 3 lines name no picture, such as a/elsewhere.png."]


def test_a_map_that_takes_long_says_so_in_a_pipe_too_and_once(
    whole: tuple, tmp_path: Path, drawn_map: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert projection.seconds_for(3) == 0 < projection.seconds_for(900) < projection.seconds_for(9000)
    monkeypatch.setattr(projection, "seconds_for", lambda latents: 60.0 + latents)
    for said in (2, 0):  # the second time the maps are there
        with Bar() as pace:
            make_atlases(*whole, tmp_path, command="here", on_step=partial(_step, pace))
        assert capsys.readouterr().err.count("map of sketchworld/vision.3") == said
