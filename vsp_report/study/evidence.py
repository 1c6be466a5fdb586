"""Evidence: a case becomes a recording, in steps that a notebook's cells call by name.

    inquiry = open_case("cases/standing-beside-a-chair.yaml", "site/recordings/standing-beside-a-chair")
    look(inquiry)          what the model says, what each token attends to, which latents are active
    cluster(inquiry)       the token-latent heatmap, and which latents belong together
    attribute(inquiry)     what each latent is predicted to do to the contrast, and how well that holds
    steer_all(inquiry)     the case's steerings, each beside its matched controls
    sweep(inquiry)         steerings at several strengths
    rephrase(inquiry)      the same question in other words
    diagnose(inquiry)      the smallest set that takes the log-odds to the other side, and which failure mode it is
    repeat(inquiry)        all of it with other seeds, where the case asks for that (study/repeat.py)
    save(inquiry)          the recording, whole or absent

A classification goes the same way; it has no tokens, and so no heatmap. Each step stands on those before it. One that
fails records what was found until then, with the step and what went wrong, and raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vsp_report import case as asked
from vsp_report.case import ByRank, load_case
from vsp_report.errors import CaseError
from vsp_report.maths import heatmap as maps
from vsp_report.maths.edits import ALL, Contrast, Edit, Steering, agreement
from vsp_report.maths.effects import beyond_controls, flip_point
from vsp_report.maths.grids import Size
from vsp_report.model.attribution import sample
from vsp_report.model.devices import seed_everything
from vsp_report.recording import (
    Agreement,
    Answered,
    Classified,
    Clustering,
    Collateral,
    Diagnosis,
    Dose,
    Recording,
    Rephrased,
    Steered,
    Swept,
)
from vsp_report.study.controls import Judged, draw_controls
from vsp_report.study.description import DESCRIBE
from vsp_report.study.diagnose import diagnose as told
from vsp_report.study.diagnose import minimal_set
from vsp_report.study.inquiry import Heat, Inquiry, step
from vsp_report.study.pictures import load_picture
from vsp_report.study.reopened import places
from vsp_report.study.resolve import Rankings, Resolved, edit_made, find
from vsp_report.study.shelved import atlas_for, noisy_in
from vsp_report.study.subjects import Asking, load_subject

MEASURED = 24
"""So many latents are ablated one by one, to see how well predictions hold."""
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""After so many latents of a ranking it is looked whether the answer has flipped."""
OTHERS = (DESCRIBE, "How many objects are there?")
"""What is asked besides, under every steering, where a case names no other questions."""


# --- opening -----------------------------------------------------------------------------------------------------


def open_case(path: str | Path, folder: str | Path, device: str | None = None) -> Inquiry:
    """The case with its picture, model and SAE. `folder` is the recording's own; models are kept for the next case.

    `device` is where to run instead of where the case says.
    """
    file, own = places(path, folder)
    inquiry = Inquiry(load_case(file), own)
    _load(inquiry, device)
    return inquiry


@step("load")
def _load(inquiry: Inquiry, device: str | None) -> None:
    case = inquiry.case if device is None else replace(inquiry.case, device=device)
    inquiry.seen = load_picture(case)
    inquiry.subject, inquiry.model, inquiry.sae = load_subject(case, inquiry.seen.image)
    inquiry.atlas = atlas_for(inquiry.folder, model_sha=inquiry.model.sha, states_sha=inquiry.states_sha,
                              sae_sha=inquiry.sae.sha, tap=inquiry.subject.tap)  # fmt: skip
    if "gpu" in case.needs and inquiry.subject.model.device.type == "cpu":
        raise CaseError(inquiry.place("needs"), "asks for a GPU, and there is none", "Run it where there is one.")
    seed_everything(case.seed)


# --- looking -----------------------------------------------------------------------------------------------------


