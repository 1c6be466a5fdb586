"""Many cases: resumed, at once, interrupted, killed. Afterwards every recording is whole or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vsp_report.cli import main
from vsp_report.recording import load_recording, recordings_in, save_recording, sha_of

WHICH = "import os\nname = os.path.basename(case_path).removesuffix('.yaml')"


def whole(site) -> dict[str, str]:
    """The status of every recording that is to be seen; none of them is half."""
    return {folder.name: load_recording(folder).status for folder in recordings_in(site.recordings)}


def leftovers(site) -> list[str]:
    return [entry.name for entry in site.recordings.iterdir() if entry.name[0] == "."]


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "vsp_report", "run", *map(str, words)]


def start(site, *words: str | Path, **options) -> subprocess.Popen:
    return subprocess.Popen(command(*words), cwd=site.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **options)  # fmt: skip


# --- resumed -----------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_left_and_what_failed_is_run_again(site, ran) -> None:
    site.cases("fine", "fails")
    notebook = site.notebook(WHICH, "if name == 'fails' and not os.path.exists('mended'):\n    1 / 0")
    assert {id: o.status for id, o in ran(notebook=notebook).items()} == {"fine": "ok", "fails": "error"}
    assert load_recording(site.recordings / "fails").stop.message == "ZeroDivisionError: division by zero"
    (site.folder / "mended").touch()
    assert {id: o.status for id, o in ran(notebook=notebook).items()} == {"fails": "ok"}
    assert ran(notebook=notebook) == {}
    assert ran(notebook=notebook, only_failed=True) == {}
    assert set(ran(notebook=notebook, force=True)) == {"fine", "fails"}


def test_a_new_title_runs_nothing_and_is_shown(site, ran) -> None:
    file = site.case("one")
    notebook = site.notebook()
    ran(notebook=notebook)
    before = load_recording(site.recordings / "one")
    file.write_text(file.read_text().replace("title: one", "title: Another"))
    assert ran(notebook=notebook)["one"].status == "ok"
    after = load_recording(site.recordings / "one")
    assert after.case["title"] == "Another" and after.clean == before.clean
    assert after.provenance == replace(before.provenance, case_sha=sha_of(after.case))
    file.write_text(file.read_text().replace("Where is", "Where stands"))
    ran(notebook=notebook)
    assert load_recording(site.recordings / "one").provenance.run_key != before.provenance.run_key


def test_what_cannot_be_run_here_says_so_and_does_not_fail(site, ran) -> None:
    file = site.case("elsewhere")
    file.write_text(file.read_text().replace("model: sketchworld", "model: nobody/nothing\nneeds: [weights]"))
    assert ran()["elsewhere"].status == "not-run"
    stop = load_recording(site.recordings / "elsewhere").stop
    assert (stop.step, stop.message) == ("needs", "cases/elsewhere.yaml: needs the model's weights.")
    assert ran() == {}


def test_what_another_device_recorded_outlives_a_failure_here(site, ran) -> None:
    site.cases("one")
    ran()
    there = site.recordings / "one"
    made = load_recording(there)
    save_recording(there, replace(made, provenance=replace(made.provenance, device_class="cuda sm_90", run_key="gpu")))
    found = ran("raise MemoryError('too large')")["one"]
    assert found.status == "error" and found.message.endswith("too large. The recording made on cuda sm_90 stays.")
    assert load_recording(there).status == "ok"


def test_a_run_from_the_root_leaves_slashes_alone(site, ran, monkeypatch) -> None:
    file, notebook = site.case("one"), site.notebook("print('https://example.org', 7 // 2)")
    monkeypatch.chdir("/")
    assert main(["run", str(file), "--notebook", str(notebook), "--out", str(site.folder / "site")]) == 0
    executed = (site.recordings / "one" / "notebook.ipynb").read_text()
    assert "https://example.org" in executed and "7 // 2" in executed


def test_nothing_to_do_is_said_soon_and_without_torch(site, ran) -> None:
    site.cases("one", "two")
    notebook = site.notebook()
    ran(notebook=notebook)
    code = (
        "import sys; from vsp_report.cli import main\n"
        f"code = main(['run', '--notebook', {str(notebook)!r}])\n"
        "print(code, *[m for m in ('torch', 'papermill', 'transformers', 'zmq') if m in sys.modules])"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], cwd=site.folder, capture_output=True, text=True, check=True)
    after = os.times()
    # Of the processor, so that a busy machine does not count: on an idle one that is nearly all there is.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2
    assert done.stdout.splitlines() == ["nothing to run: 2 cases recorded in site/recordings", "0"]


def test_cases_with_one_model_follow_each_other(site) -> None:
    from vsp_report.case import load_cases
    from vsp_report.run import batch

    for id in "abcd":
        file = site.case(id)
        if id in "ac":
            file.write_text(file.read_text().replace("model: sketchworld", "model: other/model"))
    steps = batch.plan(load_cases("cases"), batch.Wanted(site.recordings, notebook=site.notebook()))
    assert [step.case.id for step in steps] == ["a", "c", "b", "d"]


# --- at once -----------------------------------------------------------------------------------------------------


def test_two_jobs_have_two_kernels(site, ran) -> None:
    site.cases(*"abcd")
    found = ran("import time; time.sleep(1)", jobs=2)
    assert set(found) == set("abcd") and {o.status for o in found.values()} == {"ok"}
    pids = [load_recording(site.recordings / id).clean.text for id in "abcd"]
    assert len(set(pids)) == 2
    assert leftovers(site) == []


def test_two_runs_into_one_site(site) -> None:
    site.cases(*"abcd")
    notebook = site.notebook("import time; time.sleep(0.2)")
    both = [start(site, "--notebook", notebook) for _ in range(2)]
    assert [run.wait(120) for run in both] == [0, 0], [run.stderr.read() for run in both]
    assert whole(site) == dict.fromkeys("abcd", "ok")
    assert leftovers(site) == []
    for run in both:
        run.communicate()


def test_a_cluster_worker_that_is_killed_costs_no_case(site, ran) -> None:
    import distributed

    site.cases(*"abcdef")
    notebook = site.notebook("import time; time.sleep(0.5)")
    quiet = {"silence_logs": 50, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **quiet) as cluster:
        run = start(site, "--notebook", notebook, "--cluster", cluster.scheduler_address)
        deadline = time.monotonic() + 60
        while not recordings_in(site.recordings) and time.monotonic() < deadline:
            time.sleep(0.1)
        nanny = next(iter(cluster.workers.values()))
        os.kill(nanny.pid, signal.SIGKILL)
        said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert whole(site) == dict.fromkeys("abcdef", "ok")
    assert leftovers(site) == []


def test_what_stops_a_run_on_a_cluster_is_said_in_a_line(site) -> None:
    import distributed

    site.cases(*"ab")
    quiet = {"silence_logs": 50, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, **quiet) as cluster:
        address = cluster.scheduler_address
        refused = subprocess.run(command("--notebook", "/etc/passwd", "--cluster", address), cwd=site.folder,
                                 capture_output=True, text=True)  # fmt: skip
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        notebook = site.notebook(WHICH, "import time\nif name != 'a':\n    time.sleep(100)")
        run = start(site, "--notebook", notebook, "--cluster", address)
        deadline = time.monotonic() + 60
        while "a" not in whole(site) and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and said.strip() == "error: interrupted", said
    assert whole(site) == {"a": "ok"}


def test_a_cluster_that_is_not_there(site, capsys) -> None:
    site.case("one")
    assert main(["run", "--cluster", "nonsense://1", "--notebook", str(site.notebook())]) == 2
    assert "no scheduler answers at nonsense://1" in capsys.readouterr().err


def test_without_dask_the_error_names_the_command(site, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    site.case("one")
    assert main(["run", "--cluster", "tcp://127.0.0.1:1", "--notebook", str(site.notebook())]) == 3
    assert "pip install 'vsp-report[cluster]'" in capsys.readouterr().err


# --- interrupted and killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--cold",), ("--jobs", "2")], ids=["warm", "cold", "jobs"])
def test_ctrl_c_ends_it_soon_and_the_next_run_finishes(site, words) -> None:
    site.cases(*"abc")
    notebook = site.notebook(WHICH, "import time\nif name != 'a' and not os.path.exists('calm'):\n    time.sleep(100)")
    run = start(site, "--notebook", notebook, *words)
    deadline = time.monotonic() + 60
    while "a" not in whole(site) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and time.monotonic() - begun < 25, said  # not the 100 seconds of the cell
    assert said.strip() == "error: interrupted"
    assert whole(site) == {"a": "ok"} and leftovers(site) == []
    (site.folder / "calm").touch()
    assert subprocess.run(command("--notebook", notebook), cwd=site.folder, capture_output=True).returncode == 0
    assert whole(site) == dict.fromkeys("abc", "ok")


KILLED = 20
FORKED = """
import os, random, signal, sys, time
from vsp_report.cli import main
import papermill, vsp_report.run.kernel, vsp_report.run.executors, vsp_report.run.task, vsp_report.recording

