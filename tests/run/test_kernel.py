"""The warm kernel: warm from case to case, empty for each, and gone after anything out of the ordinary."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from tests.run.conftest import Silent
from vsp_report.recording import load_recording


def pid(site, id: str) -> str:
    """Which kernel recorded it: the notebook of these tests answers with its process."""
    return load_recording(site.recordings / id).clean.text


WHICH = "import os\nname = os.path.basename(case_path).removesuffix('.yaml')"


def test_one_kernel_serves_all_cases_and_is_empty_for_each(site, ran) -> None:
    site.cases("one", "two", "three")
    found = ran(
        WHICH,
        "assert 'left' not in globals(), 'a variable'\nleft = 1",
        "import sys\nassert 'LEFT' not in os.environ and '/nowhere' not in sys.path, 'environment'",
        f"assert os.getcwd() == {str(site.folder)!r}, 'folder'",
        "import random, numpy\ndrawn = random.random(), numpy.random.random()\nprint(drawn)",
        "os.environ['LEFT'] = '1'; sys.path.insert(0, '/nowhere'); os.chdir('/')",
    )
    assert {id: (o.status, o.message) for id, o in found.items()} == dict.fromkeys(("one", "two", "three"), ("ok", ""))
    assert len({pid(site, id) for id in found}) == 1
    # What draws without a seed draws the same in each case that finds numpy loaded.
    assert printed(site, "two") == printed(site, "three") != ""


def printed(site, id: str) -> str:
    return "".join(o["text"][0] for cell in outputs(site, id) for o in cell if o["output_type"] == "stream")


def outputs(site, id: str) -> list:
    notebook = json.loads((site.recordings / id / "notebook.ipynb").read_text())
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_what_fails_is_recorded_and_the_rest_is_not_touched(site, ran) -> None:
    site.cases("a-fine", "b-raises", "c-leaves", "d-dies", "e-hangs", "f-saves-nothing", "g-fine")
    found = ran(
        WHICH,
        "if name == 'b-raises':\n    from vsp_report.errors import InputError\n"
        "    raise InputError(case_path, 'is odd', 'Mend it.')",
        "if name == 'c-leaves':\n    import sys\n    sys.exit(0)",
        "if name == 'd-dies':\n    os._exit(0)",
        "if name == 'e-hangs':\n    import signal, time\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    time.sleep(60)",
        "if name == 'f-saves-nothing':\n    out_dir = out_dir + '-elsewhere'",
        seconds=4.0,
    )
    assert {id: o.status for id, o in found.items()} == dict.fromkeys(found, "error") | {"a-fine": "ok", "g-fine": "ok"}
    stops = {id: load_recording(site.recordings / id).stop for id in found}
    assert stops["b-raises"].message == "cases/b-raises.yaml: is odd. Mend it."
    assert "InputError" in stops["b-raises"].traceback
    assert stops["b-raises"].step == "First step"
    assert "sys.exit" in stops["c-leaves"].message or "without saving" in stops["c-leaves"].message
    assert "its kernel died" in stops["d-dies"].message
    assert "longer than 4 seconds" in stops["e-hangs"].message
    assert "without saving" in stops["f-saves-nothing"].message
    # Nobody meets the kernel of a failure.
    assert pid(site, "a-fine") != pid(site, "g-fine")
    # No page is to show a folder of this machine.
    for id in found:
        text = (site.recordings / id / "recording.json").read_text() + json.dumps(outputs(site, id))
        assert str(site.folder) not in text and ".partial" not in text, id


def test_the_notebook_of_a_failure_says_how_far_it_came(site, ran) -> None:
    site.cases("dies")
    ran("print('before')", "import os\nos._exit(1)", "print('after')")
    cells = outputs(site, "dies")
    assert "before" in json.dumps(cells) and "after" not in json.dumps(cells)
    assert any(o["output_type"] == "error" for outputs_ in cells for o in outputs_)


def test_a_leaked_hook_and_edited_weights_do_not_reach_the_next_case(site, ran) -> None:
    site.cases("a-hook", "b-weights", "c-fine", "d-fine")
    found = ran(
        WHICH,
        "import sys, torch\nif 'shelf' not in sys.modules:\n    sys.modules['shelf'] = shelf = type(sys)('shelf')\n"
        "    shelf.model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())",
        "import shelf\nlinear = shelf.model[0]",
        "if name == 'a-hook':\n    linear.register_forward_hook(lambda module, args, output: output * 2)",
        "if name == 'b-weights':\n    linear.weight.data.mul_(2)",
        "shelf.model(torch.ones(1, 4)).sum().backward()",
    )
    assert {o.status for o in found.values()} == {"ok"}
    pids = [pid(site, id) for id in sorted(found)]
    assert len(set(pids[:3])) == 3 and pids[2] == pids[3]
    notes = {id: o.note for id, o in found.items() if o.note}
    assert list(notes) == ["b-weights", "c-fine"]
    assert "hook" in notes["b-weights"] and "numbers changed" in notes["c-fine"]


def test_cold_is_the_stock_engine_and_records_the_same(site, ran) -> None:
    site.cases("one")
    ran("print('seen')")
    warm = outputs(site, "one"), load_recording(site.recordings / "one")
    ran("print('seen')", cold=True, force=True)
    cold = outputs(site, "one"), load_recording(site.recordings / "one")
    assert warm[0] == cold[0]
    assert warm[1].provenance.run_key == cold[1].provenance.run_key


def test_cold_fails_as_warm_does(site, ran) -> None:
    site.cases("a-dies", "b-hangs")
    found = ran(WHICH, "if name == 'a-dies':\n    os._exit(0)\nimport time\ntime.sleep(60)", cold=True, seconds=3.0)
    assert {o.status for o in found.values()} == {"error"}
    assert "its kernel died" in found["a-dies"].message and "longer than" in found["b-hangs"].message


def test_kernels_are_recycled_and_leave_nothing(site, ran, monkeypatch, tmp_path_factory) -> None:
    import tempfile

    from vsp_report.run import kernel

    folder = Path(tempfile.mkdtemp(prefix="vspt", dir="/tmp"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(folder))
    (folder / "vsp-kernel-4194305-killed").mkdir()  # by a process that cannot be: pids end before
    monkeypatch.setattr(kernel, "MAX_USES", 1)
    site.cases("one", "two")
    ran()
    assert pid(site, "one") != pid(site, "two")
    assert list(folder.iterdir()) == []
    folder.rmdir()
    assert not any(process_exists(int(pid(site, id))) for id in ("one", "two"))


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_kernel_that_nobody_asks_any_more_ends_and_the_next_case_has_another(site, monkeypatch) -> None:
    """As on a cluster, whose workers outlast the run: what they have loaded must not stay there."""
    from vsp_report.case import load_cases
    from vsp_report.run import batch, executors, kernel

    monkeypatch.setattr(kernel, "REST_SECONDS", 0.2)
    wanted = batch.Wanted(site.recordings, notebook=site.notebook())
    with executors.here(1) as pool:
        for id in ("one", "two"):
            site.case(id)
            steps = batch.plan(load_cases("cases"), wanted)
            (outcome,) = batch.run(steps, wanted, lambda: contextlib.nullcontext(pool), Silent())
            assert (outcome.id, outcome.status, outcome.note) == (id, "ok", "")
            deadline = time.monotonic() + 20
            while kernel._started and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not kernel._started and not kernel._resting
    assert pid(site, "one") != pid(site, "two")


def test_a_timeout_that_is_the_notebooks_own_is_told_as_such(site, ran) -> None:
    site.cases("one")
    found = ran("raise TimeoutError('The read operation timed out')", seconds=100.0)
    assert found["one"].message == "TimeoutError: The read operation timed out"


def test_kernels_side_by_side_share_the_cores(site, ran, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    site.cases("one", "two")
    ran("import os\nprint(os.environ.get('OMP_NUM_THREADS'))", jobs=2)
    assert {printed(site, id) for id in ("one", "two")} == {"4\n"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    ran("import os\nprint(os.environ.get('OMP_NUM_THREADS'), 'said')", jobs=2)
    assert {printed(site, id) for id in ("one", "two")} == {"3 said\n"}