@step("observe")
def look(inquiry: Inquiry) -> Answered:
    """What the model says, as it is and through the SAE; what each token attends to; which latents are active."""
    inquiry.looked = inquiry.subject.look()
    found = inquiry.subject.answers([])
    inquiry.clean, inquiry.reconstructed = found.clean, found.reconstructed
    if found.scores:
        classes = inquiry.case.classify
        inquiry.classified = Classified(classes.classes, classes.templates, found.scores)
    return inquiry.clean


@step("heatmap")
def cluster(inquiry: Inquiry) -> Heat | None:
    """The token-latent heatmap with its four groupings, that of the case first; None where no token attends.

    A latent is noise if it is among the share that is most often active, or most strongly, in all pictures of the
    atlas; without one, among the share that is active on most of this picture's patches.
    """
    ranks, wanted = inquiry.ranks, inquiry.case.heatmap
    attention_TP = inquiry.looked.predicting_TP
    read_T = np.isfinite(attention_TP).all(1)
    rows = tuple(t for t, one in enumerate(ranks.tokens) if one.kind != "template" and read_T[t])
    active = np.flatnonzero(ranks.mass_L > 0)
    if not rows or not len(active):
        return None
    values_TL = np.asarray((ranks.latents_PL[:, active].T @ attention_TP[list(rows)].T).T)
    if inquiry.atlas is None:
        noisy_L = maps.noisy(ranks.frequency_L[active], share=wanted.noise_filter)
    else:
        noisy_L = noisy_in(inquiry.atlas, wanted.noise_filter)[active]
    columns = maps.chosen(values_TL, wanted.top, noisy_L)
    shown_TL = maps.normalised(values_TL[:, columns], wanted.normalize)
    words = [ranks.tokens[t].text.strip() for t in rows]
    first = (wanted.cluster, wanted.distance)
    clusterings = tuple(
        _clustering(shown_TL, words, how, near, wanted.k, inquiry.case.seed)
        for how, near in sorted(maps.CLUSTERINGS, key=lambda one: one != first)
    )
    noisy = frozenset(active[noisy_L].tolist())
    inquiry.heat = Heat(rows, active[columns], values_TL[:, columns], noisy, clusterings)
    return inquiry.heat


def _clustering(shown_TL: np.ndarray, words: Sequence[str], how: str, near: str, k: int, seed: int) -> Clustering:
    found = maps.grouped(shown_TL, how, near, k, seed)
    per_latent_TL = maps.normalised(shown_TL, "column")
    names = []
    for number in range(int(found.cluster_L.max(initial=-1)) + 1):
        curve_T = per_latent_TL[:, found.cluster_L == number].mean(1)
        names.append(f"strongest at “{words[int(curve_T.argmax())]}”")
    return Clustering(how, near, tuple(found.order_L.tolist()), tuple(found.cluster_L.tolist()), tuple(names))


# --- predicting --------------------------------------------------------------------------------------------------


@step("attribute")
def attribute(inquiry: Inquiry, measured: int = MEASURED) -> np.ndarray | None:
    """(L,): the predicted change of the margin by ablating each latent; None without a contrast.

    So many latents, over the whole range of predictions, are truly ablated one by one. Rankings by attention and by
    activation have no sign, and are compared with the size of the true changes.
    """
    if inquiry.case.contrast is None:
        return None
    inquiry.gradients = inquiry.subject.attribution()
    inquiry.effects_L = _effects(inquiry.gradients)
    ranks = inquiry.ranks
    active = np.flatnonzero(ranks.mass_L > 0)
    chosen = sample(inquiry.effects_L, active, measured, inquiry.case.seed)
    changes_N = inquiry.subject.changes([_ablation((k,), str(k)) for k in chosen])
    inquiry.measured = dict(zip(chosen, map(float, changes_N), strict=True))
    chosen_N = list(chosen)
    found = [_agreement(inquiry, "attribution", inquiry.effects_L, changes_N, chosen_N)]
    if any(one.kind == "answer" and ranks.attends(t) for t, one in enumerate(ranks.tokens)):
        found.append(_agreement(inquiry, "attention", ranks.attended_L(None, "attention"), changes_N, chosen_N))
    found.append(_agreement(inquiry, "activation", ranks.mass_L, changes_N, chosen_N))
    inquiry.agreements = tuple(found)
    return inquiry.effects_L


