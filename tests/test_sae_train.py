"""`vsp-report sae train`: pictures in, a folder that `sae check` reads out; stopped, gone on with, and refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vsp_report import cli
from vsp_report.model.training import Step, Trainer

SMALL = ["--expansion", "4", "--k", "8", "--batch", "256", "--steps", "40", "--lr", "4e-3"]
SCENES = ["--model", "sketchworld", "--images", "sketchworld"]
SLOWLY = """
import sys, time
from vsp_report.cli import main
from vsp_report.model.training import Trainer

at_once = Trainer.step
Trainer.step = lambda trainer, rows: time.sleep(0.25) or at_once(trainer, rows)
sys.exit(main(sys.argv[1:]))
"""
"""The command, and time to interrupt it."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The states of some scenes at two taps, written by the first run that names it."""
    folder = tmp_path_factory.mktemp("states") / "cache"
    words = [*SCENES, "--n", "24", "--tap", "vision.3", "--tap", "vision.0", "--cache", str(folder), *SMALL]
    assert cli.main(["sae", "train", *words, "--steps", "2", "--out", str(folder.parent / "first")]) == 0
    return folder


def train(cache, out, *more: str, taps=("vision.3",)) -> int:
    words = [word for tap in taps for word in ("--tap", tap)]
    return cli.main(
        ["sae", "train", *SCENES, "--n", "24", "--cache", str(cache), *words, *SMALL, "--out", str(out), *more]
    )


def test_what_is_trained_is_read_by_check(cache, tmp_path, capsys) -> None:
    figures = tmp_path / "figures.json"
    assert train(cache, tmp_path / "run", "--json", str(figures), taps=("vision.3", "vision.0")) == 0
    out, err = capsys.readouterr()
    assert "\r" not in err and f"written: {tmp_path / 'run' / 'vision.3'}" in out
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["vision.0", "vision.3"]
    told = json.loads(figures.read_text())
    assert told["vision.3"]["explained_variance"] > 0.8 and told["vision.3"]["mean_l0"] == pytest.approx(8, abs=0.5)
    check = ["sae", "check", str(tmp_path / "run" / "vision.3"), "--model", "sketchworld", "--n", "3"]
    assert cli.main([*check, "--images", "sketchworld"]) == 0
    out, _ = capsys.readouterr()
    assert "fits vision.3" in out and "run/vision.3" in out and "448 latents" in out


def test_the_layout_is_that_of_saelens_with_the_record_inside(cache, tmp_path) -> None:
    words = ["--architecture", "matryoshka", "--prefixes", "32,128", "--k", "6"]
    assert train(cache, tmp_path / "run", *words) == 0
    folder = tmp_path / "run" / "vision.3"
    told, tensors = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    assert told["architecture"] == "jumprelu" and (told["d_in"], told["d_sae"]) == (112, 448)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (112, 448), "W_dec": (448, 112), "b_enc": (448,), "b_dec": (112,), "threshold": (448,),
    }  # fmt: skip
    torch.testing.assert_close(tensors["W_dec"].norm(dim=1), torch.ones(448))
    record = told["metadata"]["vsp_report"]["provenance"]
    assert record["prefixes"] == [32, 128] and record["asked"]["model"].startswith("sketchworld ")
    assert record["asked"]["images"].startswith("24 scenes of sketchworld ")
    assert record["normalisation"]["scale"] > 0 and record["curve"]["step"][-1] == 40
    assert str(tmp_path) not in json.dumps(told)  # no folder of this machine


