"""Rounds on the real model: the same figures as a recording, to the last digit; streamed, stopped, queued, saved."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.live.serving import Home, record
from vsp_report.live.panel import NO_MEMORY, Panel, Settings
from vsp_report.recording import load_recording
from vsp_report.render import replay

PROMPT = "Is the person sitting or standing?"
ENDS = ("done", "failed", "cancelled")


class Asker:
    """A panel of which everything that is told is kept."""

    def __init__(self, home: Home, folder: Path, hear: Callable[[dict], None] = lambda event: None) -> None:
        self.told: list[dict] = []
        self.specs: list[dict] = []
        self.hear, self.seq, self.news = hear, 0, threading.Condition()
        self.panel = Panel(Settings(home.cases, "cpu", True, folder), self._told, self.specs.append)

    def _told(self, event: dict) -> None:
        with self.news:
            self.told.append(event)
            self.news.notify_all()
        self.hear(event)

    def send(self, **message: Any) -> int:
        self.seq += 1
        self.panel.hear({"seq": self.seq, **message})
        return self.seq

    def ended(self, seq: int) -> list[dict]:
        def mine() -> list[dict]:
            return [event for event in self.told if event["seq"] == seq]

        with self.news:
            assert self.news.wait_for(lambda: any(event["type"] in ENDS for event in mine()), 120)
            return mine()

    def ask(self, prompt: str = PROMPT, edits: list | None = None, **more: Any) -> list[dict]:
        return self.ended(self.send(type="run", prompt=prompt, edits=edits or [], **{"look": False, **more}))


@pytest.fixture(scope="module")
def asker(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Asker:
    asker = Asker(home, tmp_path_factory.mktemp("live"))
    assert asker.ended(asker.send(type="open", case="tried"))[-1]["type"] == "done"
    return asker


def kinds(events: list[dict]) -> list[str]:
    return [event["type"] for event in events]


def test_it_is_told_which_latents_are_active_in_the_picture(asker: Asker, home: Home) -> None:
    spec, active = asker.specs[0], set(asker.panel.sitting.active)
    told = base64.b64decode(spec["active_bits"])
    assert {k for k in range(spec["d_sae"]) if told[k // 8] >> k % 8 & 1} == active
    # And so says the recording, of those that it has.
    assert {one.number for one in load_recording(home.recording).latents if one.total > 0} <= active
    assert 0 < len(active) == spec["active"] < spec["d_sae"]


def test_a_live_round_equals_the_recorded_one_to_the_last_digit(asker: Asker, home: Home) -> None:
    """Every round that the page alone plays back: the same events in the same order, and the same figures."""
    recording = load_recording(home.recording)
    rounds = replay.replay(recording, "")["rounds"]
    assert [one["label"] for one in rounds] == [
        "as it is",
        "other-order",
        "five",
        "more",
        "on-top",
        "five × 0.5",
        "five × 3",
    ]
    for one in rounds:
        drawn = 20 if any(event["type"] == "controls" for event in one["events"]) else 0
        live = asker.ask(one["prompt"], one["edits"], mode=one["mode"], controls=drawn)
        recorded = [event for event in one["events"] if event["type"] != "looked"]
        assert kinds(live) == ["queued", "started", *kinds(recorded), "done"], one["label"]
        assert live[1]["edits"] == one["edits"]
        told = [{k: v for k, v in event.items() if k not in ("seq", "source")} for event in live[2:-1]]
        for mine, theirs in zip(told, recorded, strict=True):
            if theirs["type"] == "controls":  # those of a steering on top are drawn among other latents
                assert len(mine["changes"]) == len(theirs["changes"])
                if one["label"] in ("five", "more"):
                    assert mine == theirs
            elif one["label"] == "as it is" and theirs["type"] == "answered":
                assert mine == theirs | {"change": None}
            else:
                assert mine == theirs, one["label"]


def test_latents_are_found_by_words_as_a_case_finds_them(asker: Asker, home: Home) -> None:
    recording = load_recording(home.recording)
    live = asker.ask(edits=[{"latents": {"top": 5, "by": "attribution", "supports": "wrong"}, "set": 0}])
    assert live[1]["edits"][0]["latents"] == list(recording.steering("five").edits[0].latents)


def test_what_is_streamed_is_what_is_answered(asker: Asker) -> None:
    live = asker.ask("What color is the shirt?")
    tokens = [event for event in live if event["type"] == "token"]
    answered = next(event for event in live if event["type"] == "answered")
    assert [[one["text"], one["log_prob"]] for one in tokens] == answered["tokens"]
    assert "".join(one["text"] for one in tokens).strip() == answered["text"]


def test_looking_at_an_unedited_answer_is_observing(asker: Asker) -> None:
    """Beside `observe`, which captures while the model speaks."""
    live = asker.ask(look=True)
    looked = next(event for event in live if event["type"] == "looked")
    seen = asker.panel.sitting.inquiry.looked
    assert [token[0] for token in looked["tokens"]] == [token.text for token in seen.tokens]
    tops = np.array([np.nan if top is None else top for top in looked["attention"]["top"]], float)
    assert np.allclose(tops, seen.predicting_TP.max(axis=1), rtol=1e-3, equal_nan=True)
    assert np.isfinite(tops).sum() >= 5


def test_looking_sees_what_was_edited(asker: Asker) -> None:
    active = asker.panel.sitting.active
    strongest = max(active, key=lambda k: asker.panel.sitting.inquiry.ranks.mass_L[k])
    live = asker.ask(edits=[{"latents": [strongest], "set": 0}], look=True)
    looked = next(event for event in live if event["type"] == "looked")
    assert looked["maps"]["top"][looked["latents"].index(strongest)] == 0
    (answered,) = [event for event in live if event["type"] == "answered"]
    said = [token[0].strip() for token in looked["tokens"] if token[1] == "answer"]
    assert said == [token[0].strip() for token in answered["tokens"]]


def test_a_round_is_cancelled_between_two_tokens(asker: Asker) -> None:
    def hear(event: dict) -> None:
        if event["type"] == "token":
            asker.panel.hear({"type": "cancel", "seq": event["seq"]})

    asker.hear = hear
    try:
        live = asker.ask(edits=[{"latents": [1], "set": 0}])
    finally:
        asker.hear = lambda event: None
    assert kinds(live) == ["queued", "started", "token", "cancelled"]
    model = asker.panel.sitting.inquiry.subject.model
    assert not [hook for part in model.modules() for hook in part._forward_hooks.values() if "live" in hook.__module__]
    assert kinds(asker.ask())[-1] == "done"


def test_who_waits_is_told_so_and_can_leave(asker: Asker, home: Home, tmp_path: Path) -> None:
    other = Asker(home, tmp_path)
    assert other.ended(other.send(type="open", case="tried"))[-1]["type"] == "done"
    first = asker.send(type="run", prompt=PROMPT, edits=[{"latents": [1], "set": 0}], controls=60)
    second = other.send(type="run", prompt=PROMPT, edits=[])
    other.panel.hear({"type": "cancel", "seq": second})
    assert kinds(other.ended(second)) == ["queued", "cancelled"]
    assert kinds(asker.ended(first))[-1] == "done"
    assert next(event for event in other.told if event["seq"] == second)["ahead"] == 1
    third = other.send(type="run", prompt=PROMPT, edits=[])
    other.panel.close()  # its tab
    time.sleep(0)
    assert kinds(asker.ask())[-1] == "done"
    assert kinds([event for event in other.told if event["seq"] == third]) in (["queued"], ["queued", "started"])


def test_a_saved_round_is_checked_and_runs_and_holds(asker: Asker, home: Home, tmp_path: Path) -> None:
    from vsp_report import cli
    from vsp_report.audit import verdicts

    edits = [{"latents": {"top": 5, "by": "attribution", "supports": "wrong"}, "set": 0}]
    live = asker.ask(edits=edits, controls=20)
    assert kinds(live)[-1] == "done"
    run = {"prompt": PROMPT, "edits": edits}
    saved = asker.ended(asker.send(type="save", name="mine", title="Mine", to="cases", run=run))
    assert kinds(saved) == ["queued", "saved", "done"]
    file = Path(saved[1]["file"])
    try:
        assert file == home.cases / "mine.yaml" and file.read_text() == saved[1]["text"]
        assert cli.main(["check", str(file)]) == 0
        record(file, tmp_path / "mine")
    finally:
        file.unlink()
    recording = load_recording(tmp_path / "mine")
    answered = next(event for event in live if event["type"] == "answered")
    assert recording.steered[0].after.margin == answered["margin"]
    assert verdicts.judge(recording).verdict == "confirmed"


def test_another_picture_is_asked_about(asker: Asker, home: Home, tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    from vsp_report.case import load_case

    other = Asker(home, tmp_path)
    other.ended(other.send(type="open", case="tried"))
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), "teal").save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    assert kinds(other.ended(other.send(type="picture", name="mine.png", data=data))) == ["queued", "done"]
    spec = other.specs[-1]
    assert (spec["picture"]["width"], spec["picture"]["height"]) == (90, 60) and not spec["steerings"]
    live = other.ask(edits=[{"latents": {"top": 2, "by": "activation"}, "set": 0}], look=True)
    assert kinds(live)[-1] == "done"
    run = {"prompt": PROMPT, "edits": []}
    saved = other.ended(other.send(type="save", name="own", title="Own", to="cases", run=run))
    try:
        assert load_case(saved[1]["file"]).image_path.read_bytes() == buffer.getvalue()
    finally:
        (home.cases / "own.yaml").unlink()
    assert kinds(asker.ask())[-1] == "done"


def test_faults_are_told_in_one_line(asker: Asker) -> None:
    live = asker.ask("")
    assert kinds(live) == ["queued", "failed"] and "\n" not in live[-1]["message"]
    assert kinds(asker.ask(edits=[{"latents": {"label": "chair"}, "set": 0}]))[-1] == "failed"
    asker.panel.hear("nonsense")
    assert asker.told[-1]["type"] == "failed"


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory lane"), False),
    ],
)
def test_want_of_memory_is_known_in_any_words(asker: Asker, error: Exception, memory: bool) -> None:
    def fails(job: Any) -> None:
        raise error

    asker.seq += 1
    asker.panel._queue(asker.seq, fails)
    assert (asker.ended(asker.seq)[-1]["message"] == NO_MEMORY) is memory
    assert kinds(asker.ask())[-1] == "done"
