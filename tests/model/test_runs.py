"""Runs: several taps at once are as each alone; a run that is stopped or killed ends as one that is not; a team of
processes takes the steps of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vsp_report.errors import CheckpointError, MissingExtra
from vsp_report.model import learning, training
from vsp_report.model.runs import Stopped, stopping, train_taps, words_of
from vsp_report.model.streams import Stream
from vsp_report.model.teams import Accelerated
from vsp_report.model.training import TRAINED, Recipe, Trainer

D = 12


class Drawn:
    """A source of eight chunks that are drawn, the same each time."""

    chunks = 8

    def __init__(self, taps: tuple[str, ...] = ("vision.1", "text.0")) -> None:
        self.taps = taps

    def load(self, chunk, then=None):
        loaded = {}
        for tap in self.taps:
            g = torch.Generator().manual_seed(chunk + 100 * len(tap))
            loaded[tap] = (torch.randn(50, D, generator=g) ** 3 * 4 + 7).half()
        return loaded


ASKED = {"model": "m 1", "images": "8 chunks", "k": 3}


def recipe(architecture: str = "topk", **more) -> Recipe:
    return Recipe(architecture, expansion=8, k=3, l1=0.5, steps=24, batch=30, seed=4, **more)


def run(of: Recipe, **more):
    stream = Stream(Drawn(more.pop("taps", ("vision.1", "text.0"))), of.batch, of.seed, buffer=120)
    return train_taps(stream, of, **{"asked": ASKED, **more})


def weights(trained) -> dict[str, torch.Tensor]:
    return {f"{tap} {key}": value for tap, one in trained.items() for key, value in one.sae.state_dict().items()}


def same(one, other) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stop_after(calls: int):
    left = iter(range(calls))

    def check():
        if next(left, None) is None:
            raise Stopped

    return check


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "DEAD_AFTER", 90)
    of, file = recipe(architecture), tmp_path / "run"
    whole = run(of)
    assert any(one.figures["dead_share"] > 0 for one in whole.values()) or architecture != "topk"
    with pytest.raises(Stopped) as stopped:
        run(of, checkpoint=file, check=stop_after(7))
    assert stopped.value.step == 7
    with pytest.raises(Stopped):
        run(of, checkpoint=file, resume=True, check=stop_after(9))
    again = run(of, checkpoint=file, resume=True)
    assert same(whole, again)
    assert [one.sae.provenance for one in whole.values()] == [one.sae.provenance for one in again.values()]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import vsp_report.study.train
print("vsp_report.model.teams" in sys.modules, flush=True)
from test_runs import recipe, run
def kill(told):
    if next(iter(told.values())).step == 13:
        os.kill(os.getpid(), signal.SIGKILL)
run(recipe(), checkpoint=Path(sys.argv[2]), every=5, on_step=kill)
"""


def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path):
    file = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(file)]
    done = subprocess.run(
        command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert done.stdout == b"False\n"  # a process alone asks for no team, and so for no accelerate
    seen = []
    again = run(recipe(), checkpoint=file, resume=True, on_step=lambda told: seen.append(told["text.0"].step))
    assert seen[0] == 10 and seen[-1] == 23
    assert same(run(recipe()), again)


def test_several_taps_at_once_are_as_each_alone():
    both = run(recipe())
    for tap in both:
        assert same(run(recipe(), taps=(tap,)), {tap: both[tap]})


def test_a_record_says_what_it_was_made_of_and_how_it_went():
    (one,) = run(recipe("standard"), taps=("vision.1",)).values()
    told = json.loads(json.dumps(one.sae.provenance))
    assert told["asked"] == ASKED and told["l1"] == 0.5 and "k" not in told and one.sae.tap == "vision.1"
    assert told["rows"] == 24 * 30 and told["epochs"] == 2 and told["normalisation"]["scale"] > 0
    assert told["curve"]["step"] == list(range(1, 25)) and len(told["curve"]["dead_share"]) == 24
    assert told["figures"]["explained_variance"] == pytest.approx(
        sum(told["curve"]["explained_variance"][-5:]) / 5, 1e-4
    )
    assert told["versions"]["torch"] == torch.__version__


def test_the_normalisation_is_inside():
    """Rows far from zero and of any length are read raw."""
    (one,) = run(recipe(), taps=("vision.1",)).values()
    rows = torch.cat([Drawn(("vision.1",)).load(k)["vision.1"] for k in range(8)]).float()
    left = (one.sae(rows) - rows).square().sum() / (rows - rows.mean(0)).square().sum()
    assert left < 0.6 and abs(float(left) - (1 - one.figures["explained_variance"])) < 0.1


def test_what_does_not_belong_to_a_run_is_refused(tmp_path):
    file = tmp_path / "run"
    with pytest.raises(CheckpointError, match="there is no run"):
        run(recipe(), checkpoint=file, resume=True)
    with pytest.raises(Stopped):
        run(recipe(), checkpoint=file, check=stop_after(2), words={"model": "m"})
    assert words_of(file) == {"model": "m"} and [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(CheckpointError, match="of another run: k was 3, and is 5 now"):
        run(recipe(), checkpoint=file, resume=True, asked=ASKED | {"k": 5})
    with pytest.raises(CheckpointError, match="of another run: prompt was not given"):
        run(recipe(), checkpoint=file, resume=True, asked=ASKED | {"prompt": "p"})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        run(recipe(), checkpoint=file, resume=True)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="is damaged, or no run's checkpoint"):
        words_of(file)


def test_a_stop_is_kept_until_it_can_be_followed_and_a_second_is_not():
    before = signal.getsignal(signal.SIGINT)
    with stopping() as check:
        check()
        os.kill(os.getpid(), signal.SIGINT)
        done = sum(range(1000))  # goes on
        with pytest.raises(Stopped):
            check()
        with pytest.raises(KeyboardInterrupt) as second:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 1)
        assert not isinstance(second.value, Stopped)
    assert done and signal.getsignal(signal.SIGINT) is before


