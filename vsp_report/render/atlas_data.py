"""Atlas data: an atlas as scripts for its page. Bytes out; nothing is read or written here.

    overview.js       what the scatter, the map, the histograms and the list need of every latent
    latents/000.js …  everything else, many latents to a file, loaded when one of them is looked at

A page that was opened from a folder may load scripts and nothing else, so data are scripts that assign. A column of
the overview is text: a letter is six bits. A figure that has 64 levels takes one letter for each latent, one that has
1,024 takes two of five bits, the high ones of all latents first: what is alike stands together and packs well. Level
0 says that there is no figure (of a dead latent, of one without a label); the others run in even steps from `low`, by
logarithm where `log` says so. The files of the latents have the figures as they were measured. Whether a label is poor
is judged here, by its score as it was measured, and not by a rounded one: one bit for each latent, six to a letter.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from vsp_report.atlas import ABSENT, Atlas, Labelling
from vsp_report.render import atlas_map
from vsp_report.render.drawn import script_json

LETTERS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)
SHARD_BYTES = 160_000
"""A file of latents is about so long at most: it is parsed in a few milliseconds."""
NEAREST = 6
"""So many of a latent's neighbours are on its page; the atlas's arrays have them all."""


class Column(NamedTuple):
    """A figure of every latent, in few levels."""

    planes: tuple[str, ...]
    bits: int
    """of each plane"""
    low: float
    """of level 1"""
    step: float
    log: bool


def make_column(values_L: np.ndarray, there_L: np.ndarray, *, bits: int = 10, log: bool = False) -> Column:
    """`there_L`: where there is a figure."""
    values_L = np.log(np.maximum(values_L.astype(float), 1e-12)) if log else values_L.astype(float)
    there = values_L[there_L]
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    most = 2**bits - 2
    step = (high - low) / most
    level_L = np.where(there_L, 1 + np.rint((values_L - low) / (step or 1)), 0).astype(np.int64)
    return _packed(level_L, bits, low, step, log)


def make_numbers(numbers_L: np.ndarray) -> Column:
    """Of whole numbers from -1, which says that there is none."""
    bits = max(1, int(numbers_L.max(initial=0) + 1).bit_length())
    return _packed(numbers_L.astype(np.int64) + 1, bits, 0.0, 1.0, False)


def _packed(level_L: np.ndarray, bits: int, low: float, step: float, log: bool) -> Column:
    planes = -(-bits // 6)
    each = -(-bits // planes)
    found = [(level_L >> (each * (planes - 1 - n))) & (2**each - 1) for n in range(planes)]
    return Column(tuple(LETTERS[plane].tobytes().decode() for plane in found), each, low, step, log)


def make_bits(said_L: np.ndarray) -> str:
    """Six to a letter, the first in its lowest bit."""
    six = np.pad(said_L.astype(np.int64), (0, -len(said_L) % 6)).reshape(-1, 6)
    return LETTERS[(six << np.arange(6)).sum(1)].tobytes().decode()


def unpacked(column: Column) -> tuple[np.ndarray, np.ndarray]:
    """The figures that the page sees, and where there are any; for who checks them."""
    back = np.zeros(256, np.int64)
    back[LETTERS] = np.arange(64)
    level_L = np.zeros(len(column.planes[0]), np.int64)
    for plane in column.planes:
        level_L = (level_L << column.bits) | back[np.frombuffer(plane.encode(), np.uint8)]
    values_L = column.low + (level_L - 1) * column.step
    return (np.exp(values_L) if column.log else values_L), level_L > 0


class Shown(NamedTuple):
    """The label that each latent is shown with."""

    words: tuple[tuple[str, int], ...]
    """a word, and the labelling that it is of"""
    word_L: np.ndarray
    """its number above; -1 for none"""
    score_L: np.ndarray
    """ABSENT for none"""
    poor_L: np.ndarray
    """bool"""


def shown_labels(atlas: Atlas) -> Shown:
    """Of the first labelling that has a word for a latent; the dead have none."""
    a = atlas.arrays
    word_L, score_L = np.full(atlas.d_sae, -1, np.int64), np.full(atlas.d_sae, np.float32(ABSENT))
    words, poor_L = list[tuple[str, int]](), np.zeros(atlas.d_sae, bool)
    for s, labelling in enumerate(atlas.labellings):
        new_L = (word_L < 0) & (a.label_SL[s] >= 0) & atlas.alive_L
        used = np.unique(a.label_SL[s][new_L])
        number = np.zeros(len(labelling.words) + 1, np.int64)
        number[used] = np.arange(len(used)) + len(words)
        word_L[new_L], score_L[new_L] = number[a.label_SL[s][new_L]], a.label_score_SL[s][new_L]
        words += [(labelling.words[w], s) for w in used.tolist()]
        poor_L[new_L] = _poor(a.label_score_SL[s][new_L], labelling)
    return Shown(tuple(words), word_L, score_L, poor_L)


def _poor(scores: np.ndarray, labelling: Labelling) -> np.ndarray:
    """As `labels.is_poor` has it; a label without a score is as one with 0."""
    known = np.where(scores == np.float32(ABSENT), 0, scores.astype(float))
    return np.zeros(len(scores), bool) if labelling.least is None else known < labelling.least


def overview(atlas: Atlas, shards: int, per_shard: int, sheets_at: str) -> bytes:
    """overview.js. `sheets_at`: the folder of the sheets' folder, from the page."""
    a, alive, shown, drawn = atlas.arrays, atlas.alive_L, shown_labels(atlas), atlas_map.drawn(atlas)
    columns = {
        "frequency": make_column(a.frequency_L, alive, log=True),
        "mean": make_column(a.mean_L, alive & (a.mean_L > 0), log=True),
        "entropy": make_column(a.entropy_L, alive & (a.entropy_L != np.float32(ABSENT)), bits=6),
        "x": make_column(drawn.place_L2[:, 0], alive),
        "y": make_column(drawn.place_L2[:, 1], alive),
        "score": make_column(shown.score_L, shown.score_L != np.float32(ABSENT), bits=6),
        "cluster": make_numbers(a.cluster_L),
        "word": make_numbers(shown.word_L),
    }
    sheets = atlas.sheets
    data = {
        "latents": atlas.d_sae,
        "shards": shards,
        "perShard": per_shard,
        "columns": {name: column._asdict() for name, column in columns.items()},
        "words": shown.words,
        "poor": make_bits(shown.poor_L),
        "labellings": [[one.source, one.made, one.score, one.least] for one in atlas.labellings],
        "clusters": [[one.name, one.size, *_centre(atlas, drawn, c)] for c, one in enumerate(atlas.clusters)],
        "rim": np.flatnonzero(drawn.rim_L).tolist(),
        "inset": drawn.inset,
        "edges": _few(np.array(atlas.edges), 4),
        "sheets": {"folder": f"{sheets_at}{sheets.folder}/", "files": sheets.files,
                   "cell": sheets.cell_px, "across": sheets.across, "down": sheets.down},
        "pictures": atlas.provenance.n_images,
        "prefix": prefix_of(atlas),
        "gridBytes": 2 if grids_are_short(atlas) else 3,
    }  # fmt: skip
    return f"window.VSP_ATLAS={script_json(data)};\n".encode()


