"""Diagnose: which failure mode a case shows, or that this cannot be told.

Only what a reader has is used: the case, its contrast, its rephrasings, the model and the SAE. The tests, in order of
how much they do to the model; each line of the evidence is one of them:

    the answer            is it wrong at all?
    rephrasing            is the question answered rightly in other words, with nothing edited, and does that answer
                          rest on latents that are active here?
    ablation              do few latents that support the wrong answer, set to zero, bring the right one?
    what they stand for   when the model describes the picture, which words does it say because of those latents: that
                          of the wrong answer, or the name of something else? A description that has no word of the
                          question or of its answers is of something else than what is asked, and says nothing here
    ablate and amplify    where ablation did not: does it, together with amplifying what supports the right answer?
    rivals                can the right answer be had more easily than answers that nobody claims?
    two places            does what pulls towards the right answer lie where what speaks for the wrong one does?

A search *brings* the right answer if the model says it, if the margin moves further than by each of 19 sets of matched
latents (p <= 0.05), and if at most one of 19 searches as hard, in SAEs that were never trained, takes the right answer
as far against all else (p <= 0.1): a search takes the best of many, and so must its control. The right answer is
*ahead* if at most one of 19 rivals, the likeliest other things that could be said in its place, can be had as easily by
amplifying what pulls towards it (p <= 0.1), and if it is had: a search has the model say it, or it becomes likelier
than all else together. Where none arrives, being first says nothing. It is *one of many* if at least half of them can
be had as easily: then it says nothing that it can be forced. What the model says of nothing at all, with every latent
ablated, is no rival: taking anything away leads there. What pulls towards the right answer lies *elsewhere* if it
shares fewer patches with the latents that speak for the wrong one than matched latents mostly do, *surely elsewhere* if
it shares fewer than each of 19, and in *the same place* if it shares more than each of 19.

The rule:

    none                  the answer is right
    limited alignment     a rephrasing is answered rightly, and rests on what is seen
    misleading cue        ablation brings the right answer, which is ahead or has no rivals, and the description has
                          words because of these latents that are not the wrong answer's, or none: something else in
                          the picture had spoken for it
    hidden cue            ablation, or ablation with amplification, brings the right answer, which is ahead, and what
                          pulls towards it lies elsewhere (or it is not one of many, and that lies surely elsewhere; or
                          ablation alone brings it, no rival is had as easily, and that lies not in the same place);
                          and the description has the wrong answer's own words because of the ablated latents, and no
                          others: two things are seen, and one is spoken of. Or it has no words because of them, or
                          there is no description, and amplification was needed
    perception missing    no search has the model say the right answer, and it is not ahead; or it is one of many. And
                          nothing elsewhere pulls towards it, and no rephrasing is answered rightly, on whatever that
                          rests
    undetermined          everything else: neither answer of the contrast is given, tests speak against each other,
                          something is not beyond its controls, or a test that the rule asks for cannot be made

Why words decide between the two cues: in both modes one thing in the picture stands against another, and ablating the
stronger lets the weaker speak. They differ in what the stronger one is. A chair is not what "sitting" means, and with
its latents the word "chair" goes from the description too; ears are what "a rabbit" means, and only the rabbit goes.

Why places decide whether a cue is hidden: a thing that is seen as one answer can often be pushed into being seen as
another, because a few of its latents speak for that too. That is one thing, read in another way. A cue that was there
all along has patches of its own; and where there are such patches, nobody can say that nothing is seen. What speaks up
by itself, once others are silent, was not pushed: of it less is asked.

What the rule cannot tell: where a question offers two answers and no more, everything that speaks against one speaks
for the other. The right answer may then come back by default, without being seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vsp_report.case.answers import side
from vsp_report.maths.edits import Contrast
from vsp_report.maths.effects import permutation_p
from vsp_report.recording import Answered, Diagnosis, Evidence, MinimalSet, Rephrased
from vsp_report.study.description import Carried, about, carried
from vsp_report.study.resolve import Rankings
from vsp_report.study.search import Apart, Edits, Outcome, Reach, Search, strongest
from vsp_report.study.subjects import Asking, Subject

LEVEL = 0.05
"""Against controls drawn by chance: further than each of 19."""
SEARCHED = 0.1
"""Against controls that search: among the first two of twenty."""
MOSTLY = 0.5
"""One of many: at least half of its rivals are had as easily. Elsewhere: among the half of matched sets that share the
fewest patches."""
FEW = 16
"""More latents than this are not few."""
MOST_MINIMAL = 64
ROUNDS = 3
"""After so many rounds more, a search that has not brought the right answer gives up."""
SUPPORTERS = 8
"""So many latents that support a rephrased answer are taken away, to see whether it rests on them."""


# --- answers -----------------------------------------------------------------------------------------------------


def verdict(text: str, contrast: Contrast, margin: float | None = None) -> str:
    """right, wrong, or "" for neither: by the words of the answer, and by the margin where both are among them."""
    return side(text, contrast.right, contrast.wrong, margin)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


# --- the smallest set --------------------------------------------------------------------------------------------


def minimal_set(subject: Subject, ranks: Rankings, seed: int = 0) -> MinimalSet | None:
    """The smallest set found whose ablation takes the contrast to its other side, and what the model truly says then.

    None if there is none that can be found with at most a tenth of the runs that one latent at a time would take, or
    at a text tap, where nothing can be held still.
    """
    if subject.bench is None:
        return None
    search = Search(subject, ranks, seed)
    edits = search.minimal(MOST_MINIMAL)
    if edits is None:
        return None
    after = search.answered(edits, "smallest set")
    return MinimalSet(edits.ablated, after, search.runs)


# --- the tests ---------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """What a search came to, beside its controls."""

    outcome: Outcome
    right: bool
    """whether the right answer is said"""
    matched_p: float | None = None
    """of the change among matched latents"""
    hard_p: float | None = None
    """of how far the right answer is had, among searches as hard"""

    @property
    def brings(self) -> bool:
        return self.right and self.matched_p is not None and self.matched_p <= LEVEL and self.hard_p <= SEARCHED


@dataclass(eq=False)
class Examination:
    """One case while it is examined: the evidence so far, and what it has cost."""

    subject: Subject
    ranks: Rankings
    seed: int
    evidence: list[Evidence] = field(default_factory=list)
    runs: int = 0

    @property
    def contrast(self) -> Contrast:
        return self.subject.contrast

    def note(
        self, test: str, finding: str, holds: bool | None, change: float | None = None, p: float | None = None
    ) -> None:
        change, p = (None if value is None else round(float(value), 6) for value in (change, p))
        self.evidence.append(Evidence(test, finding, holds, change, p))

    def concluded(self, mode: str) -> Diagnosis:
        return Diagnosis(mode, tuple(self.evidence), self.runs)


def diagnose(
    subject: Subject, ranks: Rankings, clean: Answered, rephrased: Sequence[Rephrased] = (),
    smallest: MinimalSet | None = None, seed: int = 0,
) -> Diagnosis:  # fmt: skip
    """The failure mode, with the evidence that led there.

    `clean` is the answer to the question as it is, `rephrased` are those to the same question in other words, and
    `smallest` is what `minimal_set` found.
    """
    seen = Examination(subject, ranks, seed)
    said = verdict(clean.text, seen.contrast, clean.margin)
    seen.note("the answer", f"“{clean.text}” is {said or 'neither answer of the contrast'}", said == "right")
    if said == "right":
        return seen.concluded("none")
    rests = [_rephrasing(seen, one) for one in rephrased]  # all of them, for the table
    if any(rests):
        return seen.concluded("limited-alignment")
    if said != "wrong" or clean.margin is None or clean.margin > 0:
        seen.note("ablation", "not looked for: it is not the wrong answer that the model gives", None)
        return seen.concluded("undetermined")
    if subject.bench is None:
        seen.note("ablation", "not looked for: at a text tap nothing can be held still", None)
        return seen.concluded("undetermined")
    search = Search(subject, ranks, seed, (smallest.runs if smallest else 0) + seen.runs)
    few = Edits(smallest.latents) if smallest and len(smallest.latents) <= FEW else None
    ablation = _ablation(seen, search, few)
    words = _stand_for(seen, search, few) if few else None
    both = None if ablation and ablation.brings else _ablate_and_amplify(seen, search, few)
    reach = _rivals(seen, search, ablation.outcome.edits if ablation else Edits(), said=_said(ablation, both))
    apart = _two_places(seen, search, few, both)
    seen.runs = search.runs
    described = few is not None and isinstance(subject, Asking)
    otherwise = any(one is not None for one in rests)
    return seen.concluded(rule(ablation, both, words, reach, apart, described=described, otherwise=otherwise))


def rule(
    ablation: Trial | None, both: Trial | None, words: Carried | None, reach: Reach | None, apart: Apart | None,
    *, described: bool = True, otherwise: bool = False,
) -> str:  # fmt: skip
    """The rule for a wrong answer that no rephrasing corrects. `described`: whether there are latents and a model that
    describes, so that words should have been found. `otherwise`: whether it is answered rightly in other words, on
    whatever that rests."""
    said = _said(ablation, both)
    ahead = reach is not None and _ahead(reach, said)
    elsewhere = apart is not None and apart.p <= MOSTLY
    by_ablation = ablation is not None and ablation.brings
    by_both = both is not None and both.brings
    by_itself = by_ablation and reach is not None and reach.p <= LEVEL and apart is not None and apart.p <= 1 - LEVEL
    if reach is not None and not ahead and not elsewhere and (not said or reach.p > MOSTLY):
        return "undetermined" if otherwise else "perception-missing"
    far_off = reach is not None and reach.p <= MOSTLY and apart is not None and apart.p <= LEVEL
    shown = (ahead and (elsewhere or by_itself)) or far_off
    if words is None:
        return "hidden-cue" if by_both and shown and not described else "undetermined"
    if words.itself:
        return "hidden-cue" if (by_ablation or by_both) and shown else "undetermined"
    if by_ablation:
        return "misleading-cue" if ahead or reach is None else "undetermined"
    return "hidden-cue" if by_both and shown and not words.words else "undetermined"


def _said(*trials: Trial | None) -> bool:
    return any(one is not None and one.right for one in trials)


def _ahead(reach: Reach, said: bool) -> bool:
    return reach.p <= SEARCHED and (said or reach.right > 0)


def _rephrasing(seen: Examination, one: Rephrased) -> bool | None:
    """Whether the right answer in other words rests on what is seen; None where it is not given."""
    contrast = Contrast(*one.contrast) if one.contrast else seen.contrast
    test, said = f"rephrasing: {one.name}", f"“{one.prompt}” is answered “{one.answered.text}”"
    if verdict(contrast.right, seen.contrast) == "wrong":
        seen.note(test, f"“{one.prompt}” asks something else: its right answer is the wrong one here", None)
        return None
    if verdict(one.answered.text, contrast, one.answered.margin) != "right":
        seen.note(test, said, False)
        return None
    subject = seen.subject.asked(one.prompt, contrast)
    if subject.bench is None:
        seen.note(test, f"{said}; at a text tap it cannot be tested what that rests on", None)
        return False
    search = Search(subject, seen.ranks, seen.seed)
    edits = Edits(strongest(-search.support()[1], SUPPORTERS))
    controls = search.matched(edits) if edits.latents else []
    change, *others_N = search.changes([edits, *controls]) if controls else (None,)
    seen.runs += search.runs
    p = permutation_p(change, others_N) if controls else None
    rests = None if p is None else bool(p <= LEVEL and change < 0)
    how = {True: "rests on", False: "does not rest on", None: "cannot be compared over"}[rests]
    finding = f"{said}, which {how} {_counted(len(edits.ablated), 'active latent')} that support it"
    seen.note(test, finding, rests, change, p)
    return bool(rests)


def _ablation(seen: Examination, search: Search, few: Edits | None) -> Trial | None:
    if few is None:
        seen.note("ablation", f"no set of at most {FEW} latents was found that takes the margin over", False)
        return None
    outcome = search.outcome(few)
    for _ in range(ROUNDS):
        if verdict(outcome.text, seen.contrast) == "right" or not search.splits:
            break
        more = search.onward(outcome.edits, FEW)
        if more == outcome.edits:
            break
        outcome = search.outcome(more)
    return _tested(seen, search, "ablation", f"{_counted(len(outcome.edits.ablated), 'latent')} ablated", outcome)


def _ablate_and_amplify(seen: Examination, search: Search, few: Edits | None) -> Trial | None:
    test = "ablate and amplify"
    if not search.splits:
        seen.note(test, "not looked for: one answer begins with the other, and nothing pulls to one alone", None)
        return None
    outcome, edits = None, few or Edits()
    for _ in range(ROUNDS + 1):
        more = search.strengthen(edits, FEW)
        if outcome is not None and more == edits:
            break
        edits, outcome = more, search.outcome(more)
        if verdict(outcome.text, seen.contrast) == "right":
            break
    what = f"{_counted(len(edits.ablated), 'latent')} ablated, {len(edits.amplified)} amplified"
    return _tested(seen, search, test, what, outcome)


def _tested(seen: Examination, search: Search, test: str, what: str, outcome: Outcome) -> Trial:
    if verdict(outcome.text, seen.contrast) != "right":  # nothing is claimed, and nothing need be compared
        seen.note(test, f"{what}: “{outcome.text}”", False, outcome.change)
        return Trial(outcome, False)
    reached, others_N = search.as_hard(outcome.edits)
    hard_p = float((1 + (others_N >= reached).sum()) / (1 + len(others_N)))
    tested = Trial(outcome, True, permutation_p(outcome.change, search.changes(search.matched(outcome.edits))), hard_p)
    beside = f"p {hard_p:.2g} among searches as hard"
    holds = None if tested.matched_p is None else tested.brings
    seen.note(test, f"{what}: “{outcome.text}”; {beside}", holds, outcome.change, tested.matched_p)
    return tested


def _stand_for(seen: Examination, search: Search, few: Edits) -> Carried | None:
    test, words = "what they stand for", carried(search, few, seen.contrast.wrong)
    if words is None:
        seen.note(test, "there is no description to read, or nothing to compare with", None)
        return None
    if not about(words.description, f"{seen.subject.prompt} {seen.contrast.right} {seen.contrast.wrong}"):
        seen.note(test, f"“{words.description}” says nothing of what is asked", None)
        return None
    named = ", ".join(f"“{word}”" for word in words.words) or "no word"
    meant = "the wrong answer itself" if words.itself else "something else" if words.words else "nothing it names"
    finding = f"because of them “{words.description}” has {named}: {meant}"
    seen.note(test, finding, words.itself)
    return words


def _rivals(seen: Examination, search: Search, edits: Edits, *, said: bool) -> Reach | None:
    reach = search.reach(edits)
    if reach is None:
        seen.note("rivals", "there are none to compare with", None)
        return None
    (first, odds), among = reach.rivals[0], _counted(len(reach.rivals), "rival")
    had = f"the right answer can be had to log-odds {reach.right:.1f}, “{first}” to {odds:.1f}"
    ahead = _ahead(reach, said)
    never = "" if ahead or reach.p > SEARCHED else "; it is said after no search, and never likelier than all else"
    finding = f"{had}; {reach.easier or 'none'} of {among} as easily{never}"
    seen.note("rivals", finding, ahead, None, reach.p)
    return reach


def _two_places(seen: Examination, search: Search, few: Edits | None, both: Trial | None) -> Apart | None:
    edits = few or (both.outcome.edits if both else Edits())
    apart = search.apart(edits)
    if apart is None:
        seen.note("two places", "there are none to compare", None)
        return None
    elsewhere = apart.p <= MOSTLY
    less = sum(other <= apart.overlap for other in apart.others)
    finding = (
        f"what pulls towards the right answer overlaps by {apart.overlap:.2f} with what speaks for the wrong one; "
        f"{less or 'none'} of {len(apart.others)} matched sets by as little"
    )
    seen.note("two places", finding, elsewhere, None, apart.p)
    return apart
