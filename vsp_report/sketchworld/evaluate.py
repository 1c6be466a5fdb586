"""Evaluate: what the bundled models can do, where they fail as planted, and what steering does about it.

Every figure is measured on scenes that training never drew, against a goal that was set before. Each repair of a
failure is measured beside its control: the same edit on as many other latents that are as active in the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vsp_report.maths.quality import average_precisions
from vsp_report.model.sae import quality
from vsp_report.sketchworld import language, rules
from vsp_report.sketchworld.concepts import CONCEPTS, concepts_in
from vsp_report.sketchworld.models import normalized
from vsp_report.sketchworld.packing import text_logits
from vsp_report.sketchworld.planted import MODES, Planted, plant
from vsp_report.sketchworld.probe import Edit, Probe, belonging, patches_of
from vsp_report.sketchworld.rules import Question
from vsp_report.sketchworld.scene import Scene

HELD_OUT = 700_000_000
"""Seeds from here on are never trained on."""
PLANTED = 100
CONTROLS = 8
LATENTS = 10
"""The most latents an edit may ablate, and the most it may amplify."""
PER_ROUND = 2
BELONGS = 0.5
"""A latent belongs to a part of the picture when at least this share of its activation in the picture falls on it."""
ENOUGH = 1.0
"""Log-odds from which on an answer counts as repaired and no more latents are added."""
AMPLIFY = 5.0
WAY = (0.0, 0.5)
"""Where gradients are asked: at the edit as it stands, and half the way to one of all that belongs. Where an answer is
sure, its gradient says little of what it hangs on.
"""
AT_ONCE = 100
"""Scenes whose latents are held at a time."""
CLUSTER_SHARES = (0.75, 0.65, 0.55, 0.45, 0.35)
"""A topic's cluster holds the latents of which at least this share belongs to it; the first that silences it counts."""


class Figure(NamedTuple):
    name: str
    value: float
    """NaN where there was nothing to measure it on; then the goal is not met."""
    goal: str
    met: bool
    note: str = ""


def at_least(name: str, value: float, goal: float) -> Figure:
    return Figure(name, float(value), f">= {goal:g}", bool(value >= goal))


def at_most(name: str, value: float, goal: float) -> Figure:
    return Figure(name, float(value), f"<= {goal:g}", bool(value <= goal))


