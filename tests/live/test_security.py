"""Attacks on a live server, sent for real: each is refused, or comes to nothing."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.serving import (
    Channel,
    Reader,
    Refused,
    Served,
    arguments_of,
    environment_of,
    kernel_pids,
)

PAGE = "/report/cases/tried/index.html"
PROMPT = "Is the person sitting or standing?"


@pytest.mark.parametrize("path", ["/", PAGE, "/report/", "/api/kernels", "/api/contents", "/metrics", "/api/status"])
def test_nothing_is_shown_without_the_cookie(served: Served, path: str) -> None:
    answer = served.ask(path)
    assert answer.status in (403, 404)
    assert b"Standing" not in answer.body


@pytest.mark.parametrize("token", ["", "wrong", "a" * 43])
def test_a_wrong_token_opens_nothing(served: Served, token: str) -> None:
    answer = served.ask(f"/enter?token={token}")
    assert answer.status == 403 and "Set-Cookie" not in answer.headers


def test_a_token_is_taken_at_the_door_only(served: Served) -> None:
    """Elsewhere it would let who has it pass from any origin."""
    assert served.ask(f"{PAGE}?token={served.token}").status == 403
    assert served.ask(PAGE, Authorization=f"token {served.token}").status == 403
    with pytest.raises(Refused, match="403"):
        Channel(served, f"{served.kernel()}", Authorization=f"token {served.token}")


def test_a_forged_cookie_opens_nothing(served: Served) -> None:
    name, _, value = served.cookie().partition("=")
    body, _, signature = value.strip('"').rpartition("|")
    forged = f'{name}="{body}|{signature[::-1]}"'
    assert served.ask(PAGE, Cookie=forged).status == 403
    assert served.ask(PAGE, Cookie=f"{name}=reader").status == 403


def test_the_cookie_is_no_scripts(served: Served) -> None:
    said = served.ask(f"/enter?token={served.token}").headers["Set-Cookie"].casefold()
    assert "httponly" in said and "samesite=strict" in said and "expires" not in said


def test_the_door_leads_nowhere_else(served: Served) -> None:
    for to in (
        "https://evil.example/",
        "//evil.example",
        "/report/..//evil",
        "/report/x%22%3E%3Cscript%3E",
        "/api/kernels",
    ):
        body = served.ask(f"/enter?token={served.token}&to={to}").body.decode()
        assert 'url=/report/index.html"' in body and "evil" not in body and "<script" not in body


def test_foreign_hosts_are_refused(served: Served) -> None:
    """A name of the attacker's that leads to this machine."""
    for host in ("evil.example", f"evil.example:{served.port}", "192.0.2.1"):
        assert served.ask(PAGE, Cookie=served.cookie(), Host=host).status == 403
        assert served.ask(f"/enter?token={served.token}", Host=host).status == 403
        with pytest.raises(Refused, match="403"):
            Channel(served, served.kernel(), Cookie=served.cookie(), Host=host, Origin=f"http://{host}")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1.evil.example"]
)
def test_foreign_origins_are_refused_even_with_the_cookie(served: Served, origin: str) -> None:
    cookie = served.cookie()
    assert served.ask("/live/kernel", "POST", Cookie=cookie, Origin=origin).status == 403
    assert served.ask("/live/restart", "POST", Cookie=cookie, Origin=origin).status == 403
    with pytest.raises(Refused, match="403"):
        Channel(served, served.kernel(), Cookie=cookie, Origin=origin)
    answer = served.ask(PAGE, Cookie=cookie, Origin=origin)
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_what_changes_something_says_where_it_comes_from(served: Served) -> None:
    assert served.ask("/live/restart", "POST", Cookie=served.cookie()).status == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/kernels"), ("POST", "/api/kernels"), ("DELETE", "/api/kernels/{kernel}"),
        ("GET", "/api/kernels/{kernel}"), ("POST", "/api/kernels/{kernel}/interrupt"),
        ("POST", "/api/kernels/{kernel}/restart"), ("GET", "/api/contents"), ("GET", "/api/sessions"),
        ("GET", "/api/terminals"), ("POST", "/api/terminals"), ("POST", "/api/shutdown"), ("GET", "/metrics"),
        ("GET", "/api/config/notebook"), ("GET", "/files/x"), ("GET", "/api/kernelspecs"), ("GET", "/api/me"),
        ("GET", "/login"), ("POST", "/login"), ("GET", "/static/style/index.css"), ("GET", "/view/x"),
    ],
)  # fmt: skip
def test_the_owner_may_do_no_more_than_the_panel_needs(served: Served, method: str, path: str) -> None:
    answer = served.ask(path.format(kernel=served.kernel()), method, Cookie=served.cookie(), Origin=served.base)
    assert answer.status in (403, 404, 405), answer