def child():
    if not (pid := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(["run", "--force", *sys.argv[2:]]))
    return pid

begun = time.monotonic()
os.waitpid(child(), 0)
whole, chance = time.monotonic() - begun, random.Random(0)
for _ in range(int(sys.argv[1])):
    pid = child()
    time.sleep(chance.uniform(0, 1.5 * whole))  # on a machine that others use, the next run may take longer
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print("killed", flush=True)
    sys.stdin.readline()
"""


def test_a_runner_killed_at_any_moment_leaves_whole_recordings(site) -> None:
    site.cases(*"abcd")
    notebook = site.notebook()
    # The modules are loaded once; each run to be killed is a copy of the process that has them.
    words = [sys.executable, "-c", FORKED, str(KILLED), "--notebook", str(notebook)]
    killer = subprocess.Popen(words, cwd=site.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    made = set()
    for _ in range(KILLED):
        assert killer.stdout.readline() == "killed\n"
        # An older recording that was being replaced may be hidden until the next run puts it back.
        found = whole(site)
        assert set(found) <= set("abcd") and set(found.values()) <= {"ok"}
        assert len(found) >= 3
        made |= {load_recording(site.recordings / id).provenance.created for id in found}
        killer.stdin.write("\n")
        killer.stdin.flush()
    killer.communicate(timeout=10)
    assert len(made) > 3  # some were killed after they had recorded something
    assert subprocess.run(command("--notebook", notebook), cwd=site.folder, capture_output=True).returncode == 0
    assert whole(site) == dict.fromkeys("abcd", "ok")
    assert leftovers(site) == []


def test_a_full_disk_leaves_what_was_there(site, ran) -> None:
    site.cases(*"ab")
    small = site.notebook()
    ran(notebook=small)
    before = {id: (site.recordings / id / "recording.json").read_bytes() for id in "ab"}
    # No file may grow beyond this: the executed notebook does, in the runner.
    large = site.notebook("print('x' * 300_000)")
    limited = f"ulimit -f 200; exec {' '.join(command('--force', '--notebook', large))}"
    begun = time.monotonic()
    run = subprocess.run(["bash", "-c", limited], cwd=site.folder, capture_output=True, text=True)
    assert run.returncode == 3, run.stderr
    assert time.monotonic() - begun < 50  # nobody waits for a kernel that is gone
    assert "cannot be written (File too large). Make room, and run again" in run.stderr
    assert {id: (site.recordings / id / "recording.json").read_bytes() for id in "ab"} == before
    assert whole(site) == dict.fromkeys("ab", "ok") and leftovers(site) == []
