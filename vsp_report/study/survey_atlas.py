"""Survey to atlas: the tallies of a survey become the atlases of its SAEs: figures, labels, map, clusters, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vsp_report import paths
from vsp_report.atlas import (
    ABSENT,
    ATLASES,
    GOOD,
    SCHEMA,
    Arrays,
    Atlas,
    Cluster,
    Concept,
    Labelling,
    Measure,
    Place,
    Provenance,
    Sheets,
    load_atlas,
    place_of,
    save_atlas,
    save_sheets,
    sheets_named,
    sweep_sheets,
)
from vsp_report.errors import InputError
from vsp_report.maths import naming, projection, quality
from vsp_report.maths.tallies import Tally
from vsp_report.model.checkpoints import load_sae
from vsp_report.study import sheets
from vsp_report.study.inquiry import versions
from vsp_report.study.survey import Plan, load_tallies, made_on
from vsp_report.study.survey_plan import KEPT, NEIGHBOURS

TRUSTED = 0.5
"""A case may name latents by a label that scores this, in average precision or in share of references."""
NAMES = 2
"""A cluster's name has no more words than this."""
NAMED = 0.15
"""A word that a smaller share of a cluster's latents bears does not stand for the cluster, however unlikely it is."""
FOUND = f"concepts found (average precision >= {GOOD})"


Step = Callable[[str, float], None]


class Words(NamedTuple):
    """Labels that a CLIP's text encoder gave."""

    made: str
    words: tuple[str, ...]
    word_L: np.ndarray
    score_L: np.ndarray


@dataclass(frozen=True)
class Given:
    """What a user says that latents are."""

    made: str
    labels: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class Surveyed:
    """One SAE's tally, its references by picture, and what their pictures are called."""

    tally: Tally
    references_LR: np.ndarray
    strengths_LR: np.ndarray
    label_N: np.ndarray
    """of each picture of the survey that is a reference; -1 for others and for none"""
    labels: tuple[str, ...]


def make_atlases(
    plan: Plan, tallies: Path, site: str | Path, *, command: str, given: Given | None = None,
    words: Callable[[Surveyed], Words] | None = None, on_step: Step = lambda step, seconds: None,
) -> list[Path]:  # fmt: skip
    """The atlases of a survey, written below `site`; their folders. `on_step` is told what is done next, and about how
    many seconds it takes; 0 where it is soon done."""
    parent, source = Path(site) / ATLASES, plan.source
    if not (atlases := len(plan.facts["saes"])):
        raise InputError("--sae", "there is none", "Give one.")
    if given is not None and atlases > 1:
        raise InputError(given.made, f"labels latents, and there are {atlases} SAEs", "Survey one --sae at a time.")
    on_step("figures", 0.0)
    found, small, broken = load_tallies(plan, tallies.name)
    if not found[0].n_pictures:  # an atlas of nothing never takes the place of one of something
        raise InputError(plan.facts["images"], "no picture of it could be read", "See what is wrong with them.")
    made = made_on(tallies)
    label_of = cache(source.label)
    every = [surveyed(plan, tally, label_of) for tally in found]
    trained = every[:atlases]
    kept = sorted({int(i) for one in trained for i in one.references_LR[:, :KEPT].ravel() if i >= 0})
    on_step("pictures", 0.0)
    drawn = list(sheets.sheets_of((small[i][0] for i in kept), plan.facts["cell_px"]))
    files = tuple(f"{k:03}.webp" for k in range(len(drawn)))
    before = sheets_named(parent / place.slug for place in places(plan, site))
    number_N = np.full(len(source), -1, np.int64)
    number_N[kept] = np.arange(len(kept))
    written = []
    for k, one in enumerate(trained):
        facts = plan.facts["saes"][k]
        on_step(f"atlas of {facts['name']}", 0.0)
        sae = load_sae(paths.bundled(facts["at"]) or facts["at"])
        slug = place_of(parent, _names(plan, k)).slug
        directions_LD, alive_L = sae.directions.float().cpu().numpy(), one.tally.pictures_L > 0
        mapped = f"UMAP of decoder directions, {projection.NEIGHBOURS} neighbours, cosine, seed {plan.facts['seed']}"
        slow = lambda seconds, name=facts["name"]: on_step(f"map of {name}", seconds)  # noqa: E731
        map_L2 = _map(parent / slug, facts["sha"], mapped, directions_LD, alive_L, plan.facts["seed"], slow)
        control = every[atlases + k] if plan.facts["control"] else None
        findings, over_all = quality.findings(one.tally) if source.truth else ([], None)
        others = quality.findings(control.tally)[0] if control and source.truth else [None] * len(findings)
        concepts = tuple(_concepts(source, one.tally, findings, others))
        labellings, label_SL, score_SL = _labellings(plan, one, over_all, given, words)
        cluster_L = np.full(len(alive_L), -1)
        cluster_L[alive_L] = projection.clusters_of(map_L2[alive_L])
        nearest_LN, cosines_LN, together_LN = projection.first_of(
            alive_L, plan.arrays[f"{k}.neighbours"], NEIGHBOURS, plan.arrays[f"{k}.cosines"],
            quality.coactivation(one.tally),
        )  # fmt: skip
        arrays = Arrays(
            frequency_L=one.tally.frequency_L, patch_frequency_L=one.tally.patch_frequency_L,
            mean_L=one.tally.mean_active_L, mean_overall_L=one.tally.mean_overall_L, max_L=one.tally.max_L,
            histogram_LB=one.tally.histogram_LH, **_judged(one),
            **_references(one, number_N), picture_grids_I2=np.array([small[i][1] for i in kept]).reshape(-1, 2),
            neighbours_LN=nearest_LN, cosines_LN=cosines_LN, coactivations_LN=together_LN,
            map_L2=map_L2, cluster_L=cluster_L, label_SL=label_SL, label_score_SL=score_SL,
        )  # fmt: skip
        atlas = Atlas(
            schema=SCHEMA, slug=slug,
            provenance=_provenance(plan, k, one.tally, sae, broken, command, made),
            edges=tuple(one.tally.frame.edges.tolist()), mapped=mapped,
            quality=tuple(_quality(one, control, concepts)), concepts=concepts, labellings=labellings,
            clusters=_clusters(cluster_L, labellings, label_SL, score_SL, one),
            pictures=tuple(source.name(i) for i in kept),
            picture_labels=tuple(one.labels[one.label_N[i]] if one.label_N[i] >= 0 else "" for i in kept),
            # Written just before what names them: until then another command beside this one may clear them.
            sheets=Sheets(save_sheets(parent, drawn), files, plan.facts["cell_px"], sheets.ACROSS, sheets.DOWN),
            arrays=arrays,
        )  # fmt: skip
        written.append(save_atlas(parent, atlas))
    sweep_sheets(parent, before)
    return written


