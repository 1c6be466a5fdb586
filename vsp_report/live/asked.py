"""Asked: what a panel may ask of a kernel. A message in; a frozen value, or one fault in words, out. No model here.

Whoever can write to the panel's channel can send anything, so that this is the gate: everything is of a known form,
finite and bounded before it reaches a model. What is to be steered is written as a case writes it and is read by the
same declaration, so that the panel can ask for what a case can, and a round can be saved as one.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from vsp_report.case import Case, make_case
from vsp_report.case.files import is_id
from vsp_report.errors import InputError

ROUND = "round"
"""What the steering of a round is called while it is tried."""
MOST_PROMPT = 2000
MOST_EDITS = 32
MOST_LATENTS = 10_000
MOST_DRAWS = 200
MOST_BYTES = 8 << 20
"""Of a picture."""
MODES = ("delta", "reconstruct")


@dataclass(frozen=True)
class Run:
    """Ask the model, steered so."""

    seq: int
    prompt: str
    edits: tuple[dict[str, Any], ...]
    """as a case writes them; `latents: {but: [...]}` are all active ones but these"""
    mode: str = "delta"
    look: bool = True
    """say where the new answer looked"""
    controls: int = 0
    """how many matched controls to draw"""


@dataclass(frozen=True)
class Cancel:
    seq: int


@dataclass(frozen=True)
class Open:
    """Take up another case."""

    seq: int
    case: str


@dataclass(frozen=True)
class Upload:
    """Take up another picture."""

    seq: int
    name: str
    data: bytes


@dataclass(frozen=True)
class Save:
    """Write a round as a case: as text for the reader, or into the folder of cases."""

    seq: int
    name: str
    title: str
    into_folder: bool
    run: Run


Message = Run | Cancel | Open | Upload | Save


def read(message: Any) -> Message:
    """What a message asks. `InputError` says what is wrong with it."""
    if not isinstance(message, dict):
        raise _fault("message", "is no mapping")
    seq = message.get("seq")
    if not _is_whole(seq) or not 0 <= seq < 2**53:
        raise _fault("seq", "is no number of a message")
    match message.get("type"):
        case "run":
            return _run(message, seq)
        case "cancel":
            return Cancel(seq)
        case "open":
            case = message.get("case")
            if not isinstance(case, str) or not is_id(case):
                raise _fault("case", "is no name of a case")
            return Open(seq, case)
        case "picture":
            return Upload(seq, _text(message, "name", 200), _picture(message.get("data")))
        case "save":
            name = message.get("name")
            if not isinstance(name, str) or not is_id(name):
                raise InputError("name", "is no name of a case", "Use small letters, digits and hyphens: my-case.")
            asked = message.get("run")
            run = _run(asked if isinstance(asked, dict) else {}, seq)
            return Save(seq, name, _text(message, "title", 200), message.get("to") == "cases", run)
    raise _fault("type", "is none that is known")


def _run(message: dict[str, Any], seq: int) -> Run:
    prompt, edits, mode = _text(message, "prompt", MOST_PROMPT), message.get("edits", []), message.get("mode", "delta")
    if mode not in MODES:
        raise _fault("mode", f"is none of {', '.join(MODES)}")
    if not isinstance(edits, list) or len(edits) > MOST_EDITS or not all(isinstance(one, dict) for one in edits):
        raise InputError("edits", f"are no list of at most {MOST_EDITS}", "Take some away.")
    draws = message.get("controls", 0)
    if not _is_whole(draws) or not 0 <= draws <= MOST_DRAWS:
        raise InputError("controls", f"is not from 0 to {MOST_DRAWS}", "Draw fewer.")
    return Run(seq, prompt, tuple(edits), mode, bool(message.get("look", True)), draws)


def _text(message: dict[str, Any], key: str, longest: int) -> str:
    text = message.get(key, "")
    if not isinstance(text, str):
        raise _fault(key, "is no text")
    if len(text) > longest:
        raise InputError(key, f"has {len(text):,} characters", f"Write at most {longest:,}.")
    return text


def _picture(data: Any) -> bytes:
    if not isinstance(data, str) or len(data) > MOST_BYTES * 4 // 3 + 4:
        raise InputError("picture", f"is over {MOST_BYTES >> 20} MiB", "Make it smaller.")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _fault("picture", "is not what was chosen") from error


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fault(place: str, fault: str) -> InputError:
    return InputError(place, fault, "Load the page again.")


# --- a round as a case -------------------------------------------------------------------------------------------


def case_of(run: Run, around: Case, active: tuple[int, ...]) -> Case:
    """The case that a round is: `around` with another prompt and, if anything is edited, one steering, called `ROUND`.
    `active`: the latents that are active in the picture. `CaseFaults` says what cannot be steered so."""
    data = {key: value for key, value in around.resolved().items() if key not in _REPLACED}
    if around.classify is None:
        data["prompt"] = run.prompt
    edits = [_spelt(edit, active) for edit in run.edits]
    if edits:
        data["steer"] = {ROUND: {"edits": edits, "mode": run.mode}}
    return make_case(data, around.id, "round", around.path)


_REPLACED = ("steer", "sweep", "rephrase", "expect", "prompt")


def _spelt(edit: dict[str, Any], active: tuple[int, ...]) -> dict[str, Any]:
    """An edit in the words of a case, which have none for all but some."""
    latents = edit.get("latents")
    if not isinstance(latents, dict) or "but" not in latents:
        return edit
    kept = latents["but"]
    if not isinstance(kept, list) or not all(_is_whole(k) for k in kept) or set(latents) != {"but"}:
        raise InputError("latents.but", "is no list of latents", "Name latents by number.")
    rest = [k for k in active if k not in set(kept)]
    if not rest:
        raise InputError("latents.but", "leaves no active latent to edit", "Keep fewer.")
    if len(rest) > MOST_LATENTS:
        fault = f"leaves {len(rest):,} active latents to edit"
        raise InputError("latents.but", fault, f"At most {MOST_LATENTS:,} are edited at once.")
    return {**edit, "latents": rest}
