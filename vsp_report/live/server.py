"""Server: starts the extension on this machine, lets its owner in, and sweeps what a killed one left.

The token of a start is made here and never leaves it by a way that others can read: not by the arguments of a process,
not by the environment, not by a log. The browser is given a file of the owner's own that leads to the door; where
there is no browser, the address is printed to a terminal, and elsewhere only the name of that file.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vsp_report.errors import InputError, MissingExtra

HOST = "127.0.0.1"
MOST_MESSAGE = 12 << 20
"""Bytes of one message from a page: a picture, and what goes with it."""
_LONGEST_FOLDER = 50
"""The address of a socket has at most 107 bytes; this leaves room for the names below it."""
_STATE = re.compile(r"[A-Za-z0-9._=&,-]{1,30000}")


@dataclass(frozen=True)
class Wanted:
    site: Path
    cases: Path
    case: str = ""
    """the page to open; the index without"""
    state: str = ""
    """of its panel, as a link of the panel has it behind the sign"""
    port: int = 0
    browser: bool = True
    device: str | None = None


def serve(wanted: Wanted) -> None:
    """Until Ctrl-C, or until it is asked to end."""
    extension = _extension()
    if not (wanted.site / "index.html").is_file():
        raise InputError(str(wanted.site), "holds no site", "`vsp-report build` makes one.")
    to = "/report/index.html"
    if wanted.case:
        to = f"/report/cases/{wanted.case}/index.html"
        if not (wanted.site / to.removeprefix("/report/")).is_file():
            remedy = f"`vsp-report run {wanted.case}` and `vsp-report build` make it."
            raise InputError(wanted.case, f"has no page in {wanted.site}", remedy)
        to += f"#{wanted.state}" if wanted.state else ""
    with _private_folder() as folder, _own_jupyter(folder):
        token = secrets.token_urlsafe(32)
        port = _port(wanted.port)
        app = _started(extension, wanted, folder, token, port)
        address = f"http://{HOST}:{port}/enter?token={token}&to={quote(to, safe='/')}"
        file = _door(folder, address)
        app.io_loop.add_callback(_say, wanted, address, file)
        _run(app)


def _extension():
    try:
        from vsp_report.live import extension
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("jupyter_server", "tornado", "traitlets"):
            remedy = "Run: pip install 'vsp-report[live]'"
            raise MissingExtra("live", f"{error.name} is not installed", remedy) from error
        raise
    return extension


def _started(extension, wanted: Wanted, folder: Path, token: str, port: int):
    from traitlets.config import Config

    told = {"cases": str(wanted.cases.resolve()), "device": wanted.device, "saves": wanted.cases.is_dir(),
            "folder": str(folder / "files")}  # fmt: skip
    (folder / "files").mkdir()
    (folder / "root").mkdir()
    config = Config()
    config.Live.update(site=str(wanted.site.resolve()), token=token, environment=_environment(folder, told))
    config.LiveServer.update(
        ip=HOST, port=port, port_retries=0, open_browser=False, allow_root=True, answer_yes=True,
        root_dir=str(folder / "root"), cookie_secret=secrets.token_bytes(32), log_level="CRITICAL",
        identity_provider_class=extension.Doorkeeper, authorizer_class=extension.Doorman,
        kernel_spec_manager_class=extension.LiveKernelSpecs, allow_origin="", allow_remote_access=False,
        tornado_settings={"websocket_max_message_size": MOST_MESSAGE, "max_body_size": 1 << 20},
    )  # fmt: skip
    config.AsyncMappingKernelManager.update(
        allowed_message_types=list(extension.MESSAGES),
        allow_tracebacks=False,
        buffer_offline_messages=False,
        kernel_manager_class=f"{extension.__name__}.PrivateKernel",
    )
    config.KernelRestarter.update(time_to_dead=1.0)
    extension.LiveServer.clear_instance()
    app = extension.LiveServer.instance(config=config, jpserver_extensions={"vsp_report.live.extension": True})
    app.initialize(argv=[], starter_extension=extension.Live.name, find_extensions=False)
    return app


def _environment(folder: Path, told: dict) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JUPYTER")}
    return kept | {"VSP_LIVE": json.dumps(told), "IPYTHONDIR": str(folder / "ipython"), "PYTHONNOUSERSITE": "1"}


def _run(app) -> None:
    stop = lambda *_: app.stop(from_signal=True)  # noqa: E731
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
        with contextlib.suppress(ValueError):  # not the main thread: who started it ends it
            before[number] = signal.signal(number, stop)
    try:
        app.start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_state(text: str) -> bool:
    """Whether a panel may have written this into its link; the door lets nothing else through."""
    return bool(_STATE.fullmatch(text)) and ".." not in text


# --- the door ----------------------------------------------------------------------------------------------------


def _door(folder: Path, address: str) -> Path:
    """A page of the owner's own that leads to the door: its name may stand in the arguments of a browser."""
    file = folder / "open.html"
    shown = html.escape(address)
    head = '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
    text = f'{head}<meta http-equiv="refresh" content="0;url={shown}"><p><a href="{shown}">The report</a></p>\n'
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(text)
    return file


def _say(wanted: Wanted, address: str, file: Path) -> None:
    port = address.partition("//")[2].partition("/")[0].rpartition(":")[2]
    print(f"live: {wanted.site} on {HOST}:{port}, with a kernel (Ctrl-C ends it)", flush=True)
    opened = False
    if wanted.browser:
        with contextlib.suppress(webbrowser.Error, OSError):
            opened = webbrowser.open(file.as_uri())
    if opened:
        return
    if sys.stdout.isatty():
        print(f"open {address}", flush=True)
    else:
        print(f"open {file}", flush=True)


# --- the place ---------------------------------------------------------------------------------------------------


def _port(port: int) -> int:
    """A free one, or the one that is asked for if it is free."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except (OSError, OverflowError) as error:
            remedy = "Name another with --port; 0 finds a free one."
            raise InputError(f"port {port}", "cannot be used, or is taken", remedy) from error
        return tried.getsockname()[1]


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder that only its owner can look into. What killed servers left is cleared on the way."""
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent)) > _LONGEST_FOLDER and os.path.isdir("/tmp"):
        parent = Path("/tmp")
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"vsp-live-{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path, kind: str = "vsp-live") -> list[Path]:
    """Remove the folders of processes that are no more; a kernel whose server is gone ends by itself."""
    swept = []
    for entry in parent.glob(f"{kind}-*"):
        match = re.fullmatch(rf"{kind}-(?P<pid>[0-9]+)-.+", entry.name)
        if match and not entry.is_symlink() and not _is_alive(int(match["pid"])):
            shutil.rmtree(entry, ignore_errors=True)
            swept.append(entry)
    return swept


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def _own_jupyter(folder: Path) -> Iterator[None]:
    """No settings of another Jupyter on this machine, which might let in whom this one must not; no files there."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_NO_CONFIG", "JUPYTER_TOKEN")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(
        {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
        JUPYTER_NO_CONFIG="1",
    )
    (folder / "runtime").mkdir(mode=0o700)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
