"""Atlas pages: an atlas -> the values of its page. Nothing is read or written here, and a template computes nothing.

What stands on a page without scripts is chosen here too: the quality of the autoencoder, how well concepts are found,
and the latents that are active most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vsp_report.atlas import ABSENT, GOOD, Atlas, Concept, Measure
from vsp_report.render import atlas_drawings, atlas_map
from vsp_report.render.findings import counted, share
from vsp_report.render.labels import SOURCES, is_poor

STRONGEST = 24
"""So many latents stand on the page itself."""
SHOWN = 4
"""References of a latent in a list."""
Sizes = Mapping[str, tuple[int, int]]
"""Of the sheets that are there: width and height in pixels."""


@dataclass(frozen=True)
class Thumb:
    """A reference as it is drawn in the page: a part of a sheet, and a veil over what the latent is silent on."""

    href: str
    width_px: int
    height_px: int
    """of the sheet"""
    left_px: int
    top_px: int
    side_px: int
    rows: int
    columns: int
    veil: str
    alt: str


class LabelShown(NamedTuple):
    word: str
    score: str
    poor: bool
    source: str


@dataclass(frozen=True)
class LatentLine:
    number: int
    label: LabelShown | None
    frequency: str
    mean: str
    entropy: str
    thumbs: tuple[Thumb, ...]


class MeasureLine(NamedTuple):
    name: str
    meaning: str
    value: str
    untrained: str
    way: str
    """which way is better, in words"""
    wins: bool | None


class ConceptLine(NamedTuple):
    name: str
    images: int
    latent: int | None
    precision: str
    iou: str
    length: float
    """of its bar, of 100"""
    found: bool
    untrained_latent: int | None
    untrained_precision: str
    untrained_iou: str
    mark: float | None
    """where the untrained one's stands on the bar"""


class ClusterLine(NamedTuple):
    number: int
    name: str
    size: int
    share: str
    everywhere: str
    by: str


@dataclass(frozen=True)
class AtlasPage:
    slug: str
    tap: str
    title: str
    headline: str
    facts: tuple[str, ...]
    latents: int
    alive: int
    labelled: bool
    has_entropy: bool
    pictured: bool
    quality: tuple[MeasureLine, ...]
    concepts: tuple[ConceptLine, ...]
    concepts_said: str
    chance: str
    clusters: tuple[ClusterLine, ...]
    beyond: str
    """how many latents the map has on its rim, and how far out they are; empty where there are none"""
    strongest: tuple[LatentLine, ...]
    labellings: tuple[tuple[str, str], ...]
    mapped: str
    command: str
    provenance: tuple[tuple[str, str], ...]
    broken: tuple[str, ...]
    n_broken: int
    drawings: Mapping[str, str]
    """SVG by name, for who has no scripts"""


def atlas_page(atlas: Atlas, sizes: Sizes) -> AtlasPage:
    made, alive = atlas.provenance, int(atlas.alive_L.sum())
    (found, measured), (by_chance, compared) = found_of(atlas.concepts), found_untrained(atlas.concepts)
    beside = "" if not compared else f", an untrained one for {by_chance}" + (
        "" if compared == measured else f" of {compared}")  # fmt: skip
    said = (
        f"{many(atlas.d_sae, 'latent')} of a sparse autoencoder at {made.tap}, and what makes each of them fire in "
        f"{many(made.n_images, 'picture')}."
        + (f" {many(atlas.dead, 'latent is', 'latents are')} dead: no picture activates "
           f"{'it' if atlas.dead == 1 else 'them'}." if atlas.dead else "")
        + (f" For {found} of {measured} concepts some latent finds the pictures that show it{beside}." if measured
           else "")
    )  # fmt: skip
    a = atlas.arrays
    return AtlasPage(
        slug=atlas.slug,
        tap=made.tap,
        title=f"The latents at {made.tap}",
        headline=said,
        facts=tuple(filter(None, (made.model, made.sae, made.architecture,
                                  f"{many(made.n_images, 'picture')} of {made.images}"))),
        latents=atlas.d_sae,
        alive=alive,
        labelled=any(atlas.label(n) for n in np.flatnonzero(atlas.alive_L).tolist()),
        has_entropy=bool((a.entropy_L[atlas.alive_L] != np.float32(ABSENT)).any()),
        pictured=bool(sizes),
        quality=tuple(map(_measure, atlas.quality)),
        concepts=tuple(sorted(map(concept_line, atlas.concepts),
                              key=lambda one: (one.latent is None, -one.length, one.name))),
        concepts_said=concepts_said(atlas),
        chance=_range([one.share for one in atlas.concepts if one.average_precision is not None]),
        clusters=_clusters(atlas),
        beyond=_beyond(atlas),
        strongest=strongest(atlas, sizes),
        labellings=tuple((SOURCES[one.source], "; ".join(filter(None, (one.made, one.score and f"scored by {one.score}",
            f"poor below {one.least:g}" if one.least is not None else "")))) for one in atlas.labellings),
        mapped=atlas.mapped,
        command=made.command,
        provenance=_provenance(atlas),
        broken=made.broken[:50],
        n_broken=made.n_broken,
        drawings=_drawings(atlas) if alive else {},
    )  # fmt: skip


