"""Panel: the kernel's side of a panel. Messages in, one round at a time, events out. Runs inside the kernel.

Rounds are made by one thread, so that the kernel can hear while the model speaks: a cancelled round ends at its next
token, a second tab waits its turn, and a cell that is run meanwhile waits for the round to end. Few may wait: who
comes when the queue is full is told so.

    serve()        for a page: answers on a comm, which needs no widget and no cell
    here(inquiry)  for a notebook: the same panel as a widget, in the cell that asks for it

What a panel may ask is `asked`; whatever else goes wrong is told in one line, and the panel goes on.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vsp_report import paths
from vsp_report.case import case_files
from vsp_report.errors import MissingExtra, VspError
from vsp_report.live import asked, saving
from vsp_report.live.asked import Cancel, Open, Run, Save, Upload
from vsp_report.live.server import sweep

TARGET = "vsp.panel"
SETTINGS = "VSP_LIVE"
"""The environment variable with which a server tells its kernel what it serves, as JSON."""
WAITING = 3
"""So many may wait while one is made."""
MOST_PANELS = 16
Send = Callable[[dict[str, Any]], None]


# --- one at a time -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Job:
    panel: Panel
    seq: int
    work: Callable[[Job], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """One thread that does what panels ask, one after the other; it begins when it is first needed."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Job] = queue.Queue()
        self._lock = threading.Lock()
        self._open: list[Job] = []
        self._thread: threading.Thread | None = None
        self.idle = threading.Event()
        self.idle.set()

    def put(self, job: Job) -> None:
        with self._lock:
            ahead = len(self._open)
            if ahead > WAITING:
                raise VspError("kernel", f"has {ahead} rounds to do already", "Wait for one of them to end.")
            self._open.append(job)
            self.idle.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vsp-panel", daemon=True)
                self._thread.start()
        job.panel.tell(job, {"type": "queued", "ahead": ahead})
        self._jobs.put(job)

    def cancel(self, panel: Panel, seq: int | None = None) -> None:
        with self._lock:
            for job in self._open:
                if job.panel is panel and seq in (None, job.seq):
                    job.cancelled.set()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                self._do(job)
            finally:
                with self._lock:
                    self._open.remove(job)
                    if not self._open:
                        self.idle.set()

    def _do(self, job: Job) -> None:
        from vsp_report.live.rounds import Stopped

        try:
            if job.cancelled.is_set():
                raise Stopped
            job.work(job)
        except Stopped:
            job.panel.tell(job, {"type": "cancelled"})
        except VspError as error:
            job.panel.tell(job, _short_of_memory() if _is_memory(error.__cause__) else _failed(str(error)))
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            told = _failed(f"It could not be done ({type(error).__name__}: {_one_line(error)}).")
            job.panel.tell(job, _short_of_memory() if _is_memory(error) else told)
        else:
            return
        _free()  # by now nothing holds what the round held


_worker = Worker()


def _failed(message: str) -> dict[str, Any]:
    return {"type": "failed", "message": message}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


NO_MEMORY = "There is not enough memory for that. Ask for less, or start again, which frees what is held."


def _short_of_memory() -> dict[str, Any]:
    """A kernel that was without memory may not find back: oneDNN remembers what it could not make then."""
    return {**_failed(NO_MEMORY), "anew": True}


def _is_memory(error: BaseException | None) -> bool:
    """Out of memory says Python in one way, an accelerator in another, and torch on a CPU in its words only."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


_NO_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|out of memory|bad_alloc|could not create a primitive$", re.IGNORECASE
)
"""The last is what oneDNN, which multiplies for torch on a CPU, says of it."""


def _free() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


# --- a panel -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What a server lets its panels do."""

    cases: Path = Path("cases")
    device: str | None = None
    saves: bool = False
    folder: Path | None = None
    """for uploads, and for what a failing step would leave"""

    @classmethod
    def of_environment(cls) -> Settings:
        told = json.loads(os.environ.get(SETTINGS, "{}"))
        folder = told.get("folder")
        return cls(Path(told.get("cases", "cases")), told.get("device"), bool(told.get("saves")),
                   Path(folder) if folder else None)  # fmt: skip


