"""Preview: the site on this machine's own address, uncached, and for this machine only."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from pathlib import Path

import pytest

from vsp_report.errors import InputError
from vsp_report.render import preview


def test_the_preview(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>here</h1>")
    (tmp_path / "folder").mkdir()
    with preview.server(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        host, port = running.server_address[:2]
        assert host == "127.0.0.1"

        def asked(path: str, name: str = f"127.0.0.1:{port}") -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection(host, port)
            connection.request("GET", path, headers={"Host": name})
            answer = connection.getresponse()
            answer.text = answer.read().decode()
            connection.close()
            return answer

        answer = asked("/")
        assert (answer.status, answer.text, answer.headers["Cache-Control"]) == (200, "<h1>here</h1>", "no-store")
        assert asked("/", f"localhost:{port}").status == 200
        assert asked("/", "evil.example").status == 403
        assert asked("/folder/").status == 404
        assert asked("/../../etc/passwd").status == 404
        running.shutdown()
        thread.join()


def test_many_files_come_over_one_connection_and_none_waits_for_another(tmp_path: Path) -> None:
    """A page is thirty requests. What a kept connection must not do is to hold a file back until the browser has said
    that it has the file's headers, which takes it 40 ms."""
    (tmp_path / "index.html").write_text("here" * 500)
    with preview.server(tmp_path) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        connection, taken = http.client.HTTPConnection(*running.server_address[:2]), []
        connection.connect()
        own = connection.sock
        for _ in range(21):
            started = time.perf_counter()
            connection.request("GET", "/index.html")
            assert connection.getresponse().read() == b"here" * 500
            taken.append(time.perf_counter() - started)
        assert connection.sock is own and sorted(taken)[10] < 0.03
        connection.close()
        running.shutdown()


def test_ctrl_c_is_how_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.html").write_text("")

    def interrupted(server: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preview.ThreadingHTTPServer, "serve_forever", interrupted)
    said: list[str] = []
    preview.serve(tmp_path, 0, said.append)
    assert len(said) == 1


def test_a_taken_port_and_an_empty_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no site. `vsp-report build` makes one"):
        preview.server(tmp_path)
    (tmp_path / "index.html").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"port \d+: is taken"):
            preview.server(tmp_path, taken.getsockname()[1])
    with pytest.raises(InputError, match="cannot be used"):
        preview.server(tmp_path, 99_999)
