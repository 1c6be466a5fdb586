"""Families: every adapter against the model it speaks of. Patches are perturbed one by one and tokens
watched; boxes are held against painted pictures sent through the real processors; rounding against the
processors' own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.mllama.image_processing_pil_mllama import get_image_size_fit_to_canvas
from transformers.vision_utils import get_vision_window_index

from tests.model.tiny_families import FAMILIES, PATCH, PX, picture, tiny
from vsp_report.errors import ModelError
from vsp_report.maths import grids
from vsp_report.maths.grids import PatchGrid, Size
from vsp_report.model import taps
from vsp_report.model.capture import capture
from vsp_report.model.families import REGISTRY, family_of, image_maps
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Asked, Vlm

SHAPES = [(40, 70), (90, 31), (28, 28), (64, 50), (30, 200), (13, 11)]
FULL_SIZE = 336, 14
EVERY_PINPOINT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def random_sizes(n: int, seed: int = 0, least: int = 20, most: int = 2500) -> list[Size]:
    pairs = np.random.default_rng(seed).integers(least, most, (n, 2))
    return [Size(int(h), int(w)) for h, w in pairs]


# --- the registry ------------------------------------------------------------------------------------------------


def test_a_stranger_is_told_about_the_registry() -> None:
    with pytest.raises(ModelError) as caught:
        family_of(SimpleNamespace(model_type="blip-2"), "models/blip")
    said = str(caught.value)
    assert said.startswith("models/blip: model_type 'blip-2'") and "\n" not in said
    assert all(
        part in said for part in ("families.REGISTRY", "qwen2_5_vl (Qwen2.5-VL)", "To add one", *REGISTRY)
    )


def test_every_family_has_a_tiny_model() -> None:
    assert {tiny(name).model.config.model_type for name in FAMILIES} == set(REGISTRY)


# --- tokens: perturb one patch, see which tokens move ------------------------------------------------------------


def image_tokens(vlm: Vlm, prompt) -> torch.Tensor:
    """(all image tokens of the batch, width): what the language model is given."""
    if vlm.family.cross:
        seen = {}
        with vlm.family.connector(vlm.model).register_forward_hook(lambda m, a, out: seen.update(out=out)):
            vlm.model.base_model(**prompt.inputs)
        return seen["out"].flatten(0, -2)
    accepted = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask", "batch_num_images")
    given = {key: value for key, value in prompt.inputs.items() if key in accepted}
    made = vlm.model.base_model.get_image_features(**given, return_dict=True).pooler_output
    return (
        made.flatten(0, -2)
        if isinstance(made, torch.Tensor)
        else torch.cat([part.flatten(0, -2) for part in made])
    )


@pytest.mark.parametrize("place", ["vision", "connector"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_tokens_that_move_are_the_tokens_meant(name: str, place: str) -> None:
    vlm = tiny(name)
    prompt = vlm.prepare_batch(
        [Asked(picture(40, 70), "what ?"), Asked(picture(50, 30, seed=1), "what is it ?")]
    )
    last = vlm.family.reading(vlm.model.config, len(taps.layers_at(vlm, "vision"))).last
    tap = Tap("vision", last) if place == "vision" else Tap("connector")
    below = taps.read_below(vlm, tap)
    with capture(vlm, prompt, taps=[tap, *below], attention=False) as seen:
        vlm.logits(prompt)
    clean = seen.states[tap]
    n_rows = clean.flatten(0, -2).shape[0]
    sites = [image.at(place) for image in prompt.images]
    if vlm.family.cross:
        tokens = [image.first_output + image.columns_I for image in prompt.images]
        n_tokens = sum(image.layout.n_outputs for image in prompt.images)
    else:
        ends = np.cumsum([len(image.columns_I) for image in prompt.images])
        tokens, n_tokens = np.split(np.arange(ends[-1]), ends[:-1]), int(ends[-1])
    expected = np.zeros((n_rows, n_tokens), bool)
    for image_sites, own in zip(sites, tokens, strict=True):
        expected[np.ix_(image_sites.rows_S, own)] = image_sites.weights_IS.toarray().T > 0

    generator = torch.Generator().manual_seed(1)
    moved = np.zeros_like(expected)
    before = image_tokens(vlm, prompt)
    for row in range(n_rows):
        states = clean.clone().flatten(0, -2)
        states[row] += 5 * torch.randn(states.shape[1], generator=generator)
        with taps.starting_from(
            vlm, {tap: states.view_as(clean), **{side: seen.states[side] for side in below}}
        ):
            moved[row] = (image_tokens(vlm, prompt) - before).abs().amax(1).numpy() > 1e-6
    if vlm.family.cross:
        # a class token is a key of its own and shows no patch; padding in the tower is cut off
        known = np.concatenate([image_sites.rows_S for image_sites in sites])
        if place == "vision":
            moved, expected = moved[known], expected[known]
    assert (moved == expected).all()


def codes(n_tiles: int, side: int) -> torch.Tensor:
    """A feature for each place: tile, row and column."""
    tile, row, col = np.indices((n_tiles, side, side))
    return torch.tensor(np.stack([tile, row, col], -1).reshape(n_tiles, side * side, 3), dtype=torch.float64)


def test_llava_next_packs_300_images_as_the_model_does() -> None:
    px, patch = FULL_SIZE
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=px, patch_size=patch), image_grid_pinpoints=EVERY_PINPOINT
    )
    newline, lengths = torch.full((3,), -1.0, dtype=torch.float64), []
    for size in random_sizes(300):
        best = grids.best_pinpoint(size, EVERY_PINPOINT)
        features = codes(1 + best.height * best.width // px**2, px // patch)
        (theirs,), _ = LlavaNextModel.pack_image_features(
            SimpleNamespace(config=config), [features], torch.tensor([size]), "default", newline
        )
        tokens_IC = grids.anyres_tokens(size, px // patch, best.height // px, best.width // px)
        empty = (np.diff(tokens_IC.indptr) == 0)[:, None]
        assert np.array_equal(tokens_IC @ features.flatten(0, 1).numpy() - empty, theirs.numpy()), size
        lengths.append(len(theirs))
    assert max(lengths) > 2800 and min(lengths) < 1200


def test_llava_onevision_packs_and_shrinks_as_the_model_does() -> None:
    px, side = 384, 27
    pinpoints = [[px * r, px * c] for r in range(1, 7) for c in range(1, 7)]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=px, patch_size=px // side), image_grid_pinpoints=pinpoints
    )
    newline, shrunk = torch.full((3,), -1.0, dtype=torch.float64), 0
    for size in random_sizes(30, seed=1):
        best = grids.best_pinpoint(size, pinpoints)
        features = codes(1 + best.height * best.width // px**2, side)
        (theirs,), _ = LlavaOnevisionModel.pack_image_features(
            SimpleNamespace(config=config), [features], torch.tensor([size]), newline, "anyres_max_9"
        )
        tokens_IC = grids.anyres_tokens(size, side, best.height // px, best.width // px, 9)
        empty = (np.diff(tokens_IC.indptr) == 0)[:, None]
        assert np.allclose(tokens_IC @ features.flatten(0, 1).numpy() - empty, theirs.numpy(), atol=1e-9), (
            size
        )
        shrunk += bool(np.diff(tokens_IC.indptr).max() > 1)
    assert 5 < shrunk < 30


def test_windows_stand_where_qwen_puts_them() -> None:
    for rows, cols in [(8, 12), (10, 18), (2, 2), (22, 14), (36, 36)]:
        theirs, _ = get_vision_window_index(torch.tensor([[1, rows, cols]]), 2, 112, 14)
        _, ours = grids.block_order(rows, cols, 2, 112 // 2 // 14)
        assert np.array_equal(ours[theirs.numpy()], np.arange(len(theirs)))


# --- pixels ------------------------------------------------------------------------------------------------------


def gradient(height: int, width: int) -> Image.Image:
    """Red says how far to the right, green how far down."""
    y, x = np.mgrid[:height, :width] + 0.5
    return Image.fromarray(np.stack([x / width * 255, y / height * 255, 0 * x], -1).round().astype(np.uint8))


def patch_means(vlm: Vlm, inputs, grid: PatchGrid) -> np.ndarray:
    """(P, 2): the mean of red and green that the tower sees in each patch, as shares of the width and the height."""
    processor, pixels = vlm.processor.image_processor, inputs["pixel_values"].double().numpy()
    if "image_grid_thw" in inputs:
        tile = grid.tiles[0]
        pixels = pixels.reshape(-1, 3, 2 * 4 * 4).mean(2)[grids.block_order(tile.rows, tile.cols, 2)[0]]
    else:
        side, px = PX // PATCH, pixels.shape[-1]
        pixels = pixels.reshape(-1, 3, px, px)[: len(grid.tiles), :, :PX, :PX]
        pixels = pixels.reshape(-1, 3, side, PATCH, side, PATCH).mean((3, 5))
        pixels = pixels.transpose(0, 2, 3, 1).reshape(-1, 3)
    return (pixels * processor.image_std + processor.image_mean)[:, :2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_patch_shows_the_pixels_of_its_box(name: str, shape: tuple[int, int]) -> None:
    vlm, (height, width) = tiny(name), shape
    prompt = vlm.prepare(gradient(height, width), "what ?")
    (image,) = prompt.images
    grid, scale = image.grid, np.array([width, height])
    assert image.size == (height, width) and len(grid) == image.tokens_IP.shape[1]
    means_P2 = patch_means(vlm, prompt.inputs, grid)
    whole_P2 = np.array([[(t.x1 - t.x0) / t.cols, (t.y1 - t.y0) / t.rows] for t in grid.tiles])[grid.tile_P]
    boxes_P4 = grid.boxes_P4
    centres_P2 = (boxes_P4[:, :2] + boxes_P4[:, 2:]) / 2
    # Patches that are partly padding are darker for it; they are held to their neighbours by the law of areas.
    full_P = np.isclose(boxes_P4[:, 2:] - boxes_P4[:, :2], whole_P2).all(1)
    assert full_P.sum() >= 4
    apart_P2 = (means_P2 * scale - centres_P2)[full_P] / whole_P2[full_P]
    # A filter reaches over a border, and 8 bits are 1/255 of the image.
    assert np.abs(apart_P2).max() < 0.12 + (scale / 255 / whole_P2[full_P]).max()
    # Nothing of the image is missing, except what CLIP's processor cuts off, and OneVision's odd pixels.
    if name not in ("llava", "llava_onevision"):
        covered = np.nan_to_num((boxes_P4[:, 2:] - boxes_P4[:, :2]).prod(1)).sum() / (height * width)
        assert covered == pytest.approx(round(covered)) and round(covered) in (1, 2)


def test_a_square_padded_and_a_centre_cropped_image() -> None:
    vlm = tiny("llava")
    grid = vlm.prepare(picture(40, 80), "what ?").images[0].grid
    assert grid.tiles[0][2:] == (20, 0, 60, 40)  # the middle of it
    processor = SimpleNamespace(do_pad=True, pad_to_square=None, do_resize=True, do_center_crop=True,
                                size={"shortest_edge": PX}, crop_size={"height": PX, "width": PX})  # fmt: skip
    inputs = vlm.prepare(picture(40, 80), "what ?").inputs
    (image,) = image_maps(vlm.family, vlm.model.config, processor, inputs, [Size(40, 80)])
    assert image.grid.tiles[0][2:] == (0, -20, 80, 60)
    assert np.isnan(image.grid.boxes_P4[:4]).all()


def test_rounding_is_the_processors_own() -> None:
    idefics = Idefics3ImageProcessorPil(size={"longest_edge": 4 * 364}, max_image_size={"longest_edge": 364})
    for size in random_sizes(200, seed=2, least=1, most=5000):
        if max(size) > 200 * min(size):
            continue
        tile = Size(448, 448)
        cols, rows = get_optimal_tiled_canvas(tuple(size), tuple(tile), 1, 12)
        assert grids.closest_tiling(size, tile, 1, 12) == (rows, cols)
        for down, across in ((1, 1), (1, 4), (2, 2), (3, 1)):
            theirs = get_image_size_fit_to_canvas(size.height, size.width, down * 560, across * 560, 560)
            canvas = grids.mllama_canvases(size, 560, down, across)[0]
            shown = 560 * size.height / (canvas.y1 - canvas.y0), 560 * size.width / (canvas.x1 - canvas.x0)
            assert shown == pytest.approx(theirs)
    for size in random_sizes(12, seed=3, least=2, most=500):
        pixels = np.zeros((3, *size), np.uint8)
        resized = idefics.resize_for_vision_encoder(idefics.resize(pixels, idefics.size), 364)
        assert grids.idefics_tiling(size, 4 * 364, 364) == (resized.shape[1] // 364, resized.shape[2] // 364)


def test_the_shortest_edge_is_rounded_as_the_processor_does() -> None:
    for size in random_sizes(300, seed=4, least=1):
        pixels = np.empty((3, *size), bool)
        theirs = get_resize_output_image_size(pixels, 336, False, input_data_format="channels_first")
        assert grids.shortest_edge(size, 336) == theirs
        assert grids.shortest_edge(size, 336, 500) == get_size_with_aspect_ratio(tuple(size), 336, 500)


# --- refusals ----------------------------------------------------------------------------------------------------


def maps_of(vlm: Vlm, inputs: dict, sizes: list[Size]) -> list:
    return image_maps(vlm.family, vlm.model.config, vlm.processor.image_processor, inputs, sizes)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_images_in_one_prompt_are_refused(name: str) -> None:
    vlm, images = tiny(name), [picture(40, 70), picture(50, 30)]
    marker = vlm.processor.image_token
    inputs = vlm.processor(images=[images], text=[f"{marker} {marker} what ?"], return_tensors="pt")
    with pytest.raises(ModelError, match=r"image|tiles"):
        maps_of(vlm, inputs, [Size(40, 70)])


def test_video_is_refused() -> None:
    vlm = tiny("qwen2_vl")
    inputs = dict(vlm.prepare(picture(40, 70), "what ?").inputs)
    with pytest.raises(ModelError, match="video"):
        maps_of(vlm, inputs | {"video_grid_thw": inputs["image_grid_thw"]}, [Size(40, 70)])
    with pytest.raises(ModelError, match="2 frames"):
        maps_of(vlm, inputs | {"image_grid_thw": torch.tensor([[2, 10, 18]])}, [Size(40, 70)])


def test_a_prompt_without_room_is_refused() -> None:
    vlm = tiny("llava")
    inputs = dict(vlm.prepare(picture(40, 70), "what ?").inputs)
    with pytest.raises(ModelError, match="no room for the image"):
        maps_of(vlm, inputs | {"input_ids": torch.full((1, 9), 5)}, [Size(40, 70)])
    cut = {key: value[:, :10] if key != "pixel_values" else value for key, value in inputs.items()}
    with pytest.raises(ModelError, match="image tokens where LLaVA makes 16"):
        maps_of(vlm, cut, [Size(40, 70)])


def test_what_an_adapter_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, image = tiny("gemma3"), picture(40, 70)
    inputs = vlm.prepare(image, "what ?").inputs
    monkeypatch.setattr(vlm.processor.image_processor, "do_pan_and_scan", True)
    with pytest.raises(ModelError, match="pan-and-scan"):
        maps_of(vlm, inputs, [Size(40, 70)])
    vlm = tiny("llava")
    monkeypatch.setattr(vlm.model.config.vision_config, "model_type", "pixtral")
    with pytest.raises(ModelError, match="the vision tower is 'pixtral'"):
        vlm.prepare(image, "what ?")
    vlm = tiny("paligemma")
    monkeypatch.setattr(vlm.processor.image_processor, "size", {"height": PX, "width": 2 * PX})
    with pytest.raises(ModelError, match="28 x 56 px of this image; the tower reads 28 px"):
        vlm.prepare(image, "what ?")
