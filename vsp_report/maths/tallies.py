"""Tallies: what a survey adds up of every latent, picture by picture, so that parts merge to the whole.

A tally is a monoid: merging in any order and any grouping gives the same, bit for bit. Floating-point sums would not,
so nothing is summed in floating point: activations become whole numbers of a fixed step once, and whole numbers are
added. Maxima and the best few references are exact as they are; references of equal activation go by the picture's
number. Only active entries are touched, so the work follows a code's sparsity and not its width.

A picture's activation of a latent is its largest over the patches. Its mean is over all its patches.

Axes: B pictures of a batch, E active entries (one latent on one patch), A active pairs of a picture and a latent,
L latents, H bins, R references, N neighbours, D width of embeddings, S width of states, C concepts, G entries of
references' grids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

BINS = 40
BELOW = 16
"""Octaves of the histogram below the frame's unit; the other four are above it. Two bins to an octave."""
MEAN_BITS, STRENGTH_BITS, EMBEDDING_BITS = 30, 16, 20
"""Fractions of the unit (and of 1, for embeddings) that sums are kept in. A million pictures at sixteen times the unit
still fit 63 bits."""
STATE_BITS = 28
"""Likewise of the unit of states, and of its square: a million pictures of a thousand patches."""


class Entries(NamedTuple):
    """The active entries of a batch, picture after picture, in the order of patches."""

    pictures_B: np.ndarray
    """their numbers in the survey"""
    patches_B: np.ndarray
    """how many patches each has"""
    picture_E: np.ndarray
    """0 to B - 1"""
    patch_E: np.ndarray
    latent_E: np.ndarray
    value_E: np.ndarray
    """float32, above 0"""


class Truth(NamedTuple):
    """What the patches of a batch show, where that is known."""

    half_B: np.ndarray
    """0: latents are chosen on it; 1: they are measured on it; 2: neither"""
    shown_BC: np.ndarray
    """bool: concepts of each picture"""
    row_X: np.ndarray
    """with `concept_X`: which patch, counted through the batch, shows which concept"""
    concept_X: np.ndarray


class Explained(NamedTuple):
    """How far the states of a batch's pictures are from what an SAE makes of them; summed over each one's patches."""

    state_BS: np.ndarray
    square_B: np.ndarray
    """of the states' lengths"""
    error_B: np.ndarray
    """of the distances between a state and its reconstruction, squared"""


