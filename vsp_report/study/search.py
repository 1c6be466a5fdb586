"""Search: few latents that change an answer, and how easily as much is had without them.

    minimal     the smallest set found whose ablation takes the contrast to its other side: latents in the order of
                attribution, asked anew after every doubling because latents of one thing stand in for each other; then
                the least count by bisection
    onward      from some edits, further ablations of what keeps the right answer from being said
    strengthen  from some edits, amplifications of what pulls towards the right answer, and ablations of what pulls away

A search takes the best of many, so what it finds has to be compared with more than random latents:

    matched     as many other latents, as active and as widespread, the same done to them
    as_hard     one round of the same search in SAEs that were never trained: the best of all their latents, ranked
                once. If those of the trained one were as good as any directions, what was found would be one among
                these
    reach       the same for answers that nobody claims: the likeliest others where right and wrong part, but for those
                that the model gives when it sees nothing, which whatever is taken away leads to
    apart       where in the picture the latents are that pull towards the right answer, beside those that speak for
                the wrong one: two things that are seen are seen in two places

Each search counts what it costs in model runs: one for each state of the tap that is carried to an answer, one more
for each gradient that is taken back.

Axes: N steerings, L latents, V whatever may be said, C of these those chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from vsp_report.maths.edits import ALL, Edit, Steering
from vsp_report.maths.effects import Part, matched_sets
from vsp_report.model.bench import Bench
from vsp_report.model.sae import Sae
from vsp_report.recording import Answered
from vsp_report.study.resolve import Rankings
from vsp_report.study.subjects import Subject

AMPLIFY = 3.0
"""What is amplified is multiplied by this, which lies in the range in which doses are measured."""
PER_ROUND = 2
DRAWS = 19
"""With so many, a change that is further than each of theirs has a p-value of one in twenty."""
RIVALS = 19
PULLING = 4
"""So many latents that pull towards an answer are amplified, to see how far it can be had."""
SHOWING = 8
"""So many that pull towards the right answer are looked for in the picture."""
DEFAULT = 0.01
"""What is said of nothing with at least this probability is a default, and no rival."""


class Edits(NamedTuple):
    """What a search does to latents: some are set to zero, others amplified."""

    ablated: tuple[int, ...] = ()
    amplified: tuple[int, ...] = ()

    def steering(self, name: str) -> Steering:
        ablating = (Edit(self.ablated, "set", 0.0),) if self.ablated else ()
        amplifying = (Edit(self.amplified, "scale", AMPLIFY),) if self.amplified else ()
        return Steering(name, (*ablating, *amplifying))

    @property
    def latents(self) -> tuple[int, ...]:
        return (*self.ablated, *self.amplified)

    def and_also(self, ablated: Sequence[int] = (), amplified: Sequence[int] = ()) -> Edits:
        return Edits((*self.ablated, *ablated), (*self.amplified, *amplified))


class Outcome(NamedTuple):
    """What came of some edits."""

    edits: Edits
    text: str
    change: float
    """of the margin"""


class Reach(NamedTuple):
    """How far the right answer can be had, and its rivals by the same means."""

    right: float
    """log-odds against all else that may be said"""
    rivals: tuple[tuple[str, float], ...]
    """the likeliest others with theirs, the one that is had most easily first"""

    @property
    def easier(self) -> int:
        """So many rivals are had at least as easily."""
        return sum(odds >= self.right for _, odds in self.rivals)

    @property
    def p(self) -> float:
        return (1 + self.easier) / (1 + len(self.rivals))


class Apart(NamedTuple):
    """How far what pulls towards the right answer lies where what speaks for the wrong one does."""

    overlap: float
    """cosine of both maps of activation: 0 in other places, 1 in the same"""
    others: tuple[float, ...]
    """the same of matched latents"""

    @property
    def p(self) -> float:
        return (1 + sum(other <= self.overlap for other in self.others)) / (1 + len(self.others))


@dataclass(eq=False)
class Search:
    """One question held still, with what the search has cost so far."""

    subject: Subject
    ranks: Rankings
    seed: int = 0
    runs: int = 0
    margin: float = field(init=False)

    def __post_init__(self) -> None:
        self.margin = float(self.bench.log_odds([self.bench.states_SD * 0])[0])
        self.runs += 1

    @property
    def bench(self) -> Bench:
        return self.subject.bench

    @property
    def active(self) -> int:
        return int((self.ranks.mass_L > 0).sum())

    @property
    def splits(self) -> bool:
        """Whether right and wrong answer part, so that each has likelihoods of its own."""
        return self.bench.parting is not None

    # -- asking -------------------------------------------------------------------------------------

    def changes(self, many: Sequence[Edits]) -> np.ndarray:
        """(N,): of the margin."""
        if not many:
            return np.zeros(0)
        self.runs += len(many)
        return self.bench.shifts(self.bench.changes([one.steering(str(n)) for n, one in enumerate(many)]))

    def outcome(self, edits: Edits) -> Outcome:
        """The edits made, and the question asked."""
        text = self.subject.says([edits.steering("searched")])[1]
        return Outcome(edits, text, float(self.changes([edits])[0]))

    def answered(self, edits: Edits, name: str) -> Answered:
        self.runs += 1
        return self.subject.answers([edits.steering(name)]).after[0]

    def support(self, edits: Edits = Edits()) -> tuple[float, np.ndarray]:  # noqa: B008
        """The margin with these edits in place, and what ablating each other latent would do to it."""
        self.runs += 2
        seen = self.bench.attribution(edits.steering("so far") if edits.latents else None)
        return seen.log_odds, self._others(seen.effects().double().cpu().numpy(), edits)

    def _pulls(self, choices: Sequence[int], edits: Edits) -> np.ndarray:
        """(C, L): what ablating each other latent would do to the odds of each of these against all else."""
        self.runs += 1 + len(choices)
        pulls_CL = self.bench.pulls(choices, edits.steering("so far") if edits.latents else None)
        return np.stack([self._others(pulls_L, edits) for pulls_L in pulls_CL])

    def _others(self, effects_L: np.ndarray, edits: Edits) -> np.ndarray:
        effects_L = np.where(self.ranks.mass_L > 0, effects_L, 0.0)
        effects_L[list(edits.latents)] = 0.0
        return effects_L

    # -- searching ----------------------------------------------------------------------------------

    def minimal(self, most: int) -> Edits | None:
        """The smallest set found, of at most `most`, that takes the margin to its other side; None if there is none.

        With asking once more what is said, it never costs more than a tenth of ablating every active latent by
        itself: rather than that it gives up, or keeps a set that is not the smallest.
        """
        left = self.runs + self.active // 10 - 2  # what it began with is one, and asking is another
        sign, found, below = 1.0 if self.margin > 0 else -1.0, Edits(), 0
        while self.runs + 2 <= left:
            margin, effects_L = self.support(found)
            if (margin > 0) != (self.margin > 0):
                break
            below = len(found.ablated)
            more = strongest(-sign * effects_L, min(max(below, 1), most - below))
            if not more:
                return None
            found = found.and_also(more)
        else:
            return None
        above = len(found.ablated)
        while above - below > 1 and self.runs + 1 <= left:
            half = (above + below) // 2
            change = self.changes([Edits(found.ablated[:half])])[0]
            flips = (self.margin + change > 0) != (self.margin > 0)
            below, above = (below, half) if flips else (half, above)
        return Edits(found.ablated[:above])

    def further(self, edits: Edits) -> Edits:
        """As many again that support the answer which is given, found with these edits in place."""
        away_L = (-1.0 if self.margin > 0 else 1.0) * self.support(edits)[1]
        return edits.and_also(strongest(away_L, len(edits.ablated)))

    def onward(self, edits: Edits, most: int) -> Edits:
        """One round more of ablating what keeps the right answer from being said, whatever is said instead."""
        pulls_L = self._pulls([self.bench.parting[0]], edits)[0]
        return edits.and_also(strongest(pulls_L, min(PER_ROUND, most - len(edits.ablated))))

    def strengthen(self, edits: Edits, most: int) -> Edits:
        """One round more of amplifying what pulls towards the right answer, and ablating what pulls away from it."""
        pulls_L = self._pulls([self.bench.parting[0]], edits)[0]
        ablated = strongest(pulls_L, min(PER_ROUND, most - len(edits.ablated)))
        return edits.and_also(ablated, strongest(-pulls_L, min(PER_ROUND, most - len(edits.amplified))))

    # -- comparing ----------------------------------------------------------------------------------

    def matched(self, edits: Edits, draws: int = DRAWS) -> list[Edits]:
        """The same done to as many other latents, as active and as widespread, no two of them the same; fewer where
        there are no more, and none where there are too few."""
        return [Edits(*chosen) for chosen in matched_sets(self._parts(edits), draws).sets]

    def _parts(self, groups: Sequence[Sequence[int]]) -> list[Part]:
        return [Part(latents, self.ranks.mass_L, self.ranks.frequency_L, self.seed + 1000 * place)
                for place, latents in enumerate(groups)]  # fmt: skip

    def as_hard(self, edits: Edits, draws: int = DRAWS) -> tuple[float, np.ndarray]:
        """How far these edits take the right answer against all else, and (N,) how far one round of the same search
        takes it with latents of SAEs that were never trained: as many of each kind, the best of all that are active
        there. Those are ranked once, with nothing edited; the edits here may come of several rounds, each ranked anew.

        Against all else, because a question that has many answers is easily driven from one to any other. Where the
        right answer and the wrong one do not part, it is how far the margin moves.
        """
        bench, seen = self.bench, self.bench.attribution()
        sign = -1.0 if self.margin > 0 else 1.0

        def changed() -> Iterator[Any]:
            yield bench.change(edits.steering("searched"))
            for n in range(draws):
                sae = Sae.untrained(self.seed + n, like=self.subject.sae)
                away_L = sign * replace(seen, sae=sae).effects().double().cpu().numpy()
                theirs = Edits(strongest(away_L, len(edits.ablated)), strongest(-away_L, len(edits.amplified)))
                yield bench.change(theirs.steering(str(n)), sae)

        self.runs += 3 + draws
        if self.splits:
            mine, *others = (_odds(likely_V[bench.parting[0]]) for likely_V in bench.likely(changed()))
        else:
            mine, *others = bench.shifts(changed())
        return float(mine), np.array(others)

    def reach(self, edits: Edits, rivals: int = RIVALS) -> Reach | None:
        """With these edits in place, how far the right answer can be had, by amplifying what pulls towards it or
        without, and how far the likeliest others; None where right and wrong do not part, or there are no others."""
        if not self.splits:
            return None
        bench, (right, wrong) = self.bench, self.bench.parting
        made = [edits.steering("so far")] if edits.latents else []
        nothing = Steering("nothing", (Edit(ALL, "set", 0.0),))
        of_nothing_V, *likely = bench.likely([bench.change(nothing), bench.states_SD * 0, *bench.changes(made)])
        likely_NV = np.stack(likely)
        self.runs += 1 + len(likely_NV)
        left_out = {right, wrong, *map(int, np.flatnonzero(of_nothing_V >= np.log(DEFAULT)))}
        order = np.argsort(-likely_NV.max(0), kind="stable")
        choices = [right, *[int(v) for v in order if int(v) not in left_out][:rivals]]
        if len(choices) < 2:
            return None
        steerings = [
            edits.and_also((), strongest(-pulls_L, PULLING)).steering(str(c))
            for c, pulls_L in enumerate(self._pulls(choices, edits))
        ]
        after_CV = bench.likely(bench.changes(steerings))
        self.runs += len(after_CV)
        odds = [max(_odds(likely_NV[-1, v]), _odds(after_CV[c, v])) for c, v in enumerate(choices)]
        named = [(bench.word(v), one) for v, one in zip(choices[1:], odds[1:], strict=True)]
        return Reach(odds[0], tuple(sorted(named, key=lambda pair: -pair[1])))

    def apart(self, edits: Edits) -> Apart | None:
        """With what speaks for the wrong answer ablated, whether what pulls towards the right one lies elsewhere; None
        where right and wrong do not part, or there is nothing to compare."""
        if not self.splits or not edits.ablated:
            return None
        pulls_L = self._pulls([self.bench.parting[0]], Edits(edits.ablated))[0]
        showing = strongest(-pulls_L, SHOWING)
        drawn = matched_sets(self._parts([(latent,) for latent in showing]), DRAWS, apart_from=edits.ablated).sets
        if not drawn:
            return None
        others = [[other for (other,) in one] for one in drawn]
        wrong_P, weights = self._map(edits.ablated), [-pulls_L[k] for k in showing]
        overlaps = [_cosine(wrong_P, self._map(one, weights)) for one in (showing, *others)]
        return Apart(overlaps[0], tuple(overlaps[1:]))

    def _map(self, latents: Sequence[int], weights: Sequence[float] | None = None) -> np.ndarray:
        """(P,): how active they are on each patch; with weights, each by its share of its activation there."""
        latents_PK = self.ranks.latents_PL[:, list(latents)]
        if weights is None:
            return np.asarray(latents_PK.sum(1), float).ravel()
        shares_K = np.asarray(weights) / np.maximum(self.ranks.mass_L[list(latents)], 1e-12)
        return np.asarray(latents_PK @ shares_K, float).ravel()


def _cosine(one_P: np.ndarray, other_P: np.ndarray) -> float:
    lengths = float(np.linalg.norm(one_P) * np.linalg.norm(other_P))
    return float(one_P @ other_P) / lengths if lengths else 0.0


def strongest(score_L: np.ndarray, count: int) -> tuple[int, ...]:
    """At most so many latents with a score above zero, the largest first."""
    best = np.argsort(-score_L, kind="stable")[: max(count, 0)]
    return tuple(int(k) for k in best if score_L[k] > 0)


def _odds(log_prob: float) -> float:
    """Log-odds against all else; beyond nine digits of certainty there is nothing to tell."""
    return float(log_prob - np.log(max(-np.expm1(log_prob), 1e-9)))
