"""Task: one case, one notebook, one recording. Runs in any thread or process that sees the same folders.

The notebook saves a recording of its own into a scratch folder; it is published from here, with the executed
notebook beside it. A case has succeeded when that recording is there and can be read, whatever papermill says of the
cells. Where the notebook could not save one, the recording says what it was doing and why it stopped.

A task may be done twice and by several at once, as on a cluster whose workers die: it looks first whether the
recording that it was to make is there, and publishing is whole or absent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from vsp_report import errors, paths
from vsp_report.case import make_case
from vsp_report.errors import InputError, VspError
from vsp_report.recording import (
    NOTEBOOK,
    SCHEMA,
    Provenance,
    Recording,
    Stop,
    load_recording,
    recording_sha,
    restate,
    save_recording,
)
from vsp_report.run.plan import State, Surroundings, foresee

PARAMETERS = "parameters"
"""The tag of the notebook's cell with `case_path` and `out_dir`."""
DEVICE = "device"
"""Passed on where that cell names it."""
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST_MESSAGE = 600


@dataclass(frozen=True)
class Task:
    id: str
    state: State
    case: dict[str, Any]
    """resolved"""
    case_path: str
    shown: str
    """the case's file, as a command names it"""
    notebook: str
    folder: str
    """where the recording goes"""
    scratch: str
    foreseen: Provenance
    surroundings: Surroundings
    why: str = ""
    replaces: str = ""
    resident: str = ""
    cold: bool = False
    seconds: float | None = None
    """that the notebook may take"""
    device: str | None = None

    @property
    def step_file(self) -> Path:
        return Path(self.scratch) / f"{self.id}.step"


class Outcome(NamedTuple):
    id: str
    status: str
    """as `Recording.status`"""
    message: str = ""
    seconds: float = 0.0
    note: str = ""
    """what an earlier case had left in the kernel, which was therefore thrown away"""


def run_task(task: Task) -> Outcome:
    started = time.monotonic()
    try:
        recording = _done_elsewhere(task) or _do(task, started)
    except OSError as error:
        remedy = "Make room, and run again: what is recorded stays." if error.errno in _FULL else ""
        place = task.folder if error.filename is None else str(error.filename)
        raise VspError(place, f"cannot be written ({error.strerror or error})", remedy) from error
    message = recording.stop.message if recording.stop else ""
    return Outcome(task.id, recording.status, message, time.monotonic() - started, _note())


def _note() -> str:
    kernel = sys.modules.get("vsp_report.run.kernel")  # who ran no notebook has none
    return kernel.take_note() if kernel else ""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _done_elsewhere(task: Task) -> Recording | None:
    """The recording that another run, or a worker that died just after, has made of this meanwhile."""
    with contextlib.suppress(InputError, OSError):
        if recording_sha(task.folder) != task.replaces:
            recording = load_recording(task.folder, arrays=False, verify=False)
            if recording.provenance.run_key == task.foreseen.run_key and recording.status != "error":
                return recording
    return None


def _do(task: Task, started: float) -> Recording:
    if task.state == "restate":
        restate(task.folder, make_case(task.case, task.id, task.shown))
        return load_recording(task.folder, arrays=False, verify=False)
    if task.state == "not-run":
        recording = _stopped(task, "not-run", Stop("needs", f"{task.shown}: {task.why}."))
        return _publish(task, recording, {}, started)
    work = Path(task.scratch) / task.id
    shutil.rmtree(work, ignore_errors=True)  # of a worker that died
    work.mkdir(parents=True)
    try:
        stop, notebook = _execute(task, work)
        made = work / "recording"
        recording, stop = _made(task, made, stop)
        files: dict[str, bytes | Path] = {}
        if recording is not None:
            names = (p.relative_to(made).as_posix() for p in sorted(made.rglob("*")) if p.is_file())
            files = {name: made / name for name in names if name.startswith("images/") or name == "case.yaml"}
        if recording is None:
            recording = _stopped(task, "error", stop)
        elif stop is not None and recording.status == "ok":
            # Saved, and then something failed. What the notebook says itself of a failure is nearer to it.
            recording = replace(recording, status="error", stop=stop)
        if recording.status == "error" and (device := _made_elsewhere(task)):
            fault = f"{recording.stop.message.rstrip('.')}. The recording made on {device} stays."
            return replace(recording, stop=replace(recording.stop, message=fault))
        if notebook is not None:
            files[NOTEBOOK] = notebook
        return _publish(task, recording, files, started)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        task.step_file.unlink(missing_ok=True)