@pytest.mark.parametrize(
    "path",
    ["/report/../cases/tried.yaml", "/report/%2e%2e/cases/tried.yaml", "/report/..%2fcases/tried.yaml",
     "/report//etc/passwd", "/report/....//cases/tried.yaml", "/report/.git/config", "/report/%00",
     "/report/link/passwd"],
)  # fmt: skip
def test_paths_stay_in_the_site(served: Served, path: str) -> None:
    link = served.home.site / "link"
    if not link.exists():
        link.symlink_to("/etc")
    answer = served.ask(path, Cookie=served.cookie())
    assert answer.status in (400, 403, 404), (path, answer)
    assert b"root:" not in answer.body and b"sketchworld/vision" not in answer.body


def test_pages_come_with_strict_headers(served: Served) -> None:
    answer = served.ask(PAGE, Cookie=served.cookie())
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "connect-src 'self'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"


def test_what_was_recorded_may_run_no_script(served: Served) -> None:
    recorded = served.home.site / "recordings" / "tried" / "evil.html"
    recorded.write_text("<script>fetch('/live/restart', {method: 'POST'})</script>")
    try:
        policy = served.ask("/report/recordings/tried/evil.html", Cookie=served.cookie()).headers[
            "Content-Security-Policy"
        ]
    finally:
        recorded.unlink()
    assert "sandbox" in policy and "allow-scripts" not in policy and "allow-same-origin" not in policy


def test_the_token_is_in_no_arguments_and_no_environment(served: Served) -> None:
    served.kernel()
    pids = [served.process.pid, *kernel_pids(served)]
    assert len(pids) >= 2
    assert all(served.token not in arguments_of(pid) + environment_of(pid) for pid in pids)
    assert served.door.stat().st_mode & 0o077 == 0
    assert served.door.parent.stat().st_mode & 0o077 == 0


def test_a_kernel_is_reached_through_private_sockets(served: Served) -> None:
    served.kernel()
    (connection,) = (served.door.parent / "runtime").glob("kernel-*.json")
    assert json.loads(connection.read_text())["transport"] == "ipc"


# --- what a page can send to the kernel --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(served: Served) -> Iterator[Reader]:
    reader = Reader(served, served.kernel())
    yield reader
    reader.close()


