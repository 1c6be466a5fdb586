"""Live: how long a reader waits, from the click to the first token and to the whole answer, beside a bare `generate`.

Everything in one process: the panel's worker, the round and the model are what a kernel runs, and the bare way is
`generate` on the same model, picture and question, with nothing edited and nothing measured. So what is between the
two is what the panel costs: reading the message, finding the latents, editing, an unedited row in the same batch to
measure the change against, listening.

The time on the clock is what a reader waits, and the goal is about it; on a machine that does other work besides, the
time that the processor spent tells more, and both are given. The socket between a page and its kernel is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from vsp_report import paths
from vsp_report.live.panel import Panel, Settings
from vsp_report.model.devices import without_progress

GOAL_RATIO, GOAL_MS = 1.15, 50.0


class Spent(NamedTuple):
    wall_ms: float
    cpu_ms: float
    """of all threads of this process"""


def now() -> Spent:
    return Spent(1000 * time.perf_counter(), 1000 * time.process_time())


def since(began: Spent, at: Spent | None = None) -> Spent:
    return Spent(*(b - a for a, b in zip(began, at or now(), strict=True)))


class Reader:
    """A panel, and when it was told what."""

    def __init__(self, case: str, folder: Path) -> None:
        self.seq, self.times, self.over = 0, {}, threading.Event()
        self.failed = ""
        self.panel = Panel(Settings(paths.cases_dir(), None, False, folder), self._told, self._shown)
        self._send(type="open", case=case)

    def _shown(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def _told(self, event: dict[str, Any]) -> None:
        self.times.setdefault(event["type"], now())
        self.failed = event.get("message", self.failed) if event["type"] == "failed" else self.failed
        if event["type"] in ("done", "failed", "cancelled"):
            self.over.set()

    def _send(self, **message: Any) -> dict[str, Spent]:
        self.seq += 1
        self.times.clear()
        self.over.clear()
        began = now()
        self.panel.hear({"seq": self.seq, **message})
        self.over.wait()
        if self.failed:
            sys.exit(f"error: {self.failed}")
        return {kind: since(began, at) for kind, at in self.times.items()}

    def round(self, edits: list[dict[str, Any]]) -> dict[str, Spent]:
        return self._send(type="run", prompt=self.spec["case"]["prompt"], edits=edits, look=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="what a reader of the live panel waits for")
    parser.add_argument("--case", default="standing-beside-a-chair", help="a bundled case (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, without_progress():
        reader = Reader(args.case, Path(folder))
        subject = reader.panel.sitting.inquiry.subject
        edits = reader.spec["steerings"][0]["edits"]
        asked = subject.vlm.prepare(subject.image, subject.prompt, subject.system)

        def bare() -> Spent:
            began = now()
            subject.vlm.generate(asked, subject.max_new_tokens)
            return since(began)

        bare(), reader.round(edits)  # whatever is slower the first time
        # In turn, because other work on the machine comes and goes.
        pairs = [(bare(), reader.round(edits)) for _ in range(args.rounds)]
    found: dict[str, Any] = {}
    for clock in Spent._fields:
        plain = median(getattr(pair[0], clock) for pair in pairs)
        token, answer, whole = (median(getattr(pair[1][kind], clock) for pair in pairs)
                                for kind in ("token", "answered", "done"))  # fmt: skip
        mark = "" if clock == "wall_ms" else "cpu_"
        named = {"generate": plain, "first_token": token, "answer": answer, "measured": whole}
        named["beyond_goal"] = answer - (GOAL_RATIO * plain + GOAL_MS)
        found |= {f"{name}_{mark}ms": value for name, value in named.items()}
    found["met"] = found["beyond_goal_ms"] <= 0
    for name, value in found.items():
        print(f"{name:22}{value if isinstance(value, bool) else format(value, '.2f')}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found | {"case": args.case, "rounds": args.rounds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
