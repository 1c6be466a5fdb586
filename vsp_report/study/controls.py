"""Controls: what a steering is compared with, so that an effect is the steering's own.

    latents      other latents that are active in this picture, matched in activation mass and frequency one by one;
                 the p-value and the interval of a steering are taken among these. For latents that are silent where
                 they are set or added to, others that are silent there and are known to live
    directions   the steering's own change of the states, turned into random directions: as large on every patch
    untrained    the same words of the case, put to SAEs that were never trained: as many latents, found the same way

All are scored on the contrast alone; nothing is said. A draw flips the answer if it takes the contrast's margin to the
other side of zero. The last two kinds are there to be looked at, and each draw of the third needs an SAE of its own,
so of them at most `FEW` are drawn: with 39 the largest change of all is one in forty.

No set of latents is drawn twice, so that where there are few different ones there are fewer draws than were asked for.

A steering that reconstructs puts the SAE's own error into the model besides its edits. Every control of it stands on
the same reconstruction, and what is compared is what the edits add to that.

Without a contrast there is nothing to score: then at most `SPOKEN` sets of matched latents are drawn, the model says
its answer under each, and a draw flips the answer if it is worded differently.

A steering that edits every latent has no other latents to be compared with, and one at a text tap no fixed change of
the states: there, the controls that there can be are drawn, and no others.

Axes: N draws, P patches, S sites, L latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from vsp_report import case as asked
from vsp_report.maths.edits import ALL, Steering
from vsp_report.maths.effects import Part, flip_share, matched_sets, permutation_p
from vsp_report.model.attribution import Attribution
from vsp_report.model.bench import turned
from vsp_report.model.sae import Sae
from vsp_report.recording import ControlDraws
from vsp_report.study.resolve import Latents, Rankings, Resolved, stand_ins
from vsp_report.study.subjects import Subject

FEW = 40
SPOKEN = 20


@dataclass(frozen=True, eq=False)
class Judged:
    """A steering whose effect is known, and the part of the picture in which each of its edits acts."""

    resolved: Resolved
    inside: tuple[np.ndarray | None, ...]
    change: float | None
    beyond: float | None = None
    """of a steering that reconstructs: the change without the SAE's own error"""
    base: str | None = None
    """of one that reconstructs: what is said through the SAE with nothing edited"""

    @property
    def own(self) -> float | None:
        """What the edits do."""
        return self.change if self.beyond is None else self.beyond

    @property
    def shift(self) -> float:
        """What the SAE's own error does."""
        return 0.0 if self.beyond is None else self.change - self.beyond


def draw_controls(
    subject: Subject,
    ranks: Rankings,
    seen: Attribution | None,
    judged: Sequence[Judged],
    wanted: asked.Controls,
    margin: float | None,
    seed: int,
) -> list[tuple[ControlDraws, ...]]:
    """The controls of each steering, in the order in which the case names their kinds."""
    found: list[dict[str, ControlDraws]] = [{} for _ in judged]
    if not wanted.draws or not judged:
        return [() for _ in judged]
    if "latents" in wanted.kinds:
        for one, kinds in zip(judged, found, strict=True):
            if drawn := _other_latents(subject, ranks, one, wanted.draws, margin, seed):
                kinds["latents"] = drawn
    few = min(FEW, wanted.draws)
    seeds = range(seed, seed + few)
    if margin is not None and subject.bench is not None:
        if "directions" in wanted.kinds:
            for one, kinds in zip(judged, found, strict=True):
                still_SD = _still(subject, one)
                edits_SD = subject.bench.change(one.resolved.steering) - still_SD
                changes_N = subject.bench.shifts(still_SD + way_SD for way_SD in turned(edits_SD, seeds))
                kinds["directions"] = _scored("directions", one, changes_N, margin)
        if "untrained" in wanted.kinds:
            drawn = _untrained(subject, ranks, seen, judged, seeds)
            for kinds, one, changes_N in zip(found, judged, drawn, strict=True):
                kinds["untrained"] = _scored("untrained", one, changes_N, margin)
    return [tuple(kinds[kind] for kind in wanted.kinds if kind in kinds) for kinds in found]


