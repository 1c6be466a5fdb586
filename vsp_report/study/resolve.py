"""Resolve: the words of a case in, numbers of latents out. "The ten that support the wrong answer" become ten latents.

A steering that stands on an earlier one keeps that one's edits and adds its own; its latents are looked for with the
earlier one in place, among those that it left alone. An untrained SAE has neither labels nor clusters, and its numbers
mean nothing: there a latent that was named in such a way is replaced by the one of the same place when latents are
ordered by how active they are.

Axes: T tokens, P patches, L latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from vsp_report import case as asked
from vsp_report.case import AllLatents, ByCluster, ByLabel, ByNumber, ByRank
from vsp_report.case.kinds import nearest
from vsp_report.errors import SteeringError
from vsp_report.maths.edits import ALL, Edit, Region, Steering
from vsp_report.maths.grids import Weights
from vsp_report.recording import EditMade, Token

Latents = tuple[int, ...] | Literal["all"]


@dataclass(frozen=True, eq=False)
class Rankings:
    """Everything that latents can be found by, on one picture."""

    latents_PL: Weights
    tokens: tuple[Token, ...]
    attention_TP: np.ndarray
    """of an answer's token, that of the position which said it; of any other, that of its own position"""
    effects_L: np.ndarray | None = None
    """predicted change of the margin by ablating each latent; None without a contrast"""
    clusters: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """of this case's heatmap: their latents"""
    labels: Mapping[str, tuple[int, ...]] | None = None
    """of the atlas; None where there is no atlas"""
    living_L: np.ndarray | None = None
    """those that some picture of the atlas activates; None where there is no atlas"""

    @cached_property
    def alive_L(self) -> np.ndarray:
        """Those that are known to be active somewhere: in the atlas' pictures, or in this one."""
        return self.mass_L > 0 if self.living_L is None else (self.mass_L > 0) | self.living_L

    @cached_property
    def mass_L(self) -> np.ndarray:
        """The sum of each latent's activations over the patches."""
        return np.asarray(self.latents_PL.sum(0), float).ravel()

    @cached_property
    def frequency_L(self) -> np.ndarray:
        """The share of patches on which each latent is active."""
        counts_L = np.bincount(self.latents_PL.indices, minlength=self.latents_PL.shape[1])
        return counts_L / self.latents_PL.shape[0]

    def within(self, inside_P: np.ndarray | None) -> Rankings:
        """The same, of a part of the picture."""
        if inside_P is None:
            return self
        rows = np.flatnonzero(inside_P)
        return Rankings(self.latents_PL[rows], self.tokens, self.attention_TP[:, rows], self.effects_L, self.clusters)

    def attended_L(self, token: str | None, place: str) -> np.ndarray:
        """Activation weighted by the attention of the tokens that read so; without a word, of the answer's."""
        positions = [
            t for t, one in enumerate(self.tokens)
            if (one.kind == "answer" if token is None else _same(one.text, token)) and self.attends(t)
        ]  # fmt: skip
        if not positions:
            words = ", ".join(dict.fromkeys(one.text.strip() for t, one in enumerate(self.tokens) if self.attends(t)))
            what = f"is {token!r}, which is no token" if token else "ranks by attention, and no answer attends"
            raise SteeringError(place, what, f"There are: {words or 'none that attend'}.")
        return np.asarray(self.latents_PL.T @ self.attention_TP[positions].mean(0), float).ravel()

    def attends(self, t: int) -> bool:
        return bool(np.isfinite(self.attention_TP[t]).all())


def _same(text: str, word: str) -> bool:
    return text.strip().casefold() == word.strip().casefold()


BELONGS = 0.5
"""A latent belongs to a part of the picture when at least this share of its activation in the picture lies there."""


# --- one naming of latents ---------------------------------------------------------------------------------------


def find(named: asked.Latents, ranks: Rankings, inside_P: np.ndarray | None, place: str,
         left_out: Sequence[int] = ()) -> Latents:  # fmt: skip
    """The latents that are meant; `inside_P` is the part of the picture that a ranking is held to."""
    match named:
        case AllLatents():
            return ALL
        case ByNumber(numbers):
            d_sae = ranks.latents_PL.shape[1]
            if wrong := [k for k in numbers if k >= d_sae]:
                raise SteeringError(place, f"{wrong[0]} is no latent of an SAE that has {d_sae}", "Take a smaller one.")
            return numbers
        case ByCluster(cluster):
            if cluster not in ranks.clusters:
                known = f"There are 0 to {len(ranks.clusters) - 1}." if ranks.clusters else "This case has no heatmap."
                raise SteeringError(place, f"is cluster {cluster}, which the heatmap has not", known)
            return ranks.clusters[cluster]
        case ByLabel(label, top):
            return _labelled(ranks, label, top, place, left_out)
        case ByRank():
            return _ranked(ranks, named, inside_P, place, left_out)
    raise TypeError(f"{named!r} names no latents")


def _labelled(ranks: Rankings, label: str, top: int, place: str, left_out: Sequence[int]) -> tuple[int, ...]:
    if ranks.labels is None:
        remedy = "Make one (`vsp-report atlas`), or name them by number, cluster, or {top: 10, by: attribution}."
        raise SteeringError(place, f"names latents by the label {label!r}, and this SAE has no atlas", remedy)
    if label not in ranks.labels:
        remedy = nearest(label, sorted(ranks.labels))
        raise SteeringError(place, f"is the label {label!r}, which no latent of the atlas bears well enough", remedy)
    active = [k for k in ranks.labels[label] if ranks.mass_L[k] > 0 and k not in left_out]
    if not active:
        fault = f"no latent with the label {label!r} is active in this picture"
        raise SteeringError(place, fault, "There is nothing to edit; take another label.")
    return tuple(sorted(active, key=lambda k: (-ranks.mass_L[k], k))[:top])