def _drawings(atlas: Atlas) -> dict[str, str]:
    a, alive = atlas.arrays, atlas.alive_L
    entropy = a.entropy_L[alive & (a.entropy_L != np.float32(ABSENT))]
    by_entropy = [("entropy", "label entropy, nats", entropy)] if len(entropy) else []
    return {
        "scatter": atlas_drawings.scatter(atlas),
        "map": atlas_drawings.map_of(atlas),
        "frequency": atlas_drawings.histogram(100 * a.frequency_L[alive], "percent of pictures", log=True),
        "mean": atlas_drawings.histogram(a.mean_L[alive & (a.mean_L > 0)], "mean activation", log=True),
        **{name: atlas_drawings.histogram(values, title, log=False) for name, title, values in by_entropy},
    }


# --- latents ---------------------------------------------------------------------------------------------------------


def strongest(atlas: Atlas, sizes: Sizes) -> tuple[LatentLine, ...]:
    """The living latents with the largest mean activation over all pictures."""
    order = np.argsort(-atlas.arrays.mean_overall_L, kind="stable")[:STRONGEST].tolist()
    return tuple(latent_line(atlas, latent, sizes, SHOWN) for latent in order if atlas.alive_L[latent])


def latent_line(atlas: Atlas, latent: int, sizes: Sizes, references: int) -> LatentLine:
    facts = atlas.facts(latent)
    entropy = "–" if facts.entropy is None else f"{facts.entropy:.2f}"
    return LatentLine(latent, label_shown(atlas, latent), share(facts.frequency), f"{facts.mean:.3g}", entropy,
                      thumbs(atlas, latent, sizes, references))  # fmt: skip


def label_shown(atlas: Atlas, latent: int) -> LabelShown | None:
    label = atlas.label(latent)
    if label is None or not atlas.alive_L[latent]:
        return None
    said = "" if label.score is None else f"{label.score:.2f}"
    return LabelShown(label.word, said, is_poor(label.score, label.labelling.least), SOURCES[label.labelling.source])


def thumbs(atlas: Atlas, latent: int, sizes: Sizes, count: int) -> tuple[Thumb, ...]:
    found = []
    for r, reference in enumerate(atlas.references(latent)[:count]):
        spot, grid = atlas.spot(reference.picture), atlas.grid(latent, r)
        if spot.file not in sizes:
            continue
        rows, columns = grid.shape
        shown = f"Reference {r + 1} of latent {latent}: {reference.name}, activation {reference.strength:.3g}"
        found.append(Thumb(spot.file, *sizes[spot.file], spot.left_px, spot.top_px, spot.side_px, rows, columns,
                           atlas_drawings.veil(grid), shown))  # fmt: skip
    return tuple(found)


# --- tables ----------------------------------------------------------------------------------------------------------


def _measure(one: Measure) -> MeasureLine:
    way = {"more": "more is better", "less": "less is better", "": ""}[one.better]
    known = one.value is not None and one.untrained is not None and one.better != ""
    wins = ((one.value > one.untrained) == (one.better == "more") and one.value != one.untrained) if known else None
    return MeasureLine(one.name, one.meaning, figure(one.value), figure(one.untrained), way, wins)


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def concept_line(one: Concept) -> ConceptLine:
    precision = one.average_precision
    untrained = one.untrained_average_precision
    return ConceptLine(
        one.name, one.images, one.latent if precision is not None else None, _two(precision), _two(one.iou),
        round(100 * (precision or 0), 1), (precision or 0) >= GOOD, one.untrained_latent, _two(untrained),
        _two(one.untrained_iou), None if untrained is None else round(100 * untrained, 1),
    )  # fmt: skip


def _two(value: float | None) -> str:
    if value is None:
        return "–"
    # What just misses does not read as if it did not.
    return f"{value:.3f}" if value < GOOD <= round(value, 2) else f"{value:.2f}"


