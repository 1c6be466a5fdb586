"""Models: what SketchWorld's CLIP and LLaVA are before training: sizes, and the tower that they share."""

from __future__ import annotations

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from vsp_report.sketchworld import language
from vsp_report.sketchworld.language import GRID, IMAGE_PX, PATCH_PX

PATCHES = GRID * GRID
FEATURE_LAYER = -2
"""LLaVA reads the output of the tower's last layer but one."""
LABELLED = (-3, FEATURE_LAYER)
"""Where patches learn what they show: the main tap (`vision.3`), and what LLaVA reads."""


def make_clip() -> CLIPModel:
    words = len(language.vocabulary())
    config = CLIPConfig(
        projection_dim=96,
        vision_config={
            "hidden_size": 112, "intermediate_size": 448, "num_hidden_layers": 6, "num_attention_heads": 4,
            "image_size": IMAGE_PX, "patch_size": PATCH_PX, "projection_dim": 96,
        },
        text_config={
            "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": words, "max_position_embeddings": 48, "projection_dim": 96,
            "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
        },
    )  # fmt: skip
    return CLIPModel(config)


def make_llava(clip: CLIPModel) -> LlavaForConditionalGeneration:
    """A LLaVA around the tower of `clip`."""
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config={
            "model_type": "llama", "vocab_size": len(language.vocabulary()), "hidden_size": 128,
            "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
            "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
            "tie_word_embeddings": False,
        },
        image_token_id=4, vision_feature_layer=FEATURE_LAYER, vision_feature_select_strategy="default",
        image_seq_length=PATCHES, tie_word_embeddings=False,
    )  # fmt: skip
    llava = LlavaForConditionalGeneration(config)
    tower = llava.model.vision_tower
    getattr(tower, "vision_model", tower).load_state_dict(clip.vision_model.state_dict())
    return llava


def normalized(pixels: np.ndarray, device: str) -> torch.Tensor:
    """What the image processor makes of pictures that have its size already."""
    processor = language.make_image_processor()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return (torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std


def attend_fast(model: PreTrainedModel) -> None:
    """On a CPU, for sequences this short, plain matrix products are 1.5 times as fast as the fused attention."""
    model.set_attn_implementation("eager" if model.device.type == "cpu" else "sdpa")


@torch.no_grad()
def tower_features(
    llava: LlavaForConditionalGeneration, pixels: np.ndarray, device: str, batch: int = 128
) -> torch.Tensor:
    """(scenes, patches, width) in half precision: what LLaVA reads of every picture."""
    parts = []
    for start in range(0, len(pixels), batch):
        with torch.autocast(device, torch.bfloat16):
            seen = llava.model.vision_tower(
                normalized(pixels[start : start + batch], device), output_hidden_states=True
            )
        parts.append(seen.hidden_states[FEATURE_LAYER][:, 1:].half().cpu())
    return torch.cat(parts)