@dataclass(frozen=True, eq=False)
class Frame:
    """What all tallies of one SAE share."""

    latents: int
    unit: float
    """a power of two, near the largest activation"""
    references: int = 16
    grids: bool = True
    """whether references keep their patches' activations"""
    neighbours_LN: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """whose coactivation is counted; (0, 0) for none, -1 where a latent has no more"""
    width: int = 0
    """of pictures' embeddings; 0 for none"""
    concepts: int = 0
    """of the truth; 0 for none"""
    states: int = 0
    """their width, of which the explained variance is; 0 for none"""
    state_unit: float = 1.0
    """a power of two, near the longest state"""

    @property
    def edges(self) -> np.ndarray:
        """(H + 1,): of the histogram's bins."""
        steps = np.arange(BINS + 1)
        return self.unit * 2.0 ** (steps // 2 - BELOW) * np.where(steps % 2, 1.5, 1.0)

    def bin_of(self, value_E: np.ndarray) -> np.ndarray:
        """Half-octaves, read off a number's own bits: its exponent and the first bit behind it."""
        first = (127 + int(np.log2(self.unit)) - BELOW) << 1
        return ((np.asarray(value_E, np.float32).view(np.int32) >> 22) - first).clip(0, BINS - 1)


def unit_for(largest: float) -> float:
    """The power of two at or above this; 1 where nothing is active."""
    return float(2.0 ** np.ceil(np.log2(largest))) if largest > 0 else 1.0


# --- references --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class References:
    """The strongest pictures of each latent, ordered by latent, activation and number; A of them in all."""

    latent_A: np.ndarray
    strength_A: np.ndarray
    picture_A: np.ndarray
    count_A: np.ndarray
    """entries of each one's grid"""
    patch_G: np.ndarray
    value_G: np.ndarray

    @classmethod
    def none(cls) -> References:
        kinds = (np.int32, np.float32, np.int64, np.int64, np.uint16, np.float32)
        return cls(*(np.zeros(0, kind) for kind in kinds))

    def best(self, most: int) -> References:
        """The first `most` of each latent."""
        order = np.lexsort((self.picture_A, -self.strength_A, self.latent_A))
        latent_A = self.latent_A[order]
        first_A = np.concatenate([[True], latent_A[1:] != latent_A[:-1]]) if len(order) else np.zeros(0, bool)
        start_A = np.maximum.accumulate(np.where(first_A, np.arange(len(order)), 0))
        return self.take(order[np.arange(len(order)) - start_A < most])

    def take(self, chosen: np.ndarray) -> References:
        starts = np.concatenate([[0], self.count_A.cumsum()])[:-1]
        count = self.count_A[chosen]
        within = np.arange(count.sum()) - np.repeat(np.concatenate([[0], count.cumsum()])[:-1], count)
        entries = np.repeat(starts[chosen], count) + within
        return References(self.latent_A[chosen], self.strength_A[chosen], self.picture_A[chosen], count,
                          self.patch_G[entries], self.value_G[entries])  # fmt: skip

    def table(self, latents: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """(L, R) pictures, -1 where there are no more, and their activations."""
        held = self.best(most)
        counts_L = np.bincount(held.latent_A, minlength=latents)
        rank_A = np.arange(len(held.latent_A)) - np.repeat(counts_L.cumsum() - counts_L, counts_L)
        pictures_LR, strengths_LR = np.full((latents, most), -1, np.int64), np.zeros((latents, most), np.float32)
        pictures_LR[held.latent_A, rank_A] = held.picture_A
        strengths_LR[held.latent_A, rank_A] = held.strength_A
        return pictures_LR, strengths_LR


def joined(parts: Sequence[References]) -> References:
    return References(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(References)))


# --- the tally ---------------------------------------------------------------------------------------------------

SUMS = ("pictures_L", "mean_L", "histogram_LH", "strength_L", "square_L", "together_LN", "resultant_LD",
        "inside_2LC", "active_2L", "area_2C", "state_S", "energy_2")  # fmt: skip
"""Whole numbers that are added."""


class Tally:
    """Of one SAE: `add` a batch at a time, `merged` with others at the end."""

    def __init__(self, frame: Frame) -> None:
        L, N, C = frame.latents, frame.neighbours_LN.shape[1], frame.concepts
        self.frame, self.n_pictures, self.n_patches = frame, 0, 0
        shapes = {
            "pictures_L": (L,), "mean_L": (L,), "histogram_LH": (L, BINS), "strength_L": (L,), "square_L": (L,),
            "together_LN": (L, N), "resultant_LD": (L, frame.width), "inside_2LC": (2, L, C),
            "active_2L": (2, L if C else 0), "area_2C": (2, C),
            "state_S": (frame.states,), "energy_2": (2,),
        }  # fmt: skip
        for name, shape in shapes.items():
            setattr(self, name, np.zeros(shape, np.int64))
        self.max_L = np.zeros(L, np.float32)
        self._references, self._pending, self._waiting = References.none(), [], 0
        self._least_L = np.zeros(L, np.float32)
        self._judged: list[Judged] = []

    # -- adding ---------------------------------------------------------------------------------------

    def add(
        self, entries: Entries, *, embeddings_BD: np.ndarray | None = None, truth: Truth | None = None,
        explained: Explained | None = None,
    ) -> None:  # fmt: skip
        """A batch of pictures that no tally it will be merged with has seen."""
        frame, L, B = self.frame, self.frame.latents, len(entries.pictures_B)
        latent_E = entries.latent_E.astype(np.int64, copy=False)
        self.n_pictures, self.n_patches = self.n_pictures + B, self.n_patches + int(entries.patches_B.sum())
        bins = np.bincount(latent_E * BINS + frame.bin_of(entries.value_E), minlength=L * BINS)
        self.histogram_LH += bins.reshape(L, BINS)
        key_E = entries.picture_E.astype(np.int64, copy=False) * L + latent_E
        strength_K = np.zeros(B * L, np.float32)
        np.maximum.at(strength_K, key_E, entries.value_E)
        # Added in the order of patches, whichever pictures are in the batch.
        total_K = np.bincount(key_E, weights=entries.value_E, minlength=B * L)
        key_A = np.flatnonzero(strength_K)
        picture_A, latent_A = np.divmod(key_A, L)
        strength_A = strength_K[key_A]
        mean_A = np.rint(total_K[key_A] / entries.patches_B[picture_A] / frame.unit * 2.0**MEAN_BITS)
        self.pictures_L += np.bincount(latent_A, minlength=L)
        self.mean_L += _added(latent_A, mean_A, L)
        np.maximum.at(self.max_L, latent_A, strength_A)
        if frame.neighbours_LN.size:
            self._count_together(strength_K, picture_A, latent_A)
        if frame.width:
            self._add_embeddings(picture_A, latent_A, strength_A, embeddings_BD)
        if frame.states:
            step = 2.0**STATE_BITS / frame.state_unit
            self.state_S += np.rint(explained.state_BS * step).astype(np.int64).sum(0)
            for place, part_B in enumerate((explained.square_B, explained.error_B)):
                self.energy_2[place] += np.rint(part_B * (step / frame.state_unit)).astype(np.int64).sum()
        if frame.concepts:
            self._add_truth(entries, truth, latent_E, picture_A, latent_A, strength_A)
        self._add_references(entries, key_E, key_A, latent_A, strength_A, picture_A)

    def _count_together(self, strength_K: np.ndarray, picture_A: np.ndarray, latent_A: np.ndarray) -> None:
        nearest_LN, (L, N) = self.frame.neighbours_LN, self.frame.neighbours_LN.shape
        near_AN = nearest_LN[latent_A]
        both_AN = (strength_K[picture_A[:, None] * L + near_AN] > 0) & (near_AN >= 0)
        place_AN = latent_A[:, None] * N + np.arange(N)
        self.together_LN += np.bincount(place_AN[both_AN], minlength=L * N).reshape(L, N)

    def _add_embeddings(
        self, picture_A: np.ndarray, latent_A: np.ndarray, strength_A: np.ndarray, embeddings_BD: np.ndarray
    ) -> None:
        L, whole_A = self.frame.latents, np.rint(strength_A / self.frame.unit * 2.0**STRENGTH_BITS).astype(np.int64)
        self.strength_L += _added(latent_A, whole_A, L)
        np.add.at(self.square_L, latent_A, whole_A * whole_A)
        steps_BD = np.rint(np.asarray(embeddings_BD, float) * 2.0**EMBEDDING_BITS).astype(np.int64)
        order = np.argsort(latent_A, kind="stable")
        rows, starts = np.unique(latent_A[order], return_index=True)
        weights = csr_array(
            (whole_A[order], picture_A[order], np.append(starts, len(order))), (len(rows), len(steps_BD))
        )
        for some in np.array_split(np.arange(len(rows)), 1 + len(rows) // 4096):
            if len(some):
                self.resultant_LD[rows[some]] += weights[some] @ steps_BD

    def _add_truth(
        self, entries: Entries, truth: Truth, latent_E: np.ndarray, picture_A: np.ndarray, latent_A: np.ndarray,
        strength_A: np.ndarray,
    ) -> None:  # fmt: skip
        L, C, first_B = self.frame.latents, self.frame.concepts, np.concatenate([[0], entries.patches_B.cumsum()])
        row_E, rows = first_B[entries.picture_E] + entries.patch_E, int(first_B[-1])
        half_R = np.repeat(truth.half_B, entries.patches_B)
        shown = csr_array((np.ones(len(truth.row_X), np.int64), (truth.row_X, truth.concept_X)), (rows, C))
        for half in (0, 1):
            mine_E, mine_X = half_R[row_E] == half, half_R[truth.row_X] == half
            self.area_2C[half] += np.bincount(truth.concept_X[mine_X], minlength=C)
            self.active_2L[half] += np.bincount(latent_E[mine_E], minlength=L)
            on = csr_array((np.ones(int(mine_E.sum()), np.int64), (latent_E[mine_E], row_E[mine_E])), (L, rows))
            self.inside_2LC[half] += (on @ shown).toarray()
        judged_B = truth.half_B < 2
        mine_A = judged_B[picture_A]
        self._judged.append(
            Judged(
                entries.pictures_B[judged_B].astype(np.int64),
                truth.half_B[judged_B].astype(np.uint8),
                truth.shown_BC[judged_B],
                entries.pictures_B[picture_A[mine_A]].astype(np.int64),
                latent_A[mine_A].astype(np.int32),
                strength_A[mine_A],
            )
        )

    def _add_references(
        self, entries: Entries, key_E: np.ndarray, key_A: np.ndarray, latent_A: np.ndarray, strength_A: np.ndarray,
        picture_A: np.ndarray,
    ) -> None:  # fmt: skip
        enough_A = strength_A >= self._least_L[latent_A]
        key_A, latent_A, strength_A = key_A[enough_A], latent_A[enough_A], strength_A[enough_A]
        order = np.zeros(0, np.int64)
        count_A = np.zeros(len(key_A), np.int64)
        if self.frame.grids:
            place_K = np.full(len(entries.pictures_B) * self.frame.latents, -1, np.int32)
            place_K[key_A] = np.arange(len(key_A))
            place_E = place_K[key_E]
            kept = np.flatnonzero(place_E >= 0)
            order = kept[np.argsort(place_E[kept], kind="stable")]
            count_A = np.bincount(place_E[kept], minlength=len(key_A))
        self._pending.append(References(
            latent_A.astype(np.int32), strength_A, entries.pictures_B[picture_A[enough_A]].astype(np.int64), count_A,
            entries.patch_E[order].astype(np.uint16), entries.value_E[order].astype(np.float32),
        ))  # fmt: skip
        self._waiting += len(key_A)
        if self._waiting > max(4096, len(self._references.latent_A) // 2):
            self._settle()

    def _settle(self) -> None:
        self._references = joined([self._references, *self._pending]).best(self.frame.references)
        self._pending, self._waiting = [], 0
        full_L = np.bincount(self._references.latent_A, minlength=self.frame.latents) == self.frame.references
        least_L = np.full(self.frame.latents, np.inf, np.float32)
        np.minimum.at(least_L, self._references.latent_A, self._references.strength_A)
        self._least_L = np.where(full_L, least_L, np.float32(0.0))

    # -- merging --------------------------------------------------------------------------------------

    @property
    def references(self) -> References:
        self._settle()
        return self._references

    @property
    def judged(self) -> Judged:
        """Pictures with a truth, each with its activations; by their number."""
        found = Judged.none(self.frame.concepts) if not self._judged else self._judged[0].with_others(self._judged[1:])
        self._judged = [found]
        return found

    def merged(self, *others: Tally) -> Tally:
        """That of all their pictures; they stay as they are."""
        whole = Tally(self.frame)
        parts = (self, *others)
        for name in SUMS:
            total = getattr(whole, name)
            for part in parts:
                total += getattr(part, name)
        whole.n_pictures, whole.n_patches = sum(p.n_pictures for p in parts), sum(p.n_patches for p in parts)
        whole.max_L = np.maximum.reduce([part.max_L for part in parts])
        whole._references = joined([part.references for part in parts]).best(self.frame.references)
        whole._judged = [part.judged for part in parts]
        return whole

    # -- as arrays ------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, in one form whatever the order in which it came about."""
        found = {name: getattr(self, name) for name in (*SUMS, "max_L")}
        found["counts"] = np.array([self.n_pictures, self.n_patches], np.int64)
        found |= {f"references.{f.name}": getattr(self.references, f.name) for f in fields(References)}
        return found | {f"judged.{name}": array for name, array in self.judged._asdict().items()}

    @classmethod
    def of(cls, frame: Frame, arrays: Mapping[str, np.ndarray]) -> Tally:
        tally = cls(frame)
        for name in (*SUMS, "max_L"):
            if arrays[name].shape != getattr(tally, name).shape:
                raise ValueError(f"{name} is {arrays[name].shape}, not {getattr(tally, name).shape}")
            setattr(tally, name, np.array(arrays[name]))
        tally.n_pictures, tally.n_patches = map(int, arrays["counts"])
        tally._references = References(*(arrays[f"references.{f.name}"] for f in fields(References)))
        tally._judged = [Judged(*(arrays[f"judged.{name}"] for name in Judged._fields))]
        tally._settle()
        return tally

    # -- figures --------------------------------------------------------------------------------------

    @property
    def mean_active_L(self) -> np.ndarray:
        """Of the pictures that activate it; 0 where none does."""
        return self._means() / np.maximum(self.pictures_L, 1)

    @property
    def mean_overall_L(self) -> np.ndarray:
        return self._means() / max(self.n_pictures, 1)

    def _means(self) -> np.ndarray:
        return self.mean_L * (self.frame.unit / 2.0**MEAN_BITS)

    @property
    def frequency_L(self) -> np.ndarray:
        return self.pictures_L / max(self.n_pictures, 1)

    @property
    def patch_frequency_L(self) -> np.ndarray:
        return self.histogram_LH.sum(1) / max(self.n_patches, 1)

    @property
    def explained(self) -> float:
        """The share of the states' variance over all patches that the reconstruction has; not a number without any."""
        square, error = (self.energy_2 / 2.0**STATE_BITS).tolist()
        mean_S = self.state_S / 2.0**STATE_BITS / max(self.n_patches, 1)
        variance = square - self.n_patches * float(mean_S @ mean_S)
        return 1.0 - error / variance if variance > 0 else float("nan")

    @property
    def mean_l0(self) -> float:
        """Active latents per patch."""
        return float(self.histogram_LH.sum() / max(self.n_patches, 1))


def _added(latent_A: np.ndarray, whole_A: np.ndarray, latents: int) -> np.ndarray:
    # Whole numbers below 2^53 add up exactly in floating point, which is where numpy's bincount adds fast.
    return np.bincount(latent_A, weights=whole_A, minlength=latents).astype(np.int64)


class Judged(NamedTuple):
    """Pictures of which the truth is known, and what they activate. What ranks pictures cannot be summed up, so this
    grows with their number: a survey judges so many and no more."""

    picture_J: np.ndarray
    half_J: np.ndarray
    shown_JC: np.ndarray
    of_A: np.ndarray
    """the picture's number in the survey"""
    latent_A: np.ndarray
    strength_A: np.ndarray

    @classmethod
    def none(cls, concepts: int) -> Judged:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros((0, concepts), bool), np.zeros(0, np.int64),
                   np.zeros(0, np.int32), np.zeros(0, np.float32))  # fmt: skip

    def with_others(self, others: Iterable[Judged]) -> Judged:
        picture_J, half_J, shown_JC, of_A, latent_A, strength_A = map(np.concatenate, zip(self, *others, strict=True))
        by_picture, by_pair = np.argsort(picture_J, kind="stable"), np.lexsort((latent_A, of_A))
        return Judged(picture_J[by_picture], half_J[by_picture], shown_JC[by_picture], of_A[by_pair],
                      latent_A[by_pair], strength_A[by_pair])  # fmt: skip

    def of_half(self, half: int, latents: int) -> tuple[csr_array, np.ndarray]:
        """(pictures, latents) activations of one half, and (pictures, concepts) what they show."""
        mine = self.half_J == half
        row_A = np.searchsorted(self.picture_J, self.of_A)
        row_of = np.cumsum(mine) - 1
        kept = mine[row_A] if len(row_A) else np.zeros(0, bool)
        shape = (int(mine.sum()), latents)
        return csr_array((self.strength_A[kept], (row_of[row_A[kept]], self.latent_A[kept])), shape), self.shown_JC[
            mine
        ]
