"""Observe: an image and a prompt in; what each token looked at, and with which latents, out.

    seen = observe(load_vlm("sketchworld"), load_sae("sketchworld/vision.2"), "picture.png", "What is this?")
    seen.answer, seen.tokens, seen.attention_TP, seen.latents_PL, seen.token_latents

One run gives everything: the model answers as it always does, while its attention and the states at the tap
are captured. Only what was not said in that run, an answer that is given or the row of the last token, is read
by the model a second time.

Axes: T text tokens (system prompt, prompt, template and answer), P sites of the tap (patches; at a text tap,
image tokens), L all latents, K those that some site has.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vsp_report import paths
from vsp_report.errors import ModelError
from vsp_report.maths.grids import Size, Weights
from vsp_report.model import answers, checkpoints
from vsp_report.model.capture import Row, capture
from vsp_report.model.latents import active
from vsp_report.model.sae import Sae
from vsp_report.model.steering import check_width, listening, tap_of
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Answer, Prompt, Vlm

ROWS = ("predicting", "own")


class Token(NamedTuple):
    text: str
    """as it stands in the text, with the space before it"""
    kind: str
    """template, system, prompt or answer"""
    id: int
    log_prob: float | None = None
    """of an answer's token when it was said; None for what was given"""


class TokenLatents(NamedTuple):
    latents_K: np.ndarray
    """numbers of the latents, ascending"""
    values_TK: np.ndarray
    """Σ_p attention(token, p) · h_p; NaN where a token has no row of attention"""


@dataclass(frozen=True, eq=False)
class Observation:
    answer: str
    ended: bool
    """the model ended its answer; false where it was cut, or given"""
    tokens: tuple[Token, ...]
    attention_TP: np.ndarray
    """each token's attention to each site, the mean over layers and heads; NaN where it has no row. A row sums
    to what the token spent on the image, which is less than 1."""
    row: Literal["predicting", "own"]
    """whose attention a token has: that of the position which produced it, or that of its own position, where
    it was read"""
    boxes_P4: np.ndarray
    """x0, y0, x1, y1 in pixels of the image; NaN where a site shows nothing of it"""
    latents_PL: Weights
    """sparse"""
    size: Size
    tap: str

    @cached_property
    def token_latents(self) -> TokenLatents:
        """What each token saw: latents added up over the sites, weighted by the token's attention."""
        latents_K = np.unique(self.latents_PL.indices)
        return TokenLatents(latents_K, (self.latents_PL[:, latents_K].T @ self.attention_TP.T).T)

    def positions(self, *kinds: str) -> list[int]:
        """Which tokens are of these kinds, as rows of the arrays."""
        return [t for t, token in enumerate(self.tokens) if token.kind in kinds]


def observe(
    vlm: Vlm,
    sae: Sae,
    image: Any,
    prompt: str,
    *,
    system: str | None = None,
    answer: str | None = None,
    max_new_tokens: int = 64,
    row: Row = "predicting",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    tap: Tap | str | None = None,
) -> Observation:
    """Ask a model about an image, and look inside while it answers. The model is left as it was found.

    `image` is a PIL image or a path. With `answer`, that answer is read instead of one being said. `layers` and
    `heads` choose whose attention is averaged, all by default. `tap` is the SAE's own unless given.
    """
    if row not in ROWS:
        raise ModelError("row", f"is {row!r}", f"Write {' or '.join(ROWS)}.")
    if max_new_tokens < 1 and answer is None:
        raise ModelError("max_new_tokens", f"is {max_new_tokens}", "Let it say something, or give an answer.")
    place = tap_of(vlm, sae, tap)
    asked = vlm.prepare(image, prompt, system)
    if place.place == "text" and asked.images[0].cross:
        raise ModelError(
            str(place),
            f"{vlm.name} cross-attends to the image, which has no positions among its text",
            "Take a vision tap or connector.",
        )
    chosen = {"taps": [place], "layers": layers, "heads": heads}
    again = answer is not None or row == "own"
    if answer is None:
        with ExitStack() as stack:
            seen = None if again else stack.enter_context(capture(vlm, asked, **chosen))
            heard = stack.enter_context(listening(vlm))
            (said,) = vlm.generate(asked, max_new_tokens)
        ids, log_probs = said.ids, heard.of(0, len(said.ids))
    else:
        said, ids = Answer((), answer.strip(), False), answers.answer_ids(vlm, answer)
    if again:
        if vlm.model.config.image_token_id in ids:
            raise ModelError("answer", f"{vlm.name} said its own image token, which cannot be read back",
                             "Observe the rows that predict, with row='predicting'.")  # fmt: skip
        with capture(vlm, asked, **chosen) as seen:
            (replay,) = vlm.replay(asked, [ids])
        log_probs = replay.log_probs_N.tolist() if answer is not None else log_probs
    check_width(vlm, sae, place, seen.states)
    tokens, positions = _tokens(vlm, asked, ids, log_probs)
    sites = asked.images[0].at(place.place)
    looked_TI = seen.attention.of(0, positions, row).numpy()
    rowless_T = np.isnan(looked_TI).any(1)
    attention_TP = np.asarray((sites.weights_IS.T @ looked_TI.T).T, np.float32)
    attention_TP[rowless_T] = np.nan  # also at sites of which no image token is made
    return Observation(
        said.text, said.ended, tokens, attention_TP, row, sites.boxes_S4, active(sae, seen.at(place, asked, 0)),
        asked.images[0].size, str(place),
    )  # fmt: skip


def load_sae(name: str | Path, *, d_in: int | None = None, revision: str | None = None) -> Sae:
    """Load a bundled SAE by its name (such as `sketchworld/vision.2`), a file, a folder, or a Hub id."""
    return checkpoints.load_sae(paths.bundled(str(name)) or name, d_in=d_in, revision=revision)


def _tokens(
    vlm: Vlm, asked: Prompt, ids: Sequence[int], log_probs: Sequence[float]
) -> tuple[tuple[Token, ...], list[int]]:
    """The text of a conversation, token by token, with the positions at which the model has it."""
    prompt_ids = asked.ids_BT[0].tolist()
    positions = [t for t, kind in enumerate(asked.kinds[0]) if kind not in ("image", "padding")]
    said = [prompt_ids[t] for t in positions] + list(ids)
    kinds = [asked.kinds[0][t] for t in positions] + ["answer"] * len(ids)
    known = [None] * len(positions) + list(log_probs)
    texts = _texts(vlm.tokenizer, said)
    tokens = tuple(map(Token, texts, kinds, said, known))
    return tokens, positions + list(range(len(prompt_ids), len(prompt_ids) + len(ids)))


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the one before it: by itself, it might lose the space that it begins with. A character of
    several tokens is the last one's."""

    def decoded(start: int, stop: int) -> str:
        return tokenizer.decode(list(ids[start:stop]), clean_up_tokenization_spaces=False)

    texts, last, first, told = [], 0, 0, 0  # of the tokens from `first` on, all but half a character is told
    for k in range(len(ids)):
        before, both = decoded(last, first), decoded(last, k + 1)
        whole = both[len(before) :] if both.startswith(before) else decoded(first, k + 1)
        sure = without_half(whole) if k + 1 < len(ids) else whole
        texts.append(sure[told:])
        last, first, told = (first, k + 1, 0) if sure == whole else (last, first, max(told, len(sure)))
    return texts


def without_half(text: str) -> str:
    """A text without the beginning of a character at its end, which decoders show as U+FFFD until the rest is there."""
    return text.rstrip("\ufffd")
