"""Tiny families: a random model of every family with its real processor, small enough to run a hundred times.

Each builder gives a model and a processor as they would come from a Hub, so that the tests take the same way
in as a user: save, load, prepare, ask. Attention is made peaked, because flat attention hides what a mask
does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from vsp_report.model.vlm import Vlm, load_vlm

PX, PATCH, VOCABULARY = 28, 7, 160
WORDS = "what is the person doing standing sitting on a chair look closely you are careful short ? . : , user system"
PINPOINTS = [[28, 56], [56, 28], [56, 56], [28, 84], [84, 28]]


class Built(NamedTuple):
    model: nn.Module
    processor: Any


def template(marker: str) -> str:
    return (
        "{% for m in messages %}{{ m['role'] + ' : ' }}{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}"
        + marker
        + "{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}you :{% endif %}"
    )


def make_tokenizer(
    named: dict[str, str] | None = None, more: tuple[str, ...] = ()
) -> hf.PreTrainedTokenizerFast:
    special = ["<pad>", "<unk>", "<bos>", "<eos>", *(named or {}).values(), *more]
    order = {word: k for k, word in enumerate(dict.fromkeys([*special, *WORDS.split(), "\n", "\n\n"]))}
    tokenizer = Tokenizer(models.WordLevel(order, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    begins = [("<bos>", order["<bos>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=begins)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>",
        extra_special_tokens=dict(named or {}), padding_side="left",
    )  # fmt: skip


def text(config: type, **changes: Any) -> Any:
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    return config(**(settings | changes))


def vision(config: type, **changes: Any) -> Any:
    settings = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
        "image_size": PX, "patch_size": PATCH,
    }  # fmt: skip
    return config(**(settings | changes))


def siglip(px: int = PX) -> hf.SiglipVisionConfig:
    return vision(hf.SiglipVisionConfig, vision_use_head=False, image_size=px)


def image_only(cls: type) -> type:
    """The processor class without its video half, as torchvision is not there to make one."""
    return type(
        cls.__name__, (cls,), {"get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"])}
    )


def llava() -> Built:
    tokenizer = make_tokenizer({"image_token": "<image>"})
    config = hf.LlavaConfig(
        vision_config=vision(hf.CLIPVisionConfig), text_config=text(hf.LlamaConfig),
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    pixels = hf.CLIPImageProcessor(size={"shortest_edge": PX}, crop_size={"height": PX, "width": PX})
    processor = hf.LlavaProcessor(
        image_processor=pixels, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template("<image>"),
    )  # fmt: skip
    return Built(hf.LlavaForConditionalGeneration(config), processor)


def llava_next() -> Built:
    tokenizer = make_tokenizer({"image_token": "<image>"})
    config = hf.LlavaNextConfig(
        vision_config=vision(hf.CLIPVisionConfig), text_config=text(hf.LlamaConfig),
        image_token_index=tokenizer.image_token_id, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    pixels = hf.LlavaNextImageProcessor(
        size={"shortest_edge": PX}, crop_size={"height": PX, "width": PX}, image_grid_pinpoints=PINPOINTS
    )
    processor = hf.LlavaNextProcessor(
        image_processor=pixels, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template("<image>"),
    )  # fmt: skip
    return Built(hf.LlavaNextForConditionalGeneration(config), processor)


def llava_onevision() -> Built:
    tokenizer = make_tokenizer({"image_token": "<image>", "video_token": "<video>"})
    px = PX + 2  # as in the real one, patches do not divide the tile
    pinpoints = [[px * high // PX, px * wide // PX] for high, wide in PINPOINTS]
    config = hf.LlavaOnevisionConfig(
        vision_config=siglip(px), text_config=text(hf.Qwen2Config), image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id, image_grid_pinpoints=pinpoints, vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip
    pixels = hf.LlavaOnevisionImageProcessor(size={"height": px, "width": px}, image_grid_pinpoints=pinpoints)
    processor = image_only(hf.LlavaOnevisionProcessor)(
        image_processor=pixels, tokenizer=tokenizer, num_image_tokens=16, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2", chat_template=template("<image>"),
    )  # fmt: skip
    return Built(hf.LlavaOnevisionForConditionalGeneration(config), processor)


def _qwen(kind: str, text_config: type, tower: dict, **text_changes: Any) -> Built:
    pad = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = make_tokenizer(pad, more=("<|vision_start|>", "<|vision_end|>"))
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (("image", "image_pad"), ("video", "video_pad"),
                            ("vision_start", "vision_start"), ("vision_end", "vision_end"))
    }  # fmt: skip
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 2],
        **text_changes.pop("rope", {}),
    }
    words = text(text_config, rope_parameters=rope, **text_changes)
    tower = {
        "depth": 4,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **tower,
    }
    config = getattr(hf, f"{kind}Config")(vision_config=tower, text_config=words.to_dict(), **ids)
    pixels = hf.Qwen2VLImageProcessor(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 24 * 24, "longest_edge": 56 * 56},
    )
    marker = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = image_only(getattr(hf, f"{kind}Processor"))(
        image_processor=pixels, tokenizer=tokenizer, chat_template=template(marker)
    )
    return Built(getattr(hf, f"{kind}ForConditionalGeneration")(config), processor)


def qwen2_vl() -> Built:
    return _qwen("Qwen2VL", Qwen2VLTextConfig, {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2})


def qwen2_5_vl() -> Built:
    tower = {"hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16,
             "fullatt_block_indexes": [3], "in_channels": 3}  # fmt: skip
    return _qwen("Qwen2_5_VL", Qwen2_5_VLTextConfig, tower)


def qwen3_vl() -> Built:
    tower = {"hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_position_embeddings": 64,
             "deepstack_visual_indexes": [0, 2]}  # fmt: skip
    return _qwen("Qwen3VL", Qwen3VLTextConfig, tower, head_dim=8, rope={"mrope_interleaved": True})


def internvl() -> Built:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    tokenizer = make_tokenizer(named)
    config = hf.InternVLConfig(
        vision_config=vision(InternVLVisionConfig, image_size=[PX, PX], patch_size=[PATCH, PATCH]),
        text_config=text(hf.Qwen2Config), image_token_id=tokenizer.context_image_token_id, image_seq_length=4,
    )  # fmt: skip
    pixels = hf.GotOcr2ImageProcessor(size={"height": PX, "width": PX}, crop_to_patches=True, max_patches=4)
    processor = image_only(hf.InternVLProcessor)(
        image_processor=pixels,
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>"),
    )
    return Built(hf.InternVLForConditionalGeneration(config), processor)


def gemma3() -> Built:
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = make_tokenizer(named)
    words = text(
        hf.Gemma3TextConfig, head_dim=8, sliding_window=9, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    config = hf.Gemma3Config(
        vision_config=siglip(), text_config=words, mm_tokens_per_image=4, image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
    )  # fmt: skip
    pixels = hf.Gemma3ImageProcessor(size={"height": PX, "width": PX})
    processor = hf.Gemma3Processor(
        image_processor=pixels,
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<start_of_image>"),
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # begins as zeros
    return Built(model, processor)


def _paligemma(words: Any) -> Built:
    tokenizer = make_tokenizer({"image_token": "<image>"})
    config = hf.PaliGemmaConfig(
        vision_config=siglip().to_dict() | {"projection_dim": 32}, text_config=words.to_dict(), projection_dim=32,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    pixels = hf.SiglipImageProcessor(size={"height": PX, "width": PX})
    pixels.image_seq_length = 16
    return Built(
        hf.PaliGemmaForConditionalGeneration(config),
        hf.PaliGemmaProcessor(image_processor=pixels, tokenizer=tokenizer),
    )


def paligemma() -> Built:
    return _paligemma(text(hf.GemmaConfig, head_dim=8))


def paligemma2() -> Built:
    return _paligemma(
        text(
            hf.Gemma2Config,
            head_dim=8,
            sliding_window=12,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=20.0,
        )
    )


def _idefics(kind: str, vision_config: type) -> Built:
    tags = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    around = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    tokenizer = make_tokenizer(more=("<image>", *around, *tags))
    config = getattr(hf, f"{kind}Config")(
        vision_config=vision(vision_config), text_config=text(hf.LlamaConfig), scale_factor=2, pad_token_id=0,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    pixels = getattr(hf, f"{kind}ImageProcessor")(
        size={"longest_edge": 3 * PX}, max_image_size={"longest_edge": PX}
    )
    processor = hf.Idefics3Processor(
        image_processor=pixels, tokenizer=tokenizer, image_seq_len=4, chat_template=template("<image>")
    )
    return Built(getattr(hf, f"{kind}ForConditionalGeneration")(config), processor)


def idefics3() -> Built:
    return _idefics("Idefics3", Idefics3VisionConfig)


def smolvlm() -> Built:
    return _idefics("SmolVLM", SmolVLMVisionConfig)


def mllama() -> Built:
    tokenizer = make_tokenizer({"image_token": "<|image|>"}, more=("<|python_tag|>",))
    ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    tower = MllamaVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_global_layers=2, attention_heads=2,
        image_size=PX, patch_size=PATCH, vision_output_dim=24 * 3, intermediate_layers_indices=[1, 3], max_num_tiles=4,
        supported_aspect_ratios=ratios, hidden_act="gelu",
    )  # fmt: skip
    words = text(
        MllamaTextConfig, num_hidden_layers=5, cross_attention_layers=[1, 3], head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    config = hf.MllamaConfig(
        vision_config=tower, text_config=words, image_token_index=tokenizer.image_token_id
    )
    pixels = hf.MllamaImageProcessor(size={"height": PX, "width": PX}, max_image_tiles=4)
    processor = hf.MllamaProcessor(
        image_processor=pixels, tokenizer=tokenizer, chat_template="<bos>" + template("<|image|>")
    )
    model = hf.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            nn.init.constant_(parameter, 0.7)  # closed gates would hide the image
    return Built(model, processor)


FAMILIES: dict[str, Callable[[], Built]] = {
    build.__name__: build
    for build in (
        llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, gemma3, paligemma, paligemma2,
        idefics3, smolvlm, mllama,
    )
}  # fmt: skip


def build(name: str, gain: float = 14.0) -> Built:
    torch.manual_seed(0)
    built = FAMILIES[name]()
    built.model.eval()
    with torch.no_grad():
        for key, parameter in built.model.get_decoder().named_parameters():
            if any(part in key for part in ("q_proj", "k_proj")):
                parameter.mul_(gain)
            elif "q_norm" in key:  # normalised queries: their length is here
                parameter.fill_(gain)
    return built


@cache
def tiny(name: str, dtype: str = "float32", device: str = "cpu", gain: float = 14.0) -> Vlm:
    """Loaded once for all tests, which leave it as it was. It never ends an answer by itself."""
    with tempfile.TemporaryDirectory() as folder:
        built = build(name, gain)
        built.model.save_pretrained(folder)
        built.processor.save_pretrained(folder)
        vlm = load_vlm(folder, dtype=dtype, device=device)
    vlm.model.generation_config.eos_token_id = None
    return vlm


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)