def test_a_run_through_a_cache_is_the_run_through_the_pictures(cache, tmp_path) -> None:
    more = ["sae", "train", *SCENES, "--n", "24", "--tap", "vision.0", *SMALL, "--steps", "8"]
    assert cli.main([*more, "--out", str(tmp_path / "a" / "run")]) == 0
    assert cli.main([*more, "--out", str(tmp_path / "b" / "run"), "--cache", str(cache)]) == 0
    for name in ("cfg.json", "sae_weights.safetensors"):
        a, b = (tmp_path / one / "run" / "vision.0" / name for one in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_a_tap_that_is_counted_from_the_end_finds_its_cache(cache, tmp_path) -> None:
    """Once and again: which layer it is, the model says."""
    for name, tap in (("a", "vision.-3"), ("b", "vision.-3"), ("c", "vision.3")):
        assert train(cache, tmp_path / name / "run", "--steps", "4", taps=(tap,)) == 0
    a, b, c = ((tmp_path / name / "run" / "vision.3" / "sae_weights.safetensors").read_bytes() for name in "abc")
    assert a == b == c


@pytest.mark.parametrize("command", ["train", "check", "doctor", "atlas"])
def test_a_device_that_is_not_there_is_said_before_anything_is_read(command, tmp_path, capsys, monkeypatch) -> None:
    from vsp_report.model import checkpoints
    from vsp_report.study import photographs, train

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for place, name in ((train, "image_set"), (photographs, "open_source"), (checkpoints, "load_sae")):
        monkeypatch.setattr(place, name, None)
    words = {"train": ["sae", "train", *SCENES, "--tap", "vision.3", "--out", str(tmp_path / "run")],
             "check": ["sae", "check", "sketchworld/vision.3"], "doctor": ["doctor"],
             "atlas": ["atlas", "--out", str(tmp_path / "run")]}[command]  # fmt: skip
    assert cli.main([*words, "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert "--device: is cuda, and torch finds none. Take cpu or auto." in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_a_checkpoint_and_resume_ends_as_an_unbroken_run(cache, tmp_path, capsys) -> None:
    words = ["sae", "train", *SCENES, "--n", "24", "--cache", str(cache), "--tap", "vision.3", *SMALL, "--steps", "120"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *words, "--save-every", "2", "--out", str(tmp_path / "broken" / "run")],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    checkpoint = tmp_path / "broken" / "run" / "checkpoint.safetensors"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume goes on" in err and checkpoint.exists(), err
    assert train(cache, tmp_path / "broken" / "run", "--resume", "--k", "9", "--steps", "120") == 2
    assert "is of another run: k was 8, and is 9 now" in capsys.readouterr().err
    assert cli.main(["sae", "train", *words[2:], "--out", str(tmp_path / "broken" / "run")]) == 2
    assert "holds a run that was stopped" in capsys.readouterr().err
    assert cli.main(["sae", "train", "--resume", "--out", str(tmp_path / "broken" / "run")]) == 0  # it knows the rest
    assert not checkpoint.exists()
    assert cli.main([*words, "--out", str(tmp_path / "whole" / "run")]) == 0
    for name in ("cfg.json", "sae_weights.safetensors"):
        a, b = (tmp_path / one / "run" / "vision.3" / name for one in ("broken", "whole"))
        assert a.read_bytes() == b.read_bytes()


def test_a_second_life_keeps_what_lives_and_goes_on_after_a_stop(cache, tmp_path, capsys, monkeypatch) -> None:
    taps = ("vision.3", "vision.0")
    first = ["--architecture", "standard", "--l1", "0.02"]
    assert train(cache, tmp_path / "first", *first, taps=taps) == 0
    onto = ["--onto", str(tmp_path / "first"), "--steps", "6"]
    assert train(cache, tmp_path / "second", *onto, taps=taps) == 0
    step, asked = Trainer.step, []

    def interrupted(trainer: Trainer, rows: torch.Tensor) -> Step:
        if trainer.steps_done == 3 and not asked:
            asked.append(signal.raise_signal(signal.SIGINT))
        return step(trainer, rows)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert train(cache, tmp_path / "stopped", *onto, taps=taps) == 130
    monkeypatch.undo()
    assert train(cache, tmp_path / "stopped", "--resume", "--onto", "", taps=taps) == 2
    assert "is of another run: onto was" in capsys.readouterr().err
    assert cli.main(["sae", "train", "--resume", "--out", str(tmp_path / "stopped")]) == 0
    for tap in taps:
        places = (tmp_path / run / tap / "sae_weights.safetensors" for run in ("first", "second", "stopped"))
        a, b, c = map(load_file, places)
        kept = (a["W_dec"] == b["W_dec"]).all(1)
        assert 20 < kept.sum() < 448 and all(torch.equal(b[name], c[name]) for name in b)
        told = json.loads((tmp_path / "second" / tap / "cfg.json").read_text())["metadata"]["vsp_report"]["provenance"]
        assert told["onto"] == f"first/{tap}" and told["dead"] == "revive"


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["--onto", "sketchworld/vision.2"], "sketchworld/vision.2 holds none for vision.3. Name a run's folder"),
        (["--onto", "sketchworld/vision.3"], "--onto: has 3584 latents of width 112. Expected 448 of 112."),
        (["--onto", "sketchworld/vision.3", "--architecture", "batchtopk"], "is for topk, and this is batchtopk"),
        (["--onto", "sketchworld/vision.3", "--dead", "leave"], "revives the dead, and --dead is leave"),
        (["--onto", "nowhere/at-all/x"], "nowhere/at-all"),
    ],
)
def test_what_nothing_can_be_trained_onto_is_said(cache, tmp_path, capsys, more: list[str], fault: str) -> None:
    assert train(cache, tmp_path / "run", *more) == 2
    assert fault in capsys.readouterr().err


