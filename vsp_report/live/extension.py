"""Extension: the Jupyter Server extension that serves the site and one kernel, on one origin. No model here.

Who has the cookie may read the site and speak with one kernel, and may do nothing else:

    /enter               trades the token of this start for a cookie that scripts cannot read
    /report/…            the site, read only; what was recorded comes without the right to run a script
    /live/kernel         POST starts the one kernel, or says which it is; /live/restart throws it away and starts anew
    /api/kernels/ID/channels     Jupyter Server's own websocket, for the messages of a comm alone

A page so cannot run code: `execute_request` and all but three kinds of message are dropped before the kernel, which
itself answers to one comm only. Everything else that Jupyter Server could do, files and further kernels and shells, is
left out of it or refused by `Doorman`. A token is taken at `/enter` only: elsewhere Jupyter Server would let who has
one pass from any origin.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_server.auth import Authorizer, IdentityProvider, User
from jupyter_server.auth.decorator import allow_unauthenticated, authorized
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from tornado import web
from traitlets import Dict, Unicode

from vsp_report.render.site import POLICY

KERNEL = "vsp-live"
MESSAGES = ("comm_open", "comm_msg", "comm_close")
"""All that a page may send to the kernel. No code among them."""
LIVE_POLICY = POLICY + "; connect-src 'self'; frame-ancestors 'none'"
SANDBOX = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_SITE_ADDRESS = re.compile(r"/report/[A-Za-z0-9._/-]*(#[A-Za-z0-9._=&,-]*)?")


# --- who may do what ---------------------------------------------------------------------------------------------


class Doorkeeper(IdentityProvider):
    """Knows the owner by a signed cookie, and by nothing else: no token in an address, no password, no login page."""

    cookie_options = Dict({"samesite": "Strict", "httponly": True, "expires_days": None})
    token = Unicode("")

    @property
    def auth_enabled(self) -> bool:
        return True

    @property
    def login_available(self) -> bool:
        return False

    @property
    def logout_available(self) -> bool:
        return False

    def get_user_token(self, handler: Any) -> None:
        return None

    def validate_security(self, app: Any, ssl_options: Any = None) -> None:
        """There is no token to warn of: `/enter` has its own."""

    def let_in(self, handler: Any) -> None:
        self.set_login_cookie(handler, User(username="reader"))


class Doorman(Authorizer):
    """Allows the panel's websocket and this extension's own pages; nothing else that Jupyter Server has."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        if isinstance(handler, KernelWebsocketHandler):
            return (action, resource) == ("execute", "kernels")
        return isinstance(handler, Ours)


# --- pages -------------------------------------------------------------------------------------------------------


class Ours(JupyterHandler):
    """What all of this extension's answers share: strict headers, one origin, plain words where it refuses."""

    auth_resource = "site"

    def set_default_headers(self) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Content-Security-Policy", LIVE_POLICY)

    def set_cors_headers(self) -> None:
        """None: whoever asks from another origin gets no answer to read."""

    def get_login_url(self) -> str:
        raise web.HTTPError(403, "no cookie")

    def check_xsrf_cookie(self) -> None:
        """A cookie that is `Strict` is not sent along from elsewhere; what changes something must also say that it
        comes from here."""
        if self.request.method not in ("GET", "HEAD", "OPTIONS"):
            origin = self.request.headers.get("Origin")
            if origin is None or urlsplit(origin).netloc != self.request.host:
                raise web.HTTPError(403, "foreign origin")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        known = {
            403: "This is another's report, or the address is from an earlier start. Open the one that was printed.",
            404: "There is no such page.",
        }
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("Content-Security-Policy", SANDBOX)
        self.finish(known.get(status_code, "That did not work.") + "\n")


class Enter(Ours):
    """The one door: the token of this start against a cookie."""

    @allow_unauthenticated
    def get(self) -> None:
        token, to = self.get_query_argument("token", ""), self.get_query_argument("to", "/report/index.html")
        if not hmac.compare_digest(token.encode(), self.settings["vsp_token"].encode()):
            raise web.HTTPError(403, "wrong token")
        if not _SITE_ADDRESS.fullmatch(to) or "//" in to or ".." in to:
            to = "/report/index.html"
        self.identity_provider.let_in(self)
        # Not a redirect: that one would count as come from elsewhere, and go without the cookie.
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.finish(
            f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={to}">'
            f'<title>The report</title><p><a href="{to}">The report</a></p>'
        )