class Panel:
    """One tab, or one cell. `send` takes an event to it, `show` a new spec."""

    def __init__(self, settings: Settings, send: Send, show: Send, sitting: Any = None) -> None:
        self.settings, self.send, self.show, self.sitting = settings, send, show, sitting
        self.closed = False

    def tell(self, job: Job, event: dict[str, Any]) -> None:
        if not self.closed:
            with suppress(Exception):  # a tab that is gone hears nothing, and that is no fault of the round
                self.send({**event, "seq": job.seq, "source": "kernel"})

    def hear(self, message: Any) -> None:
        """Whatever comes over the channel."""
        seq = message.get("seq", 0) if isinstance(message, dict) else 0
        try:
            self._take(asked.read(message))
        except VspError as error:
            self.send({**_failed(str(error)), "seq": seq if isinstance(seq, (int, float)) else 0, "source": "kernel"})
        except Exception as error:  # nesting beyond all measure, and the like
            self.send({**_failed(f"That cannot be asked ({type(error).__name__})."), "seq": 0, "source": "kernel"})

    def _take(self, message: asked.Message) -> None:
        match message:
            case Cancel():
                _worker.cancel(self)
            case Run():
                self._queue(message.seq, lambda job: self._run(job, message))
            case Open():
                self._queue(message.seq, lambda job: self._open(job, message))
            case Upload():
                self._queue(message.seq, lambda job: self._upload(job, message))
            case Save():
                self._queue(message.seq, lambda job: self._save(job, message))

    def _queue(self, seq: int, work: Callable[[Job], None]) -> None:
        _worker.put(Job(self, seq, work))

    def close(self) -> None:
        self.closed = True
        _worker.cancel(self)

    # -- what is done, on the worker's thread -------------------------------------------------------

    def _folder(self) -> Path:
        return self.settings.folder or _own_folder()

    def _open(self, job: Job, message: Open) -> None:
        from vsp_report.live.rounds import sit

        (file,) = case_files([message.case], self.settings.cases)
        self.sitting = _kept(file, self._folder(), self.settings.device, sit)
        self.show(self.sitting.spec(saves=self.settings.saves))
        self.tell(job, {"type": "done", "ms": 0})

    def _run(self, job: Job, message: Run) -> None:
        self._opened().round(message, lambda event: self.tell(job, event), job.cancelled.is_set)

    def _upload(self, job: Job, message: Upload) -> None:
        self.sitting = self._opened().with_picture(message.name, message.data, self._folder())
        self.show(self.sitting.spec(saves=self.settings.saves))
        self.tell(job, {"type": "done", "ms": 0})

    def _save(self, job: Job, message: Save) -> None:
        sitting, picture = self._opened(), self.sitting.picture_file
        case = sitting.as_case(message.run)
        image = picture[0] if picture else None
        text = saving.case_text(message.name, message.title, case, sitting.seen(message.run), image)
        told = {"type": "saved", "name": f"{message.name}.yaml", "text": text, "picture": image, "file": None}
        if message.into_folder:
            if not self.settings.saves:
                raise VspError("cases", "is not written from here", "Take the text of the case instead.")
            told["file"] = str(saving.save_case(self.settings.cases, message.name, text, picture))
        self.tell(job, told)
        self.tell(job, {"type": "done", "ms": 0})

    def _opened(self) -> Any:
        if self.sitting is None:
            raise VspError("panel", "has no case open", "Load the page again.")
        return self.sitting


