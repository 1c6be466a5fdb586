"""What a panel may ask: whatever else comes is one fault in words, and never more than that."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vsp_report.case import make_case
from vsp_report.errors import InputError
from vsp_report.live.asked import ROUND, Cancel, Open, Run, Save, Upload, case_of, read

AROUND = make_case(
    {
        "title": "A chair", "model": "sketchworld", "sae": "sketchworld/vision.3",
        "image": {"scene": {"family": "people", "seed": 1}},
        "prompt": "Is the person sitting?", "contrast": {"right": "no", "wrong": "yes"},
        "steer": {"old": {"latents": [1], "set": 0}}, "sweep": [{"of": "old"}],
        "expect": {"after": {"old": {"answer": "no"}}},
    },
    "a-chair",
)  # fmt: skip


def run(**more: Any) -> Run:
    found = read({"type": "run", "seq": 1, "prompt": "Why?", **more})
    assert isinstance(found, Run)
    return found


def test_messages_are_read() -> None:
    assert run(edits=[{"latents": [3], "set": 0}], controls=7, look=False).controls == 7
    assert read({"type": "cancel", "seq": 2}) == Cancel(2)
    assert read({"type": "open", "seq": 2, "case": "a-chair"}) == Open(2, "a-chair")
    assert read({"type": "picture", "seq": 2, "name": "x.png", "data": "AAEC"}) == Upload(2, "x.png", b"\0\1\2")
    save = read({"type": "save", "seq": 2, "name": "mine", "title": "Mine", "to": "cases", "run": {"prompt": "Why?"}})
    assert isinstance(save, Save) and save.into_folder and save.run.prompt == "Why?"


def test_a_round_is_a_case_with_one_steering() -> None:
    case = case_of(run(edits=[{"latents": [3, 4], "scale": 2, "where": {"box": [0, 0, 9, 9]}}]), AROUND, ())
    (steering,) = case.steer
    assert (steering.name, case.prompt, steering.edits[0].value) == (ROUND, "Why?", 2.0)
    assert not case.sweep and not case.expect.after
    assert case_of(run(), AROUND, ()).steer == ()


def test_all_but_some_are_the_active_ones() -> None:
    case = case_of(run(edits=[{"latents": {"but": [2, 9]}, "set": 0}]), AROUND, (1, 2, 3, 9))
    assert case.steer[0].edits[0].latents.numbers == (1, 3)
    with pytest.raises(InputError, match="leaves no active latent"):
        case_of(run(edits=[{"latents": {"but": [1]}, "set": 0}]), AROUND, (1,))


@pytest.mark.parametrize(
    "edit",
    [
        {"latents": [1]}, {"latents": [1], "set": 0, "scale": 1}, {"latents": [1.5], "set": 0},
        {"latents": [1], "set": True},
        {"latents": [1], "set": float("nan")}, {"latents": [1], "add": float("inf")}, {"latents": [], "set": 0},
        {"latents": {"but": "x"}, "set": 0}, {"latents": {"but": [1], "top": 3}, "set": 0}, {"latents": None, "set": 0},
        {"latents": [1], "set": 0, "code": "x"}, {"latents": {"label": "x" * 999}, "set": 0}, {},
    ],
)  # fmt: skip
def test_an_edit_that_a_case_could_not_have_is_refused(edit: dict) -> None:
    with pytest.raises(InputError):
        case_of(run(edits=[edit]), AROUND, (1, 2))


def _anything(chance: random.Random, depth: int = 0) -> Any:
    words = [
        "run",
        "open",
        "save",
        "seq",
        "type",
        "edits",
        "latents",
        "but",
        "set",
        "__class__",
        "../x",
        "x" * 5000,
        "",
    ]
    plain = [None, True, -1, 2**70, 1e308, float("nan"), *words]
    if depth > 3 or chance.random() < 0.5:
        return chance.choice(plain)
    inside = [_anything(chance, depth + 1) for _ in range(chance.randrange(4))]
    return inside if chance.random() < 0.5 else {str(chance.choice(words)): one for one in inside}


def test_whatever_comes_is_read_or_refused() -> None:
    chance, read_ones = random.Random(0), 0
    for _ in range(3000):
        message = _anything(chance)
        if isinstance(message, dict) and chance.random() < 0.8:
            message |= {"seq": 1, "type": chance.choice(["run", "open", "save", "picture", "cancel"])}
        if isinstance(message, dict) and message.get("type") == "run" and chance.random() < 0.7:
            message |= {"prompt": "Why?", "edits": [_edit(chance)]}
        try:
            found = read(message)
            read_ones += 1
            if isinstance(found, Run):
                case_of(found, AROUND, (1, 2, 3))
        except InputError as fault:
            assert str(fault) and "\n" not in str(fault)
    assert read_ones > 100


def _edit(chance: random.Random) -> dict[str, Any]:
    return {"latents": _anything(chance, 2), chance.choice(["set", "scale", "add", "x"]): _anything(chance, 3)}
