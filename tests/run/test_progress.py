"""What a terminal shows of a run, and how little a pipe is told; and what of an executed notebook is kept."""

from __future__ import annotations

import io

from vsp_report.run.progress import Progress, _span
from vsp_report.run.task import Outcome, _coalesced


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def go_through(stream: io.StringIO) -> str:
    progress = Progress(stream)
    progress.begins(3)
    progress.runs([("a", "Steering")])
    progress.ended(Outcome("a", "ok", seconds=1.0))
    progress.runs([("b", "Looking")])
    progress.ended(Outcome("b", "error", "cases/b.yaml: is odd.", 1.0, note="Linear still has a hook"))
    progress.ended(Outcome("c", "not-run", "needs a GPU", 0.0))
    progress.close()
    return stream.getvalue()


def test_a_terminal_shows_cases_their_step_and_the_time_left() -> None:
    shown = go_through(Terminal())
    assert "0/3 · a: Steering" in shown
    assert "1/3 · about" in shown and "left · b: Looking" in shown
    assert "done: a (1.0 s)\n" in shown and "not run here: c (0.0 s): needs a GPU\n" in shown
    assert shown.endswith("\r\x1b[K")


def test_a_pipe_is_told_what_went_wrong_and_nothing_else() -> None:
    assert go_through(io.StringIO()).splitlines() == [
        "note: b got a new kernel, because an earlier case left something: Linear still has a hook",
        "failed: b: cases/b.yaml: is odd.",
    ]


def test_spans() -> None:
    assert [_span(s) for s in (0.2, 45, 300, 9000)] == ["1 s", "45 s", "5 min", "2.5 h"]


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": [text]}


def test_printed_text_is_kept_as_it_read_in_the_end() -> None:
    picture = {"output_type": "display_data", "data": {}}
    (one, two, _, three) = _coalesced([stream("a\n"), stream("b\n"), stream("!", "stderr"), picture, stream("c")])
    assert [one["text"], two["text"], three["text"]] == [["a\n", "b\n"], ["!"], ["c"]]
    (bar,) = _coalesced([stream("10 %\r"), stream("100 %\r\n"), stream("done")])
    assert bar["text"] == ["100 %\n", "done"]
    (long,) = _coalesced([stream("x" * 300_000)])  # in time that grows with its length, and no faster
    assert len(long["text"][0]) == 300_000
