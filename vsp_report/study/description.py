"""Description: what the model says of a picture because of some latents, when it is asked about nothing in particular.

A latent has no name of its own here. But a model that describes the picture names what it sees, and a word that loses
its odds when latents are ablated, far more than when matched others are, was said because of them. The description
that the model gave is read again, word by word, and not said anew: so every word is compared with itself.

Axes: N changes, T tokens, W words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from vsp_report.study.search import Edits, Search
from vsp_report.study.subjects import Asking

DESCRIBE = "Describe the image."
FELL = 1.0
"""A word is said because of latents if its log-odds fall by more than this without them, and by more than under each
control."""
SHARE = 0.1
"""... and by at least this share of what the word falls that falls furthest."""

BARE = frozenset("the and with what which who whose where how are was does this that these there image picture".split())
"""Words that every description may have."""
LONGER = 2
"""A form of a word has at most so many letters more: box, boxes."""


class Carried(NamedTuple):
    """Words of the description that are said because of some latents."""

    description: str
    words: tuple[str, ...]
    others: tuple[str, ...]
    """those that the wrong answer does not have"""

    @property
    def itself(self) -> bool:
        """The wrong answer, and nothing else."""
        return bool(self.words) and not self.others


def words_of(text: str) -> list[str]:
    """Words of three letters and more; shorter ones hold others together."""
    return re.findall(r"[^\W_]{3,}", text.casefold())


def about(description: str, asked: str) -> bool:
    """Whether a description has a word of what is asked, in this form or a longer one: bar, bars."""
    pairs = product(set(words_of(description)) - BARE, set(words_of(asked)) - BARE)
    return any(len(long) <= len(short) + LONGER and long.startswith(short)
               for short, long in (sorted(pair, key=len) for pair in pairs))  # fmt: skip


def carried(search: Search, edits: Edits, wrong: str) -> Carried | None:
    """What is said because of these latents; None where nothing is described, or nothing can be compared."""
    if not isinstance(search.subject, Asking):
        return None
    # As many again of what supports the same answer: the smallest set barely turns the contrast, and a description
    # that has more to go by may not have turned with it.
    edits = search.further(edits)
    controls = search.matched(edits)
    if not controls:
        return None
    asked = search.subject.asked(DESCRIBE, None)
    said = asked.vlm.generate(asked.bench.prompt, asked.max_new_tokens)[0]
    if not said.ids:
        return None
    steerings = [one.steering(str(n)) for n, one in enumerate([edits, *controls])]
    odds_NT = asked.bench.read([asked.bench.states_SD * 0, *asked.bench.changes(steerings)], said.ids)
    search.runs += 1 + len(odds_NT)
    words, falls_NW = _by_word(asked.vlm.tokenizer, said.ids, odds_NT[0] - odds_NT[1:])
    least = max(FELL, SHARE * falls_NW[0].max(initial=0.0))
    found = [
        word for word, fall, others in zip(words, falls_NW[0], falls_NW[1:].T, strict=True)
        if fall >= least and fall > others.max()
    ]  # fmt: skip
    found = tuple(dict.fromkeys(found))
    return Carried(said.text, found, tuple(word for word in found if word not in words_of(wrong)))


def _by_word(tokenizer: Any, ids: Sequence[int], falls_NT: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The words of a text, and how far each falls: as far as that of its tokens which falls furthest."""
    text, spans = "", []
    for n in range(len(ids)):
        longer = tokenizer.decode(list(ids[: n + 1]), skip_special_tokens=True)
        spans.append((len(text), len(longer)))
        text = longer
    words, columns = [], []
    for found in re.finditer(r"[^\W_]{3,}", text):
        tokens = [t for t, (start, end) in enumerate(spans) if start < found.end() and end > found.start()]
        words.append(found[0].casefold())
        columns.append(falls_NT[:, tokens].max(1))
    return words, np.stack(columns, 1) if columns else np.zeros((len(falls_NT), 0))