class Site(Ours, web.StaticFileHandler):
    """The site's files. Pages get the policy and the mark of a live site; recordings may run nothing."""

    @web.authenticated
    @authorized("read", "site")
    async def get(self, path: str, include_body: bool = True) -> None:
        if "\0" in path or any(part.startswith(".") for part in path.split("/")):
            raise web.HTTPError(404)
        recorded = path.startswith(("recordings/", "recording/")) or "/recording/" in path
        if path.endswith(".html") and not recorded:
            return self._page(path, include_body)
        if recorded or not path.endswith((".css", ".js")):
            self.set_header("Content-Security-Policy", SANDBOX)
        await web.StaticFileHandler.get(self, path, include_body)

    @web.authenticated
    @authorized("read", "site")
    async def head(self, path: str) -> None:
        await self.get(path, include_body=False)

    def _page(self, path: str, include_body: bool) -> None:
        self.path = self.parse_url_path(path)
        place = self.validate_absolute_path(self.root, self.get_absolute_path(self.root, self.path))
        if place is None:
            return
        html = Path(place).read_text(encoding="utf-8")
        meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        mark = f'{meta.replace(POLICY, _meta_policy())}\n<meta name="vsp-live" content="/live/">'
        self.set_header("Content-Type", "text/html; charset=utf-8")
        data = html.replace(_escaped(meta), mark, 1).replace(meta, mark, 1).encode()
        self.set_header("Content-Length", str(len(data)))
        self.finish(data if include_body else None)

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        found = super().validate_absolute_path(root, absolute_path)
        # A link inside the site may lead out of it.
        if found is not None and not Path(found).resolve().is_relative_to(Path(root).resolve()):
            raise web.HTTPError(404)
        return found

    def compute_etag(self) -> str | None:
        return None

    def should_return_304(self) -> bool:
        return False


def _meta_policy() -> str:
    return POLICY + "; connect-src 'self'"


def _escaped(text: str) -> str:
    """As a template writes quotes inside an attribute."""
    return text.replace("'", "&#39;")


# --- the kernel --------------------------------------------------------------------------------------------------


class OneKernel:
    """The one kernel that there is; started when a page first asks, and again when it has died."""

    def __init__(self, app: Any, environment: dict[str, str]) -> None:
        self.app, self.environment, self.id = app, environment, ""
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        async with self._lock:
            manager = self.app.serverapp.kernel_manager
            if self.id not in manager or not await manager.get_kernel(self.id).is_alive():
                await self._leave(manager)
                self.id = await manager.start_kernel(kernel_name=KERNEL, env=self.environment)
            return self.id

    async def again(self) -> str:
        async with self._lock:
            await self._leave(self.app.serverapp.kernel_manager)
        return await self.get()

    async def _leave(self, manager: Any) -> None:
        if self.id in manager:
            await manager.shutdown_kernel(self.id, now=True)
        self.id = ""


class Kernel(Ours):
    @web.authenticated
    @authorized("execute", "site")
    async def post(self, what: str) -> None:
        kernel: OneKernel = self.settings["vsp_kernel"]
        found = await (kernel.again() if what == "restart" else kernel.get())
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"kernel": found}))


class Home(Ours):
    @web.authenticated
    @authorized("read", "site")
    async def get(self) -> None:
        self.redirect("/report/index.html")


class PrivateKernel(ServerKernelManager):
    """Reached through sockets in a private folder: no other user of the machine can."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**{**words, "transport": "tcp" if os.name == "nt" else "ipc"})


class Nothing(Ours):
    """Everything else that Jupyter Server would answer to: metrics, files, further kernels."""

    async def prepare(self) -> None:
        raise web.HTTPError(404)


class LiveKernelSpecs(KernelSpecManager):
    """One kind of kernel: this interpreter, which answers to the panel's comm from the start."""

    def find_kernel_specs(self) -> dict[str, str]:
        return {KERNEL: ""}

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        line = "from vsp_report.live.panel import serve; serve()"
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False",
                f"--IPKernelApp.exec_lines={line}"]  # fmt: skip
        return KernelSpec(argv=argv, display_name="vsp-report", language="python")


# --- the extension -----------------------------------------------------------------------------------------------


class LiveServer(ServerApp):
    """A Jupyter Server without what it would serve besides."""

    default_services = ("kernels",)

    def init_signal(self) -> None:
        """Ctrl-C ends it; there is nothing to be asked about."""

    def write_server_info_file(self) -> None:
        """None: nobody else is to find it."""

    def launch_browser(self) -> None:
        """`server` does, by a way of its own."""

    def write_browser_open_files(self) -> None:
        """None, for the same reason."""


class Live(ExtensionApp):
    name = "vsp_report_live"
    extension_url = "/report/index.html"
    load_other_extensions = False
    serverapp_class = LiveServer
    site = Unicode(help="the folder of the site").tag(config=True)
    token = Unicode(help="of this start").tag(config=True)
    environment = Dict(help="of the kernel").tag(config=True)

    @classmethod
    def get_extension_package(cls) -> str:
        return "vsp_report.live.extension"

    def initialize_settings(self) -> None:
        self.settings.update(vsp_token=self.token, vsp_kernel=OneKernel(self, dict(self.environment)))

    def initialize_handlers(self) -> None:
        self.handlers += [
            (r"/", Home),
            (r"/enter", Enter),
            (r"/live/(kernel|restart)", Kernel),
            (r"/report/(.*)", Site, {"path": self.site, "default_filename": "index.html"}),
            (r"/(?!api/kernels/[0-9a-f-]+/channels$).*", Nothing),
        ]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": "vsp_report.live.extension", "app": Live}]