def places(plan: Plan, site: str | Path) -> list[Place]:
    """Where the atlases of a survey will be written."""
    return [place_of(Path(site) / ATLASES, _names(plan, k)) for k in range(len(plan.facts["saes"]))]


def _names(plan: Plan, k: int) -> dict[str, str]:
    of = plan.facts["saes"][k]
    return {"model": plan.facts["model"], "model_sha": plan.facts["model_sha"], "sae": of["name"],
            "sae_sha": of["sha"], "tap": of["tap"], "states_sha": of["states_sha"]}  # fmt: skip


def surveyed(plan: Plan, tally: Tally, label_of: Callable[[int], str]) -> Surveyed:
    references_LR, strengths_LR = tally.references.table(tally.frame.latents, tally.frame.references)
    source, numbers = plan.source, np.unique(references_LR[references_LR >= 0])
    said = [label_of(int(i)) for i in numbers]
    labels = tuple(sorted({label for label in said if label}))
    order = {label: n for n, label in enumerate(labels)}
    label_N = np.full(len(source), -1, np.int64)
    label_N[numbers] = [order.get(label, -1) for label in said]
    return Surveyed(tally, references_LR, strengths_LR, label_N, labels)


# --- figures -----------------------------------------------------------------------------------------------------


def _judged(one: Surveyed) -> dict[str, np.ndarray]:
    return {
        "entropy_L": _absent(quality.label_entropy(one.references_LR, one.strengths_LR, one.label_N)),
        "monosemanticity_L": _absent(quality.monosemanticity(one.tally)),
        "uniqueness_L": _absent(quality.uniqueness(one.references_LR)),
    }


def _absent(figures_L: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(figures_L), ABSENT, figures_L)


def _references(one: Surveyed, number_N: np.ndarray) -> dict[str, np.ndarray]:
    """The first few of each latent, with their grids in 255ths of their own activation."""
    L, held = one.tally.frame.latents, one.tally.references.best(KEPT)
    pictures_LR, strengths_LR = held.table(L, KEPT)
    counts_LR = np.zeros((L, KEPT), np.int64)
    counts_LR[pictures_LR >= 0] = held.count_A  # both go latent by latent, the strongest first
    shares_G = held.value_G / np.repeat(held.strength_A, held.count_A)
    return {
        "references_LR": np.where(pictures_LR >= 0, number_N[pictures_LR], -1), "strengths_LR": strengths_LR,
        "grid_starts": np.append(0, counts_LR.ravel().cumsum()), "grid_patches": held.patch_G,
        "grid_values": np.rint(shares_G * 255).clip(1, 255),
    }  # fmt: skip


