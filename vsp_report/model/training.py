"""Training: rows of activations -> one trained Sae: TopK in a laptop's minutes, or the paper's ReLU + L1.

Inside, rows are centred and scaled to unit mean squared norm, so that a learning rate means the same for
every model; at the end both go into the weights and the Sae reads raw activations. What a step does is in
`learning`; here are the recipe, its schedule, and the state that a stopped run goes on from.

A dictionary half of which is dead is the price of latents that are few for one thing. Lifting the biases of dead
latents to the last step leaves 84 % alive on SketchWorld's main tap, and evening directions out (`whiten` 0.5) 86 %,
but then many share one thing: ablating ten of a chair's latents corrected 30 % and 46 % of planted failures instead of
98 %. Hence LIFT_UNTIL, and hence `revive`: the living learn first and then stay as they are, to the bit, while the dead
learn what those leave over. That leaves 96 % alive, and a chair to its ten.

The first life need not be of the same kind (`onto`). A ReLU under L1 comes to few latents, each for a thing by itself,
but on SketchWorld's main tap it leaves a tenth of the variance over, and most latents dead. Those, given a second life
as TopK on what is left over, explain it, while the living stay what they were; learning on as TopK, they would not.

Axes: N rows in all, B rows of a step, D model width, L latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch

from vsp_report.model.learning import DEAD_AFTER, Learner, Weights, fast_dtype, first_weights, project
from vsp_report.model.sae import Sae, mean_row

__all__ = ["DEAD_AFTER", "Recipe", "Step", "Team", "Trainer", "UnusableRecipe", "train_sae"]

DEAD = {
    "topk": ("auxiliary", "revive", "resample", "leave"),
    "standard": ("resample", "leave"),
    "batchtopk": ("auxiliary", "resample", "leave"),
    "matryoshka": ("auxiliary", "resample", "leave"),
}
"""What can be done about dead latents; the first is what is done. Whoever takes its place from a whole batch's budget
takes it from all rows, so `revive` is for TopK: it left BatchTopK's toy with 86 % of the variance instead of 7 %."""
TRAINED = tuple(DEAD)
WARM_UP, DECAY = 0.05, 0.25  # shares of all steps, at the start and at the end
LIFT, LIFT_UNTIL = 0.002, 0.5  # what a dead TopK latent's bias gains in a step, and for which share of all steps
REVIVE = 1 / 6  # share of all steps, the last ones, in which `revive` teaches the dead alone
RESAMPLE_UNTIL = 0.5  # share of all steps; what is resampled later has no time to settle
LEAST_VARIANCE = 1e-4  # of the largest; directions below are noise, and are not blown up
SAMPLE = 65536  # rows that scale and first directions are taken from
ROWS = 4096  # of them encoded at a time


class UnusableRecipe(ValueError):
    """`name`: which part of the recipe; `fault` and `remedy` as everywhere."""

    def __init__(self, name: str, fault: str, remedy: str) -> None:
        self.name, self.fault, self.remedy = name, fault, remedy
        super().__init__(f"{name} {fault}; {remedy}")


