"""Survey's words: a CLIP compares a latent's reference pictures with a list of words, and the word that stands out most
becomes its label.

A latent's score for a word is the mean likeness of its references to the word, weighted by activation, less the mean
likeness of all reference pictures to it: what every picture is a little like says nothing. A word is a label only where
that is above zero, and the score stays with it. The pictures are read once more, each once, and one by one. One that
cannot be read any more says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array

from vsp_report.model.class_lists import ClassList
from vsp_report.model.classify import Clip, load_clip
from vsp_report.study import photographs
from vsp_report.study.photographs import Source
from vsp_report.study.survey_atlas import Surveyed, Words
from vsp_report.study.survey_plan import KEPT

TEMPLATES = ("a {}",)
AT_ONCE = 32


def name_by_words(source: Source, words: Sequence[str], clip_name: str, told: str, one: Surveyed, *,
                  device: str = "auto") -> Words:  # fmt: skip
    clip = _kept_clip(clip_name, device)
    classes = clip.classes(ClassList(told, tuple(words), TEMPLATES))
    references_LR, strengths_LR = one.references_LR[:, :KEPT], one.strengths_LR[:, :KEPT]
    numbers = np.unique(references_LR[references_LR >= 0])
    latent_A, rank_A = np.nonzero(references_LR >= 0)
    column_A = np.searchsorted(numbers, references_LR[latent_A, rank_A])
    weight_LR = strengths_LR / np.maximum(strengths_LR.sum(1, keepdims=True), 1e-12)
    weights = csr_array((weight_LR[latent_A, rank_A], (latent_A, column_A)), (len(references_LR), len(numbers)))
    likeness_NC, read_N = np.zeros((len(numbers), len(words))), np.zeros(len(numbers), bool)
    with closing(photographs.stream(source, numbers.tolist(), AT_ONCE)) as coming:
        for n, photograph in enumerate(coming):
            if photograph.image is not None:
                likeness_NC[n], read_N[n] = clip.likeness([photograph.image], classes)[0], True
            del photograph
    mean_C = likeness_NC.sum(0) / max(read_N.sum(), 1)
    score_LC = weights @ np.where(read_N[:, None], likeness_NC - mean_C, 0.0)
    best_L, alive_L = score_LC.argmax(1), (references_LR >= 0).any(1)
    score_L = score_LC.max(1)
    made = f"{clip.name}, {len(words)} words of {told}"
    return Words(made, tuple(words), np.where(alive_L & (score_L > 0), best_L, -1), score_L)


def check_clip(name: str, words: Sequence[str], told: str) -> None:
    """That a CLIP can be loaded and reads the words: known before the survey, not after it."""
    load_clip(name).classes(ClassList(told, tuple(words), TEMPLATES))


@lru_cache(maxsize=1)
def _kept_clip(name: str, device: str) -> Clip:
    return load_clip(name, device=device)
