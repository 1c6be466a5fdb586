"""Families: the adapters of all that is supported, and the registry that finds one by `config.model_type`.

To add a family: write an adapter here, add it to REGISTRY, and build a tiny random model of it in
tests/model/tiny_families.py. The tests then perturb one patch at a time and hold the tokens that move, and
the pixels that a patch shows, against what the adapter says.

One image per prompt: several images, video frames and Gemma3's pan-and-scan crops are refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vsp_report.errors import ModelError
from vsp_report.maths import grids
from vsp_report.maths.grids import Canvas, ImageMap, Layout, PatchGrid, Size
from vsp_report.model.adapter import (
    Batch,
    Family,
    Reading,
    as_many_tiles,
    laid_out,
    one_image_each,
    prefix_of,
    processed,
    single_tile,
)


class Llava(Family):
    """One image, one tile, one token for each patch."""

    title = "LLaVA"
    processor_name = "LlavaProcessor"

    def reading(self, config: Any, n_layers: int) -> Reading:
        chosen = config.vision_feature_layer
        chosen = [chosen] if isinstance(chosen, int) else chosen
        # hidden_states begins with the embeddings: state k is the output of layer k - 1
        layers = sorted(k - 1 if k >= 0 else n_layers + k for k in chosen)
        return Reading(layers[-1], tuple(k for k in layers[:-1] if k >= 0))

    def layouts(self, batch: Batch) -> list[Layout]:
        one_image_each(batch, len(batch.inputs["pixel_values"]))
        prefix, result = prefix_of(batch.config), []
        for size in batch.sizes:
            grid = single_tile(batch, size)
            merge_CP = grids.one_to_one(len(grid))
            if self._drops_first(batch.config) and not prefix:
                merge_CP = merge_CP[1:]  # "default" drops the first: a patch, if there is no class token
            elif prefix and not self._drops_first(batch.config):
                merge_CP = grids.placed(prefix + np.arange(len(grid)), prefix + len(grid))
            result.append(laid_out(grid, merge_CP, prefix=prefix))
        return result

    def _drops_first(self, config: Any) -> bool:
        return config.vision_feature_select_strategy == "default"


class PaliGemma(Family):
    title = "PaliGemma"
    processor_name = "PaliGemmaProcessor"
    without_template = True
    first_position = 1
    answer_token_type = 1
    """0 would put the answer into the prefix, which looks both ways"""

    def layouts(self, batch: Batch) -> list[Layout]:
        one_image_each(batch, len(batch.inputs["pixel_values"]))
        grids_B = [single_tile(batch, size) for size in batch.sizes]
        return [laid_out(grid, grids.one_to_one(len(grid))) for grid in grids_B]


class Gemma3(Family):
    """Patches are averaged in blocks: 64 x 64 become 16 x 16 tokens."""

    title = "Gemma3"
    processor_name = "Gemma3Processor"

    def layouts(self, batch: Batch) -> list[Layout]:
        if getattr(batch.processor, "do_pan_and_scan", False):
            raise ModelError(
                "image",
                "Gemma3 would cut it into pan-and-scan crops, which are not supported",
                "Set do_pan_and_scan to false in preprocessor_config.json.",
            )
        one_image_each(batch, len(batch.inputs["pixel_values"]))
        tokens = round(batch.config.mm_tokens_per_image**0.5)  # the model's own reading of this number
        grids_B = [single_tile(batch, size) for size in batch.sizes]
        return [laid_out(grid, grids.merged(grid, grid.tiles[0].rows // tokens)) for grid in grids_B]


class LlavaNext(Llava):
    """The image in a base tile, then tiles of the enlarged image, its padding cut off, with newlines."""

    title = "LLaVA-NeXT"
    processor_name = "LlavaNextProcessor"

    def layouts(self, batch: Batch) -> list[Layout]:
        one_image_each(batch, len(batch.inputs["image_sizes"]))
        vision, prefix = batch.config.vision_config, prefix_of(batch.config)
        if self._drops_first(batch.config) != bool(prefix):
            raise ModelError(
                "config.json",
                "vision_feature_select_strategy does not fit the tower's class token",
                "Set it to 'default' for CLIP and to 'full' for SigLIP.",
            )
        result = []
        for size in batch.sizes:
            best = grids.best_pinpoint(size, batch.config.image_grid_pinpoints)
            canvases = grids.anyres_canvases(size, best, vision.image_size)
            canvases = [processed(batch.processor, canvas, vision.image_size) for canvas in canvases]
            grid = PatchGrid.cut(size, canvases, vision.patch_size)
            rows, cols = best.height // vision.image_size, best.width // vision.image_size
            most = self._most_tiles(batch.config)
            tokens_IC = grids.anyres_tokens(size, grid.tiles[0].rows, rows, cols, most)
            result.append(laid_out(grid, grids.one_to_one(len(grid)), prefix=prefix, tokens_IC=tokens_IC))
        return result

    def _most_tiles(self, config: Any) -> int | None:
        return None


class LlavaOnevision(LlavaNext):
    """LLaVA-NeXT's packing, shrunk bilinearly where it would take more than so many tiles."""

    title = "LLaVA-OneVision"
    processor_name = "LlavaOnevisionProcessor"

    def _most_tiles(self, config: Any) -> int | None:
        return int(config.vision_aspect_ratio.removeprefix("anyres_max_"))