# --- teams -------------------------------------------------------------------------------------------------------


class Threads:
    """A team of threads, which meet for every exchange."""

    def __init__(self, rank: int, shared: list, barrier: threading.Barrier) -> None:
        self.rank, self.size, self.shared, self.barrier = rank, len(shared), shared, barrier

    def gathered(self, value):
        self.shared[self.rank] = value
        self.barrier.wait()
        found = list(self.shared)
        self.barrier.wait()
        return found

    def mean(self, tensor):
        return torch.stack(self.gathered(tensor)).mean(0)

    def any(self, flags):
        return torch.stack(self.gathered(flags)).any(0)


def as_a_team(work, size: int = 2) -> list:
    shared, barrier, results = [None] * size, threading.Barrier(size), [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, shared, barrier))
        except BaseException as error:
            results[rank] = error
            if not isinstance(error, Stopped):  # they stop together; anything else would leave the others waiting
                barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_a_team_takes_the_steps_of_one_process(architecture, monkeypatch):
    monkeypatch.setattr(training, "fast_dtype", lambda device: torch.float32)
    of = recipe(architecture, dead="leave")
    g = torch.Generator().manual_seed(0)
    sample, rows = torch.randn(100, D, generator=g), torch.randn(10, 30, D, generator=g)

    def work(team):
        trainer = Trainer(of, sample * (1 + team.rank), team=team)  # each saw other rows first
        for part in rows:
            trainer.step(part[team.rank :: 2])
        return trainer

    alone, team = Trainer(of, sample), as_a_team(work)
    for part in rows:
        alone.step(part)
    for ours, first, second in zip(alone.weights, team[0].weights, team[1].weights, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(ours, first, rtol=1e-3, atol=1e-4)
    assert torch.equal(team[0].learner.silent_L, alone.learner.silent_L)


def test_a_team_stops_together_and_goes_on(tmp_path):
    of, file = recipe("batchtopk", dead="resample"), tmp_path / "run"

    def work(team, **more):
        stream = Stream(Drawn(), of.batch // 2, of.seed, buffer=60, share=(team.rank, 2))
        return train_taps(stream, of, asked=ASKED, team=team, checkpoint=file, **more)

    whole = as_a_team(lambda team: work(team))
    assert same(*whole)
    stopped = as_a_team(lambda team: work(team, check=stop_after(6 if team.rank else 100)))
    assert [error.step for error in stopped] == [6, 6]
    assert same(as_a_team(lambda team: work(team, resume=True))[1], whole[0])
    with pytest.raises(Stopped):
        run(of, checkpoint=file, check=stop_after(1))
    (error, _) = as_a_team(lambda team: work(team, resume=True))
    assert "was written by 1 processes, and this run has 2" in str(error)


def test_without_accelerate_its_absence_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"--accelerate: needs .* pip install 'vsp-report\[train\]'"):
        Accelerated(cpu=True)