@cache
def _own_folder() -> Path:
    """For the pictures of a notebook's reader, as long as its kernel lives."""
    parent = Path(tempfile.gettempdir())
    sweep(parent, "vsp-panel")
    folder = Path(tempfile.mkdtemp(prefix=f"vsp-panel-{os.getpid()}-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


_sittings: dict[tuple[str, float], Any] = {}


def _kept(file: Path, folder: Path, device: str | None, sit: Any) -> Any:
    """A case that is open already, for another tab; the models themselves are kept by `study.subjects`."""
    key = (str(file.resolve()), file.stat().st_mtime)
    if key not in _sittings:
        while len(_sittings) >= 8:
            del _sittings[next(iter(_sittings))]
        _sittings[key] = sit(file, folder, device)
    return _sittings[key]


# --- for a page --------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer every comm that opens `TARGET`. Called once, as the kernel starts."""
    from IPython import get_ipython

    settings, panels = Settings.of_environment(), []
    manager = get_ipython().kernel.comm_manager

    def opened(comm: Any, message: Any) -> None:
        panels[:] = [one for one in panels if not one.closed]
        if len(panels) >= MOST_PANELS:
            panels.pop(0).close()

        def send(event: dict[str, Any]) -> None:
            comm.send({"method": "custom", "content": event})

        def show(spec: dict[str, Any]) -> None:
            comm.send({"method": "update", "state": {"spec": spec}})

        panel = Panel(settings, send, show)
        panels.append(panel)
        comm.on_msg(lambda msg: panel.hear(msg["content"]["data"].get("content")))
        comm.on_close(lambda msg: panel.close())

    manager.register_target(TARGET, opened)
    threading.Thread(target=_warm, name="vsp-warm", daemon=True).start()


def _warm() -> None:
    """Load what rounds need while the reader still reads."""
    with suppress(Exception):  # whatever is wrong is said when a case is opened
        import vsp_report.live.rounds  # noqa: F401


# --- for a notebook ----------------------------------------------------------------------------------------------


def script() -> str:
    """The panel's script in the form that anywidget wants."""
    source = (paths.templates_dir() / "static" / "panel.js").read_text(encoding="utf-8")
    return f"{source}\nexport default globalThis.VspPanel;\n"


def here(inquiry: Any) -> Any:
    """The panel for the case of a notebook, as the value of a cell.

    Where nobody sits before the notebook, as in `vsp-report run`, it is two lines that say how to get one.
    """
    from IPython.display import Markdown

    if not _is_read():
        return Markdown(
            f"Run this notebook in Jupyter and the panel stands here; "
            f"`vsp-report live {inquiry.case.id}` opens this case beside a running kernel."
        )
    return widget(inquiry)


def _is_read() -> bool:
    """Whether somebody sits before the notebook: Jupyter Server names its session, other hosts leave their own mark."""
    from IPython import get_ipython

    shell = get_ipython()
    marks = ("__vsc_ipynb_file__", "__session__")
    return "JPY_SESSION_NAME" in os.environ or any(mark in getattr(shell, "user_ns", {}) for mark in marks)


def widget(inquiry: Any) -> Any:
    """The panel as a widget."""
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError as error:
        raise MissingExtra("live", f"{error.name} is not installed", "Run: pip install 'vsp-report[live]'") from error
    from vsp_report.live.rounds import Sitting, _acquaint

    class SteerPanel(anywidget.AnyWidget):
        _esm = script()
        _css = (paths.templates_dir() / "static" / "panel.css").read_text(encoding="utf-8")
        spec = traitlets.Dict().tag(sync=True)

    _acquaint(inquiry)
    sitting = Sitting(inquiry)
    settings = Settings(cases=inquiry.case.path.parent if inquiry.case.path else Path("cases"),
                        saves=inquiry.case.path is not None)  # fmt: skip
    shown = SteerPanel(spec=sitting.spec(saves=settings.saves))

    def show(spec: dict[str, Any]) -> None:
        shown.spec = spec

    panel = Panel(settings, lambda event: shown.send(event), show, sitting)
    shown.on_msg(lambda _, content, buffers: panel.hear(content))
    _make_cells_wait()
    return shown


_waits = False


def _make_cells_wait() -> None:
    """A cell may use the model, and so must not run beside a round."""
    global _waits
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None and not _waits:
        _waits = True
        shell.events.register("pre_run_cell", lambda info=None: _wait_for_rounds())


def _wait_for_rounds() -> None:
    while not _worker.idle.wait(0.2):
        time.sleep(0)