def test_a_bar_says_loss_variance_l0_and_the_dead(cache, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert train(cache, tmp_path / "run", "--steps", "3") == 0
    last = capsys.readouterr().err.split("\r")[-2]
    assert "3 of 3 steps" in last and "loss 0." in last and "explained  0." in last and "L0" in last and "dead" in last


def test_pictures_that_cannot_be_read_are_named_at_the_end(tmp_path, capsys) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(3):
        Image.effect_noise((60, 40), 90).convert("RGB").save(photos / f"{k}.png")
    (photos / "torn.jpg").write_bytes(b"\xff\xd8 no more")
    words = ["sae", "train", "--model", "sketchworld", "--images", str(photos), "--tap", "vision.1", *SMALL]
    assert cli.main([*words, "--steps", "2", "--out", str(tmp_path / "a"), "--cache", str(tmp_path / "c")]) == 0
    assert "left out: torn.jpg: cannot be read as a picture" in capsys.readouterr().err
    Image.new("RGB", (50, 50)).save(photos / "1.png")
    assert cli.main([*words, "--steps", "2", "--out", str(tmp_path / "b"), "--cache", str(tmp_path / "c")]) == 2
    assert "is of another run: its pictures are" in capsys.readouterr().err
    (photos / "1.png").unlink()
    for name in ("0.png", "2.png"):
        (photos / name).write_bytes(b"not a picture")
    assert cli.main([*words, "--out", str(tmp_path / "d")]) == 2
    assert "none of them gives a state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--model: is not given"),
        (["--model", "sketchworld"], "--tap: is not given"),
        (["--model", "sketchworld", "--tap", "vision.3"], "--images: is not given"),
        ([*SCENES, "--tap", "layer 3"], "--tap: 'layer 3' is no tap"),
        ([*SCENES, "--tap", "vision.3", "--k", "many"], "'many' is not a whole number"),
        ([*SCENES, "--tap", "vision.3", "--lr", "-1"], "--lr: is -1.0. Expected a number above 0"),
        ([*SCENES, "--tap", "vision.3", "--prefixes", "9,3"], "--prefixes: are 9,3. Expected growing numbers"),
        ([*SCENES, "--tap", "vision.3", "--prefixes", "9,x"], "'x' is not a whole number"),
        ([*SCENES, "--tap", "vision.3", "--architecture", "gated"], "invalid choice: 'gated'"),
        ([*SCENES, "--tap", "vision.3", "--architecture", "standard", "--dead", "auxiliary"], "--dead: is 'auxiliary'"),
        ([*SCENES, "--tap", "vision.3", "--resume"], "holds no run that was stopped"),
        ([*SCENES, "--tap", "vision.3", "--json", "no/f.json"], "its folder does not exist"),
        (["--model", "sketchworld", "--tap", "vision.3", "--images", "nowhere"], "nowhere: is no folder"),
        (["--model", "nowhere", "--tap", "vision.3", "--images", "sketchworld", "--n", "2"], "nowhere: is neither"),
    ],
)  # fmt: skip
def test_bad_words_are_one_line(words, said, tmp_path, capsys) -> None:
    assert cli.main(["sae", "train", "--out", str(tmp_path / "run"), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_words_that_do_not_fit_the_model_are_one_line(cache, tmp_path, capsys) -> None:
    assert train(cache, tmp_path / "run", "--k", "5000") == 2
    assert "--k: is 5000. Expected 1 to 448, the number of latents." in capsys.readouterr().err
    (tmp_path / "there" / "vision.3").mkdir(parents=True)
    assert train(cache, tmp_path / "there") == 2
    assert "vision.3: is there already" in capsys.readouterr().err
    assert train(cache, tmp_path / "run", taps=("text.2",)) == 2
    assert "holds states of vision.3, vision.0, not of text.2" in capsys.readouterr().err


def test_two_processes_train_one_autoencoder(cache, tmp_path) -> None:
    """On a CPU, with the words in their environment that every launcher gives its processes."""
    words = ["--n", "24", "--cache", str(cache), "--tap", "vision.3", *SMALL, "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "vsp_report", "sae", "train", *SCENES, *words, "--accelerate", "--device", "cpu"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    team = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=os.environ | team | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"})
        for rank in "01"
    ]  # fmt: skip
    (first, err), (second, _) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err
    assert first.count("written:") == 1 and second == ""
    told = json.loads((tmp_path / "run" / "vision.3" / "cfg.json").read_text())["metadata"]["vsp_report"]["provenance"]
    assert told["rows"] == 40 * 256 and told["figures"]["explained_variance"] > 0.8