class QwenVL(Family):
    """The image at nearly its own size; 2 x 2 patches become one token, and stand together in the tower."""

    layer_lists = ("blocks",)
    connector_path = "visual.merger"
    beside_connector = True
    first_position = None

    def __init__(self, title: str, processor_name: str, windows: bool = False) -> None:
        self.title, self.processor_name, self.windows = title, processor_name, windows

    def reading(self, config: Any, n_layers: int) -> Reading:
        return Reading(n_layers - 1, tuple(getattr(config.vision_config, "deepstack_visual_indexes", ())))

    def layouts(self, batch: Batch) -> list[Layout]:
        frames_B3 = batch.inputs["image_grid_thw"].tolist()
        one_image_each(batch, len(frames_B3))
        vision = batch.config.vision_config
        side = vision.spatial_merge_size
        window = vision.window_size // side // vision.patch_size if self.windows else None
        result = []
        for size, (frames, rows, cols) in zip(batch.sizes, frames_B3, strict=True):
            if frames != 1:
                raise ModelError("image", f"has {frames} frames; video is not supported", "Give one picture.")
            patch_px = vision.patch_size
            grid = PatchGrid.cut(size, [Canvas.of(size).resized(rows * patch_px, cols * patch_px)], patch_px)
            states_P, outputs_C = grids.block_order(rows, cols, side, window)
            merge_CP = grids.merged(grid, side)
            tokens_IC = grids.one_to_one(len(outputs_C))
            result.append(Layout(grid, states_P, len(grid), merge_CP, outputs_C, len(outputs_C), tokens_IC))
        return result