def _made_elsewhere(task: Task) -> str:
    """The other kind of device that has answered the same question: its recording is worth more than the news that
    this one cannot. Empty where there is none."""
    with contextlib.suppress(InputError, OSError):
        there = load_recording(task.folder, arrays=False, verify=False)
        asked = make_case(task.case, task.id, task.shown).computed()
        if there.status == "ok" and there.asked().computed() == asked:
            device = there.provenance.device_class
            return device if device != task.foreseen.device_class else ""
    return ""


def _stopped(task: Task, status: Any, stop: Stop | None) -> Recording:
    return Recording(SCHEMA, task.id, status, task.case, stop)


def _made(task: Task, folder: Path, stop: Stop | None) -> tuple[Recording | None, Stop | None]:
    """What the notebook saved, if it can be read, and why it is no success, if it is none."""
    try:
        recording = load_recording(folder)
    except InputError as error:
        missing = "the notebook ended without saving a recording" if not folder.exists() else _one_line(str(error))
        return None, stop or Stop("save", missing)
    if recording.id != task.id:
        return None, stop or Stop("save", f"the notebook saved a recording of another case, {recording.id}")
    return replace(recording, case=task.case), stop


def _publish(task: Task, recording: Recording, files: dict[str, bytes | Path], started: float) -> Recording:
    foreseen = task.foreseen
    if recording.status == "ok" and not (foreseen.model_sha and foreseen.sae_sha):
        # They were fetched by the run itself: only now is it known what they are.
        case = replace(make_case(task.case, task.id, task.shown), path=Path(task.case_path))
        now = replace(task.surroundings, found={})
        known = foresee(case, now, notebook_sha=foreseen.notebook_sha, device=task.device, shown=task.shown,
                        site=Path(task.folder).parent.parent)  # fmt: skip
        foreseen = replace(known, command=foreseen.command)
    told, mine = recording.provenance, ("run_key", "notebook_sha", "package_sha", "command")
    filled = {name: getattr(foreseen, name) for name in vars(foreseen) if name in mine or not getattr(told, name)}
    filled |= {"seconds": round(time.monotonic() - started, 3),
               "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}  # fmt: skip
    recording = replace(recording, provenance=replace(told, **filled))
    save_recording(task.folder, recording, files)
    return recording


# --- the notebook ------------------------------------------------------------------------------------------------


def bundled_notebook() -> Path:
    return paths.templates_dir() / "notebooks" / "case.ipynb"


def _execute(task: Task, work: Path) -> tuple[Stop | None, bytes | None]:
    """Why the notebook stopped, if it did before its end; and the notebook, as far as it came."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from vsp_report.run import kernel

    source = Path(task.notebook) if task.notebook else bundled_notebook()
    heading, deadline = _Headings(source), time.monotonic() + (task.seconds or 0)
    parameters = {"case_path": task.case_path, "out_dir": str(work / "recording")}
    if task.device and heading.takes(DEVICE):
        parameters[DEVICE] = task.device

    def on_cell_start(cell: Any, cell_index: int) -> None:
        if kernel.is_stopping():
            raise kernel.Interrupted
        if (step := heading.seen(cell)) is not None:
            with contextlib.suppress(OSError):
                task.step_file.write_text(step, encoding="utf-8")

    words: dict[str, Any] = {
        "engine_name": "nbclient" if task.cold else kernel.ENGINE,
        # The stock engine tells of a dead kernel and forgets the notebook, unless that is saved as it goes.
        "request_save_on_cell_execute": task.cold,
        "start_timeout": kernel.START_SECONDS,
        "autosave_cell_every": 0,
        "progress_bar": False,
        "record_timing": False,
        "iopub_timeout": 60,
        "on_cell_start": on_cell_start,
        "kernel_manager_class" if task.cold else "resident": kernel.PrivateKernel if task.cold else task.resident,
    }
    if task.seconds:
        words["timeout_func"] = lambda cell: max(0.001, deadline - time.monotonic())
    output, stop = work / "executed.ipynb", None
    try:
        kernel.hush()
        papermill.execute_notebook(str(source), str(output), parameters, kernel_name="python3", **words)
    except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        stop = _stop_of(error, heading.last)
    except (VspError, OSError):
        raise
    except Exception as error:
        stop = _stop_of(error, heading.last)
    if kernel.is_stopping():
        raise kernel.Interrupted
    if stop is not None and not task.cold:
        kernel.discard()  # whatever it was, and wherever it was noticed
    clean = _Clean(task, work)
    notebook = None
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        notebook = clean.notebook(json.loads(output.read_text(encoding="utf-8")))
    if stop is not None:
        said = stop.message
        if task.seconds and said.startswith("CellTimeoutError:"):
            said = f"{task.shown}: it took longer than {task.seconds:g} seconds. Give it more with --timeout."
        elif said.startswith("DeadKernelError:"):
            said = f"{task.shown}: its kernel died. It may have run out of memory, or crashed."
        stop = replace(stop, message=clean.text(said), traceback=clean.text(stop.traceback))
    return stop, notebook


def _stop_of(error: Exception, step: str) -> Stop:
    name, said = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    lines = getattr(error, "traceback", None) or traceback.format_exception(error)
    message = _one_line(said) if name in _OURS else _one_line(f"{name}: {said}")
    return Stop(step or "start", message, _ANSI.sub("", "\n".join(lines)).strip())


_OURS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, VspError)}
"""Errors that say place, fault and remedy themselves."""


def _one_line(text: str) -> str:
    line = " ".join(_ANSI.sub("", text).split())
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "…"


class _Headings:
    """The heading above the cell that runs is what a case is doing."""

    def __init__(self, notebook: Path) -> None:
        try:
            self._cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(str(notebook), "is no notebook", "Install vsp-report again.") from error
        self.last = ""

    def takes(self, parameter: str) -> bool:
        """Whether the cell tagged `parameters` names it."""
        tagged = [c for c in self._cells if PARAMETERS in c.get("metadata", {}).get("tags", ())]
        return any(re.search(rf"(?m)^{parameter}\b", "".join(cell["source"])) for cell in tagged)

    def seen(self, cell: Any) -> str | None:
        """The new heading, where a cell brings one."""
        if cell.cell_type != "markdown":
            return None
        found = re.search(r"(?m)^#{1,6} +(.+?)\s*#*$", cell.source)
        if found is None:
            return None
        self.last = re.sub(r"[*_`]|\[([^\]]*)\]\([^)]*\)", r"\1", found[1])
        return self.last


class _Clean:
    """An executed notebook without times, random names, or folders of this machine."""

    def __init__(self, task: Task, work: Path) -> None:
        here = Path.cwd()
        final = Path(task.folder)
        shown = final.relative_to(here).as_posix() if final.is_relative_to(here) else final.name
        import vsp_report

        package = Path(vsp_report.__file__).resolve().parents[1]
        swaps = {
            str(work / "recording"): shown,
            f"{work}{os.sep}": "",
            task.case_path: task.shown,
        }
        for folder, instead in ((package, ""), (here, ""), (Path.home(), f"~{os.sep}")):
            if folder != Path(folder.anchor):  # a run from / would take every slash away
                swaps[f"{folder}{os.sep}"] = instead
        # The longest first: one folder may be inside another.
        self._swaps = sorted(swaps.items(), key=lambda swap: -len(swap[0]))

    def text(self, text: str) -> str:
        for folder, instead in self._swaps:
            text = text.replace(folder, instead)
        return text

    def notebook(self, data: dict[str, Any]) -> bytes:
        data["cells"] = [self._cell(cell) for cell in data["cells"] if not _is_marker(cell)]
        data["metadata"] = {k: v for k, v in data["metadata"].items() if k != "papermill"}
        return (json.dumps(self._value(data), indent=1, ensure_ascii=False) + "\n").encode()

    def _cell(self, cell: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in cell["metadata"].items() if name not in ("papermill", "execution")}
        if not kept.get("tags", True):  # papermill gives each cell some, if only none
            del kept["tags"]
        injected = {"id": "injected-parameters"} if "injected-parameters" in kept.get("tags", ()) else {}
        outputs = {"outputs": _coalesced(cell["outputs"])} if "outputs" in cell else {}
        return cell | injected | outputs | {"metadata": kept}

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self._value(inner) for key, inner in value.items()}
        return [self._value(inner) for inner in value] if isinstance(value, list) else value


def _coalesced(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Text as it was printed, not as it happened to arrive; of a line written over several times, the last state.
    nbclient's own `coalesce_streams` takes minutes for one line of 300,000 characters."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] != "stream":
            joined.append(output)
        elif joined and (joined[-1]["output_type"], joined[-1].get("name")) == ("stream", output["name"]):
            joined[-1] = output | {"text": "".join([*joined[-1]["text"], *output["text"]])}
        else:
            joined.append(output | {"text": "".join(output["text"])})
    for output in joined:
        if output["output_type"] == "stream":
            lines = _lines(output["text"].replace("\r\n", "\n"))
            output["text"] = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    return joined


def _lines(text: str) -> list[str]:
    """As nbformat splits it, but at line feeds alone."""
    return [line + "\n" for line in text.split("\n")[:-1]] + ([last] if (last := text.split("\n")[-1]) else [])


def _is_marker(cell: dict[str, Any]) -> bool:
    """Papermill's own note of where it stopped."""
    return "papermill-error-cell-tag" in cell["metadata"].get("tags", ())


def steps_of(tasks: list[Task]) -> Iterator[tuple[Task, str]]:
    """What those that run are doing."""
    for task in tasks:
        with contextlib.suppress(OSError):
            yield task, task.step_file.read_text(encoding="utf-8")