def _quality(one: Surveyed, control: Surveyed | None, concepts: Sequence[Concept]) -> list[Measure]:
    mine, theirs = _figures(one), _figures(control) if control else {}
    measures = [Measure(name, mine[name], theirs.get(name), better, meaning) for name, better, meaning in MEASURES]
    if not concepts:
        return measures
    known = [c for c in concepts if c.average_precision is not None]
    other = [c for c in known if c.untrained_average_precision is not None]
    placed = [c for c in known if c.iou is not None]
    controlled = [c for c in placed if c.untrained_iou is not None]
    return [
        *measures,
        Measure(FOUND, _mean([c.average_precision >= GOOD for c in known]),
                _mean([c.untrained_average_precision >= GOOD for c in other]), "more",
                "The share of the world's concepts that some latent finds this well on pictures it was not chosen on."),
        Measure("average precision of concepts", _mean([c.average_precision for c in known]),
                _mean([c.untrained_average_precision for c in other]), "more", "Of the best latent of each concept."),
        Measure("overlap with concepts", _mean([c.iou for c in placed]), _mean([c.untrained_iou for c in controlled]),
                "more", "Of that latent: patches active and showing the concept, over active or showing it."),
    ]  # fmt: skip


MEASURES = (
    ("explained variance", "more", "Of the states of all patches; 0 is what their mean explains."),
    ("active latents per patch", "", "L0: how many latents a patch activates, on average."),
    ("dead share", "less", "Latents that no picture activates, of all."),
    ("label entropy", "less", "Of the labels of a latent's strongest pictures, in nats; mean over latents. 0 is one."),
    ("monosemanticity", "more", "How alike the pictures are that activate a latent, weighted by how much; mean."),
    ("uniqueness of references", "more", "1 less the largest overlap with another latent's references; mean."),
)


def _figures(one: Surveyed) -> dict[str, float | None]:
    tally = one.tally
    return {
        "explained variance": _mean([tally.explained]),
        "active latents per patch": tally.mean_l0,
        "dead share": float((tally.pictures_L == 0).mean()),
        "label entropy": _mean(quality.label_entropy(one.references_LR, one.strengths_LR, one.label_N)),
        "monosemanticity": _mean(quality.monosemanticity(tally)),
        "uniqueness of references": _mean(quality.uniqueness(one.references_LR)),
    }


def _mean(figures: Sequence[float] | np.ndarray) -> float | None:
    real = np.asarray(figures, float)
    real = real[np.isfinite(real)]
    return float(real.mean()) if len(real) else None


def _concepts(source, tally: Tally, findings: Sequence[quality.Finding], others: Sequence) -> list[Concept]:
    if not findings:
        return []
    _, shown_NC = tally.judged.of_half(1, tally.frame.latents)
    rows = []
    for c, (name, mine, other) in enumerate(zip(source.concepts, findings, others, strict=True)):
        images = int(shown_NC[:, c].sum())
        share = images / max(len(shown_NC), 1)
        rows.append(Concept(name, images, share, *mine, *(other or (None, None, None))))
    return rows


# --- labels ------------------------------------------------------------------------------------------------------


def _labellings(
    plan: Plan, one: Surveyed, over_all: np.ndarray | None, given: Given | None,
    words: Callable[[Surveyed], Words] | None,
) -> tuple[tuple[Labelling, ...], np.ndarray, np.ndarray]:  # fmt: skip
    """What is given first, then the world's truth, then pictures' own labels, then words."""
    source, alive_L, L = plan.source, one.tally.pictures_L > 0, one.tally.frame.latents
    found: list[tuple[Labelling, np.ndarray, np.ndarray]] = []
    if given is not None:
        if beyond := [latent for latent in given.labels if latent >= L]:
            raise InputError(given.made, f"labels latent {beyond[0]}, and the SAE has {L}", "Number from 0.")
        vocabulary = tuple(sorted(set(given.labels.values())))
        word_L = np.full(L, -1)
        word_L[list(given.labels)] = [vocabulary.index(label) for label in given.labels.values()]
        found.append((Labelling("given", given.made, "", vocabulary), word_L, np.full(L, ABSENT)))
    if over_all is not None:
        known_LC = np.where(np.isnan(over_all), -1, over_all)
        best_L, score_L = known_LC.argmax(1), known_LC.max(1)
        made = f"SketchWorld's ground truth, {len(source.concepts)} concepts"
        labelling = Labelling("truth", made, "average precision", source.concepts, TRUSTED)
        found.append((labelling, np.where(alive_L, best_L, -1), np.where(alive_L, score_L, ABSENT)))
    elif one.labels:
        word_L, share_L = quality.common_label(one.references_LR, one.strengths_LR, one.label_N)
        labelling = Labelling("images", f"the pictures' own labels, by {source.labelled}", "share of references",
                              one.labels, TRUSTED)  # fmt: skip
        found.append((labelling, word_L, np.where(word_L >= 0, share_L, ABSENT)))
    if words is not None:
        said = words(one)
        score_L = np.where(said.word_L >= 0, said.score_L, ABSENT)
        found.append((Labelling("words", said.made, "likeness above the mean", said.words), said.word_L, score_L))
    stacked = [np.stack([row[i] for row in found]) if found else np.zeros((0, L)) for i in (1, 2)]
    return tuple(row[0] for row in found), *stacked