class InternVL(Llava):
    """The image stretched over the tiling of closest aspect, a thumbnail last; pixel shuffle merges 2 x 2."""

    title = "InternVL"
    processor_name = "InternVLProcessor"
    layer_lists = ("encoder.layer",)

    def layouts(self, batch: Batch) -> list[Layout]:
        vision = batch.config.vision_config
        processor, tile, patch_px = batch.processor, Size(*vision.image_size), vision.patch_size[0]
        if not self._drops_first(batch.config):
            raise ModelError(
                "config.json",
                "InternVL with its class token as a token is not supported",
                "Set vision_feature_select_strategy to 'default'.",
            )
        side = round(1 / batch.config.downsample_ratio)
        per_tile = (tile.height // patch_px // side) * (tile.width // patch_px // side)
        as_many_tiles(len(batch.inputs["pixel_values"]), sum(batch.counts) / per_tile)
        result = []
        for size, count in zip(batch.sizes, batch.counts, strict=True):
            whole = Canvas.of(size).resized(*tile)
            rows = cols = 1
            if count > per_tile:  # whether it is split at all is the caller's option, so the prompt is asked
                rows, cols = grids.closest_tiling(size, tile, processor.min_patches, processor.max_patches)
            canvases = Canvas.of(size).resized(rows * tile.height, cols * tile.width).split(rows, cols)
            canvases = [*canvases, whole] if rows * cols > 1 else [whole]
            as_many_tiles(len(canvases), count / per_tile)
            grid = PatchGrid.cut(size, canvases, patch_px)
            result.append(laid_out(grid, grids.merged(grid, side), prefix=1))
        return result


class Idefics3(Family):
    """The image stretched to whole tiles, the image itself last; pixel shuffle merges blocks.

    SmolVLM is read with Idefics3's processor: for images they write the same prompt, and SmolVLM's own asks
    for a package that only videos need.
    """

    processor_name = "Idefics3Processor"
    connector_path = "connector"

    def __init__(self, title: str) -> None:
        self.title = title

    def layouts(self, batch: Batch) -> list[Layout]:
        vision, processor = batch.config.vision_config, batch.processor
        tile_px, side = vision.image_size, batch.config.scale_factor
        if (made_px := processor.max_image_size["longest_edge"]) != tile_px:
            raise ModelError(
                "preprocessor_config.json",
                f"its tiles are {made_px} px; the tower reads {tile_px} px",
                "Set max_image_size to the tower's.",
            )
        per_tile = (tile_px // vision.patch_size // side) ** 2
        longest = processor.size["longest_edge"] if processor.do_resize else None
        result = []
        for size, count in zip(batch.sizes, batch.counts, strict=True):
            whole = Canvas.of(size).resized(tile_px, tile_px)
            split = processor.do_image_splitting
            rows, cols = grids.idefics_tiling(size, longest, tile_px) if split else (1, 1)
            canvases = Canvas.of(size).resized(rows * tile_px, cols * tile_px).split(rows, cols)
            canvases = [*canvases, whole] if rows * cols > 1 else [whole]
            as_many_tiles(len(canvases), count / per_tile)
            grid = PatchGrid.cut(size, canvases, vision.patch_size)
            result.append(laid_out(grid, grids.merged(grid, side)))
        return result


class Mllama(Family):
    """Tiles of a canvas, padded at the right and the bottom; text looks at them in cross-attention layers."""

    title = "Mllama"
    processor_name = "MllamaProcessor"
    cross = True
    layer_lists = ("transformer.layers", "global_transformer.layers")

    def reading(self, config: Any, n_layers: int) -> Reading:
        return Reading(n_layers - 1, tuple(config.vision_config.intermediate_layers_indices))

    def layouts(self, batch: Batch) -> list[Layout]:
        vision, ratios_BM = batch.config.vision_config, batch.inputs["aspect_ratio_ids"]
        one_image_each(batch, ratios_BM.numel())
        tile_px, most = vision.image_size, batch.inputs["pixel_values"].shape[2]
        result = []
        for size, ratio, count in zip(batch.sizes, ratios_BM[:, 0].tolist(), batch.counts, strict=True):
            if count != 1:
                raise ModelError("prompt", f"it has {count} image markers", "Ask about one image at a time.")
            rows, cols = vision.supported_aspect_ratios[ratio - 1]
            grid = PatchGrid.cut(size, grids.mllama_canvases(size, tile_px, rows, cols), vision.patch_size)
            within_P = 1 + grid.row_P * (tile_px // vision.patch_size) + grid.col_P
            keys = 1 + (tile_px // vision.patch_size) ** 2  # of one tile: the class token and the patches
            padded = -(-keys // 8) * 8  # the tower pads each tile to a multiple of 8
            outputs_C = np.arange(rows * cols * keys)
            merge_CP = grids.placed(grid.tile_P * keys + within_P, len(outputs_C))
            states_P = grid.tile_P * padded + within_P
            tokens_IC = grids.one_to_one(len(outputs_C))
            result.append(Layout(grid, states_P, most * padded, merge_CP, outputs_C, most * keys, tokens_IC))
        return result

    def columns(self, layout: Layout, found_I: np.ndarray) -> np.ndarray:
        return layout.outputs_C


REGISTRY: dict[str, Family] = {
    "llava": Llava(),
    "llava_next": LlavaNext(),
    "llava_onevision": LlavaOnevision(),
    "qwen2_vl": QwenVL("Qwen2-VL", "Qwen2VLProcessor"),
    "qwen2_5_vl": QwenVL("Qwen2.5-VL", "Qwen2_5_VLProcessor", windows=True),
    "qwen3_vl": QwenVL("Qwen3-VL", "Qwen3VLProcessor"),
    "internvl": InternVL(),
    "gemma3": Gemma3(),
    "paligemma": PaliGemma(),  # and PaliGemma 2
    "idefics3": Idefics3("Idefics3"),
    "smolvlm": Idefics3("SmolVLM"),
    "mllama": Mllama(),
}


def family_of(config: Any, place: str = "config.json") -> Family:
    model_type = getattr(config, "model_type", None)
    if model_type not in REGISTRY:
        known = ", ".join(f"{key} ({family.title})" for key, family in REGISTRY.items())
        raise ModelError(
            place,
            f"model_type {model_type!r} is not in vsp_report.model.families.REGISTRY; there are {known}",
            "To add one, write an adapter there, and a tiny model of it in tests/model/tiny_families.py.",
        )
    return REGISTRY[model_type]


def image_maps(
    family: Family, config: Any, processor: Any, inputs: Mapping[str, torch.Tensor], sizes: Sequence[Size]
) -> list[ImageMap]:
    """Where each image of a prepared batch went; one per sample. `processor` is the image processor."""
    if any("video" in key for key in inputs):
        raise ModelError("inputs", "a video is among them, which is not supported", "Give one picture each.")
    ids_BT = inputs["input_ids"].cpu().numpy()
    if len(ids_BT) != len(sizes):
        raise ModelError("inputs", f"{len(sizes)} images for {len(ids_BT)} prompts", "Give one picture each.")
    found = [np.flatnonzero(row == config.image_token_id) for row in ids_BT]
    if not all(map(len, found)):
        raise ModelError(
            "prompt",
            "it has no room for the image: the model's image token is not in it",
            "Use a chat template that places {type: image}.",
        )
    batch = Batch(config, processor, inputs, sizes, [len(columns_I) for columns_I in found])
    maps, state, output = [], 0, 0
    for layout, found_I in zip(family.layouts(batch), found, strict=True):
        columns_I = family.columns(layout, found_I)
        if len(columns_I) != (made := layout.tokens_IC.shape[0]):
            raise ModelError(
                "prompt",
                f"it holds {len(columns_I)} image tokens where {family.title} makes {made} of this image",
                "Ask about one image, with the processor that belongs to the model.",
            )
        maps.append(ImageMap(layout, columns_I, state, output, family.cross))
        state, output = state + layout.n_states, output + layout.n_outputs
    return maps
