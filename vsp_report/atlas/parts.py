"""Parts: what an atlas is made of, as frozen values. Read without torch; arrays are numpy's.

A picture's activation of a latent is its largest over the picture's patches: it ranks references, and concepts are
found by it. A mean activation is first taken over a picture's patches, then over pictures. A latent that no picture
activates is dead: its figures are 0, it has no references, and it stands on no map. NaN is nowhere: where a figure
does not exist, an array holds `ABSENT` and a value None.

Axes: L latents (all of the SAE, the dead among them), R references of a latent, B bins of a histogram, N neighbours of
a latent, S labellings, I pictures that are some latent's reference, E active patches of all references.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from vsp_report.errors import InputError

SCHEMA = 1
"""Goes up when a reader of the older form would misread the newer one."""
ABSENT = -9.0
"""In an array, a figure that does not exist. Every figure that may be absent is above it by nature."""
GOOD = 0.9
"""The average precision from which on a latent finds a concept."""
Source = Literal["given", "truth", "images", "words"]


@dataclass(frozen=True)
class Provenance:
    """What made the atlas, so that it can be made again."""

    model: str
    model_sha: str
    sae: str
    sae_sha: str
    tap: str
    architecture: str
    """the SAE's, with its k: topk, k = 20"""
    images: str
    """where the pictures are from: a folder's name, or sketchworld"""
    images_sha: str
    """of their names, sizes and labels; of sketchworld, of its seeds"""
    n_images: int
    """that were read; broken ones do not count"""
    n_patches: int
    """of all of them"""
    seed: int
    package_sha: str
    """of the source of what computes"""
    versions: dict[str, str]
    device_class: str
    dtype: str
    command: str
    """makes it again"""
    broken: tuple[str, ...] = ()
    """pictures that could not be read, each with the fault; the first thousand"""
    n_broken: int = 0
    states_sha: str = ""
    """of what the states at the tap depend on, as in a recording; empty in an atlas from before there was such a
    hash: then the model's decides"""


@dataclass(frozen=True)
class Measure:
    """One line of the quality table: a figure, and the same of an untrained SAE of the same kind."""

    name: str
    value: float | None
    untrained: float | None
    better: Literal["more", "less", ""] = ""
    """which way is better; empty where neither is"""
    meaning: str = ""
    """one sentence"""


@dataclass(frozen=True)
class Concept:
    """How well one latent finds one concept. The latent is chosen on one half of the pictures, measured on the other.

    Figures are of the second half. None where it has no picture of the concept, or patches have no truth.
    """

    name: str
    images: int
    """of the measured half show it"""
    share: float
    """of the measured half: what a latent that knows nothing has as average precision"""
    latent: int | None = None
    average_precision: float | None = None
    """of ranking pictures by their activation of the latent"""
    iou: float | None = None
    """over patches: active and showing it, over active or showing it"""
    untrained_latent: int | None = None
    untrained_average_precision: float | None = None
    untrained_iou: float | None = None


@dataclass(frozen=True)
class Labelling:
    """One way in which latents came to words. The first labelling that has a word for a latent is the one shown."""

    source: Source
    """given by the user, the world's ground truth, the pictures' own labels, or words that a CLIP compares"""
    made: str
    """how, in words: the file, the model, how many words were tried"""
    score: str
    """what the score is: average precision, share of references, cosine; empty where there is none"""
    words: tuple[str, ...]
    """that `Arrays.label_SL` counts"""
    least: float | None = None
    """cases may name a latent by a label that scores at least this"""


@dataclass(frozen=True)
class Cluster:
    """Latents that are dense on the map; `Arrays.cluster_L` says whose."""

    name: str
    """what its latents share more than chance would have it, one word or two; empty where there is nothing"""
    size: int
    share: float | None = None
    """of its latents that bear the name's first word"""
    everywhere: float | None = None
    """of all living latents that bear it"""
    by: Literal["labels", "pictures", ""] = ""
    """whether they bear it as a label that is no poor one, or as what many of their references are pictures of"""


@dataclass(frozen=True)
class Sheets:
    """Where the small reference pictures are: number i on sheet i // (across * down), row by row.

    A small picture is square and shows what the patches cover, so a grid of activations lies over it exactly.
    """

    folder: str
    """beside the atlas: pictures-0123456789ab"""
    files: tuple[str, ...]
    """000.webp, 001.webp, …"""
    cell_px: int
    across: int
    down: int


class Spot(NamedTuple):
    """Where one small picture is."""

    file: str
    """relative to the folder of all atlases"""
    left_px: int
    top_px: int
    side_px: int


