"""Kernel: papermill's engine with one kernel for many notebooks, so that a model is loaded once.

A kernel belongs to the thread that started it, because the channels to it do. It is made ready before each notebook
(`resident`) and thrown away after anything out of the ordinary: a failed cell, a timeout, its death, an interrupt,
something left behind, a long rest, or after `MAX_USES` notebooks. So a notebook never meets what a failure left, and
the worst that warmth can cost is the start of a new kernel.

Papermill's stock engine, under the name nbclient, takes the same notebooks; `--cold` is that.

The kernel runs in this interpreter, whatever kernels are installed under the notebook's name. It is reached through
sockets in a private folder: no other user of the machine can, and two kernels in one working folder do not meet.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbclient.util import run_sync
from nbformat.v4 import new_output
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

from vsp_report.errors import VspError
from vsp_report.run.executors import environment

ENGINE = "vsp-warm"
MAX_USES = 50
START_SECONDS = 120
PREPARE_SECONDS = 60
REST_SECONDS = 180
"""A kernel that nobody has used for so long ends."""
_PREPARE = "__import__('vsp_report.run.resident', fromlist=['resident']).prepare(get_ipython())"
_LONGEST_FOLDER = 60
"""The address of a socket has at most 107 bytes; this leaves room for the names below it."""
_FOLDER = re.compile(r"vsp-kernel-(?P<pid>[0-9]+)-.+")


class PrivateKernel(AsyncKernelManager):
    """Starts a kernel in this interpreter, reached through a private folder, and known to `kill_all`."""

    def __init__(self, **words: Any) -> None:
        self.folder = _private_folder()
        super().__init__(
            **{
                **words,
                "kernel_spec_manager": _ThisPython(),
                "transport": "tcp" if os.name == "nt" else "ipc",
                "connection_file": str(self.folder / "k.json"),
            }
        )

    async def start_kernel(self, **words: Any) -> None:
        with _lock:
            if _stopping.is_set():
                raise Interrupted
        with open(self.folder / "printed", "wb") as printed:
            await super().start_kernel(**{"env": environment(), **words, "stdout": printed, "stderr": printed})
        with _lock:
            _started[self.folder] = self.pid
        if _stopping.is_set():  # meanwhile
            kill_all()

    async def cleanup_resources(self, restart: bool = False) -> None:
        await super().cleanup_resources(restart)
        _is_there(self.folder)  # it rests no more
        with _lock:
            _started.pop(self.folder, None)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self.provisioner.pid

    def printed(self) -> str:
        """The end of what the process itself printed: how it died, if it said so."""
        with contextlib.suppress(OSError):
            text = (self.folder / "printed").read_bytes()[-4000:].decode(errors="replace")
            return "\n".join(text.strip().splitlines()[-20:])
        return ""


class _ThisPython(KernelSpecManager):
    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=[*argv, "--HistoryManager.enabled=False"], display_name="Python", language="python")


# --- all kernels -------------------------------------------------------------------------------------------------

_started: dict[Path, int] = {}
"""Folder and process of every kernel that runs, whichever thread it belongs to."""
_resting: dict[Path, threading.Timer] = {}
"""Those of them that wait for a next notebook, until this ends."""
_lock = threading.Lock()
_stopping = threading.Event()


class Interrupted(BaseException):
    """The run is over, and this notebook with it; what it has done is nobody's result."""


def kill_all(*, stop: bool = False) -> None:
    """Kill all kernels, from any thread. `stop`: and start no other, until `go_on`; who waits for one is
    `Interrupted`."""
    if stop:
        _stopping.set()
    with _lock:
        pids = list(_started.values())
    for pid in pids:
        _kill(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)  # it leads its own group: what it started goes with it
        else:
            os.kill(pid, signal.SIGTERM)


def _rest(folder: Path) -> None:
    """A cluster's workers outlast the run: a model that nobody asks any more must not stay on their GPUs."""
    timer = threading.Timer(REST_SECONDS, _end_resting, (folder,))
    timer.daemon = True
    with _lock:
        _resting[folder] = timer
    timer.start()


def _end_resting(folder: Path) -> None:
    with _lock:
        if _resting.pop(folder, None) is None or (pid := _started.pop(folder, None)) is None:
            return
    _kill(pid)


def _is_there(folder: Path) -> bool:
    """Whether a kernel that rested still runs; from now on it rests no more."""
    with _lock:
        if (timer := _resting.pop(folder, None)) is not None:
            timer.cancel()
        return folder in _started


def go_on() -> None:
    _stopping.clear()


def is_stopping() -> bool:
    return _stopping.is_set()


@atexit.register
def _leave() -> None:
    kill_all()
    for folder in list(_started):
        shutil.rmtree(folder, ignore_errors=True)


def _private_folder() -> Path:
    """A new folder for sockets, with a short name. What killed runners left is cleared on the way."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _LONGEST_FOLDER and os.path.isdir("/tmp"):
        parent = "/tmp"
    for entry in Path(parent).glob("vsp-kernel-*"):
        match = _FOLDER.fullmatch(entry.name)
        if match and not _is_alive(int(match["pid"])) and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"vsp-kernel-{os.getpid()}-", dir=parent))


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


# --- this thread's kernel ----------------------------------------------------------------------------------------

_mine = threading.local()


@dataclass
class WarmKernel:
    manager: PrivateKernel
    client: Any
    resident: str
    """what is loaded in it; another model gets another kernel"""
    uses: int = 0


def warm_kernel() -> WarmKernel | None:
    return getattr(_mine, "kernel", None)


def take_note() -> str:
    """Why this thread's kernel was thrown away before the last notebook, if what came earlier had left something."""
    note, _mine.note = getattr(_mine, "note", ""), ""
    return note