def found_of(concepts: Sequence[Concept]) -> tuple[int, int]:
    measured = [one.average_precision for one in concepts if one.average_precision is not None]
    return sum(value >= GOOD for value in measured), len(measured)


def found_untrained(concepts: Sequence[Concept]) -> tuple[int, int]:
    """As `found_of`, by an untrained autoencoder of the same kind."""
    measured = [one.untrained_average_precision for one in concepts if one.untrained_average_precision is not None]
    return sum(value >= GOOD for value in measured), len(measured)


def concepts_said(atlas: Atlas) -> str:
    """How many concepts are found, and by an untrained autoencoder of the same kind."""
    (found, measured), (by_chance, compared) = found_of(atlas.concepts), found_untrained(atlas.concepts)
    if not measured:
        return ""
    beside = f" With an untrained one, {by_chance} of {compared}." if compared else ""
    return f"{found} of {measured} concepts are found with an average precision of at least {GOOD}.{beside}"


def _range(shares: list[float]) -> str:
    if not shares:
        return ""
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return low if low == high else f"{low} to {high}"


def _clusters(atlas: Atlas) -> tuple[ClusterLine, ...]:
    lines = [ClusterLine(c, one.name, one.size, *("–" if part is None else share(part) for part in (one.share,
                         one.everywhere)), one.by) for c, one in enumerate(atlas.clusters)]  # fmt: skip
    return tuple(sorted(lines, key=lambda one: (-one.size, one.name)))


def _beyond(atlas: Atlas) -> str:
    drawn = atlas_map.drawn(atlas)
    count = int(drawn.rim_L.sum())
    if not count:
        return ""
    lie = "lies" if count == 1 else "lie"
    part = share(count / int(atlas.alive_L.sum())).replace(" ", "\u00a0")
    return (f"{counted(count, 'latent')} ({part}) {lie} further out than the dotted "
            f"frame, by up to {drawn.furthest:.1f} of its width or height, and {'is' if count == 1 else 'are'} drawn "
            "as rings on the rim.")  # fmt: skip


def _provenance(atlas: Atlas) -> tuple[tuple[str, str], ...]:
    made = atlas.provenance
    hashes = {"model": made.model_sha, "states": made.states_sha, "SAE": made.sae_sha, "pictures": made.images_sha,
              "package": made.package_sha}  # fmt: skip
    facts = [
        ("model", made.model), ("SAE", made.sae), ("tap", made.tap), ("architecture", made.architecture),
        ("pictures", f"{made.n_images:,} of {made.images}".replace(",", " ")),
        ("patches", f"{made.n_patches:,}".replace(",", " ")), ("map", atlas.mapped),
        ("device", made.device_class), ("numbers", made.dtype), ("seed", str(made.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(made.versions.items()))),
        *((f"SHA-256, {name}", value) for name, value in hashes.items() if value),
    ]  # fmt: skip
    return tuple((name, value) for name, value in facts if value)


class Rows(NamedTuple):
    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class Offered(NamedTuple):
    """A file to take away."""

    name: str
    href: str
    what: str


def latents_table(atlas: Atlas) -> Rows:
    """Every latent, to take away."""
    a = atlas.arrays
    head = ("latent", "label", "label score", "label by", "frequency", "patch frequency", "mean activation",
            "mean activation over all", "largest activation", "label entropy", "monosemanticity", "uniqueness",
            "cluster")  # fmt: skip
    figures = (a.frequency_L, a.patch_frequency_L, a.mean_L, a.mean_overall_L, a.max_L)
    rows = []
    for latent in range(atlas.d_sae):
        label, cluster = atlas.label(latent), int(a.cluster_L[latent])
        known = [None if (v := float(x[latent])) == ABSENT else _few(v)
                 for x in (a.entropy_L, a.monosemanticity_L, a.uniqueness_L)]  # fmt: skip
        rows.append((
            latent, label.word if label else "", None if label is None or label.score is None else _few(label.score),
            label.labelling.source if label else "",
            *(_few(float(x[latent])) for x in figures),
            *known, atlas.clusters[cluster].name or cluster if cluster >= 0 else "",
        ))  # fmt: skip
    return Rows(head, tuple(rows))


def _few(value: float) -> float:
    return float(f"{value:.5g}")


def many(count: int, noun: str, plural: str = "") -> str:
    """Large numbers are set in groups of three."""
    return counted(count, noun, plural) if count < 1000 else f"{count:,} {plural or noun + 's'}".replace(",", "\u202f")
