"""Where a survey runs: processes, a cluster and threads make the same atlas, and what fails there is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.study.surveys import PICTURES, SAES, asked, command, contents, written
from vsp_report import paths
from vsp_report.cli import main
from vsp_report.errors import InputError, VspError
from vsp_report.maths.tallies import Tally
from vsp_report.model.checkpoints import load_sae
from vsp_report.run import executors
from vsp_report.study import photographs, survey, survey_atlas, survey_plan
from vsp_report.study.survey_atlas import make_atlases
from vsp_report.study.survey_files import load_tallies, save_tallies


def test_two_processes_make_the_same_atlas(alone: Path, folder: Path, tmp_path: Path, in_shards: None) -> None:
    assert main(command(folder, tmp_path, "--jobs", "2")) == 0
    assert written(tmp_path) == written(alone)


def test_a_cluster_makes_the_same_atlas_of_a_folder_with_a_relative_name(
    alone: Path, folder: Path, tmp_path: Path, in_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers work elsewhere, where no such folder is."""
    import distributed

    quiet = {"silence_logs": 50, "dashboard_address": None}
    monkeypatch.chdir(tmp_path)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **quiet) as cluster:
        monkeypatch.chdir(folder)
        assert main(command(".", tmp_path / "out", "--cluster", cluster.scheduler_address)) == 0
    assert written(tmp_path / "out") == written(alone)


def test_what_has_a_relative_name_is_found_from_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, SAE and pictures; and an atlas says of them what was typed, which names no machine."""
    shutil.copytree(paths.bundled("sketchworld"), tmp_path / "mine" / "model")
    shutil.copytree(paths.bundled(SAES[0]), tmp_path / "mine" / "vision.3")
    shutil.copytree(folder / "a", tmp_path / "pictures")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    source = photographs.open_source("pictures", 5)
    plan = survey.plan(survey.Asked("mine/model", ("mine/vision.3",), source, device="cpu"), "site/atlas")
    monkeypatch.chdir("elsewhere")
    survey_plan.kept_vlm.cache_clear()
    assert survey.load_tallies(plan, survey.survey(plan).name)[0][0].n_pictures == 5
    assert (plan.facts["model"], plan.facts["saes"][0]["name"]) == ("mine/model", "mine/vision.3")


def test_threads_of_one_worker_take_turns(whole: tuple, folder: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """As on a cluster whose workers have several: there is one model, and memory for one batch."""
    at_work, most = [], []

    def watched(surveyor: survey.Surveyor, shard: int, *more: object) -> int:
        at_work.append(shard)
        most.append(len(at_work))
        found = once(surveyor, shard, *more)
        at_work.remove(shard)
        return found

    once = survey._survey_shard
    monkeypatch.setattr(survey, "_survey_shard", watched)
    plan = survey.plan(asked(folder), tmp_path)
    with ThreadPoolExecutor(4) as executor:
        assert contents(survey.survey(plan, executor)) == contents(whole[1])
    assert max(most) == 1 and len(most) == plan.shards


def killed() -> None:
    os._exit(9)


def test_a_worker_that_dies_is_said_in_a_line(whole: tuple, folder: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    plan = survey.plan(asked(folder), tmp_path)
    with executors.processes(1) as executor, pytest.raises(VspError, match=r"a worker died.*--memory.*goes on"):
        executor.submit(killed)
        survey.survey(plan, executor)

    class KilledWorker(Exception):
        """As a Dask cluster raises it."""

    class Cluster(ThreadPoolExecutor):
        def submit(self, *asked: object) -> Future:
            task: Future = Future()
            task.set_exception(KilledWorker("survey_shard", "tcp://10.0.0.1:1", 3))
            return task

    with Cluster() as executor, pytest.raises(VspError, match="a worker died"):
        survey.survey(plan, executor)
    # Less memory is the same survey: it goes on.
    assert survey.plan(asked(folder, memory_bytes=1 << 20), tmp_path).folder == plan.folder


def test_workers_end_with_what_started_them() -> None:
    """Also where that was killed and could tell them nothing."""
    program = """
import os, time
from vsp_report.run import executors
with executors.processes(1) as executor:
    print(executor.submit(os.getpid).result(), flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be counted as dead is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_parts_of_different_machines_are_not_mixed(folder: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    plan = survey.plan(asked(folder), tmp_path)
    survey.survey_shard(str(plan.folder), 0)
    surveyor = survey._surveyor(str(plan.folder), plan.facts["key"])
    monkeypatch.setattr(surveyor, "made", surveyor.made | {"device_class": "cuda sm_90"})
    survey.survey_shard(str(plan.folder), 1)
    with pytest.raises(VspError, match="do not fit together: cpu in float32 and cuda sm_90 in float32"):
        survey.merge_files(str(plan.folder), [f"tally-00000{k}-00000{k}.npz" for k in (0, 1)])
    # What an atlas says of it is the workers' device, not this process'.
    monkeypatch.setattr(survey_atlas, "made_on", lambda tallies: surveyor.made)
    one = SimpleNamespace(n_pictures=1, n_patches=1)
    provenance = survey_atlas._provenance(plan, 0, one, load_sae(paths.bundled(SAES[0])), [], "", surveyor.made)
    assert provenance.device_class == "cuda sm_90"


def test_a_folder_that_is_gone_is_no_broken_picture(folder: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    here = tmp_path / "pictures"
    shutil.copytree(folder, here)
    plan = survey.plan(asked(here), tmp_path)
    here.rename(tmp_path / "moved")
    with pytest.raises(VspError, match="is not there"):
        survey.survey(plan)
    # The folder is there again, and empty, as a share that is not mounted is.
    here.mkdir()
    with pytest.raises(VspError, match=r"could be read before and now cannot.*goes on"):
        survey.survey(plan)
    assert plan.folder.is_dir() and not survey.finished(plan)
    shutil.rmtree(here)
    (tmp_path / "moved").rename(here)
    assert survey.load_tallies(plan, survey.survey(plan).name)[0][0].n_pictures == PICTURES


def test_pictures_that_failed_for_a_while_are_no_atlas(whole: tuple, tmp_path: Path, drawn_map: None) -> None:
    """Workers that cannot read what can be read here; and tallies of nothing at all."""
    plan, tallies = whole
    held = load_tallies(plan, tallies.name)
    copy = replace(plan, folder=tmp_path)
    broken = [[number, plan.source.name(number), "no such file"] for number in range(10)]
    save_tallies(copy, 0, plan.shards - 1, *held[:2], broken, {"device_class": "cpu"})
    with pytest.raises(VspError, match=r"10 of 25 pictures could not be read.*but now .* can.*remove"):
        survey.survey(copy)
    nothing = [Tally(plan.frame(k)) for k in range(len(plan.facts["dictionaries"]))]
    every = [[number, plan.source.name(number), "no such file"] for number in range(len(plan.source))]
    save_tallies(copy, 0, plan.shards - 1, nothing, {}, every, {"device_class": "cpu"})
    with pytest.raises(VspError, match="25 of 25 pictures could not be read"):
        survey.survey(copy)
    with pytest.raises(InputError, match="no picture of it could be read"):
        make_atlases(copy, tmp_path / tallies.name, tmp_path, command="")
    assert not (tmp_path / "atlas").exists()