@dataclass(frozen=True, eq=False)
class Arrays:
    """The large part, in arrays.npz."""

    frequency_L: np.ndarray
    """float32: the share of pictures with an active patch"""
    patch_frequency_L: np.ndarray
    """float32: the share of patches that are active"""
    mean_L: np.ndarray
    """float32: mean activation over the pictures with an active patch"""
    mean_overall_L: np.ndarray
    """float32: mean activation over all pictures"""
    max_L: np.ndarray
    """float32: the largest activation of all"""
    histogram_LB: np.ndarray
    """int64: active patches by activation; `Atlas.edges` has the bins"""
    entropy_L: np.ndarray
    """float32: of the labels of the top references, weighted by activation, in nats; ABSENT without labels or with
    fewer than ten references"""
    monosemanticity_L: np.ndarray
    """float32: mean likeness of the pictures that activate it, weighted by activation; ABSENT below two pictures"""
    uniqueness_L: np.ndarray
    """float32: 1 less the share of its references that the latent most like it has too; ABSENT for the dead"""
    references_LR: np.ndarray
    """int32: pictures by their number in `Atlas.pictures`, the strongest first; -1 where there are no more"""
    strengths_LR: np.ndarray
    """float32: the picture's activation; 0 where there is no reference"""
    grid_starts: np.ndarray
    """int64, L * R + 1: where the active patches of each reference begin in the two arrays below"""
    grid_patches: np.ndarray
    """uint16, E: the patch, counted row by row"""
    grid_values: np.ndarray
    """uint8, E: its activation in 255ths of the reference's; at least 1"""
    picture_grids_I2: np.ndarray
    """uint16: rows and columns of patches of each picture"""
    neighbours_LN: np.ndarray
    """int32: living latents of the most similar direction, the nearest first, as far as twice as many directions, dead
    ones among them, reach; -1 where there are no more"""
    cosines_LN: np.ndarray
    """float32: of the two directions; 0 where there is no neighbour"""
    coactivations_LN: np.ndarray
    """float32: pictures that activate both over pictures that activate either"""
    map_L2: np.ndarray
    """float32: the place on the map, from 0 to 1; 0, 0 for the dead"""
    cluster_L: np.ndarray
    """int32: its number in `Atlas.clusters`; -1 for none"""
    label_SL: np.ndarray
    """int32: for each labelling, the number of the latent's word; -1 for none"""
    label_score_SL: np.ndarray
    """float32: how good it is; ABSENT where there is none"""

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        return ((f.name, getattr(self, f.name)) for f in fields(self))


KINDS = {"float32": "f4", "int64": "i8", "int32": "i4", "uint16": "u2", "uint8": "u1"}


class Reference(NamedTuple):
    picture: int
    name: str
    strength: float


class Neighbour(NamedTuple):
    latent: int
    cosine: float
    coactivation: float


class Label(NamedTuple):
    word: str
    score: float | None
    labelling: Labelling


