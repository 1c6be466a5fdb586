"""Progress: what a terminal shows of a batch while it runs. In a pipe only what went wrong is said."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from vsp_report.run.batch import seconds_left
from vsp_report.run.task import Outcome

SIGNS = {"ok": "done", "error": "failed", "not-run": "not run here"}


class Progress:
    """One line for each case that ended, and a last one, written over, for what goes on."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._tasks = self._ended = 0
        self._begun = time.monotonic()

    def begins(self, tasks: int) -> None:
        self._tasks, self._begun = tasks, time.monotonic()

    def grows(self, tasks: int) -> None:
        """More of the same batch has been read: so many are known by now."""
        self._tasks = tasks

    def ended(self, outcome: Outcome) -> None:
        self._ended += 1
        if outcome.note:
            self._line(f"note: {outcome.id} got a new kernel, because an earlier case left something: {outcome.note}")
        if outcome.status == "error":
            self._line(f"failed: {outcome.id}: {outcome.message}")
        elif self._live:
            said = f": {outcome.message}" if outcome.message else ""
            self._line(f"{SIGNS[outcome.status]}: {outcome.id} ({outcome.seconds:.1f} s){said}")

    def runs(self, steps: Sequence[tuple[str, str]]) -> None:
        if not self._live:
            return
        doing = "; ".join(f"{id}: {step}" for id, step in steps) or ("starting" if self._ended < self._tasks else "")
        left = seconds_left(self._begun, self._ended, self._tasks)
        ahead = f" · about {_span(left)} left" if left else ""
        self._status(f"{self._ended}/{self._tasks}{ahead} · {doing}")

    def close(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _line(self, text: str) -> None:
        self.close()
        print(" ".join(text.split()), file=self._stream, flush=True)

    def _status(self, text: str) -> None:
        width = shutil.get_terminal_size((80, 24)).columns - 1
        self._stream.write("\r\x1b[K" + (text if len(text) <= width else text[: width - 1] + "…"))
        self._stream.flush()


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
