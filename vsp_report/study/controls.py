"""Controls: what a steering is compared with, so that an effect is the steering's own.

    latents      other latents that are active in this picture, matched in activation mass and frequency one by one;
                 the p-value and the interval of a steering are taken among these
    directions   the steering's own change of the states, turned into random directions: as large on every patch
    untrained    the same words of the case, put to SAEs that were never trained: as many latents, found the same way

All are scored on the contrast alone; nothing is said. A draw flips the answer if it takes the contrast's margin to the
other side of zero. The last two kinds are there to be looked at, and each draw of the third needs an SAE of its own,
so of them at most `FEW` are drawn: with 39 the largest change of all is one in forty.

Without a contrast there is nothing to score: then at most `SPOKEN` sets of matched latents are drawn, the model says
its answer under each, and a draw flips the answer if it is worded differently.

A steering that edits every latent has no other latents to be compared with, and one at a text tap no fixed change of
the states: there, the controls that there can be are drawn, and no others.

Axes: N draws, P patches, S sites, L latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vsp_report import case as asked
from vsp_report.maths.edits import ALL, Steering
from vsp_report.maths.effects import flip_share, matched_sets, permutation_p
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
    if margin is not None and subject.bench is not None:
        if "directions" in wanted.kinds:
            for one, kinds in zip(judged, found, strict=True):
                change_SD = subject.bench.change(one.resolved.steering)
                changes_N = subject.bench.shifts(turned(change_SD, range(seed, seed + few)))
                kinds["directions"] = _scored("directions", one, changes_N, margin)
        if "untrained" in wanted.kinds:
            drawn = _untrained(subject, ranks, seen, judged, few, seed)
            for kinds, one, changes_N in zip(found, judged, drawn, strict=True):
                kinds["untrained"] = _scored("untrained", one, changes_N, margin)
    return [tuple(kinds[kind] for kind in wanted.kinds if kind in kinds) for kinds in found]


def _scored(kind: str, one: Judged, changes_N: np.ndarray, margin: float) -> ControlDraws:
    changes = tuple(round(float(change), 6) for change in changes_N)
    return ControlDraws(kind, changes, flip_share(margin, changes_N), permutation_p(one.change, changes_N))


# --- other latents -----------------------------------------------------------------------------------------------


def _other_latents(
    subject: Subject, ranks: Rankings, one: Judged, draws: int, margin: float | None, seed: int
) -> ControlDraws | None:
    draws = draws if margin is not None else min(draws, SPOKEN)
    steerings = matched_steerings(ranks, one, draws, seed)
    if not steerings:
        return None
    if margin is None:
        clean, *said = subject.says(steerings)
        return ControlDraws("latents", (), sum(text != clean for text in said) / len(said))
    return _scored("latents", one, subject.changes(steerings), margin)


def matched_steerings(ranks: Rankings, one: Judged, draws: int, seed: int) -> list[Steering]:
    """The same operations on matched latents, edit by edit; none where an edit has no counterpart."""
    resolved, sets = one.resolved, []
    for place, (edit, inside_P) in enumerate(zip(resolved.steering.edits, one.inside, strict=True)):
        if edit.latents == ALL:
            return []
        there = ranks.within(inside_P)
        active = [k for k in edit.latents if there.mass_L[k] > 0]
        drawn = matched_sets(
            active, there.mass_L, there.frequency_L, draws, seed + 1000 * place, apart_from=resolved.latents
        ).sets
        acts_on_nothing = edit.op == "scale" or (edit.op == "set" and edit.value == 0)
        if not drawn and (active or not acts_on_nothing):
            return []
        # An edit that does nothing, because none of its latents is active, is left as it is.
        sets.append(drawn or (edit.latents,) * draws)
    if all(drawn[0] == edit.latents for drawn, edit in zip(sets, resolved.steering.edits, strict=True)):
        return []
    return [resolved.with_latents(f"control {n}", [drawn[n] for drawn in sets]) for n in range(draws)]


# --- an SAE that was never trained -------------------------------------------------------------------------------


def _untrained(
    subject: Subject, ranks: Rankings, seen: Attribution | None, judged: Sequence[Judged], draws: int, seed: int
) -> list[np.ndarray]:
    """How far each steering moves the contrast, once for each untrained SAE."""
    bench, patches = subject.bench, np.flatnonzero(~subject.bench.sites.class_S)
    if ranks.latents_PL.shape[0] != len(patches):  # a connector with outputs that are made of no patch
        return [np.zeros(0) for _ in judged]
    moved: list[list[float]] = [[] for _ in judged]
    for n in range(draws):
        sae = Sae.untrained(seed + n, like=subject.sae)
        effects_L = None if seen is None else replace(seen, sae=sae).effects().double().cpu().numpy()
        theirs = replace(ranks, latents_PL=bench.latents(sae)[patches], effects_L=effects_L)
        changes = []
        for one in judged:
            sets: list[Latents] = stand_ins(one.resolved, ranks, theirs, one.inside)
            changes.append(bench.change(one.resolved.with_latents("untrained", sets), sae))
        for changes_N, value in zip(moved, bench.shifts(changes), strict=True):
            changes_N.append(float(value))
    return [np.array(changes_N) for changes_N in moved]