def _ranked(ranks: Rankings, named: ByRank, inside_P: np.ndarray | None, place: str,
            left_out: Sequence[int]) -> tuple[int, ...]:  # fmt: skip
    if named.by == "attribution":
        if ranks.effects_L is None:
            raise SteeringError(place, "ranks by attribution, and there is no contrast", "Declare a contrast.")
        # What raises the margin when it is taken away has spoken for the wrong answer.
        score_L = {"wrong": ranks.effects_L, "right": -ranks.effects_L, None: np.abs(ranks.effects_L)}[named.supports]
    elif named.by == "attention":
        score_L = ranks.attended_L(named.token, place)
    else:
        score_L = ranks.mass_L
    there_L = ranks.within(inside_P).mass_L
    score_L = np.where((ranks.mass_L > 0) & (there_L >= BELONGS * ranks.mass_L), score_L, 0.0)
    score_L[list(left_out)] = 0.0
    best = np.argsort(-score_L, kind="stable")[: named.top]
    found = tuple(int(k) for k in best if score_L[k] > 0)
    if not found:
        what = f"supports the {named.supports} answer" if named.supports else "is active there"
        raise SteeringError(place, f"no latent {what}", "There is nothing to edit; take another ranking.")
    return found


def words_of(named: asked.Latents) -> str:
    """How a case names latents, for a reader."""
    match named:
        case AllLatents():
            return "all latents"
        case ByNumber(numbers):
            return "by number: " + ", ".join(map(str, numbers[:12])) + (", …" if len(numbers) > 12 else "")
        case ByCluster(cluster):
            return f"cluster {cluster}"
        case ByLabel(label, top):
            return f"label {label}, top {top}"
        case ByRank(top, by, token, supports, where):
            part = f"in {_words_of_region(where)}" if where else ""
            what = f"supporting the {supports} answer" if supports else f"for {token!r}" if token else ""
            return " ".join(filter(None, (f"top {top} by {by}", what, part)))
    raise TypeError(f"{named!r} names no latents")


def _words_of_region(where: asked.Region) -> str:
    if where.thing is not None:
        return str(where.thing)
    return "a box" if len(where.all_boxes) == 1 else f"{len(where.all_boxes)} boxes"


# --- a whole steering --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Resolved:
    """A steering with its latents found, and how its edits came about."""

    steering: Steering
    """what is made: the edits of the one it stands on, then its own"""
    made: tuple[EditMade, ...]
    """its own edits, for the recording"""
    named: tuple[asked.Latents, ...]
    """how the case names the latents of each edit that is made"""
    asked: asked.Steering

    @property
    def latents(self) -> tuple[int, ...]:
        """All that are named by number in the end, in order."""
        return tuple(dict.fromkeys(k for edit in self.steering.edits if edit.latents != ALL for k in edit.latents))

    def with_latents(self, name: str, sets: Sequence[Latents]) -> Steering:
        """The same operations on other latents; an edit that is left without any is left out."""
        edits = tuple(Edit(other, edit.op, edit.value, edit.where)
                      for edit, other in zip(self.steering.edits, sets, strict=True) if len(other))  # fmt: skip
        return Steering(name, edits, self.steering.mode, self.steering.cls)


def edit_made(edit: Edit, named: asked.Latents) -> EditMade:
    boxes = edit.where.boxes if edit.where else ()
    return EditMade(edit.latents, edit.op, float(edit.value), boxes, words_of(named))


def inside(region: Region | None, boxes_P4: np.ndarray, size: tuple[int, int], place: str) -> np.ndarray | None:
    """(P,): the patches of a region; None for everywhere."""
    return None if region is None else region.meets(boxes_P4, size, place)


# --- the same through an untrained SAE ---------------------------------------------------------------------------


def stand_ins(resolved: Resolved, trained: Rankings, untrained: Rankings,
              inside: Sequence[np.ndarray | None]) -> list[Latents]:  # fmt: skip
    """For each edit, the latents of an untrained SAE that the same words lead to, or that have the same place among
    its active ones; none where it has none such. One that is silent has a silent one to stand in for it if the edit
    wakes it, and none otherwise. `inside` is each edit's part of the picture."""
    order = {int(k): place for place, k in enumerate(np.argsort(-trained.mass_L, kind="stable"))}
    theirs = np.argsort(-untrained.mass_L, kind="stable").tolist()
    ours_active, active = (int((ranks.mass_L > 0).sum()) for ranks in (trained, untrained))

    def stand_in(latent: int, wakes: bool) -> int | None:
        if trained.mass_L[latent] > 0:
            return theirs[min(order[latent], active - 1)] if active else None
        silent = theirs[active:] if wakes else []
        return silent[min(order[latent] - ours_active, len(silent) - 1)] if silent else None

    found: list[Latents] = []
    taken: list[int] = []
    for edit, named, inside_P in zip(resolved.steering.edits, resolved.named, inside, strict=True):
        if edit.latents == ALL:
            found.append(ALL)
            continue
        latents: tuple[int, ...] = ()
        if isinstance(named, ByRank):
            try:
                latents = _ranked(untrained, named, inside_P, "untrained", taken)
            except SteeringError:  # it has none such, which is a finding and no fault
                latents = ()
        else:
            others = (stand_in(k, edit.wakes) for k in edit.latents)
            latents = tuple(dict.fromkeys(k for k in others if k is not None))
        taken += latents
        found.append(latents)
    return found