def discard() -> None:
    """Throw this thread's kernel away."""
    kernel, _mine.kernel = warm_kernel(), None
    if kernel is not None:
        _stop(kernel)


def leave() -> None:
    """Throw this thread's kernel away, and the event loop that was needed to speak with it: the thread ends."""
    discard()
    with contextlib.suppress(RuntimeError):  # there was none
        asyncio.get_event_loop().close()


def _ready_kernel(resident: str) -> WarmKernel:
    """This thread's kernel, ready for a notebook; a new one where the old one cannot be trusted."""
    kernel = warm_kernel()
    gone = kernel is not None and not _is_there(kernel.manager.folder)
    if kernel is not None and (gone or kernel.uses >= MAX_USES or kernel.resident != resident):
        discard()
    elif kernel is not None:
        try:
            _prepare(kernel)
            return kernel
        except Exception as error:
            _mine.note = str(error)
            discard()
    kernel = _mine.kernel = _start(resident)
    try:
        _prepare(kernel)
    except Exception as error:
        printed = kernel.manager.printed()[-400:]
        discard()
        raise VspError("kernel", f"does not get ready ({error})", printed) from error
    return kernel


@run_sync
async def _start(resident: str) -> WarmKernel:
    kernel = WarmKernel(PrivateKernel(), None, resident)
    try:
        await kernel.manager.start_kernel()
        kernel.client = kernel.manager.client()
        kernel.client.start_channels()
        await kernel.client.wait_for_ready(timeout=START_SECONDS)
        kernel.client.allow_stdin = False
    except BaseException as error:
        printed = kernel.manager.printed()[-400:]
        await _stop_now(kernel)
        if isinstance(error, RuntimeError) and not _stopping.is_set():
            raise VspError("kernel", f"does not start ({error})", printed) from error
        raise
    return kernel


@run_sync
async def _prepare(kernel: WarmKernel) -> None:
    asked = asyncio.ensure_future(
        kernel.client.execute(_PREPARE, silent=True, store_history=False, reply=True, timeout=PREPARE_SECONDS)
    )
    # A dead kernel never answers, and the channel does not say that it is dead.
    while not (await asyncio.wait({asked}, timeout=0.2))[0]:
        if not await kernel.manager.is_alive():
            asked.cancel()
            raise RuntimeError("it died")
    content = asked.result()["content"]
    if content["status"] != "ok":
        raise RuntimeError(content.get("evalue") or content.get("ename") or "no reason given")


@run_sync
async def _stop(kernel: WarmKernel) -> None:
    await _stop_now(kernel)


async def _stop_now(kernel: WarmKernel) -> None:
    if kernel.client is not None:
        kernel.client.stop_channels()
    try:
        if kernel.manager.has_kernel:
            await kernel.manager.shutdown_kernel(now=True)
    finally:
        await kernel.manager.cleanup_resources()


# --- the engine --------------------------------------------------------------------------------------------------


class WarmEngine(NBClientEngine):
    """`resident`: what the notebook loads; the kernel is shared with notebooks that load the same."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: int = START_SECONDS,
        execution_timeout: int | None = None,
        resident: str = "",
        **rest: Any,
    ) -> Any:
        for name in ("input_path", "timeout", "startup_timeout"):
            rest.pop(name, None)
        kernel = _ready_kernel(resident)
        kernel.uses += 1
        client = PapermillNotebookClient(
            nb_man,
            km=kernel.manager,  # so nbclient takes it for somebody else's, and leaves it running
            timeout=execution_timeout,
            kernel_name=kernel_name,
            log=logger,
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            **rest,
        )
        client.kc = kernel.client
        try:
            client.execute(cleanup_kc=False)
        except BaseException as error:
            _mark_failed(nb_man, error, kernel.manager.printed() if isinstance(error, DeadKernelError) else "")
            discard()
            if isinstance(error, (CellTimeoutError, DeadKernelError)):
                return nb_man.nb  # papermill raises when it sees the marked cell
            raise
        if any(_failed(cell) for cell in nb_man.nb.cells):
            discard()
        else:
            _rest(kernel.manager.folder)
        return nb_man.nb


def _failed(cell: Any) -> bool:
    """`sys.exit(0)` counts: papermill sees nothing wrong with it, but what came after it did not run."""
    return bool(cell.metadata.papermill["exception"])


def _mark_failed(nb_man: Any, error: BaseException, printed: str) -> None:
    """Papermill would call the cell completed, and all those after it."""
    started = [i for i, cell in enumerate(nb_man.nb.cells) if cell.metadata.papermill["start_time"]]
    index = started[-1] if started else 0
    cell = nb_man.nb.cells[index]
    if cell.cell_type == "code":
        said = str(error).strip() or type(error).__name__
        traceback = [line for line in (said, printed) if line]
        cell.outputs.append(new_output("error", ename=type(error).__name__, evalue=said.splitlines()[0],
                                       traceback=traceback))  # fmt: skip
    nb_man.cell_exception(cell, index)


papermill_engines.register(ENGINE, WarmEngine)


def hush() -> None:
    """Papermill logs each step, and nbclient every timeout; here both are said once, by who asked for the run."""
    logger.setLevel("CRITICAL")
