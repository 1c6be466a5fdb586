"""Controls: which latents stand in for those of a steering, edit by edit, on a picture that is made up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from vsp_report.case import ByNumber
from vsp_report.maths.edits import ALL, Edit, Region, Steering
from vsp_report.study.controls import Judged, matched_steerings
from vsp_report.study.resolve import Rankings, Resolved, stand_ins

P, L, ACTIVE, LIVING = 20, 200, 60, 140
"""Of the latents the first are active on the picture, and those that live without being active on it come next."""


@pytest.fixture
def ranks() -> Rankings:
    generator = np.random.default_rng(0)
    latents_PL = generator.gamma(2.0, 1.0, (P, L)) * (generator.random((P, L)) < 0.4)
    latents_PL[0, :ACTIVE] += 0.1
    latents_PL[:, ACTIVE:] = 0
    return Rankings(sparse.csr_array(latents_PL), (), np.zeros((0, P)), living_L=np.arange(L) < LIVING)


def judged(*edits: Edit, inside: np.ndarray | None = None) -> Judged:
    resolved = Resolved(Steering("asked", edits), (), (), None)
    return Judged(resolved, tuple(None if edit.where is None else inside for edit in edits), 1.0)


SILENT = (3, 5, ACTIVE + 1, ACTIVE + 2, ACTIVE + 7)
"""Two that are active, and three that are not."""


@pytest.mark.parametrize(("op", "value"), [("add", 2.0), ("set", 4.0)])
def test_what_acts_on_silent_latents_is_compared_with_as_many_of_both_kinds(ranks: Rankings, op, value) -> None:
    others = matched_steerings(ranks, judged(Edit(SILENT, op, value)), 50, seed=1)
    assert len(others.steerings) == 50 and 0.3 < others.mass_ratio < 3
    for one in others.steerings:
        (edit,) = one.edits
        assert (edit.op, edit.value) == (op, value) and len(set(edit.latents)) == len(SILENT)
        assert not set(edit.latents) & set(SILENT)
        assert sum(k < ACTIVE for k in edit.latents) == 2 and max(edit.latents) < LIVING


@pytest.mark.parametrize(("op", "value"), [("scale", 3.0), ("set", 0.0)])
def test_what_acts_on_active_latents_alone_is_compared_with_as_many_of_those(ranks: Rankings, op, value) -> None:
    others = matched_steerings(ranks, judged(Edit(SILENT, op, value)), 50, seed=1)
    assert {len(one.edits[0].latents) for one in others.steerings} == {2}
    assert all(k < ACTIVE for one in others.steerings for k in one.edits[0].latents)


def test_silent_latents_of_which_nobody_knows_that_they_live_are_no_controls(ranks: Rankings) -> None:
    """Without an atlas, those live that are active somewhere in this picture: in a part of it, there are some."""
    alone = Rankings(ranks.latents_PL, (), ranks.attention_TP)
    assert matched_steerings(alone, judged(Edit(SILENT, "add", 2.0)), 50, seed=1).steerings == []
    inside_P = np.arange(P) == 3
    there_L = ranks.within(inside_P).mass_L > 0
    here = tuple(map(int, np.flatnonzero(~there_L[:ACTIVE])[:4]))
    edit = Edit(here, "add", 2.0, Region(((0, 0, 1, 1),)))
    others = matched_steerings(alone, judged(edit, inside=inside_P), 20, seed=1).steerings
    assert len(others) == 20
    for one in others:
        assert len(one.edits[0].latents) == 4 and not there_L[list(one.edits[0].latents)].any()
        assert max(one.edits[0].latents) < ACTIVE and one.edits[0].where == edit.where


def test_steerings_of_several_edits_are_never_made_twice(ranks: Rankings) -> None:
    both = judged(Edit((3,), "set", 0.0), Edit((5,), "scale", 3.0))
    others = matched_steerings(ranks, both, 200, seed=0).steerings
    assert len(others) == 200 == len({one.edits for one in others})
    alone = matched_steerings(ranks, judged(Edit((3,), "set", 0.0)), 200, seed=0).steerings
    assert len(alone) == 19 == len({one.edits for one in alone})


def test_an_edit_that_does_nothing_is_left_as_it_is(ranks: Rankings) -> None:
    idle = Edit((ACTIVE + 1,), "scale", 3.0)
    others = matched_steerings(ranks, judged(Edit((3, 5), "set", 0.0), idle), 10, seed=0).steerings
    assert len(others) == 10 and all(one.edits[1] == idle for one in others)
    assert matched_steerings(ranks, judged(idle), 10, seed=0).steerings == []
    assert matched_steerings(ranks, judged(Edit(ALL, "set", 0.0)), 10, seed=0).steerings == []


@pytest.mark.parametrize(
    ("op", "value", "wakes"), [("add", 2.0, True), ("set", 4.0, True), ("scale", 3.0, False), ("set", 0.0, False)]
)
def test_an_untrained_sae_lends_active_latents_for_active_ones_and_silent_ones_for_what_is_woken(
    ranks: Rankings, op: str, value: float, wakes: bool
) -> None:
    generator = np.random.default_rng(1)
    theirs_PL = generator.gamma(2.0, 1.0, (P, L)) * (generator.random(L) < 0.5)
    theirs = Rankings(sparse.csr_array(theirs_PL), (), np.zeros((0, P)))
    resolved = Resolved(Steering("asked", (Edit(SILENT, op, value),)), (), (ByNumber(SILENT),), None)
    (found,) = stand_ins(resolved, ranks, theirs, (None,))
    place = [int((ranks.mass_L > ranks.mass_L[k]).sum()) for k in SILENT[:2]]
    assert found[:2] == tuple(int(np.argsort(-theirs.mass_L, kind="stable")[n]) for n in place)
    assert len(found) == len(set(found)) == (5 if wakes else 2)
    assert not theirs.mass_L[list(found[2:])].any()
    nothing = Rankings(sparse.csr_array((P, L)), (), np.zeros((0, P)))
    (found,) = stand_ins(resolved, ranks, nothing, (None,))
    assert len(found) == (3 if wakes else 0)
