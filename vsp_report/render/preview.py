"""Preview: the site, served to this machine only. Nothing is cached, so that a new build shows at once."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vsp_report.errors import InputError

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for many files
    disable_nagle_algorithm = True  # or what follows a file's headers waits for the browser to say that it has them
    timeout = 60

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def send_head(self) -> Any:
        # A page elsewhere that has its own name lead to this address must not read the site.
        name = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if name not in (HOST, "localhost"):
            self.send_error(403)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, *words: Any) -> None:
        """Nothing: a page is thirty requests."""


def server(site: Path, port: int = 0) -> ThreadingHTTPServer:
    """On a port of this machine; 0 finds a free one."""
    if not (site / "index.html").is_file():
        raise InputError(str(site), "holds no site", "`vsp-report build` makes one.")
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(site)))
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        fault = "is taken" if taken else "cannot be used"
        raise InputError(f"port {port}", fault, "Name another with --port; 0 finds a free one.") from error


def serve(site: Path, port: int, say: Callable[[str], None]) -> None:
    with server(site, port) as running:
        say(f"http://{HOST}:{running.server_address[1]}/")
        with contextlib.suppress(KeyboardInterrupt):  # which is how it ends
            running.serve_forever()