def test_a_page_can_run_no_code(served: Served, reader: Reader, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    code = f"open({str(proof)!r}, 'w').write('x')"
    channel = Channel(served, served.kernel(), Cookie=served.cookie(), Origin=served.base)
    asked = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    for where in ("shell", "control"):
        channel.send("execute_request", asked, where)
        channel.send("execute_request", asked | {"silent": True}, where)
        channel.send("debug_request", {"command": "evaluate", "arguments": {"expression": code}}, where)
        channel.send("complete_request", {"code": code, "cursor_pos": 3}, where)
        channel.send("inspect_request", {"code": code, "cursor_pos": 3}, where)
        channel.send("shutdown_request", {"restart": False}, where)
        channel.send("interrupt_request", {}, where)
    for target in ("jupyter.widget", "jupyter.widget.control", "matplotlib", "os.system"):
        data = {"state": {"_model_module": "os", "_model_name": "system", "_view_name": code}}
        channel.send("comm_open", {"comm_id": target, "target_name": target, "target_module": "os", "data": data})
    answered = reader.ask(PROMPT, [])
    assert [event["type"] for event in answered][-1] == "done"  # the kernel is there, and has seen all of these
    channel.close()
    assert not proof.exists()


def test_what_is_not_of_the_protocol_is_no_harm(served: Served, reader: Reader) -> None:
    channel = Channel(served, served.kernel(), Cookie=served.cookie(), Origin=served.base)
    channel.send("comm_msg", {"comm_id": "nobody", "data": {}})
    channel.send("comm_open", {"comm_id": "mine", "target_name": "vsp.panel", "data": None})
    unheard = {"method": "custom", "content": {"type": "__class__", "seq": 1}}
    for data in (None, [], "text", {"method": "custom"}, unheard, {"method": "update", "state": {"spec": {}}}):
        channel.send("comm_msg", {"comm_id": "mine", "data": data})
    assert reader.ask(PROMPT, [])[-1]["type"] == "done"
    channel.close()


def test_a_message_that_is_too_long_closes_its_channel_alone(served: Served, reader: Reader) -> None:
    channel = Channel(served, served.kernel(), Cookie=served.cookie(), Origin=served.base)
    try:
        channel.raw(b"\0" * (13 << 20))
    except ConnectionError:
        pass
    else:
        while channel.read(30) is not None:
            pass
    finally:
        channel.close()
    assert reader.ask(PROMPT, [])[-1]["type"] == "done"


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"edits": [{"latents": [10**6], "set": 0}]}, "no latent"),
        ({"edits": [{"latents": [-1], "set": 0}]}, "is -1"),
        ({"edits": [{"latents": [1], "set": 1e300}]}, "is 1e+300"),
        ({"edits": [{"latents": [1], "set": "__import__('os')"}]}, "number"),
        ({"edits": [{"latents": [1], "set": 0, "where": {"box": [5, 5, 5, 5]}}]}, "is empty"),
        ({"edits": [{"latents": [1], "set": 0}] * 33}, "at most 32"),
        ({"edits": [{"latents": list(range(20_000)), "set": 0}]}, "entries"),
        ({"edits": "all"}, "list"),
        ({"prompt": "x" * 2001}, "characters"),
        ({"prompt": 7}, "is no text"),
        ({"mode": "exec"}, "none of"),
        ({"edits": [{"latents": [1], "set": 0}], "controls": 10**9}, "not from 0"),
    ],
)
def test_what_cannot_be_asked_is_told_so(reader: Reader, message: dict, fault: str) -> None:
    reader.seq += 1
    reader.say({"type": "run", "seq": reader.seq, "prompt": PROMPT, "edits": [], "look": False} | message)
    told = reader.until(lambda event: event["type"] in ("failed", "done"))[-1]
    assert told["type"] == "failed" and fault in told["message"], told


def test_paths_in_messages_lead_nowhere(served: Served, reader: Reader, tmp_path: Path) -> None:
    before = sorted(served.home.folder.rglob("*.yaml"))
    run = {"prompt": PROMPT, "edits": []}
    for name in ("../evil", "/tmp/evil", "evil/../../x", "", "con", "a" * 90, "tried"):
        reader.seq += 1
        reader.say({"type": "save", "seq": reader.seq, "name": name, "title": "x", "to": "cases", "run": run})
        assert reader.until(lambda event: event["type"] in ("failed", "done"))[-1]["type"] == "failed", name
    for case in ("../../etc/passwd", "/etc/passwd", "nothing-of-the-kind"):
        reader.seq += 1
        reader.say({"type": "open", "seq": reader.seq, "case": case})
        assert reader.until(lambda event: event["type"] in ("failed", "done"))[-1]["type"] == "failed", case
    assert sorted(served.home.folder.rglob("*.yaml")) == before


def test_a_picture_that_is_none_is_refused(reader: Reader) -> None:

    for data in (
        "no base64!",
        base64.b64encode(b"<svg onload=alert(1)>").decode(),
        base64.b64encode(b"\x89PNG\r\n" + b"\0" * 99).decode(),
    ):
        reader.seq += 1
        reader.say({"type": "picture", "seq": reader.seq, "name": "x.png", "data": data})
        assert reader.until(lambda event: event["type"] in ("failed", "done"))[-1]["type"] == "failed"
    assert reader.ask(PROMPT, [])[-1]["type"] == "done"  # the case's own picture is still there


def test_only_a_few_may_wait(reader: Reader) -> None:
    first = reader.seq + 1
    for _ in range(9):
        reader.seq += 1
        reader.say({"type": "run", "seq": reader.seq, "prompt": PROMPT, "edits": [], "look": True})
    told, end = [], time.monotonic() + 60
    while len({event["seq"] for event in told if event["type"] in ("done", "failed")}) < 9 and time.monotonic() < end:
        told += reader.until(lambda event: event["type"] in ("done", "failed"))
    by_seq = {event["seq"]: event for event in told if event["type"] in ("done", "failed") and event["seq"] >= first}
    refused = [event for event in by_seq.values() if event["type"] == "failed"]
    assert refused and all("rounds to do already" in event["message"] for event in refused)
    assert len(by_seq) - len(refused) >= 4