@dataclass(frozen=True)
class Recipe:
    architecture: str = "topk"
    expansion: int = 32
    """latents for each number of a row"""
    k: int = 16
    """latents of a row; of two architectures, on average. ReLU has none."""
    l1: float = 0.05
    """what one unit of a latent costs, where a row's squared norm is 1 on average; ReLU only"""
    prefixes: tuple[int, ...] = ()
    """how many of the first latents have to explain the data alone, smallest first, without the whole"""
    dead: str = ""
    """what is done about latents that stop firing: auxiliary (loss), revive (that, and the last steps are for them
    alone), resample, leave; "" is the architecture's own"""
    steps: int = 2000
    batch: int = 4096
    lr: float = 2e-3
    seed: int = 0
    whiten: float = 0.0
    """how far directions are evened out: a variance becomes its power of 1 - whiten; 1 makes all equal"""

    @property
    def sparse(self) -> bool:
        """A step touches only the latents that are on."""
        return self.architecture != "standard"

    @property
    def first_life(self) -> int:
        """So many steps are for all latents; those that are left are for the dead."""
        return self.steps - round(REVIVE * self.steps) if self.dead == "revive" else self.steps

    def completed(self, width: int) -> Recipe:
        """With what it leaves open filled in; raises if it cannot be followed on rows of this width."""
        L, prefixes, dead = self.expansion * width, self.prefixes, self.dead
        if self.architecture not in TRAINED:
            known = ", ".join(map(repr, TRAINED[:-1])) + f" and {TRAINED[-1]!r}"
            raise UnusableRecipe("architecture", f"is {self.architecture!r}", f"trained here are {known}")
        for name in ("expansion", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UnusableRecipe(name, f"is {getattr(self, name)}", "expected 1 or more")
        if not 0 < self.lr < float("inf"):
            raise UnusableRecipe("lr", f"is {self.lr}", "expected a number above 0")
        if not 0 <= self.l1 < float("inf"):
            raise UnusableRecipe("l1", f"is {self.l1}", "expected 0 or more")
        if not 0 <= self.whiten <= 1:
            raise UnusableRecipe("whiten", f"is {self.whiten}", "expected a number from 0 to 1")
        if self.sparse and not 1 <= self.k <= L:
            raise UnusableRecipe("k", f"is {self.k}", f"expected 1 to {L}, the number of latents")
        if self.architecture == "matryoshka" and not prefixes:
            prefixes = tuple(sorted({max(1, L // part) for part in (64, 16, 4)} - {L}))
        if prefixes and not self.sparse:
            raise UnusableRecipe(
                "prefixes", "do nothing for 'standard'", "take 'matryoshka' or 'topk', or leave them out"
            )
        if any(not 1 <= size < L for size in prefixes) or list(prefixes) != sorted(set(prefixes)):
            sizes = ",".join(map(str, prefixes))
            raise UnusableRecipe("prefixes", f"are {sizes}", f"expected growing numbers from 1 to {L - 1}")
        allowed = DEAD[self.architecture]
        dead = dead or allowed[0]
        if dead not in allowed:
            raise UnusableRecipe("dead", f"is {dead!r}", f"expected one of {', '.join(allowed)}")
        return Recipe(**{**asdict(self), "prefixes": prefixes, "dead": dead})

    def told(self) -> dict[str, Any]:
        """For the record: what counts for this architecture."""
        told = asdict(self) | {"prefixes": list(self.prefixes)}
        for name in ("l1",) if self.sparse else ("k", "prefixes"):
            del told[name]
        return told


class Step(NamedTuple):
    """What `on_step` is told."""

    step: int
    unexplained_variance: float
    """of this batch"""
    mean_l0: float
    dead_share: float
    """share of latents that did not fire in the last DEAD_AFTER rows"""
    loss: float
    """what the architecture minimises, without the help for dead latents"""


class Team(Protocol):
    """Processes that train the same weights, each on rows of its own."""

    size: int
    rank: int

    def mean(self, tensor: torch.Tensor) -> torch.Tensor: ...

    def any(self, flags: torch.Tensor) -> torch.Tensor: ...

    def gathered(self, value: Any) -> list[Any]: ...


class Trainer:
    """One SAE while it is trained. `sample_SD`: raw rows that stand for all; the more, the better."""

    def __init__(
        self,
        recipe: Recipe,
        sample_SD: torch.Tensor,
        *,
        device: str | torch.device = "cpu",
        mean_D: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        team: Team | None = None,
        onto: Sae | None = None,
    ) -> None:
        """`onto`: whose latents stay as they are, to the bit, if they fire in a row of each batch or so; all steps are
        for the others."""
        self.recipe = recipe = recipe.completed(sample_SD.shape[1])
        self.first_life = recipe.first_life if onto is None else 0
        self.onto = {} if onto is None else {"onto": onto.name}
        self.generator = torch.Generator().manual_seed(recipe.seed) if generator is None else generator
        self.team, self.steps_done, self.device = team, 0, torch.device(device)
        mean_D = mean_row(sample_SD) if mean_D is None else mean_D
        if not mean_D.isfinite().all():
            raise ValueError("activations hold NaN or infinite values")
        if len(sample_SD) > SAMPLE:
            sample_SD = sample_SD[:SAMPLE]
        centred_SD = sample_SD.float() - mean_D
        evened = _evened(centred_SD, recipe.whiten) if recipe.whiten else None
        self.there_DD, self.back_DD = (None, None) if evened is None else (part.to(device) for part in evened)
        if evened is not None:
            centred_SD = centred_SD @ evened[0]
        self.scale = 1.0 / max(float(centred_SD.square().sum(1).mean().sqrt()), 1e-12)
        k = recipe.k if recipe.sparse else 0
        weights = first_weights(centred_SD * self.scale, recipe.expansion * len(mean_D), k, self.generator)
        if onto is not None:
            weights = self._taken_over(onto := onto.cpu().float(), mean_D.cpu())
        self.weights = Weights(*(tensor.to(device).requires_grad_() for tensor in weights))
        self.mean_D = mean_D.to(device)
        self.learner = Learner(
            self.weights, fast_dtype(device), k=k, l1=recipe.l1, prefixes=recipe.prefixes,
            over_batch=recipe.architecture in ("batchtopk", "matryoshka"),
            auxiliary=recipe.dead in ("auxiliary", "revive"),
        )  # fmt: skip
        self.kept_L = torch.zeros_like(self.learner.dead_L)
        """What stays as it is, while others have their second life."""
        self.optimiser = self._fresh_optimiser()
        if onto is not None:
            fired_L = sum(onto.encode(rows.cpu().float()).gt(0).sum(0) for rows in sample_SD.split(ROWS))
            self.learner.silent_L[(fired_L * recipe.batch < len(sample_SD)).to(device)] = torch.inf
        if team is not None:
            self._as_the_first()

    def _taken_over(self, onto: Sae, mean_D: torch.Tensor) -> Weights:
        """In the units and around the middle of these rows."""
        recipe, whole = self.recipe, (len(mean_D), self.recipe.expansion * len(mean_D))
        if recipe.dead != "revive" or recipe.whiten or onto.architecture not in ("standard", "topk"):
            raise UnusableRecipe("onto", "is for dead: revive, on a ReLU or TopK of rows as they are", "leave it out")
        if (onto.d_in, onto.d_sae) != whole:
            fault = f"has {onto.d_sae} latents of width {onto.d_in}"
            raise UnusableRecipe("onto", fault, f"expected {whole[1]} of {whole[0]}")
        b_enc_L = self.scale * (onto.b_enc + (mean_D - onto.b_dec) @ onto.W_enc)
        encoder_LD = onto.W_enc.T.clone(memory_format=torch.contiguous_format)  # Adam's fused step goes by memory
        return Weights(encoder_LD, b_enc_L, onto.W_dec.clone(), (onto.b_dec - mean_D) * self.scale)

    def step(self, rows_BD: torch.Tensor) -> Step:
        """Learn from raw rows."""
        recipe, step, learner = self.recipe, self.steps_done, self.learner
        x_BD = rows_BD.to(self.device).float() - self.mean_D
        x_BD = (x_BD if self.there_DD is None else x_BD @ self.there_DD) * self.scale
        if step == (first := self.first_life):
            self._revive(x_BD)
        at, of = (step, first) if step < first else (step - first, recipe.steps - first)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.lr * _schedule(at, of)
        self.optimiser.zero_grad()
        loss, error_BD, l0, fired_L = learner.learn(x_BD, min(1.0, (step + 1) / max(1, WARM_UP * recipe.steps)))
        if self.team is not None:
            fired_L = self.team.any(fired_L)
            for weight in self.weights:
                weight.grad = self.team.mean(weight.grad)
            if learner.over_batch:
                learner.threshold = self.team.mean(learner.threshold)
        learner.count(fired_L, len(x_BD) * (self.team.size if self.team else 1))
        project(self.weights.decoder_LD)
        if step >= first:  # in their second life
            for weight in self.weights[:3]:
                weight.grad[self.kept_L] = 0.0
            self.weights.b_dec_D.grad.zero_()
        self.optimiser.step()
        with torch.no_grad():
            decoder_LD, learns_L1 = self.weights.decoder_LD, ~self.kept_L[:, None]
            decoder_LD.div_(decoder_LD.norm(dim=1, keepdim=True).where(learns_L1, 1.0))
            if learner.auxiliary and step < LIFT_UNTIL * first:
                self.weights.b_enc_L[learner.dead_L] += LIFT
        if recipe.dead == "resample" and step in _resampling_steps(recipe.steps):
            learner.resample(x_BD, self.optimiser, self.generator)
            if self.team is not None:
                self._as_the_first()
        self.steps_done += 1
        if self.back_DD is not None:  # of raw rows
            error_BD, x_BD = error_BD @ self.back_DD, x_BD @ self.back_DD
        unexplained = error_BD.square().sum() / (x_BD - x_BD.mean(0)).square().sum()
        return Step(step, float(unexplained), l0, float(learner.dead_L.float().mean()), loss)

    def _fresh_optimiser(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.weights, lr=self.recipe.lr, betas=(0.9, 0.999), fused=True)

    def _revive(self, x_BD: torch.Tensor) -> None:
        """From here on only what is dead learns, from what the living leave over."""
        self.kept_L = ~self.learner.dead_L
        self.optimiser = self._fresh_optimiser()
        self.learner.revive(x_BD, self.generator)
        if self.team is not None:
            self._as_the_first()

    def _as_the_first(self) -> None:
        """In a team everyone starts from, and resamples, what the first finds in its rows."""
        self.restore(self.team.gathered(self.state() if self.team.rank == 0 else None)[0])

    # -- stopping and going on --------------------------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """All that a run goes on from, bit for bit. What the recipe and the sample give is not in it twice."""
        found = {name: tensor.detach() for name, tensor in self.weights._asdict().items()}
        for name, weight in self.weights._asdict().items():
            for key, value in self.optimiser.state.get(weight, {}).items():
                found[f"{name}/{key}"] = value
        found |= {"silent_L": self.learner.silent_L, "threshold": self.learner.threshold, "mean_D": self.mean_D}
        found["kept_L"] = self.kept_L
        found |= {"scale": torch.tensor(self.scale, dtype=torch.float64), "generator": self.generator.get_state()}
        if self.there_DD is not None:
            found |= {"there_DD": self.there_DD, "back_DD": self.back_DD}
        found["steps_done"] = torch.tensor(self.steps_done)
        return {name: tensor.cpu().clone().contiguous() for name, tensor in found.items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.weights._asdict().items():
                weight.copy_(state[name])
                moments = {key: state[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                           if f"{name}/{key}" in state}  # fmt: skip
                if moments:
                    self.optimiser.state[weight] = {
                        key: value.clone().to(self.device) for key, value in moments.items()
                    }
        self.learner.silent_L = state["silent_L"].clone().to(self.device)
        self.learner.threshold = state["threshold"].clone().to(self.device)
        self.kept_L = state["kept_L"].clone().to(self.device)
        self.mean_D, self.scale = state["mean_D"].to(self.device), float(state["scale"])
        if self.there_DD is not None:
            self.there_DD, self.back_DD = (state[key].clone().to(self.device) for key in ("there_DD", "back_DD"))
        self.generator.set_state(state["generator"])
        self.steps_done = int(state["steps_done"])

    def finished(self) -> Sae:
        """Raw units, unit decoder rows: relu commutes with a positive scale, so latents grow by 1/scale and
        the directions stay. The bias moves to where the other formats keep it: subtracted from the input.

        Evened directions have other lengths in raw units. A latent takes its own up, but not where latents of a row
        are ranked: there all take up the middle one, and rows are of length 1 only about.
        """
        encoder_LD, b_enc_L, decoder_LD, b_dec_D = (tensor.detach() for tensor in self.weights)
        recipe, over_batch = self.recipe, self.learner.over_batch
        W_enc, W_dec, b_enc_L = encoder_LD.T, decoder_LD, b_enc_L + b_dec_D @ encoder_LD.T
        threshold = self.learner.threshold.nan_to_num(0.0) / self.scale if over_batch else None
        if self.there_DD is not None:
            W_dec, b_dec_D = decoder_LD @ self.back_DD, b_dec_D @ self.back_DD
            length_L = W_dec.norm(dim=1)
            if recipe.architecture == "topk":
                length_L = length_L.median().expand(len(length_L))
            W_enc, b_enc_L, W_dec = self.there_DD @ W_enc * length_L, b_enc_L * length_L, W_dec / length_L[:, None]
            threshold = None if threshold is None else threshold * length_L
        return Sae(
            recipe.architecture,
            W_enc=W_enc.contiguous(),
            b_enc=b_enc_L / self.scale,
            W_dec=W_dec.clone(),
            b_dec=b_dec_D / self.scale + self.mean_D,
            threshold=threshold,
            k=recipe.k if recipe.sparse else None,
            provenance={"trained_by": "vsp_report", **recipe.told(), **self.onto},
        )


def _evened(centred_SD: torch.Tensor, whiten: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A map that turns every variance into its power of 1 - whiten, and the way back."""
    C_DD = (centred_SD.T @ centred_SD).double() / len(centred_SD)
    variance_D, axes_DD = torch.linalg.eigh(C_DD)
    variance_D = variance_D.clamp_min(LEAST_VARIANCE * variance_D.max()).clamp_min(1e-30)
    there_DD = (axes_DD * variance_D ** (-whiten / 2)) @ axes_DD.T
    return there_DD.float(), ((axes_DD * variance_D ** (whiten / 2)) @ axes_DD.T).float()


def train_sae(
    acts_ND: torch.Tensor,
    *,
    device: str | torch.device = "cpu",
    on_step: Callable[[Step], None] | None = None,
    onto: Sae | None = None,
    **recipe: Any,
) -> Sae:
    """Train one SAE on activations held in memory, in any dtype. Same seed and device, same result.

    `recipe`: the fields of a Recipe. `onto`: an SAE whose living latents are kept as they are.
    """
    plan = Recipe(**recipe)
    if acts_ND.dim() != 2 or not len(acts_ND):
        raise ValueError(f"activations are of shape {tuple(acts_ND.shape)}; expected (rows, width)")
    plan.completed(acts_ND.shape[1])
    generator = torch.Generator().manual_seed(plan.seed)
    sample_SD = acts_ND[torch.randint(len(acts_ND), (SAMPLE,), generator=generator)]
    trainer = Trainer(plan, sample_SD, device=device, mean_D=mean_row(acts_ND), generator=generator, onto=onto)
    for rows in _batches(len(acts_ND), plan.batch, plan.steps, generator):
        told = trainer.step(acts_ND[rows])
        if on_step is not None:
            on_step(told)
    return trainer.finished()


def _batches(N: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Row numbers of each step: every row once before any row twice."""
    order, at = torch.randperm(N, generator=generator), 0
    for _ in range(steps):
        if at + batch > N and at:
            order, at = torch.randperm(N, generator=generator), 0
        yield order[at : at + batch]
        at += batch


def _schedule(step: int, steps: int) -> float:
    """Linear up, flat, linear down to nothing."""
    return min(1.0, (step + 1) / max(1.0, WARM_UP * steps), (steps - step) / max(1.0, DECAY * steps))


def _resampling_steps(steps: int) -> tuple[int, ...]:
    return tuple(int(share * RESAMPLE_UNTIL * steps) for share in (0.25, 0.5, 0.75, 1.0))