class LatentFacts(NamedTuple):
    """Everything of one latent but its references' grids."""

    number: int
    label: Label | None
    frequency: float
    patch_frequency: float
    mean: float
    mean_overall: float
    max: float
    entropy: float | None
    monosemanticity: float | None
    uniqueness: float | None
    references: tuple[Reference, ...]
    neighbours: tuple[Neighbour, ...]
    cluster: int | None
    place: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Atlas:
    schema: int
    slug: str
    """its folder's name: sketchworld-vision.3"""
    provenance: Provenance
    edges: tuple[float, ...]
    """of the histogram's bins, B + 1 of them; what lies beyond the first or last is counted there"""
    mapped: str
    """how the map was made: UMAP of decoder directions, 15 neighbours, seed 0"""
    quality: tuple[Measure, ...]
    concepts: tuple[Concept, ...]
    labellings: tuple[Labelling, ...]
    clusters: tuple[Cluster, ...]
    pictures: tuple[str, ...]
    """the name of each picture that is a reference"""
    picture_labels: tuple[str, ...]
    """its own label, which may be empty"""
    sheets: Sheets
    arrays: Arrays = field(default=None)  # type: ignore[assignment]
    """kept in arrays.npz beside the JSON"""

    @property
    def d_sae(self) -> int:
        return len(self.arrays.frequency_L)

    @cached_property
    def alive_L(self) -> np.ndarray:
        """(L,): latents that some picture activates."""
        return self.arrays.frequency_L > 0

    @property
    def dead(self) -> int:
        return int((~self.alive_L).sum())

    def label(self, latent: int) -> Label | None:
        """Of the first labelling that has a word for it."""
        arrays = self.arrays
        for s, labelling in enumerate(self.labellings):
            if (word := int(arrays.label_SL[s, latent])) >= 0:
                return Label(labelling.words[word], _known(arrays.label_score_SL[s, latent]), labelling)
        return None

    @cached_property
    def by_label(self) -> Mapping[str, tuple[int, ...]]:
        """Living latents by the word they are shown with, where it scores well enough for a case to name them."""
        found: dict[str, list[int]] = {}
        for latent in np.flatnonzero(self.alive_L).tolist():
            label = self.label(latent)
            if label is not None and (label.labelling.least is None or (label.score or 0) >= label.labelling.least):
                found.setdefault(label.word, []).append(latent)
        return {word: tuple(latents) for word, latents in sorted(found.items())}

    def references(self, latent: int) -> tuple[Reference, ...]:
        numbers, strengths = self.arrays.references_LR[latent].tolist(), self.arrays.strengths_LR[latent].tolist()
        return tuple(Reference(i, self.pictures[i], s) for i, s in zip(numbers, strengths, strict=True) if i >= 0)

    def grid(self, latent: int, reference: int) -> np.ndarray:
        """(rows, columns) in float32: the latent's activation on every patch of its so-manieth reference."""
        arrays = self.arrays
        picture, strength = arrays.references_LR[latent, reference], arrays.strengths_LR[latent, reference]
        if picture < 0:
            raise IndexError(f"latent {latent} has no reference {reference}")
        rows, columns = map(int, arrays.picture_grids_I2[picture])
        at = latent * arrays.references_LR.shape[1] + reference
        active = slice(int(arrays.grid_starts[at]), int(arrays.grid_starts[at + 1]))
        grid_P = np.zeros(rows * columns, np.float32)
        grid_P[arrays.grid_patches[active]] = arrays.grid_values[active] * (strength / 255)
        return grid_P.reshape(rows, columns)

    def spot(self, picture: int) -> Spot:
        sheets = self.sheets
        sheet, cell = divmod(picture, sheets.across * sheets.down)
        row, column = divmod(cell, sheets.across)
        side = sheets.cell_px
        return Spot(f"{sheets.folder}/{sheets.files[sheet]}", column * side, row * side, side)

    def facts(self, latent: int) -> LatentFacts:
        a, alive = self.arrays, bool(self.alive_L[latent])
        nearest = zip(a.neighbours_LN[latent].tolist(), a.cosines_LN[latent].tolist(),
                      a.coactivations_LN[latent].tolist(), strict=True)  # fmt: skip
        cluster = int(a.cluster_L[latent])
        return LatentFacts(
            latent, self.label(latent),
            *(float(x[latent]) for x in (a.frequency_L, a.patch_frequency_L, a.mean_L, a.mean_overall_L, a.max_L)),
            *(_known(x[latent]) for x in (a.entropy_L, a.monosemanticity_L, a.uniqueness_L)),
            self.references(latent), tuple(Neighbour(*one) for one in nearest if one[0] >= 0),
            cluster if cluster >= 0 else None, tuple(a.map_L2[latent].tolist()) if alive else None,
        )  # fmt: skip

    def check(self, place: str) -> None:
        """Refuse parts that do not fit together, and figures that are no numbers."""
        for name, wrong in self._wrong():
            if wrong:
                raise InputError(place, f"{name} does not fit the rest", "Make the atlas again: `vsp-report atlas`.")

    def _wrong(self) -> Iterator[tuple[str, bool]]:
        a = self.arrays
        L, R = a.references_LR.shape if a.references_LR.ndim == 2 else (-1, -1)
        N = a.neighbours_LN.shape[-1]
        S, B, I = len(self.labellings), len(self.edges) - 1, len(self.pictures)  # noqa: E741
        sizes = {"L": L, "R": R, "N": N, "S": S, "B": B, "I": I, "2": 2}
        for name, array in a.items():
            axes = name.rpartition("_")[2] if name.rpartition("_")[2] != "starts" and name[:5] != "grid_" else ""
            yield name, bool(axes) and array.shape != tuple(sizes[axis] for axis in axes)
            yield name, array.dtype.kind == "f" and not np.isfinite(array).all()
        yield "grid_starts", a.grid_starts.shape != (L * R + 1,) or a.grid_starts[0] != 0
        yield "grid_starts", bool((np.diff(a.grid_starts) < 0).any()) or a.grid_starts[-1] != len(a.grid_patches)
        yield "grid_values", a.grid_values.shape != a.grid_patches.shape
        area_I = a.picture_grids_I2.astype(np.int64).prod(1)
        yield "references_LR", bool(((a.references_LR < -1) | (a.references_LR >= I)).any())
        owner_E = np.repeat(a.references_LR.ravel(), np.diff(a.grid_starts))
        yield "grid_patches", bool((owner_E < 0).any() or (a.grid_patches >= area_I[owner_E]).any())
        yield "neighbours_LN", bool(((a.neighbours_LN < -1) | (a.neighbours_LN >= L)).any())
        yield "cluster_L", bool(((a.cluster_L < -1) | (a.cluster_L >= len(self.clusters))).any())
        for s, labelling in enumerate(self.labellings):
            yield "label_SL", bool(((a.label_SL[s] < -1) | (a.label_SL[s] >= len(labelling.words))).any())
        yield "picture_labels", len(self.picture_labels) != I
        yield "sheets", len(self.sheets.files) * self.sheets.across * self.sheets.down < I


def _known(value: np.floating) -> float | None:
    return None if value == np.float32(ABSENT) else float(value)
