"""Starting and ending: what is missing is said with its remedy, what is left behind is swept, the owner is let in."""

from __future__ import annotations

import html
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from tests.live.serving import Served, kernel_pids, start
from vsp_report import cli, live
from vsp_report.errors import MissingExtra
from vsp_report.live import panel, server


def page(folder: Path) -> Path:
    (folder / "site/cases/a-case").mkdir(parents=True)
    for place in ("index.html", "cases/a-case/index.html"):
        (folder / "site" / place).write_text("<title>A page</title>")
    (folder / "cases").mkdir()
    return folder / "site"


def said(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err


def test_what_is_wrong_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["live", "--no-browser"]) == 2
    assert said(capsys) == "error: site: holds no site. `vsp-report build` makes one.\n"
    page(tmp_path)
    assert cli.main(["live", "another", "--no-browser"]) == 2
    assert "another: has no page in site" in said(capsys)
    for wrong in ("../up", "#try=abc"):
        assert cli.main(["live", wrong, "--no-browser"]) == 2
        assert "is no name of a case" in said(capsys)
    for wrong in ("try=<b>", "latent=1/../2", "x" * 40_000):
        assert cli.main(["live", f"a-case#{wrong}", "--no-browser"]) == 2
        assert "has a state that no panel writes" in said(capsys)


def test_a_port_that_is_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    page(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["live", "--no-browser", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in said(capsys)


def test_a_missing_library_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vsp_report.live.extension", raising=False)
    monkeypatch.delattr(live, "extension", raising=False)
    monkeypatch.setitem(sys.modules, "jupyter_server", None)
    monkeypatch.setitem(sys.modules, "jupyter_server.auth", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vsp-report\[live\]'"):
        server.serve(server.Wanted(page(tmp_path), tmp_path / "cases"))
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vsp-report\[live\]'"):
        panel.widget(SimpleNamespace())


def test_a_notebook_that_nobody_reads_gets_words_and_no_widget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shown = panel.here(SimpleNamespace(case=SimpleNamespace(id="a-case")))
    assert "vsp-report live a-case" in shown.data


def test_what_killed_servers_left_is_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, mine, other = (tmp_path / f"vsp-live-{name}" for name in (f"{gone.pid}-abc", f"{os.getpid()}-abc", "notes"))
    for folder in (left, mine, other):
        (folder / "runtime").mkdir(parents=True)
    link = tmp_path / f"vsp-live-{gone.pid}-link"
    link.symlink_to(mine)
    assert server.sweep(tmp_path) == [left]
    assert mine.is_dir() and other.is_dir() and link.is_symlink() and not left.exists()


def _ends(pid: int) -> bool:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_it_ends_at_ctrl_c_and_leaves_nothing(tmp_path: Path) -> None:
    process, door = start(tmp_path, page(tmp_path), tmp_path / "cases")
    assert door.is_file()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    rest = process.stdout.read() + process.stderr.read()
    process.stdout.close(), process.stderr.close()
    assert rest == "" and not door.parent.exists()


def test_the_state_of_a_panel_is_opened_with_its_case(tmp_path: Path) -> None:
    process, door = start(tmp_path, page(tmp_path), tmp_path / "cases", "a-case#latents=3,4&name=a-b")
    address = html.unescape(re.search(r'href="([^"]+)"', door.read_text())[1])
    with urlopen(address, timeout=30) as answer:
        led = answer.read().decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close(), process.stderr.close()
    assert 'url=/report/cases/a-case/index.html#latents=3,4&name=a-b"' in led


def test_a_kernel_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    process, door = start(tmp_path, page(tmp_path), tmp_path / "cases")
    token = door.read_text().partition("token=")[2].partition("&")[0]
    port = int(door.read_text().partition("127.0.0.1:")[2].partition("/")[0])
    served = Served(process, port, token, door, None)
    served.kernel()
    (pid,) = kernel_pids(served)
    process.kill()
    process.wait()
    process.stdout.close(), process.stderr.close()
    assert _ends(pid)
    server.sweep(door.parent.parent)
    assert not door.parent.exists()