def _centre(atlas: Atlas, drawn: atlas_map.Drawn, cluster: int) -> list[float]:
    """Where a cluster's name stands: at the latent that is nearest to its middle."""
    places = drawn.place_L2[atlas.arrays.cluster_L == cluster]
    if not len(places):
        return [0.5, 0.5]
    nearest = places[np.argmin(((places - np.median(places, 0)) ** 2).sum(1))]
    return [round(float(v), 4) for v in nearest]


def latent_files(atlas: Atlas) -> tuple[dict[str, bytes], int]:
    """latents/000.js and so on, and how many latents are in each."""
    facts = list(_facts(atlas))
    some = facts[:: max(1, len(facts) // 256)]
    each = len(script_json(some)) / max(1, len(some))
    per = 16
    while per < 1024 and 2 * per * each <= SHARD_BYTES:
        per *= 2
    files = {}
    for n, at in enumerate(range(0, len(facts), per)):
        kinds: dict[tuple, int] = {}
        rows = [fact and [*fact[:-1], [_of_kind(one, kinds) for one in fact[-1]]] for fact in facts[at : at + per]]
        files[f"latents/{n:03}.js"] = f"VSP_LATENTS({n},{script_json(rows)},{script_json(list(kinds))});\n".encode()
    return files, per


def _of_kind(reference: list[Any], kinds: dict[tuple, int]) -> list[Any]:
    """A picture's label and size are said once in a file, and then by number; references.js puts them back."""
    picture, strength, name, *kind, grid = reference
    return [picture, strength, name, kinds.setdefault(tuple(kind), len(kinds)), grid]


def _facts(atlas: Atlas) -> Iterator[Any]:
    """Of each latent what atlas.js reads by place; 0 for the dead."""
    a = atlas.arrays
    R = a.references_LR.shape[1]
    short = grids_are_short(atlas)
    places = [a.grid_patches] if short else [a.grid_patches >> 8, a.grid_patches & 255]
    packed, wide = np.stack([*places, a.grid_values], 1).astype(np.uint8).tobytes(), len(places) + 1
    begin, starts, references_LR = len(prefix_of(atlas)), a.grid_starts.tolist(), a.references_LR.tolist()
    sizes = a.picture_grids_I2.tolist()
    strengths_LR, histogram_LB, neighbours_LN = _few(a.strengths_LR), _few(a.histogram_LB, 4), _few(a.neighbours_LN)
    cosines_LN, coactivations_LN = _few(a.cosines_LN), _few(a.coactivations_LN)
    figures = zip(*(_few(x) for x in (a.frequency_L, a.patch_frequency_L, a.mean_L, a.mean_overall_L, a.max_L,
                                      a.entropy_L, a.monosemanticity_L, a.uniqueness_L)), strict=True)  # fmt: skip
    labels_SL, scores_SL = a.label_SL.tolist(), _few(a.label_score_SL, 4)
    for latent, (alive, known) in enumerate(zip(atlas.alive_L.tolist(), figures, strict=True)):
        if not alive:
            yield 0
            continue
        references = []
        for r, (i, strength) in enumerate(zip(references_LR[latent], strengths_LR[latent], strict=True)):
            if i >= 0:
                grid = packed[wide * starts[latent * R + r] : wide * starts[latent * R + r + 1]]
                references.append([i, strength, atlas.pictures[i][begin:], atlas.picture_labels[i], *sizes[i],
                                   base64.b64encode(grid).decode()])  # fmt: skip
        near = islice(zip(neighbours_LN[latent], cosines_LN[latent], coactivations_LN[latent], strict=True), NEAREST)
        neighbours = [[n, cosine, together, references_LR[n][0] if R else -1] for n, cosine, together in near if n >= 0]
        labels = [[one.words[labels_SL[s][latent]], scores_SL[s][latent], s]
                  for s, one in enumerate(atlas.labellings) if labels_SL[s][latent] >= 0]  # fmt: skip
        counts = np.trim_zeros(histogram_LB[latent], "b")
        first = next((b for b, count in enumerate(counts) if count), 0)
        yield [*known, labels, [first, *counts[first:]], neighbours, references]


def grids_are_short(atlas: Atlas) -> bool:
    """Whether every patch's number fits into a byte."""
    return bool(atlas.arrays.picture_grids_I2.astype(int).prod(1).max(initial=0) <= 256)


def prefix_of(atlas: Atlas) -> str:
    """What the names of all pictures begin with; it is written once."""
    low, high = min(atlas.pictures, default=""), max(atlas.pictures, default="")
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), 0)]


def _few(values: np.ndarray, digits: int = 3) -> list[Any]:
    """In as many digits as are shown; None where there is none. What is judged, as a label's score is, has one more."""
    if values.dtype.kind != "f":
        return values.tolist()
    values = values.astype(float)
    scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.maximum(np.abs(values), 1e-30))))
    few = np.rint(values * scale) / scale
    return np.where(values == np.float32(ABSENT), None, few.astype(object)).tolist()