def _clusters(
    cluster_L: np.ndarray, labellings: Sequence[Labelling], label_SL: np.ndarray, score_SL: np.ndarray, one: Surveyed
) -> tuple[Cluster, ...]:
    """Named by what its latents share more than chance would have it: by good labels first, and where these say
    nothing by what their references are pictures of. The best label of a latent that stands for nothing is some
    frequent word, and counts for nothing here."""
    alive_L = one.tally.pictures_L > 0
    words = tuple(dict.fromkeys(word for labelling in labellings for word in labelling.words))
    word_L = np.full(len(cluster_L), -1)
    for s, labelling in reversed(tuple(enumerate(labellings))):
        numbers = np.array([words.index(word) for word in labelling.words] or [-1])
        has_L = label_SL[s] >= 0
        good_L = has_L if labelling.least is None else has_L & (score_SL[s] >= labelling.least)
        # A latent is shown with its first labelling's word: where that is a poor one, it has none here.
        word_L = np.where(has_L, np.where(good_L, numbers[label_SL[s].astype(int)], -1), word_L)
    labelled = naming.shared_words(cluster_L[alive_L], naming.borne(word_L[alive_L], len(words)))
    pictured = naming.borne_by_references(one.references_LR[alive_L], one.label_N, len(one.labels))
    pictured = naming.shared_words(cluster_L[alive_L], pictured)
    made = []
    for cluster, (by_labels, by_pictures) in enumerate(zip(labelled, pictured, strict=True)):
        size = int((cluster_L == cluster).sum())
        least = NAMED * size
        labels, pictures = ([shared for shared in by if shared.count >= least] for by in (by_labels, by_pictures))
        found, said, by = (labels, words, "labels") if labels else (pictures, one.labels, "pictures")
        if not found:
            made.append(Cluster("", size))
            continue
        name = ", ".join(said[shared.word] for shared in found[:NAMES])
        made.append(Cluster(name, size, found[0].count / size, found[0].everywhere, by))
    return tuple(made)


# --- map and provenance ------------------------------------------------------------------------------------------


def _map(
    folder: Path, sae_sha: str, mapped: str, directions_LD: np.ndarray, alive_L: np.ndarray, seed: int,
    on_slow: Callable[[float], None],
) -> np.ndarray:  # fmt: skip
    """(L, 2); the one of the atlas that is there already, if it is of the same latents made in the same way."""
    try:
        older = load_atlas(folder)
        same = older.provenance.sae_sha == sae_sha and older.mapped == mapped
        if same and np.array_equal(older.alive_L, alive_L):
            return older.arrays.map_L2
    except InputError:
        pass  # there is none, or none that can be read
    on_slow(projection.seconds_for(int(alive_L.sum())))
    map_L2 = np.zeros((len(alive_L), 2), np.float32)
    map_L2[alive_L] = projection.map_of(directions_LD[alive_L], seed)
    return map_L2


def _provenance(
    plan: Plan, k: int, tally: Tally, sae, broken: Sequence, command: str, made: Mapping[str, str]
) -> Provenance:
    """`made`: where and with what the tallies were made, which may have been elsewhere than here."""
    facts, of = plan.facts, plan.facts["saes"][k]
    kind = sae.architecture + (f", k = {sae.k}" if sae.k else "")
    told = tuple(f"{name}: {fault}" for _, name, fault in broken[:1000])
    return Provenance(
        model=facts["model"], model_sha=facts["model_sha"], sae=of["name"], sae_sha=of["sha"], tap=of["tap"],
        architecture=kind, images=facts["images"], images_sha=facts["images_sha"], n_images=tally.n_pictures,
        n_patches=tally.n_patches, seed=facts["seed"], package_sha=made["package_sha"], versions=versions(),
        device_class=made["device_class"], dtype=made["dtype"], command=command, broken=told, n_broken=len(broken),
        states_sha=of["states_sha"],
    )  # fmt: skip


def broken_pictures(plan: Plan, tallies: Path) -> list[str]:
    """Name and fault of each picture that was passed over."""
    with np.load(tallies, allow_pickle=False) as archive:
        return [f"{name}: {fault}" for _, name, fault in json.loads(archive["broken"].tobytes())]
