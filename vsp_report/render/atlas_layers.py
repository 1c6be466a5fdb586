"""Atlas layers: atlases of one model over the same pictures -> the page that lays its layers side by side.

A concept stands at the first tap where some latent finds it, so that what layers read, one after the other, is the
order of the page. Nothing is read or written here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vsp_report.atlas import GOOD, Atlas, Concept
from vsp_report.render.atlas_cases import tap_names
from vsp_report.render.atlas_pages import (
    Sizes,
    Thumb,
    concept_line,
    figure,
    found_of,
    found_untrained,
    many,
    thumbs,
)
from vsp_report.render.findings import share

BESIDE = 3
"""References of a latent in a field."""


class Cell(NamedTuple):
    """A concept at one tap."""

    slug: str
    tap: str
    latent: int | None
    precision: str
    length: float
    mark: float | None
    found: bool
    untrained: str
    thumbs: tuple[Thumb, ...]


class ConceptRow(NamedTuple):
    name: str
    images: int
    cells: tuple[Cell, ...]


class Stage(NamedTuple):
    """Concepts that are first found at the same tap."""

    title: str
    said: str
    rows: tuple[ConceptRow, ...]


class TapLine(NamedTuple):
    slug: str
    tap: str
    """or the SAE, where there are several at one tap"""
    depth: str
    """early, middle or late, where three taps are compared"""
    sae: str
    architecture: str
    latents: str
    dead: str
    explained: str
    explained_untrained: str
    found: str
    found_untrained: str


@dataclass(frozen=True)
class Compared:
    """Atlases of one model over the same pictures."""

    model: str
    pictures: str
    taps: tuple[TapLine, ...]
    stages: tuple[Stage, ...]
    said: str


def layers_page(atlases: Sequence[Atlas], sizes: Sizes) -> tuple[Compared, ...]:
    groups: dict[tuple[str, str, str], list[Atlas]] = {}
    for atlas in sorted(atlases, key=_depth):
        made = atlas.provenance
        groups.setdefault((made.model, made.model_sha, made.images_sha), []).append(atlas)
    return tuple(_compared(group, sizes) for group in groups.values())


def _depth(atlas: Atlas) -> tuple[Any, ...]:
    """Vision before text, layer 9 before layer 10."""
    made = atlas.provenance
    parts = re.split(r"(\d+)", made.tap)
    key = tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)
    return made.model, made.tap.startswith("text"), key, atlas.slug


def _compared(group: Sequence[Atlas], sizes: Sizes) -> Compared:
    made = group[0].provenance
    named = tap_names([(atlas.provenance.tap, atlas.provenance.sae) for atlas in group])
    stages = _stages(group, named, sizes) if len(group) > 1 else ()
    said = "; ".join(f"{len(stage.rows)} {stage.title[:1].lower()}{stage.title[1:]}" for stage in stages)
    taps = {atlas.provenance.tap for atlas in group}
    depths = ("early", "middle", "late") if len(group) == len(taps) == 3 else ("",) * len(group)
    return Compared(
        made.model,
        f"{many(made.n_images, 'picture')} of {made.images}",
        tuple(_tap(atlas, tap, depth) for atlas, tap, depth in zip(group, named, depths, strict=True)),
        stages,
        f"Of {sum(len(stage.rows) for stage in stages)} concepts: {said}." if stages else "",
    )


def _tap(atlas: Atlas, tap: str, depth: str) -> TapLine:
    explained = next((one for one in atlas.quality if one.name.lower().startswith("explained variance")), None)
    (found, measured), (by_chance, compared) = found_of(atlas.concepts), found_untrained(atlas.concepts)
    made = atlas.provenance
    return TapLine(
        atlas.slug, tap, depth, made.sae, made.architecture, f"{atlas.d_sae:,}".replace(",", "\u202f"),
        share(atlas.dead / max(1, atlas.d_sae)), figure(explained.value) if explained else "–",
        figure(explained.untrained) if explained else "–", f"{found} of {measured}" if measured else "–",
        f"{by_chance} of {compared}" if compared else "–",
    )  # fmt: skip


def _stages(group: Sequence[Atlas], named: Sequence[str], sizes: Sizes) -> tuple[Stage, ...]:
    """Concepts by the first tap at which some latent finds them; then those that none finds."""
    known = [{one.name: one for one in atlas.concepts if one.average_precision is not None} for atlas in group]
    names = list(dict.fromkeys(name for concepts in known for name in concepts))
    first = {name: next((n for n, concepts in enumerate(known)
                         if name in concepts and concepts[name].average_precision >= GOOD), len(group))
             for name in names}  # fmt: skip
    stages = []
    for n in range(len(group) + 1):
        rows = [_row(name, group, named, known, sizes) for name in names if first[name] == n]
        rows.sort(key=lambda row: (-sum(cell.length for cell in row.cells), row.name))
        if rows and n < len(group):
            title = f"First found at {named[n]}" if n else f"Found at {named[0]} already"
            stages.append(Stage(title, f"Average precision of at least {GOOD} there.", tuple(rows)))
        elif rows:
            stages.append(Stage("Found at none of these taps", f"No latent reaches {GOOD}.", tuple(rows)))
    return tuple(stages)


def _row(
    name: str, group: Sequence[Atlas], named: Sequence[str], known: Sequence[Mapping[str, Concept]], sizes: Sizes
) -> ConceptRow:
    cells, images = [], 0
    for atlas, tap, concepts in zip(group, named, known, strict=True):
        one = concepts.get(name)
        if one is None or one.latent is None:
            cells.append(Cell(atlas.slug, tap, None, "–", 0.0, None, False, "–", ()))
            continue
        line, images = concept_line(one), max(images, one.images)
        cells.append(Cell(atlas.slug, tap, one.latent, line.precision, line.length, line.mark, line.found,
                          line.untrained_precision, thumbs(atlas, one.latent, sizes, BESIDE)))  # fmt: skip
    return ConceptRow(name, images, tuple(cells))