def evaluate(
    weights: Path, *, scenes: int = 1000, device: str = "cpu", only: str = "",
    tell: Callable[[str], object] = lambda _: None,
) -> dict[str, dict]:  # fmt: skip
    """Every figure whose part's name contains `only`: {figure: {value, goal, met}}; `tell` hears each as it comes."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    probe = Probe.load(Path(weights), device=device)
    figures: list[Figure] = []
    for part in PARTS:
        name = part.__name__.strip("_").replace("_", " ")
        if only and only not in name:
            continue
        for figure in part(probe, Path(weights), scenes):
            figures.append(figure)
            tell(line(figure))
    return {
        f.name: {"value": None if math.isnan(f.value) else round(f.value, 4), "goal": f.goal, "met": f.met}
        for f in figures
    }


def line(figure: Figure) -> str:
    said = f"{'met   ' if figure.met else 'MISSED'} {figure.value:7.3f}  {figure.goal:9} {figure.name}"
    return f"{said}; {figure.note}" if figure.note else said


def table(figures: dict[str, dict]) -> str:
    """The figures as a Markdown table."""
    rows = ["| figure | measured | goal | met |", "|---|---|---|---|"]
    for name, figure in figures.items():
        value = "–" if figure["value"] is None else f"{figure['value']:.3f}"
        rows.append(f"| {name} | {value} | {figure['goal']} | {'yes' if figure['met'] else '**no**'} |")
    return "\n".join(rows)


# --- ordinary scenes ---------------------------------------------------------------------------------------------


def _ordinary_answers(probe: Probe, weights: Path, scenes: int) -> Iterator[Figure]:
    for number, family in enumerate(rules.FAMILIES):
        drawn = [rules.sample_scene(HELD_OUT + number * 1_000_000 + i, family) for i in range(scenes)]
        asked = [rules.questions(scene, i) for i, scene in enumerate(drawn)]
        right = probe.says(probe.features(probe.states(probe.pixels(drawn))), asked)
        several = [r[0] for r, scene in zip(right, drawn, strict=True) if family == "objects" and len(scene.things) > 1]
        answers = [
            ok
            for row, qs in zip(right, asked, strict=True)
            for ok, q in zip(row, qs, strict=True)
            if q.text != rules.DESCRIBE
        ]
        captions = [row[0] for row, s in zip(right, drawn, strict=True) if family != "objects" or len(s.things) == 1]
        yield at_least(f"exact answers: {family}", np.mean(answers + captions), 0.97)
        if several:
            yield at_least("exact captions: several objects", np.mean(several), 0.90)


def _zero_shot(probe: Probe, weights: Path, scenes: int) -> Iterator[Figure]:
    drawn = [rules.sample_scene(HELD_OUT + 10_000_000 + i, "portraits") for i in range(scenes)]
    pixels, kinds = probe.pixels(drawn), rules.PORTRAITS
    tokens = language.make_tokenizer(closed=True)(
        [f"a {kind}" for kind in kinds], padding=True, return_tensors="pt"
    ).to(probe.device)
    with torch.no_grad():
        text = torch.nn.functional.normalize(
            probe.clip.text_projection(probe.clip.text_model(**tokens).pooler_output), dim=-1
        )
        images = [
            probe.clip.visual_projection(
                probe.clip.vision_model(normalized(pixels[i : i + 128], probe.device)).pooler_output
            )
            for i in range(0, len(pixels), 128)
        ]
    best = (torch.cat(images) @ text.mT).argmax(-1).tolist()
    yield at_least(
        "CLIP zero-shot: kinds", np.mean([kinds[b] == rules.kind_of(s) for b, s in zip(best, drawn, strict=True)]), 0.95
    )


# --- planted failures --------------------------------------------------------------------------------------------


class _Cases(NamedTuple):
    """Planted scenes of one variation that fail as planted, ready to be edited."""

    planted: list[Planted]
    failing: np.ndarray
    states: torch.Tensor

    @property
    def asked(self) -> list[tuple[str, str, str]]:
        return [(p.question, p.right, p.wrong) for p in self.planted]


def _cases(probe: Probe, mode: str, variation: str) -> _Cases:
    planted = [plant(mode, variation, seed) for seed in range(PLANTED)]
    states = probe.states(probe.pixels([p.scene for p in planted]))
    failing = probe.says(probe.features(states), [[Question(p.question, p.wrong)] for p in planted])
    return _Cases(planted, np.asarray(failing)[:, 0], states)


def _failing_only(cases: _Cases) -> _Cases:
    rows = np.flatnonzero(cases.failing)
    return _Cases([cases.planted[i] for i in rows], cases.failing[rows], cases.states[torch.from_numpy(rows)])


def _corrected(probe: Probe, cases: _Cases, latents: torch.Tensor, edits: Sequence[Edit]) -> np.ndarray:
    features = probe.features(probe.edited(cases.states, latents, edits))
    return np.asarray(probe.says(features, [[Question(p.question, p.right)] for p in cases.planted]))[:, 0]


def _limited_alignment(probe: Probe, weights: Path, scenes: int) -> Iterator[Figure]:
    for variation in MODES["limited-alignment"]:
        cases = _cases(probe, "limited-alignment", variation)
        yield at_least(f"fails as planted: limited-alignment/{variation}", cases.failing.mean(), 0.85)
        right = probe.says(probe.features(cases.states), [[p.explicit] for p in cases.planted])
        yield at_least(f"explicit question answered: limited-alignment/{variation}", np.mean(right), 0.90)


def _misleading_cue(probe: Probe, weights: Path, scenes: int) -> Iterator[Figure]:
    yield from _repaired(probe, "misleading-cue", amplify=False)


def _hidden_cue(probe: Probe, weights: Path, scenes: int) -> Iterator[Figure]:
    yield from _repaired(probe, "hidden-cue", amplify=True)


def _repaired(probe: Probe, mode: str, amplify: bool) -> Iterator[Figure]:
    for variation in MODES[mode]:
        cases = _cases(probe, mode, variation)
        yield at_least(f"fails as planted: {mode}/{variation}", cases.failing.mean(), 0.85)
        if not cases.failing.any():
            yield at_least(f"corrected: {mode}/{variation}", math.nan, 0.85)
            yield at_most(f"corrected by matched random latents: {mode}/{variation}", math.nan, 0.05)
            continue
        cases = _failing_only(cases)
        latents = probe.encoded(cases.states)
        edits = repairs(probe, cases.planted, cases.states, latents, amplify=amplify)
        yield at_least(f"corrected: {mode}/{variation}", _corrected(probe, cases, latents, edits).mean(), 0.85)
        flips = []
        for draw in range(CONTROLS):
            rng = np.random.default_rng(draw)
            controls = [matched(edit, latents[row], rng) for row, edit in enumerate(edits)]
            flips.append(_corrected(probe, cases, latents, controls).mean())
        yield at_most(f"corrected by matched random latents: {mode}/{variation}", np.mean(flips), 0.05)


def repairs(
    probe: Probe, planted: Sequence[Planted], states: torch.Tensor, latents_BPL: torch.Tensor, *, amplify: bool
) -> list[Edit]:
    """An edit for each scene, chosen in rounds.

    Each round asks gradients anew, because latents of one thing stand in for each other: of those that belong to the
    cue it ablates the two that most support the wrong answer; with `amplify`, of those that belong to the evidence it
    also strengthens the two that most support the right one. A scene whose contrast is right is left as it is.
    """
    asked = [(p.question, p.right, p.wrong) for p in planted]
    cue, evidence = (
        torch.stack(
            [
                belonging(row, patches_of(p.scene, parts)) >= BELONGS
                for row, p, parts in zip(latents_BPL, planted, which, strict=True)
            ]
        )
        for which in ([p.cause for p in planted], [p.evidence for p in planted])
    )
    evidence &= amplify
    factors = torch.ones(cue.shape, device=cue.device)
    for _ in range(LATENTS // PER_ROUND):
        seen = [
            probe.attribute(states, latents_BPL, asked, _edits(_on_the_way(factors, cue, evidence, share)))
            for share in WAY
        ]
        effect = sum(one.effect_BL for one in seen)
        for row in range(len(planted)):
            if seen[0].margin_B[row] <= ENOUGH:
                untouched = factors[row] == 1
                factors[row, _strongest(effect[row], cue[row] & untouched)] = 0.0
                factors[row, _strongest(-effect[row], evidence[row] & untouched)] = AMPLIFY
    return _edits(factors)


def _on_the_way(
    factors_BL: torch.Tensor, cue_BL: torch.Tensor, evidence_BL: torch.Tensor, share: float
) -> torch.Tensor:
    """An edit that goes on, by this share, towards one of all that belongs."""
    whole = torch.where(cue_BL, 0.0, torch.where(evidence_BL, AMPLIFY, 1.0))
    return torch.where(factors_BL == 1, 1 + share * (whole - 1), factors_BL)


def _edits(factors_BL: torch.Tensor) -> list[Edit]:
    edited = [(row != 1).nonzero()[:, 0] for row in factors_BL]
    return [Edit(which.cpu().numpy(), row[which].cpu().numpy()) for row, which in zip(factors_BL, edited, strict=True)]


def _strongest(effect_L: torch.Tensor, allowed_L: torch.Tensor) -> torch.Tensor:
    best = torch.where(allowed_L & (effect_L > 0), effect_L, -torch.inf).topk(PER_ROUND)
    return best.indices[best.values > 0]


def matched(edit: Edit, latents_PL: torch.Tensor, rng: np.random.Generator) -> Edit:
    """Other latents of the same picture, each as active as the one it stands for: one of its ten neighbours in rank."""
    total = latents_PL.sum(0).cpu().numpy()
    order = np.argsort(-total)[: int((total > 0).sum())]
    rank, taken, chosen = {int(k): i for i, k in enumerate(order)}, set(edit.latents.tolist()), []
    for latent in edit.latents.tolist():
        near = sorted((k for k in order.tolist() if k not in taken), key=lambda k: abs(rank[k] - rank.get(latent, 0)))[
            :10
        ]
        if not near:
            break
        chosen.append(int(near[int(rng.integers(len(near)))]))
        taken.add(chosen[-1])
    return Edit(np.asarray(chosen, dtype=np.int64), edit.factors[: len(chosen)])


# --- topics of a caption -----------------------------------------------------------------------------------------


def _topics(probe: Probe, weights: Path, scenes: int) -> Iterator[Figure]:
    """Each thing of a caption of several that is right. Its cluster grows until it is no longer said; then the others
    are read."""
    drawn = (rules.sample_scene(HELD_OUT + 20_000_000 + i, "objects") for i in range(scenes))
    several = [scene for scene in drawn if len(scene.things) > 1]
    gone = [one for i in range(0, len(several), AT_ONCE) for one in _topics_gone(probe, several[i : i + AT_ONCE])]
    yield at_least("topic removed from the caption, the others kept", np.mean(gone) if gone else math.nan, 0.80)


def _topics_gone(probe: Probe, drawn: Sequence[Scene]) -> list[bool]:
    states = probe.states(probe.pixels(drawn))
    right = probe.says(probe.features(states), [[Question(rules.DESCRIBE, rules.caption(s))] for s in drawn])
    latents = probe.encoded(states)
    topics = [
        (i, topic, share)
        for i, scene in enumerate(drawn)
        if right[i][0]
        for topic, share in enumerate(topic_shares(probe, scene, states[i : i + 1], latents[i]))
    ]
    outcome = {(i, topic): False for i, topic, _ in topics}
    for least in CLUSTER_SHARES:
        if not topics:
            break
        edits = [Edit.of(np.flatnonzero(share >= least).tolist()) for _, _, share in topics]
        which = [i for i, _, _ in topics]
        changed = probe.edited(states[which], [latents[i] for i in which], edits)
        said = probe.answers(probe.features(changed), [rules.DESCRIBE] * len(topics))
        for (i, topic, _), text in zip(topics, said, strict=True):
            outcome[i, topic] = removed(drawn[i], topic, text)
        still = [drawn[i].things[t].kind in text.split() for (i, t, _), text in zip(topics, said, strict=True)]
        topics = [row for row, there in zip(topics, still, strict=True) if there]
    return list(outcome.values())


def removed(scene: Scene, topic: int, text: str) -> bool:
    """Whether the caption has lost this thing and kept every other, colour and all."""
    kept = [f"a {thing.name}" for i, thing in enumerate(scene.things) if i != topic]
    parts = text.split(" and ")
    return scene.things[topic].kind not in text.split() and all(part in parts for part in kept)


def topic_shares(probe: Probe, scene: Scene, state: torch.Tensor, latents_PL: torch.Tensor) -> list[np.ndarray]:
    """For each thing of the caption: the share of every latent's activation that lies where its words look.

    Where words look is told by the gradient of their likelihood (squared, over patches), not by the world's masks: a
    reader of a real model has no masks.
    """
    z = state.clone().requires_grad_(True)
    said = Question(rules.DESCRIBE, rules.caption(scene))
    likely = text_logits(probe.llava, probe.features(z), probe.packer.batch([[said]])).float().log_softmax(-1)[0]
    place, looks = len(probe.packer.prompt(said.text)), []
    for part in said.answer.split(" and "):
        ids = probe.packer.ids(part)
        score = sum(likely[place + j, token] for j, token in enumerate(ids) if j > 0)  # not the article
        (gradient,) = torch.autograd.grad(score, z, retain_graph=True)
        look = gradient[0, 1:].square().sum(-1)
        looks.append(look / look.sum())
        place += len(ids) + 1
    activation_TL = torch.stack(looks) @ latents_PL
    share_TL = activation_TL / activation_TL.sum(0).clamp_min(1e-12)
    return list((share_TL * (activation_TL.sum(0) > 0)).cpu().numpy())


# --- autoencoders ------------------------------------------------------------------------------------------------


def _autoencoders(probe: Probe, weights: Path, scenes: int) -> Iterator[Figure]:
    drawn = [rules.sample_scene(HELD_OUT + 30_000_000 + i) for i in range(scenes)]
    states = probe.states(probe.pixels(drawn))[:, 1:]
    found = quality(probe.sae, states.reshape(-1, states.shape[-1]))
    yield at_most(f"unexplained variance: {probe.sae.tap}", found.unexplained_variance, 0.05)
    yield at_most(f"dead latents: {probe.sae.tap}", found.dead_share, 0.15)
    yield at_most(f"mean L0: {probe.sae.tap}", found.mean_l0, 32)


def _concepts(probe: Probe, weights: Path, scenes: int) -> Iterator[Figure]:
    """Each concept's latent is chosen on one half of the pictures and scored on the other."""
    drawn = [rules.sample_scene(HELD_OUT + 40_000_000 + i) for i in range(2 * scenes)]
    states = probe.states(probe.pixels(drawn))[:, 1:]
    strongest = torch.cat([probe.sae.encode(z).amax(1) for z in states.split(64)]).cpu().numpy()
    there = np.asarray([[concept in names for concept in CONCEPTS] for names in map(concepts_in, drawn)])
    first_LC, second_LC = (average_precisions(strongest[part], there[part])
                           for part in (slice(scenes), slice(scenes, None)))  # fmt: skip
    found = dict(zip(CONCEPTS, second_LC[first_LC.argmax(0), range(len(CONCEPTS))].tolist(), strict=True))
    missed = ", ".join(f"{concept} {value:.2f}" for concept, value in found.items() if value < 0.9)
    share = np.mean([value >= 0.9 for value in found.values()])
    figure = at_least("concepts found by a latent (average precision >= 0.9)", share, 0.90)
    yield figure._replace(note=missed and f"under 0.9: {missed}")


PARTS = (
    _ordinary_answers,
    _zero_shot,
    _limited_alignment,
    _misleading_cue,
    _hidden_cue,
    _topics,
    _autoencoders,
    _concepts,
)
