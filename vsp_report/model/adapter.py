"""Adapter: what a family of vision-language models must say of itself, and what several of them share.

An adapter says which modules are the vision layers and the connector, and lays an image out: its tiles, its
patches, what its tokens are made of. All else (loading, generating, capturing, steering) is the same for
every family, because transformers 5 names the rest uniformly (`get_encoder`, `get_decoder`,
`image_token_id`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from vsp_report.errors import ModelError
from vsp_report.maths import grids
from vsp_report.maths.grids import Canvas, Layout, PatchGrid, Size

PREFIX = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Tokens before the patches in the towers that the LLaVA family may be built on: CLIP's class token."""


class Batch(NamedTuple):
    """What an adapter reads: the model's config, its image processor, and one prepared batch."""

    config: Any
    processor: Any
    inputs: Mapping[str, torch.Tensor]
    sizes: Sequence[Size]
    """of the original images, one per sample"""
    counts: Sequence[int]
    """image tokens found in each sample's prompt"""


class Reading(NamedTuple):
    """Which vision layers the rest of the model reads."""

    last: int
    also: tuple[int, ...] = ()


class Family:
    """The common ways; a family overrides what it does differently."""

    title = ""
    processor_name = ""
    without_template = False
    """a base model that is prompted with plain text, after the image"""
    cross = False
    """image tokens are keys of cross-attention layers, not positions of the prompt"""
    layer_lists: tuple[str, ...] = ("encoder.layers",)
    connector_path = "multi_modal_projector"
    beside_connector = False
    """vision layers are also read by ways that do not lead through the connector"""
    first_position: int | None = 0
    """the position of the first token; None where the model works positions out from the image grid"""
    answer_token_type = 0

    # -- where things are ---------------------------------------------------------------------------

    def vision_tower(self, model: nn.Module) -> nn.Module:
        tower = model.get_encoder(modality="image")
        return getattr(tower, "vision_model", tower)  # a level that transformers had before 5.23

    def vision_layers(self, model: nn.Module) -> list[nn.Module]:
        tower = self.vision_tower(model)
        return [layer for path in self.layer_lists for layer in tower.get_submodule(path)]

    def connector(self, model: nn.Module) -> nn.Module:
        return model.base_model.get_submodule(self.connector_path)

    def text_layers(self, model: nn.Module) -> list[nn.Module]:
        return list(model.get_decoder().layers)

    def attention(self, layer: nn.Module) -> nn.Module | None:
        """The module of a text layer through which text looks at the image; None if it does not."""
        return getattr(layer, "cross_attn" if self.cross else "self_attn", None)

    def reading(self, config: Any, n_layers: int) -> Reading:
        return Reading(n_layers - 1)

    # -- images -------------------------------------------------------------------------------------

    def layouts(self, batch: Batch) -> list[Layout]:
        raise NotImplementedError

    def columns(self, layout: Layout, found_I: np.ndarray) -> np.ndarray:
        return found_I

    # -- longer prompts -----------------------------------------------------------------------------

    def continued(
        self, inputs: Mapping[str, torch.Tensor], ids_BN: torch.Tensor, mask_BN: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The inputs of a prompt and the answer after it, as `generate` extends them token by token."""
        n = ids_BN.shape[1]
        longer = dict(inputs)
        added = {
            "input_ids": ids_BN,
            "attention_mask": mask_BN,
            "token_type_ids": torch.full_like(ids_BN, self.answer_token_type),
            "mm_token_type_ids": torch.zeros_like(ids_BN),
        }
        for key in added.keys() & inputs.keys():
            longer[key] = torch.cat([inputs[key], added[key].to(inputs[key])], dim=1)
        if (seen := inputs.get("cross_attention_mask")) is not None:
            longer["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].expand(-1, n, -1, -1)], dim=1)
        return longer

    def position_ids(self, mask_BT: torch.Tensor) -> torch.Tensor | None:
        if self.first_position is None:
            return None
        return (mask_BT.long().cumsum(1) - 1).masked_fill(mask_BT == 0, 0) + self.first_position


def laid_out(
    grid: PatchGrid, merge_CP: grids.Weights, *, prefix: int = 0, tokens_IC: grids.Weights | None = None
) -> Layout:
    """Tiles of the same shape one after another, each behind its prefix; outputs in order."""
    per_tile, n = len(grid) // len(grid.tiles), merge_CP.shape[0]
    states_P = np.arange(len(grid)) + prefix * (1 + grid.tile_P)
    tokens_IC = grids.one_to_one(n) if tokens_IC is None else tokens_IC
    return Layout(grid, states_P, len(grid.tiles) * (prefix + per_tile), merge_CP, np.arange(n), n, tokens_IC)


def single_tile(batch: Batch, size: Size) -> PatchGrid:
    vision, canvas = batch.config.vision_config, Canvas.of(size)
    if getattr(batch.processor, "do_pad", False) and hasattr(batch.processor, "pad_to_square"):
        side = max(size)
        canvas = canvas.window(-((side - size.height) // 2), -((side - size.width) // 2), side, side)
    return PatchGrid.cut(size, [processed(batch.processor, canvas, vision.image_size)], vision.patch_size)


def processed(processor: Any, canvas: Canvas, expected_px: int) -> Canvas:
    """What the plain pipeline (resize, centre crop) makes of an image, or of a tile cut from one."""
    if processor.do_resize:
        asked, now = processor.size, Size(canvas.height, canvas.width)
        if asked.get("shortest_edge"):
            new = grids.shortest_edge(now, asked["shortest_edge"], asked.get("longest_edge"))
            canvas = canvas.resized(*new)
        elif asked.get("height") and asked.get("width"):
            canvas = canvas.resized(asked["height"], asked["width"])
        else:
            raise ModelError(
                "preprocessor_config.json",
                f"size is {dict(asked)}, which is not supported",
                "Give height and width, or shortest_edge.",
            )
    if getattr(processor, "do_center_crop", False):
        canvas = canvas.centred(processor.crop_size["height"], processor.crop_size["width"])
    if (canvas.height, canvas.width) != (expected_px, expected_px):
        raise ModelError(
            "preprocessor_config.json",
            f"it makes {canvas.height} x {canvas.width} px of this image; the tower reads {expected_px} px",
            "Use the processor that belongs to the model.",
        )
    return canvas


def prefix_of(config: Any) -> int:
    tower = config.vision_config.model_type
    if tower not in PREFIX:
        raise ModelError(
            "config.json",
            f"the vision tower is {tower!r}; known in this family are {', '.join(PREFIX)}",
            "Add it to PREFIX in vsp_report/model/adapter.py, with a test.",
        )
    return PREFIX[tower]


def one_image_each(batch: Batch, n_images: int) -> None:
    if n_images != len(batch.sizes):
        raise ModelError(
            "inputs",
            f"{n_images} images for {len(batch.sizes)} prompts; one each is supported",
            "Ask about one image at a time.",
        )


def as_many_tiles(made: int, found: float) -> None:
    if made != found:
        raise ModelError(
            "prompt",
            f"it holds image tokens for {found:g} tiles where the image makes {made}",
            "Ask about one image, with the processor that belongs to the model.",
        )