def _scored(
    kind: str, one: Judged, changes_N: np.ndarray, margin: float, mass_ratio: float | None = None
) -> ControlDraws:
    own_N = changes_N - one.shift
    flips, p = flip_share(margin + one.shift, own_N), permutation_p(one.own, own_N)
    return ControlDraws(kind, tuple(round(float(change), 6) for change in changes_N), flips, p, mass_ratio)


def _still(subject: Subject, one: Judged) -> Any:
    """(S, D): what a steering adds to the states with nothing edited: nothing, or the SAE's own error."""
    steering = one.resolved.steering
    return subject.bench.change(Steering("nothing", (), steering.mode, steering.cls))


# --- other latents -----------------------------------------------------------------------------------------------


class Others(NamedTuple):
    """The same operations on matched latents."""

    steerings: list[Steering]
    mass_ratio: float | None
    """their mean activation mass against that of those they stand for"""


def _other_latents(
    subject: Subject, ranks: Rankings, one: Judged, draws: int, margin: float | None, seed: int
) -> ControlDraws | None:
    draws = draws if margin is not None else min(draws, SPOKEN)
    others, mass_ratio = matched_steerings(ranks, one, draws, seed)
    if not others:
        return None
    if margin is None:
        clean, *said = subject.says(others)
        base = clean if one.base is None else one.base
        return ControlDraws("latents", (), sum(text != base for text in said) / len(said), mass_ratio=mass_ratio)
    return _scored("latents", one, subject.changes(others), margin, mass_ratio)


def matched_steerings(ranks: Rankings, one: Judged, draws: int, seed: int) -> Others:
    """At most so many, edit by edit, all different; none where an edit has no counterpart."""
    resolved, parts, idle = one.resolved, [], []
    for place, (edit, inside_P) in enumerate(zip(resolved.steering.edits, one.inside, strict=True)):
        if edit.latents == ALL:
            return Others([], None)
        there = ranks.within(inside_P)
        active = [k for k in edit.latents if there.mass_L[k] > 0]
        # An edit that does nothing, because none of its latents is active, is left as it is.
        idle.append(not active and not edit.wakes)
        parts.append(Part(edit.latents if edit.wakes else active, there.mass_L, there.frequency_L, seed + 1000 * place,
                          ranks.alive_L if edit.wakes else None))  # fmt: skip
    sets, mass_ratio = matched_sets(parts, draws, apart_from=resolved.latents)
    steerings = []
    for n, drawn in enumerate(sets):
        chosen = [edit.latents if left else other
                  for edit, left, other in zip(resolved.steering.edits, idle, drawn, strict=True)]  # fmt: skip
        steerings.append(resolved.with_latents(f"control {n}", chosen))
    return Others(steerings, mass_ratio)


# --- an SAE that was never trained -------------------------------------------------------------------------------


def _untrained(
    subject: Subject, ranks: Rankings, seen: Attribution | None, judged: Sequence[Judged], seeds: Sequence[int]
) -> list[np.ndarray]:
    """How far each steering moves the contrast, once for each untrained SAE."""
    bench, patches = subject.bench, np.flatnonzero(~subject.bench.sites.class_S)
    if ranks.latents_PL.shape[0] != len(patches):  # a connector with outputs that are made of no patch
        return [np.zeros(0) for _ in judged]
    stills = [_still(subject, one) for one in judged]

    def changes_NSD() -> Iterator[Any]:
        for seed in seeds:
            sae = Sae.untrained(seed, like=subject.sae)
            effects_L = None if seen is None else replace(seen, sae=sae).effects().double().cpu().numpy()
            theirs = replace(ranks, latents_PL=bench.latents(sae)[patches], effects_L=effects_L)
            for one, still_SD in zip(judged, stills, strict=True):
                sets: list[Latents] = stand_ins(one.resolved, ranks, theirs, one.inside)
                steering = replace(one.resolved.with_latents("untrained", sets), mode="delta")
                yield still_SD + bench.change(steering, sae)

    return list(bench.shifts(changes_NSD()).reshape(len(seeds), len(judged)).T)