def _effects(gradients) -> np.ndarray:
    return gradients.effects().double().cpu().numpy()


def _ablation(latents: Sequence[int], name: str) -> Steering:
    return Steering(name, (Edit(tuple(map(int, latents)), "set", 0.0),))


def _agreement(inquiry: Inquiry, by: str, score_L: np.ndarray, changes_N: np.ndarray, chosen: list[int]) -> Agreement:
    signed = by == "attribution"
    told = agreement(score_L[chosen], changes_N if signed else np.abs(changes_N)) if chosen else None
    # Away from the answer that the model gives, first those that are said to carry it.
    toward = score_L * (-1 if signed and inquiry.clean.margin > 0 else 1)
    order = [int(k) for k in np.argsort(-toward, kind="stable") if inquiry.ranks.mass_L[k] > 0 and toward[k] > 0]
    return Agreement(by, _real(told and told.spearman), _real(told.slope if told and signed else None), len(chosen),
                     _flips_after(inquiry, order))  # fmt: skip


def _real(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _flips_after(inquiry: Inquiry, order: Sequence[int]) -> int | None:
    """How many latents of a ranking have to go until the contrast flips: first in steps, then one by one."""

    def first_flip(counts: Sequence[int]) -> int | None:
        if not counts:
            return None
        changes = inquiry.subject.changes([_ablation(order[:n], str(n)) for n in counts])
        margin = inquiry.clean.margin
        flipped = np.flatnonzero((margin + changes > 0) != (margin > 0))
        return int(counts[flipped[0]]) if len(flipped) else None

    steps = [n for n in LADDER if n <= len(order)]
    found = first_flip(steps)
    if found is None:
        return None
    below = max((n for n in steps if n < found), default=0)
    return first_flip(range(below + 1, found)) or found


# --- steering ----------------------------------------------------------------------------------------------------


@step("steer")
def steer_all(inquiry: Inquiry) -> tuple[Steered, ...]:
    """Every steering of the case: its latents found, its answer, its controls, and what became of other questions."""
    case, subject = inquiry.case, inquiry.subject
    judged: list[Judged] = []
    for one in case.steer:
        inquiry.step = f"steer {one.name}"
        inquiry.resolved[one.name] = _resolve(inquiry, one)
    inquiry.step = "steer"
    resolved = list(inquiry.resolved.values())
    found = subject.answers([one.steering for one in resolved])
    if found.scores:
        classes = case.classify
        inquiry.classified = Classified(classes.classes, classes.templates, found.scores)
    margin, rebuilt = inquiry.clean.margin, _rebuilt(inquiry, resolved)
    for one, change, beyond in zip(resolved, found.changes, found.beyond, strict=True):
        base = rebuilt[one.steering.cls] if one.steering.mode == "reconstruct" else None
        judged.append(Judged(one, _where(inquiry, one), change, beyond, base and base.text))
    # What controls add comes later: a failure among them leaves the steerings themselves recorded.
    steered = [_steered(inquiry, one, after) for one, after in zip(judged, found.after, strict=True)]
    inquiry.steered = tuple(steered)
    inquiry.step = "controls"
    drawn = draw_controls(subject, inquiry.ranks, inquiry.gradients, judged, case.controls, margin, case.seed)
    others = _collateral(inquiry, resolved)
    inquiry.steered = tuple(
        _steered(inquiry, one, after, controls, collateral)
        for one, after, controls, collateral in zip(judged, found.after, drawn, others, strict=True)
    )
    return inquiry.steered


def _rebuilt(inquiry: Inquiry, resolved: Sequence[Resolved]) -> dict[bool, Answered]:
    """The model through the SAE with nothing edited, which steerings that reconstruct are held against; class tokens
    left as they are, or not."""
    found = {False: inquiry.reconstructed}
    if any(one.steering.mode == "reconstruct" and one.steering.cls for one in resolved):
        everything = Steering("reconstructed, class tokens too", (), "reconstruct", cls=True)
        found[True] = inquiry.subject.answers([everything]).after[0]
    return found


def _steered(inquiry: Inquiry, one: Judged, after: Answered, controls: tuple = (), collateral: tuple = ()) -> Steered:
    """p and the interval are of what the edits do, and so is whether the answer has flipped: of a steering that
    reconstructs, without the SAE's own error."""
    asked_for = one.resolved.asked
    among = next((draws for draws in controls if draws.kind == "latents" and draws.changes), None)
    return Steered(
        name=asked_for.name, edits=one.resolved.made, after=after, mode=asked_for.mode, onto=asked_for.onto,
        change=one.change, beyond_reconstruction=one.beyond,
        interval=beyond_controls(one.own, np.array(among.changes) - one.shift) if among else None,
        p=among.p if among else None,
        flipped=after.text != (inquiry.clean.text if one.base is None else one.base), controls=controls,
        collateral=collateral,
    )  # fmt: skip


def _collateral(inquiry: Inquiry, resolved: Sequence[Resolved]) -> list[tuple[Collateral, ...]]:
    """Other questions about the same picture, before and after each steering: those that the case declares, or else
    such as can be asked of any."""
    found: list[list[Collateral]] = [[] for _ in resolved]
    if isinstance(inquiry.subject, Asking) and resolved:
        own = inquiry.case.prompt.strip().casefold()
        for prompt in inquiry.case.controls.prompts or [one for one in OTHERS if one.casefold() != own]:
            before, *after = inquiry.subject.asked(prompt, None).says([one.steering for one in resolved])
            for mine, text in zip(found, after, strict=True):
                mine.append(Collateral(prompt, before, text))
    return [tuple(mine) for mine in found]


def _resolve(inquiry: Inquiry, one: asked.Steering) -> Resolved:
    base = inquiry.resolved[one.onto] if one.onto else None
    ranks, left_out = inquiry.ranks, base.latents if base else ()
    if (base or one.cls) and any(isinstance(e.latents, ByRank) and e.latents.by == "attribution" for e in one.edits):
        gradients = inquiry.subject.attribution(base and base.steering, cls=one.cls)
        ranks = _with_effects(ranks, _effects(gradients))
    edits = []
    for i, edit in enumerate(one.edits):
        path = f"steer.{one.name}[{i}]"
        ranked_in = _region(inquiry, getattr(edit.latents, "where", None), f"{path}.latents.where")
        inside_P = None if ranked_in is None else ranked_in.meets(inquiry.looked.boxes_P4, _size(inquiry))
        latents = find(edit.latents, ranks, inside_P, inquiry.place(f"{path}.latents"), left_out)
        edits.append(Edit(latents, edit.op, float(edit.value), _region(inquiry, edit.where, f"{path}.where")))
    made = tuple(edit_made(edit, of.latents) for edit, of in zip(edits, one.edits, strict=True))
    before = base.steering.edits if base else ()
    named = (*(base.named if base else ()), *(edit.latents for edit in one.edits))
    return Resolved(Steering(one.name, (*before, *edits), one.mode, one.cls), made, named, one)


def _with_effects(ranks: Rankings, effects_L: np.ndarray) -> Rankings:
    return replace(ranks, effects_L=effects_L)


def _region(inquiry: Inquiry, named: asked.Region | None, path: str):
    return inquiry.seen.region(named, inquiry.looked.boxes_P4, inquiry.place(path))


def _size(inquiry: Inquiry) -> Size:
    width, height = inquiry.seen.image.size
    return Size(height, width)


def _where(inquiry: Inquiry, one: Resolved) -> tuple[np.ndarray | None, ...]:
    """The part of the picture in which each edit acts."""
    boxes_P4, size = inquiry.looked.boxes_P4, _size(inquiry)
    return tuple(None if e.where is None else e.where.meets(boxes_P4, size) for e in one.steering.edits)


# --- strengths and words -----------------------------------------------------------------------------------------


@step("sweep")
def sweep(inquiry: Inquiry) -> tuple[Swept, ...]:
    """Steerings at several strengths: their latents times each factor, 0 for ablated and 1 for untouched."""
    found = []
    for one in inquiry.case.sweep:
        inquiry.step = f"sweep {one.of}"
        of = inquiry.resolved[one.of]
        steerings = [_at(of, factor) for factor in one.factors]
        after = inquiry.subject.answers(steerings).after
        doses = tuple(Dose(factor, answered) for factor, answered in zip(one.factors, after, strict=True))
        margins = [answered.margin for answered in after]
        flip = None if None in margins else flip_point([*one.factors, 1.0], [*margins, _untouched(inquiry, of)])
        found.append(Swept(one.of, doses, flip))
        inquiry.swept = tuple(found)
    return inquiry.swept


def _untouched(inquiry: Inquiry, of: Resolved) -> float:
    """The margin at strength 1: that of the model as it is, or with what an earlier steering does, through the SAE."""
    as_it_is = inquiry.clean.margin
    if of.steering.mode == "delta" and len(of.steering.edits) == len(of.asked.edits):
        return as_it_is
    return as_it_is + float(inquiry.subject.changes([_at(of, 1.0)])[0])


def _at(of: Resolved, factor: float) -> Steering:
    """What an earlier steering does stays as it is; this one's own latents are scaled, each of them once."""
    own = len(of.asked.edits)
    before, edits = of.steering.edits[: len(of.steering.edits) - own], of.steering.edits[-own:]
    scaled: list[Edit] = []
    done: set[int] = set()
    for edit in edits:
        latents = edit.latents if edit.latents == ALL else tuple(k for k in edit.latents if k not in done)
        if latents:
            scaled.append(Edit(latents, "scale", float(factor), edit.where))
        if edit.latents != ALL and edit.where is None:
            done |= set(edit.latents)
    return Steering(f"{of.asked.name} times {factor:g}", (*before, *scaled), of.steering.mode, of.steering.cls)


@step("rephrase")
def rephrase(inquiry: Inquiry) -> tuple[Rephrased, ...]:
    """The same question in other words, of the model as it is."""
    found = []
    for one in inquiry.case.rephrase:
        inquiry.step = f"rephrase {one.name}"
        words = one.contrast or inquiry.case.contrast
        contrast = words and Contrast(words.right, words.wrong)
        answered = inquiry.subject.asked(one.prompt, contrast).answers([]).clean
        own = (one.contrast.right, one.contrast.wrong) if one.contrast else None
        found.append(Rephrased(one.name, one.prompt, answered, own))
        inquiry.rephrased = tuple(found)
    return inquiry.rephrased


# --- what it comes to --------------------------------------------------------------------------------------------


@step("diagnose")
def diagnose(inquiry: Inquiry) -> Diagnosis | None:
    """Which failure mode it is, and before that the smallest set found that takes the log-odds to the other side; None
    without a contrast, or where the case asks for no diagnosis."""
    case, subject = inquiry.case, inquiry.subject
    if case.contrast is None or not case.diagnose:
        return None
    inquiry.minimal = minimal_set(subject, inquiry.ranks, case.seed)
    inquiry.diagnosis = told(subject, inquiry.ranks, inquiry.clean, inquiry.rephrased, inquiry.minimal, case.seed)
    return inquiry.diagnosis


# --- the end -----------------------------------------------------------------------------------------------------


@step("save")
def save(inquiry: Inquiry) -> Path:
    """Write the recording, and say where it is."""
    return inquiry.save()


def record(path: str | Path, folder: str | Path, device: str | None = None) -> Recording:
    """All steps in one: what the notebook does, cell by cell."""
    from vsp_report.study.repeat import repeat  # it takes these steps itself

    inquiry = open_case(path, folder, device)
    for one in (look, cluster, attribute, steer_all, sweep, rephrase, diagnose, repeat, save):
        one(inquiry)
    return inquiry.recording()
