"""The panel in a real JupyterLab: the executed notebook of a recording, opened where it lies, run, and steered; its
state is copied as a command that opens it, and its kernel dies."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.browser.chromium import SECONDS, Chromium, Page
from tests.browser.test_live import ANSWER, STATUS, ask, choose, press
from tests.live import serving
from tests.live.serving import kernel_pids
from vsp_report import paths
from vsp_report.live.server import is_state
from vsp_report.recording import load_recording

CELLS = "parameters imports rooms open-case picture look-run cluster-run save save-run live live-run".split()
"""Of the notebook that runs a case: what the panel needs, and what could harm the recording."""
CASE, OUT = "cases/tried.yaml", "site/recordings/tried"


@dataclass(frozen=True)
class Lab:
    process: subprocess.Popen
    project: Path
    port: int
    token: str


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a recording and the notebook that made it, which names its files as they are seen from here."""
    folder, home = tmp_path_factory.mktemp("project"), serving.home()
    shutil.copytree(home.cases, folder / "cases")
    shutil.copytree(home.recording, folder / OUT)
    notebook = json.loads((paths.templates_dir() / "notebooks/case.ipynb").read_text(encoding="utf-8"))
    cells = {cell["id"]: cell for cell in notebook["cells"]}
    injected = cells["parameters"] | {
        "id": "injected-parameters",
        "metadata": {"tags": ["injected-parameters"]},
        "source": f'# Parameters\ncase_path = "{CASE}"\nout_dir = "{OUT}"\ndevice = "cpu"\n',
    }
    notebook["cells"] = [cells[CELLS[0]], injected, *(cells[name] for name in CELLS[1:])]
    (folder / OUT / "notebook.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lab(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    own, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    environment |= {f"JUPYTER_{kind}_DIR": str(own / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment |= {f"JUPYTERLAB_{kind}_DIR": str(own / kind) for kind in ("SETTINGS", "WORKSPACES")}
    environment |= {"JUPYTER_TOKEN": token, "TMPDIR": str(own)}
    words = f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --LabApp.expose_app_in_browser=True".split()
    with open(own / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *words, f"--ServerApp.root_dir={project}"],
                                   cwd=project, env=environment, stdout=log, stderr=log)  # fmt: skip
    try:
        end = time.monotonic() + SECONDS
        while not _answers(f"http://127.0.0.1:{port}/api?token={token}"):
            assert process.poll() is None and time.monotonic() < end, (own / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield Lab(process, project, port, token)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    with suppress(URLError, ConnectionError), urlopen(address, timeout=10) as answer:
        return answer.status == 200
    return False


def run_all(page: Page) -> None:
    page.wait("jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.value("jupyterapp.commands.execute('notebook:run-all-cells') && null")


def test_the_executed_notebook_ends_in_the_same_panel(chromium: Chromium, lab: Lab) -> None:
    published = lab.project / OUT
    before = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    page = chromium.page()
    page.open(f"http://127.0.0.1:{lab.port}/lab/tree/{OUT}/notebook.ipynb?token={lab.token}")
    page.wait("window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')")
    run_all(page)
    failed = "document.querySelector('[data-mime-type=\"application/vnd.jupyter.error\"]')"
    page.wait(f"document.querySelector('.vsp-panel .vsp-status') || {failed}")
    assert page.value(f"{failed}?.textContent") is None
    page.wait(f"{STATUS} === 'Ready.'")
    choose(page, "five")
    ask(page)
    recorded = next(one for one in load_recording(published, verify=False).steered if one.name == "five")
    assert page.value(STATUS).startswith("Answered") and page.value(ANSWER).startswith(recorded.after.text)
    assert page.value("document.querySelector('.vsp-stage canvas').width") > 0
    # Jupyter's own style is not the page's: nothing is wider than the cell.
    assert page.value("""(panel => [...panel.querySelectorAll('textarea, input, select, button')].every(
        one => one.getBoundingClientRect().right <= panel.getBoundingClientRect().right + 1))
        (document.querySelector('.vsp-panel'))""")
    # What was published is evidence, and was left alone.
    assert {path: path.read_bytes() for path in before} == before
    _its_state_is_a_command(page)
    _a_kernel_that_dies_is_told(page, lab)


def _its_state_is_a_command(page: Page) -> None:
    """The address is Lab's own: it is neither written to nor read."""
    address = page.value("location.href")
    page.value("navigator.clipboard.writeText = text => (window.copied = text, Promise.resolve())")
    press(page, "Copy a command for this")
    page.wait(f"{STATUS} === 'The command is copied.'")
    assert page.value("location.href") == address
    case, state = re.fullmatch(r'vsp-report live "([\w-]+)#(try=[\w-]+)"', page.value("window.copied")).groups()
    said = json.loads(base64.urlsafe_b64decode(state.removeprefix("try=") + "=="))
    assert case == "tried" and is_state(state) and len(said["edits"][0]["latents"]) == 5
    page.value("location.hash = '#latent=7'")
    page.value("new Promise(done => setTimeout(done, 50))")
    assert page.value("document.querySelectorAll('.vsp-rows .vsp-name').length") == 1


def _a_kernel_that_dies_is_told(page: Page, lab: Lab) -> None:
    """At once, and by its name: not as a silence of twenty seconds."""
    page.value("document.querySelector('.vsp-check input').checked = true")
    press(page, "Ask")
    (pid,) = kernel_pids(lab)
    os.kill(pid, signal.SIGKILL)
    page.wait(f"{STATUS}.startsWith('The kernel died') || {STATUS}.startsWith('Nothing')")
    assert page.value(STATUS) == "The kernel died or was started again. Run the cells of this notebook again."
    assert page.value("document.querySelector('.vsp-ask').disabled")
    # What it says to do helps.
    page.value("document.querySelector('.vsp-panel').dataset.old = 'yes'")
    run_all(page)
    page.wait("document.querySelector('.vsp-panel:not([data-old]) .vsp-status')?.textContent === 'Ready.'")
    ask(page)
    assert page.value(STATUS).startswith("Answered")
