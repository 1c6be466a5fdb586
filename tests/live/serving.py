"""Serving: one small case recorded, its site, and one server with its kernel, for all tests that need them.

A kernel loads torch and a model, so that there is one for the whole session, whichever folder a test stands in.
"""

from __future__ import annotations

import atexit
import itertools
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

CASE = """\
title: Standing beside a chair, tried
model: sketchworld
sae: sketchworld/vision.3
image: {scene: {mode: misleading-cue, variation: chair, seed: 1}}
prompt: Is the person sitting or standing?
contrast: {right: standing, wrong: sitting}
controls: {draws: 20, kinds: [latents]}
steer:
  five: {latents: {top: 5, by: attribution, supports: wrong}, set: 0}
  more: {latents: {top: 3, by: activation}, scale: 2, where: {box: [0, 0, 200, 200]}}
  on-top:
    edits: [{latents: {top: 3, by: activation}, add: 1.5}]
    onto: five
sweep: {of: five, factors: [0.5, 3]}
rephrase: {other-order: Is the person standing or sitting?}
"""
TOO = """\
title: Standing beside a chair, tried too
model: sketchworld
sae: sketchworld/vision.3
image: {scene: {mode: misleading-cue, variation: chair, seed: 3}}
prompt: Is the person standing or sitting?
contrast: {right: standing, wrong: sitting}
"""
LATENTS = 3584
"""Of the bundled autoencoder."""
SECONDS = 120.0


@dataclass(frozen=True)
class Home:
    """A folder with two cases, their recordings, an atlas of their latents, and the site of it all."""

    folder: Path

    @property
    def cases(self) -> Path:
        return self.folder / "cases"

    @property
    def site(self) -> Path:
        return self.folder / "site"

    @property
    def recording(self) -> Path:
        return self.site / "recordings" / "tried"


