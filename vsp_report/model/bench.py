"""Bench: one question held still at its tap, so that any change of the states can be tried on its contrast.

Steerings change states by way of latents. What they are compared with need not: a random direction is no latent, and
an untrained SAE has other ones. Here a change is given as it is, one row for each site, and many of them are scored
in few batches; what lies below the tap is run once. The same for a model that answers and for a CLIP that classifies.

A random direction takes the place of an edit by turning it: the edit is written as coefficients on the few directions
that it is made of, and those are exchanged for a random frame of as many. So every patch is changed by as much as
before, and patches that were pushed the same way still are. Directions drawn for each patch by itself would cancel
out across patches, and be a control that is too easy to beat.

Only taps of the vision side: at a text tap an edit also acts on what is said later, which no fixed change can stand
for.

What else might be said is known too: where the two answers part, the bench tells how likely everything else is
that could stand there, a token or a class, and which latents pull towards it. These are the rivals of the right
answer: nobody claims them, so a search that leads to them as easily has found nothing.

Axes: N changes, S sites, D width, B rows of a batch, R rank, A answers (right, wrong), V whatever may be said, C of
these those chosen, K active latents, L latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vsp_report.errors import SteeringError
from vsp_report.maths.edits import Contrast, Steering, predicted, worth
from vsp_report.maths.grids import Weights
from vsp_report.model import taps
from vsp_report.model.answers import contrast_ids
from vsp_report.model.attribution import Attribution
from vsp_report.model.classify import Classes, Clip, Picture
from vsp_report.model.latents import active
from vsp_report.model.memory import free_bytes, row_bytes
from vsp_report.model.sae import Sae
from vsp_report.model.sites import Editor, Row, Sites
from vsp_report.model.steering import check_width, see_states, tap_of
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Prompt, Vlm

MOST_ROWS, MOST_ROWS_CPU = 32, 12
"""Of a batch. More take memory, and on a CPU they leave its cache: of the bundled model 32 rows were measured to take
half as long again, each, as 12 do on two threads."""


def most_rows(device: torch.device) -> int:
    return MOST_ROWS_CPU if device.type == "cpu" else MOST_ROWS


@dataclass(frozen=True, eq=False)
class Bench:
    """What both kinds of question share; `answering` and `classifying` make one."""

    sae: Sae
    tap: Tap
    contrast: Contrast | None
    sites: Sites
    states: torch.Tensor
    """at the tap, as the model has them"""

    # -- what is there ------------------------------------------------------------------------------

    @property
    def states_SD(self) -> torch.Tensor:
        return self.states.flatten(0, -2)[self.sites.rows_S]

    def latents(self, sae: Sae | None = None) -> Weights:
        """(S, L), sparse."""
        return active(sae or self.sae, self.states_SD)

    def change(self, steering: Steering, sae: Sae | None = None) -> torch.Tensor:
        """(S, D): what a steering adds to the states."""
        return next(self.changes((steering,), sae))

    def changes(self, steerings: Sequence[Steering], sae: Sae | None = None) -> Iterator[torch.Tensor]:
        """One after the other, because many of them together may be more than memory holds."""
        editor = Editor(sae or self.sae, steerings, self.states.device)
        codes = editor.codes(self.states_SD)
        for steering in steerings:
            with torch.no_grad():
                change_SD = editor.edited(codes, Row.of(steering, self.sites)) - codes.z_SD
            yield change_SD

    # -- what becomes of the contrast ---------------------------------------------------------------

    @torch.no_grad()
    def log_probs(self, changes_NSD: Iterable[torch.Tensor]) -> np.ndarray:
        """(N, A): log-probability of the right and of the wrong answer under each change."""
        if self.contrast is None:
            raise SteeringError("contrast", "there is none to score", "Declare contrast: {right: …, wrong: …}.")
        scored, rows, left = [np.zeros((0, 2))], self._rows(), iter(changes_NSD)
        while some := [self._changed(change_SD) for change_SD in itertools.islice(left, rows)]:
            scored.append(self._answers(torch.cat(some)).double().cpu().numpy())
        return np.concatenate(scored)

    def log_odds(self, changes_NSD: Iterable[torch.Tensor]) -> np.ndarray:
        """(N,)"""
        right_wrong_NA = self.log_probs(changes_NSD)
        return right_wrong_NA[:, 0] - right_wrong_NA[:, 1]

    def shifts(self, changes_NSD: Iterable[torch.Tensor]) -> np.ndarray:
        """(N,): by how much each change moves the log-odds. Every batch has an unedited row to be measured against,
        because in low precision a row depends on how many there are."""
        moved, left, still_SD = [np.zeros(0)], iter(changes_NSD), torch.zeros_like(self.states_SD)
        while some := list(itertools.islice(left, max(1, self._rows() - 1))):
            odds_N = self.log_odds([still_SD, *some])
            moved.append(odds_N[1:] - odds_N[0])
        return np.concatenate(moved)

    def attribution(self, onto: Steering | None = None, *, cls: bool = False) -> Attribution:
        """As `attribute` gives it. With a steering in place, the latents stay those of the clean states, because
        edits are made of those, and the gradient is that of the states it leaves."""
        change_SD = torch.zeros_like(self.states_SD) if onto is None else self.change(onto)
        leaf = self._changed(change_SD).detach().requires_grad_()
        with torch.enable_grad():
            right, wrong = self._answers(leaf)[0]
            odds = right - wrong
            (gradient,) = torch.autograd.grad(odds, leaf)
        gradient_SD = gradient.flatten(0, -2)[self.sites.rows_S]
        if not (bool(odds.isfinite()) and bool(gradient_SD.isfinite().all())):
            raise SteeringError(self.tap, "the log-odds or their gradient are not finite", "Load it in float32.")
        sae = Editor(self.sae, (), self.states.device).sae
        return Attribution(sae, self.tap, self.contrast, float(odds.detach()), self.states_SD, gradient_SD,
                           self.sites, cls)  # fmt: skip

    # -- what else might be said --------------------------------------------------------------------

    @property
    def parting(self) -> tuple[int, int] | None:
        """The right and the wrong answer among all that may be said where they part; None where one begins with the
        other, so that they never do."""
        raise NotImplementedError

    def word(self, choice: int) -> str:
        raise NotImplementedError

    @torch.no_grad()
    def likely(self, changes_NSD: Iterable[torch.Tensor]) -> np.ndarray:
        """(N, V): log-probability of everything that may be said there, after what both answers begin with."""
        found, left = [], iter(changes_NSD)
        while some := [self._changed(change_SD) for change_SD in itertools.islice(left, self._rows())]:
            found.append(self._said(torch.cat(some)).double().cpu().numpy())
        return np.concatenate(found)

    def pulls(self, choices: Sequence[int], onto: Steering | None = None) -> np.ndarray:
        """(C, L): what ablating each latent would do, to first order, to the log-odds of each choice against all else
        that may be said. With a steering in place, as in `attribution`."""
        change_SD = torch.zeros_like(self.states_SD) if onto is None else self.change(onto)
        leaf = self._changed(change_SD).detach().requires_grad_()
        h_SL = self.latents()
        active_K = np.unique(h_SL.indices)
        sae = Editor(self.sae, (), self.states.device).sae
        inside_S = torch.as_tensor(~self.sites.class_S, device=self.states.device)
        x_SD = self.states_SD[inside_S].to(sae.dtype)
        h_SK = torch.as_tensor(h_SL[:, active_K].toarray()).to(x_SD)[inside_S]
        directions_KD = sae.W_dec[torch.as_tensor(active_K, device=x_SD.device)]
        found_CL = np.zeros((len(choices), self.sae.d_sae))
        with torch.enable_grad():
            likely_V = self._said(leaf)[0]
            for place, choice in enumerate(choices):
                others = torch.cat([likely_V[:choice], likely_V[choice + 1 :]]).logsumexp(0)
                odds = likely_V[choice] - others
                (gradient,) = torch.autograd.grad(odds, leaf, retain_graph=place + 1 < len(choices))
                gradient_SD = gradient.flatten(0, -2)[self.sites.rows_S][inside_S].to(x_SD)
                unit_SK = worth(gradient_SD, directions_KD, sae.row_scale(x_SD))
                effects_K = predicted("set", 0.0, (h_SK * unit_SK).sum(0), unit_SK.sum(0))
                found_CL[place, active_K] = effects_K.double().cpu().numpy()
        return found_CL

    def _said(self, states: torch.Tensor) -> torch.Tensor:
        """(B, V)"""
        raise NotImplementedError

    def _changed(self, change_SD: torch.Tensor) -> torch.Tensor:
        states = self.states.clone(memory_format=torch.contiguous_format)
        states.flatten(0, -2)[self.sites.rows_S] = (self.states_SD + change_SD).to(states.dtype)
        return states

    def _rows(self) -> int:
        return most_rows(self.states.device)

    def _answers(self, states: torch.Tensor) -> torch.Tensor:
        """(B, A): log-probabilities, for copies of the question with these states."""
        raise NotImplementedError


def turned(change_SD: torch.Tensor, seeds: Iterable[int]) -> Iterator[torch.Tensor]:
    """The change in random directions, once for each seed: every site is changed by as much as before."""
    exact_SD = change_SD.double().cpu()
    _, strengths_R, directions_RD = torch.linalg.svd(exact_SD, full_matrices=False)
    kept = strengths_R > 1e-9 * strengths_R[:1].clamp_min(1e-300)
    parts_SR = exact_SD @ directions_RD[kept].T
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        random_DR = torch.randn(exact_SD.shape[1], int(kept.sum()), generator=generator, dtype=torch.float64)
        frame_DR, triangle_RR = torch.linalg.qr(random_DR)
        # Without the signs the frames would not be spread evenly.
        frame_DR = frame_DR * triangle_RR.diagonal().sign()
        yield (parts_SR @ frame_DR.T).to(change_SD)


# --- a model that answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Answering(Bench):
    vlm: Vlm
    prompt: Prompt
    beside: dict[Tap, torch.Tensor]
    """states of taps below that are read past this one"""

    def _rows(self) -> int:
        states = {self.tap: self.states, **self.beside}
        longest = max(map(len, contrast_ids(self.vlm, self.contrast))) if self.contrast else 0
        each = row_bytes(self.vlm, self.prompt, states, 0, longest)
        return max(1, min(most_rows(self.vlm.device), free_bytes(self.vlm.device) // each))

    def _answers(self, states: torch.Tensor) -> torch.Tensor:
        vlm, ids = self.vlm, contrast_ids(self.vlm, self.contrast)
        with self._from(states) as many:
            if len(ids[0]) == len(ids[1]) and ids[0][:-1] == ids[1][:-1]:
                return self._in_one_pass(many, ids)
            read = [vlm.replay(many, [answer] * len(many)) for answer in ids]
        return torch.stack([torch.stack([one.log_probs_N.sum() for one in replays]) for replays in read], 1)

    @contextmanager
    def _from(self, states: torch.Tensor) -> Iterator[Prompt]:
        """While open, copies of the prompt go on from these states. The rest of the tower is run once, however often
        they are read."""
        vlm, n = self.vlm, len(states) // len(self.states)
        many = self.prompt.repeat(n)
        given = {self.tap: states} | {tap: torch.cat([one] * n) for tap, one in self.beside.items()}
        if self.tap.place == "vision" and not states.requires_grad:
            connector = Tap("connector")
            with taps.starting_from(vlm, given):
                given = see_states(vlm, many, [connector, *taps.read_below(vlm, connector)])
        with taps.starting_from(vlm, given):
            yield many

    @cached_property
    def parting(self) -> tuple[int, int] | None:
        right, wrong = contrast_ids(self.vlm, self.contrast)
        return next(((r, w) for r, w in zip(right, wrong, strict=False) if r != w), None)

    def word(self, choice: int) -> str:
        return self.vlm.tokenizer.decode([choice]).strip()

    def _said(self, states: torch.Tensor) -> torch.Tensor:
        pairs = zip(*contrast_ids(self.vlm, self.contrast), strict=False)
        common = tuple(right for right, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        with self._from(states) as many:
            longer = self.vlm.continued(many, [common] * len(many)) if common else many
            return self.vlm.logits(longer)[:, -1].float().log_softmax(-1)

    @torch.no_grad()
    def read(self, changes_NSD: Iterable[torch.Tensor], ids: Sequence[int]) -> np.ndarray:
        """(N, tokens): log-odds of each token of a text, one after the other, against all else, under each change.
        Odds and not probabilities: what is nearly certain can lose much and still be nearly certain."""
        found, left = [np.zeros((0, len(ids)))], iter(changes_NSD)
        chosen_T1 = torch.tensor(ids, device=self.states.device)[:, None]
        while some := [self._changed(change_SD) for change_SD in itertools.islice(left, self._rows())]:
            with self._from(torch.cat(some)) as many:
                longer = self.vlm.continued(many, [tuple(ids)] * len(many))
                logits_NTV = self.vlm.logits(longer, len(ids) + 1)[:, :-1].double()
            chosen_NT1 = chosen_T1.expand(len(logits_NTV), -1, -1)
            said_NT = logits_NTV.gather(2, chosen_NT1)[..., 0]
            others_NT = logits_NTV.scatter(2, chosen_NT1, -torch.inf).logsumexp(2)
            found.append((said_NT - others_NT).cpu().numpy())
        return np.concatenate(found)

    def _in_one_pass(self, many: Prompt, ids: tuple[tuple[int, ...], tuple[int, ...]]) -> torch.Tensor:
        """Of answers that differ in their last token only: "a duck", "a rabbit". What is common is read once."""
        common = ids[0][:-1]
        longer = self.vlm.continued(many, [common] * len(many)) if common else many
        likely_BNV = self.vlm.logits(longer, len(ids[0])).float().log_softmax(-1)
        shared_B = sum((likely_BNV[:, n, token] for n, token in enumerate(common)), likely_BNV.new_zeros(len(many)))
        return torch.stack([shared_B + likely_BNV[:, -1, answer[-1]] for answer in ids], 1)


def answering(vlm: Vlm, sae: Sae, prompt: Prompt, contrast: Contrast | None, tap: Tap | str | None = None) -> Bench:
    tap = tap_of(vlm, sae, tap)
    if tap.place == "text":
        raise SteeringError(tap, "is a text tap, where no fixed change can stand for an edit", "Take a vision tap.")
    below = taps.read_below(vlm, tap)
    with torch.no_grad():
        states = see_states(vlm, prompt, [tap, *below])
    check_width(vlm, sae, tap, states)
    sites = Sites.of(vlm, prompt, tap)
    return _Answering(sae, tap, contrast, sites, states[tap], vlm, prompt, {t: states[t] for t in below})


# --- a model that classifies -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Classifying(Bench):
    clip: Clip
    picture: Picture
    classes: Classes

    def _answers(self, states: torch.Tensor) -> torch.Tensor:
        return self._said(states)[:, list(self.parting)]

    @property
    def parting(self) -> tuple[int, int]:
        right, wrong = (self.classes.of.classes.index(name) for name in (self.contrast.right, self.contrast.wrong))
        return right, wrong

    def word(self, choice: int) -> str:
        return self.classes.of.classes[choice]

    def _said(self, states: torch.Tensor) -> torch.Tensor:
        pixels = self.picture.pixels_BCHW.expand(len(states), -1, -1, -1)
        with taps.starting_from(self.clip, {self.tap: states}):
            return self.clip.logits(pixels, self.classes).log_softmax(-1)


def classifying(
    clip: Clip, sae: Sae, picture: Picture, classes: Classes, contrast: Contrast | None, tap: Tap | str | None = None
) -> Bench:
    tap = taps.resolve(clip, tap or sae.tap)
    kept: list[torch.Tensor] = []
    with torch.no_grad(), taps.editing(clip, tap, lambda states, start: kept.append(states) or states):
        clip.logits(picture.pixels_BCHW, classes)
    return _Classifying(sae, tap, contrast, Sites.of(clip, picture, tap), kept[0], clip, picture, classes)
