"""Steer: an image, a prompt and some steerings in; what the model says with and without them, out.

    result = steer(vlm, sae, "picture.png", "What is this?", Steering("no 7", (Edit((7,), "set", 0.0),)))
    result.before.text, result["no 7"].text, result["no 7"].change

Notebook, batch run and live panel all come this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vsp_report.maths.edits import Contrast, Steering
from vsp_report.model import steering as engine
from vsp_report.model.sae import Sae
from vsp_report.model.steering import Said, Steered
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Prompt, Vlm

__all__ = ["Looked", "Said", "Steered", "look_once", "steer"]


class Looked(NamedTuple):
    """A question that has been read and its picture that has been looked at, to be steered more than once."""

    asked: Prompt
    states: engine.States


def look_once(
    vlm: Vlm, sae: Sae, image: Any, prompt: str, *, system: str | None = None, tap: Tap | str | None = None
) -> Looked:
    asked = vlm.prepare(image, prompt, system)
    return Looked(asked, engine.clean_states(vlm, asked, engine.tap_of(vlm, sae, tap)))


def steer(
    vlm: Vlm,
    sae: Sae,
    image: Any,
    prompt: str,
    steerings: Steering | Sequence[Steering],
    *,
    system: str | None = None,
    contrast: Contrast | None = None,
    max_new_tokens: int = 64,
    budget_bytes: int | None = None,
    tap: Tap | str | None = None,
    looked: Looked | None = None,
) -> Steered:
    """Ask a model about an image, once as it is and once under each steering. The model is left as it was found.

    `image` is a PIL image or a path. With a `contrast`, each answer comes with its log-odds and their change;
    with `max_new_tokens=0` as well, nothing is said and only the contrast is scored, which is how many controls
    are run. `budget_bytes` is what one batch may take; `tap` is the SAE's own unless given. `looked` spares reading
    and looking where `look_once` has done both for the same question; no figure depends on it.
    """
    chosen = (steerings,) if isinstance(steerings, Steering) else tuple(steerings)
    asked, states = looked or (vlm.prepare(image, prompt, system), None)
    return engine.steer(
        vlm, sae, asked, chosen, contrast=contrast, max_new_tokens=max_new_tokens, budget_bytes=budget_bytes, tap=tap,
        states=states,
    )  # fmt: skip