@lru_cache(maxsize=1)
def home() -> Home:
    from tests.render import atlases
    from vsp_report.recording import load_recording
    from vsp_report.render import site

    folder = Path(tempfile.mkdtemp(prefix="vsp-live-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    found = Home(folder)
    found.cases.mkdir()
    (found.cases / "tried.yaml").write_text(CASE)
    record(found.cases / "tried.yaml", found.recording)
    (found.cases / "tried-too.yaml").write_text(TOO)
    record(found.cases / "tried-too.yaml", found.recording.parent / "tried-too", ("look", "cluster", "save"))
    made = load_recording(found.recording).provenance
    atlases.save(found.site / "atlas", LATENTS, ("vision.3",), model_sha=made.model_sha, sae_sha=made.sae_sha)
    built = site.build(found.site / "recordings", found.site)
    assert not built.faults
    return found


STEPS = ("look", "cluster", "attribute", "steer_all", "sweep", "rephrase", "save")
"""That a live round has a counterpart in, and no search of a diagnosis."""


def record(file: Path, folder: Path, steps: tuple[str, ...] = STEPS) -> None:
    from vsp_report.study import evidence

    inquiry = evidence.open_case(file, folder, "cpu")
    for step in steps:
        getattr(evidence, step)(inquiry, **({"measured": 2} if step == "attribute" else {}))


# --- the server --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen
    port: int
    token: str
    door: Path
    """the file that leads to it"""
    home: Home

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def page(self) -> str:
        return f"{self.base}/report/cases/tried/index.html"

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """One request, with these headers and no others but Host."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if method == "POST":
            connection.putheader("Content-Length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        found = Answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()
        return found

    def cookie(self) -> str:
        entered = self.ask(f"/enter?token={self.token}")
        assert entered.status == 200, entered
        return entered.headers["Set-Cookie"].partition(";")[0]

    def kernel(self) -> str:
        answer = self.ask("/live/kernel", "POST", Cookie=self.cookie(), Origin=self.base)
        assert answer.status == 200, answer
        return json.loads(answer.body)["kernel"]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def start(folder: Path, site: Path, cases: Path, *more: str) -> tuple[subprocess.Popen, Path]:
    command = [
        sys.executable,
        "-m",
        "vsp_report",
        "live",
        "--no-browser",
        "--out",
        str(site),
        "--cases",
        str(cases),
        *more,
    ]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = process.stdout.readline()
    assert said.startswith("live: "), said + process.stderr.read()
    return process, Path(process.stdout.readline().removeprefix("open ").strip())


@lru_cache(maxsize=1)
def served() -> Served:
    at = home()
    process, door = start(at.folder, at.site, at.cases, "tried")
    atexit.register(_end, process)
    address = re.search(r'url=([^"]+)"', door.read_text())[1].replace("&amp;", "&")
    port, token = re.fullmatch(
        r"http://127\.0\.0\.1:(\d+)/enter\?token=([\w-]+)&to=/report/cases/tried/index\.html", address
    ).groups()
    return Served(process, int(port), token, door, at)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    for stream in (process.stdout, process.stderr):
        stream.close()


@pytest.fixture(scope="session", name="home")
def home_fixture() -> Home:
    return home()


@pytest.fixture(scope="session", name="served")
def served_fixture() -> Served:
    return served()


# --- a websocket, by hand ----------------------------------------------------------------------------------------
# Attacks are what no ordinary client would send, so that none is used.

PROTOCOL = "v1.kernel.websocket.jupyter.org"


class Refused(Exception):
    pass


class Channel:
    """A websocket to the kernel's channels, with the headers that are given."""

    def __init__(self, served: Served, kernel: str, **headers: str) -> None:
        self.session = uuid.uuid4().hex
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=60)
        told = {
            "Host": f"127.0.0.1:{served.port}", "Upgrade": "websocket", "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": PROTOCOL,
        } | {name.replace("_", "-"): value for name, value in headers.items()}  # fmt: skip
        lines = [f"GET /api/kernels/{kernel}/channels?session_id={self.session} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in told.items()]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.left = b""
        while b"\r\n\r\n" not in self.left:
            data = self.socket.recv(4096)
            if not data:
                self.socket.close()
                raise Refused("closed")
            self.left += data
        head, _, self.left = self.left.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status != 101:
            self.socket.close()
            raise Refused(str(status))

    def send(self, kind: str, content: Any, channel: str = "shell") -> None:
        header = {"msg_id": uuid.uuid4().hex, "session": self.session, "username": "", "msg_type": kind}
        header |= {"version": "5.4", "date": "2030-01-01T00:00:00Z"}
        parts = [channel.encode(), *(json.dumps(one).encode() for one in (header, {}, {}, content))]
        places = [8 * (len(parts) + 2)]
        for part in parts:
            places.append(places[-1] + len(part))
        self.raw(struct.pack(f"<{len(places) + 1}Q", len(places), *places) + b"".join(parts))

    def raw(self, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = bytes([0x82, 0x80 | size])
        else:
            head = struct.pack(">BBH", 0x82, 0xFE, size) if size < 1 << 16 else struct.pack(">BBQ", 0x82, 0xFF, size)
        self.socket.sendall(head + b"\0\0\0\0" + data)  # a mask of zeros leaves it as it is

    def read(self, seconds: float = SECONDS) -> dict[str, Any] | None:
        """The next message; None when the other side has closed."""
        self.socket.settimeout(seconds)
        while True:
            head = self._take(2)
            if head is None:
                return None
            size = head[1] & 0x7F
            if size > 125:
                size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
            data = self._take(size)
            if head[0] & 0x0F == 8 or data is None:
                return None
            if head[0] & 0x0F == 2:
                places = struct.unpack_from(f"<{struct.unpack_from('<Q', data)[0]}Q", data, 8)
                parts = [data[a:b] for a, b in itertools.pairwise(places)]
                return {"type": json.loads(parts[1])["msg_type"], "content": json.loads(parts[4])}

    def _take(self, size: int) -> bytes | None:
        while len(self.left) < size:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not data:
                return None
            self.left += data
        found, self.left = self.left[:size], self.left[size:]
        return found

    def close(self) -> None:
        self.socket.close()


class Reader(Channel):
    """A panel without a page: what it asks is sent, what it is told is kept."""

    def __init__(self, served: Served, kernel: str, case: str = "tried") -> None:
        super().__init__(served, kernel, Cookie=served.cookie(), Origin=served.base)
        self.comm, self.seq, self.spec, self.told = uuid.uuid4().hex, 0, None, []
        self.send("comm_open", {"comm_id": self.comm, "target_name": "vsp.panel", "data": {}})
        self.say({"type": "open", "case": case, "seq": 0})
        self.until(lambda event: event["type"] in ("done", "failed"))

    def say(self, content: Any) -> None:
        self.send("comm_msg", {"comm_id": self.comm, "data": {"method": "custom", "content": content}})

    def until(self, enough: Callable[[dict], bool]) -> list[dict]:
        found: list[dict] = []
        end = time.monotonic() + SECONDS
        while not found or not enough(found[-1]):
            assert time.monotonic() < end, found
            message = self.read()
            assert message is not None, "the connection was closed"
            content = message["content"]
            if message["type"] != "comm_msg" or content.get("comm_id") != self.comm:
                continue
            if content["data"]["method"] == "update":
                self.spec = content["data"]["state"]["spec"]
            else:
                found.append(content["data"]["content"])
        return found

    def ask(self, prompt: str, edits: list, **more: Any) -> list[dict]:
        self.seq += 1
        self.say({"type": "run", "seq": self.seq, "prompt": prompt, "edits": edits, "look": False, **more})
        return self.until(lambda event: event["seq"] == self.seq and event["type"] in ("done", "failed", "cancelled"))


def kernel_pids(served: Served) -> list[int]:
    """The processes that the server has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = status.parent.name, status.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == served.process.pid:
            found.append(int(pid))
    return found


def environment_of(pid: int) -> str:
    return (Path("/proc") / str(pid) / "environ").read_bytes().decode(errors="replace")


def arguments_of(pid: int) -> str:
    return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
