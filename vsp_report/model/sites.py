"""Sites: which rows of a tap's states a steering touches, and what it makes of them.

Only what an edit needs is worked out: of an SAE whose latents do not depend on each other, the columns that
some steering names; of one that picks the largest of a row, all of them, once, a piece at a time. The change
is added in the SAE's own precision, and rows in which no latent changes are not written to, so that nothing
edited is the same to the last bit.

Axes: S sites, E edits of a steering, K latents it names, U latents that any steering names, L all latents, D
width, Q positions of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vsp_report.errors import SteeringError
from vsp_report.maths import edits
from vsp_report.maths.edits import ALL, Edit, Steering
from vsp_report.maths.grids import ImageMap, Size
from vsp_report.model.sae import TENSORS, Sae
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Prompt, Vlm

LATENTS_BYTES = 32 << 20
"""Latents are worked out for so many rows at a time that no more than this is held at once."""
BEFORE, RECONSTRUCTED = "nothing edited", "reconstructed, nothing edited"


@dataclass(frozen=True, eq=False)
class Sites:
    """What can be edited at a tap, for one prompt."""

    rows_S: torch.Tensor
    """vision, connector: rows of the states, all axes but the last flattened; text: positions"""
    boxes_S4: np.ndarray
    """NaN where a site shows nothing: class tokens, padding, text"""
    class_S: np.ndarray
    """class tokens, and the token that opens a text"""
    size: Size
    unboxed: str = ""
    """why no site has a box, if that is so"""

    @classmethod
    def of(cls, vlm: Vlm, prompt: Prompt, tap: Tap) -> Sites:
        image = prompt.images[0]
        make = _text_sites if tap.place == "text" else _vision_sites if tap.place == "vision" else _outputs
        rows, boxes_S4, class_S = make(vlm, prompt, image)
        unboxed = ""
        if tap.place == "text" and image.cross:
            unboxed = f"{vlm.name} cross-attends to the image, which has no positions at {tap}"
        return cls(torch.as_tensor(rows).to(vlm.device), boxes_S4, class_S, image.size, unboxed)

    def touched(self, edit: Edit, cls: bool, place: str) -> np.ndarray:
        """(S,): where an edit acts."""
        if edit.where is None:
            return ~self.class_S | cls
        if self.unboxed:
            raise SteeringError(place, self.unboxed, "Leave the region out, or take a vision tap or connector.")
        return edit.where.meets(self.boxes_S4, self.size, place)


def _vision_sites(vlm: Vlm, prompt: Prompt, image: ImageMap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found, tile_P = image.at("vision"), image.grid.tile_P
    # A class token stands right before its tile's patches; what stands behind them is padding.
    first_T = np.array([found.rows_S[tile_P == tile].min() for tile in range(len(image.grid.tiles))])
    class_rows = np.setdiff1d(first_T[first_T > 0] - 1, found.rows_S)
    return _with_class(found.rows_S, found.boxes_S4, class_rows)


def _outputs(vlm: Vlm, prompt: Prompt, image: ImageMap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = image.at("connector")
    empty_S = np.diff(image.layout.merge_CP.indptr) == 0  # a class token's output is made of no patch
    return _with_class(found.rows_S[~empty_S], found.boxes_S4[~empty_S], found.rows_S[empty_S])


def _text_sites(vlm: Vlm, prompt: Prompt, image: ImageMap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    real = np.flatnonzero(prompt.mask_BT[0].cpu().numpy())
    bos = vlm.tokenizer.bos_token_id
    opens = prompt.ids_BT[0].cpu().numpy()[real] == (-1 if bos is None else bos)
    class_S = opens & (opens.cumsum() == 1)
    boxes_T4 = np.full((prompt.ids_BT.shape[1], 4), np.nan)
    if not image.cross:
        boxes_T4[image.columns_I] = image.boxes_I4
    return real, boxes_T4[real], class_S


def _with_class(
    rows: np.ndarray, boxes_S4: np.ndarray, class_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = len(class_rows)
    boxes_S4 = np.concatenate([boxes_S4, np.full((n, 4), np.nan)])
    return np.concatenate([rows, class_rows]), boxes_S4, np.arange(len(rows) + n) >= len(rows)


# --- one row of a batch ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Row:
    """One steering, or none, laid out over the sites."""

    name: str
    steering: Steering | None
    touched_ES: torch.Tensor
    later_E: tuple[bool, ...]
    """text: whether an edit acts on what is said after the prompt as well"""
    remade_S: torch.Tensor | None = None
    """sites that are reconstructed; None in `delta` mode"""
    cls: bool = False

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self.steering.edits if self.steering else ()

    @property
    def is_baseline(self) -> bool:
        return self.steering is None and self.remade_S is not None

    @classmethod
    def of(cls, steering: Steering, sites: Sites) -> Row:
        places = [f"{steering.name}.edits[{e}].where" for e in range(len(steering.edits))]
        touched = [
            sites.touched(edit, steering.cls, place) for edit, place in zip(steering.edits, places, strict=True)
        ]
        touched_ES = np.stack(touched) if touched else np.zeros((0, len(sites.class_S)), bool)
        later_E = tuple(edit.where is None for edit in steering.edits)
        remade_S = _remade(sites, steering.cls) if steering.mode == "reconstruct" else None
        device = sites.rows_S.device
        return cls(
            steering.name, steering, torch.as_tensor(touched_ES).to(device), later_E, remade_S, steering.cls
        )

    @classmethod
    def unedited(cls, sites: Sites) -> Row:
        return cls(BEFORE, None, torch.zeros((0, len(sites.class_S)), dtype=torch.bool), ())

    @classmethod
    def baseline(cls, sites: Sites, with_class: bool) -> Row:
        nothing = torch.zeros((0, len(sites.class_S)), dtype=torch.bool)
        return cls(RECONSTRUCTED, None, nothing, (), _remade(sites, with_class), with_class)

    def later(self, q: int) -> Row:
        """The same steering on q positions after the prompt, where a class token never stands."""
        device = self.touched_ES.device
        touched_ES = torch.tensor(self.later_E, dtype=torch.bool, device=device)[:, None].expand(-1, q)
        remade_S = None if self.remade_S is None else torch.ones(q, dtype=torch.bool, device=device)
        return Row(self.name, self.steering, touched_ES, self.later_E, remade_S, self.cls)


def _remade(sites: Sites, cls: bool) -> torch.Tensor:
    return torch.as_tensor(~sites.class_S | cls).to(sites.rows_S.device)


# --- what becomes of the states ----------------------------------------------------------------------------------


class Editor:
    """An SAE, and as much of it as some steerings ask for."""

    def __init__(self, sae: Sae, steerings: Sequence[Steering], device: torch.device) -> None:
        tensors = {key: getattr(sae, key) for key in TENSORS}
        if sae.device != device:
            tensors = {key: value if value is None else value.to(device) for key, value in tensors.items()}
            sae = sae.replace(**tensors)
        named = {int(k) for s in steerings for edit in s.edits if not _is_all(edit) for k in edit.latents}
        self.sae, self.named_U = sae, torch.tensor(sorted(named), dtype=torch.long, device=device)
        self.part = None if sae.architecture == "topk" else _part(sae, tensors, self.named_U)
        self.directions_UD = sae.W_dec[self.named_U]

    def codes(self, z_SD: torch.Tensor) -> Codes:
        return Codes(self, z_SD)

    def named(self, x_SD: torch.Tensor) -> torch.Tensor:
        if self.part is not None:
            return self.part.encode(x_SD)
        return torch.cat([self.sae.encode(x_SD[rows])[:, self.named_U] for rows in self.pieces(len(x_SD))])

    def pieces(self, n: int, chosen: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        """Row numbers, in pieces of which all latents may be held."""
        rows = torch.arange(n, device=self.named_U.device) if chosen is None else chosen
        return iter(rows.split(max(1, LATENTS_BYTES // (4 * self.sae.d_sae))))

    def edited(self, codes: Codes, row: Row) -> torch.Tensor:
        """(S, D): the states of one row of a batch."""
        z_SD, states_SD = codes.z_SD, codes.x_SD.clone()
        written_S = torch.zeros(len(z_SD), dtype=torch.bool, device=z_SD.device)
        if row.remade_S is not None:
            written_S |= row.remade_S
            states_SD = torch.where(row.remade_S[:, None], codes.remade_SD, states_SD)
        if row.edits:
            everything = any(map(_is_all, row.edits))
            chosen = row.touched_ES.any(0).nonzero()[:, 0]
            columns_K = None if everything else self._columns(row.edits)
            directions_KD = self.sae.W_dec if everything else self.directions_UD[columns_K]
            applies_EK = [self._applies(edit, columns_K) for edit in row.edits]
            for rows in self.pieces(0, chosen) if everything else [chosen]:
                x_SD = codes.x_SD[rows]
                h_SK = self.sae.encode(x_SD) if everything else codes.named_SU[rows][:, columns_K]
                touched = [
                    touched_S[rows, None].to(h_SK) * applies_K.to(h_SK)
                    for touched_S, applies_K in zip(row.touched_ES, applies_EK, strict=True)
                ]
                new_SK = edits.edited(h_SK, row.edits, touched)
                states_SD[rows] += edits.delta(h_SK, new_SK, directions_KD, self.sae.row_scale(x_SD))
                written_S[rows] |= (new_SK != h_SK).any(1)
        return torch.where(written_S[:, None], states_SD.to(z_SD.dtype), z_SD)

    def _columns(self, made: Sequence[Edit]) -> torch.Tensor:
        """Where the latents of a steering stand among those that any steering names."""
        wanted = sorted({int(k) for edit in made for k in edit.latents})
        return torch.searchsorted(self.named_U, torch.tensor(wanted, device=self.named_U.device))

    def _applies(self, edit: Edit, columns_K: torch.Tensor | None) -> torch.Tensor:
        if columns_K is None:
            if _is_all(edit):
                return torch.ones(self.sae.d_sae, dtype=torch.bool, device=self.named_U.device)
            found_L = torch.zeros(self.sae.d_sae, dtype=torch.bool, device=self.named_U.device)
            found_L[torch.tensor([int(k) for k in edit.latents], device=found_L.device)] = True
            return found_L
        named = torch.tensor([int(k) for k in edit.latents], device=self.named_U.device)
        return torch.isin(self.named_U[columns_K], named)


@dataclass(frozen=True, eq=False)
class Codes:
    """States with their latents, worked out when they are asked for and then kept."""

    editor: Editor
    z_SD: torch.Tensor

    @cached_property
    def x_SD(self) -> torch.Tensor:
        return self.z_SD.to(self.editor.sae.dtype)

    @cached_property
    def named_SU(self) -> torch.Tensor:
        return self.editor.named(self.x_SD)

    @cached_property
    def remade_SD(self) -> torch.Tensor:
        return torch.cat([self.editor.sae(self.x_SD[rows]) for rows in self.editor.pieces(len(self.x_SD))])


def _is_all(edit: Edit) -> bool:
    return isinstance(edit.latents, str) and edit.latents == ALL


def _part(sae: Sae, tensors: dict[str, torch.Tensor | None], chosen_U: torch.Tensor) -> Sae:
    """The SAE of some latents only; each is what it was, as long as it does not depend on the others."""
    given = {key: value for key, value in tensors.items() if value is not None and key != "b_dec"}
    return sae.replace(
        **{key: value[:, chosen_U] if key == "W_enc" else value[chosen_U] for key, value in given.items()}
    )
