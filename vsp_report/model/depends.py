"""Depends: what the states at a vision tap depend on, as one hash. Two models that share a tower have the same states.

A CLIP and a LLaVA that was built on it are different models with, at `vision.N`, the same states: what is known of the
latents of one holds for the other. So the hash is of the tower's weights up to and including the tap, of how the tower
computes with them, and of what its processor makes of a picture; not of the language model behind, nor of what the
files are called. Everything in the tower counts that is not known to lie above the tap: a tower that is not known well
is then taken for another one too often, and never for the same one wrongly.

Weights count by their values in float32: a half that was widened is the same half. They are hashed once for each
loaded model, tensor by tensor, so that a second tap costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from vsp_report.model.taps import Tap, resolve

AFTER = ("post_layernorm", "layernorm", "head", "merger", "deepstack_merger_list")
"""Parts of a tower, directly below it, that come after its layers."""
_IDLE = frozenset({
    "num_hidden_layers", "depth", "dtype", "torch_dtype", "transformers_version", "architectures", "projection_dim",
    "out_hidden_size", "initializer_range", "initializer_factor", "id2label", "label2id", "problem_type",
    "return_dict", "output_attentions", "output_hidden_states", "is_encoder_decoder", "chunk_size_feed_forward",
    "attention_dropout", "dropout", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
})  # fmt: skip
"""Settings of a tower's config that change no state at a tap when a model only answers."""
_STEPS = {
    "do_resize": ("size", "resample", "size_divisor"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
    "do_pad": ("pad_size",),
}
"""Settings of a processor that count only where the step is taken."""
_SAID = ("processor_class", "data_format", "input_data_format", "return_tensors", "device", "feature_extractor_type",
         "disable_grouping")  # fmt: skip
_hashed: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


def states_sha(subject: Any, tap: Tap | str, model_sha: str) -> str:
    """Of what the states at a tap depend on. `subject`: a `Vlm` or a `Clip`; `model_sha`: of the whole model, which is
    what they depend on at the connector and in the language model."""
    tap = resolve(subject, tap)
    if tap.place != "vision":
        return model_sha
    facts = {
        "tap": str(tap),
        "weights": _weights(subject, tap.layer),
        "tower": _settings(subject.family.vision_tower(subject.model), subject.model),
        "pixels": _pixels(_processor(subject)),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _weights(subject: Any, layer: int) -> list[list[str]]:
    """Of each tensor of the tower up to the tap, by the name that it has in the tower: shape and values."""
    tower = subject.family.vision_tower(subject.model)
    names = {id(module): name for name, module in tower.named_modules()}
    above = [names[id(module)] for module in subject.family.vision_layers(subject.model)[layer + 1 :]]
    passed = tuple(f"{name}." for name in (*above, *AFTER))
    known = _hashed.setdefault(tower, {})
    found = []
    for name, tensor in sorted(tower.state_dict().items()):
        if not name.startswith(passed):
            state = f"{name} {tensor.data_ptr()} {tensor._version}"  # a tensor that was written to is hashed anew
            known[state] = known.get(state) or _tensor_sha(tensor)
            found.append([name, known[state]])
    return found


def _tensor_sha(tensor: torch.Tensor) -> str:
    values = tensor.detach().float().cpu().contiguous().numpy()
    made = hashlib.sha256(str(tuple(values.shape)).encode())
    made.update(memoryview(values.reshape(-1)).cast("B") if values.size else b"")
    return made.hexdigest()


def _settings(tower: nn.Module, model: nn.Module) -> dict[str, Any]:
    config = getattr(tower, "config", None) or getattr(model.config, "vision_config", None) or model.config
    return {key: value for key, value in config.to_dict().items() if key[0] != "_" and key not in _IDLE}


def _processor(subject: Any) -> Any:
    """A CLIP brings its image processor, a model that answers has it inside its own."""
    return subject.pixels if hasattr(subject, "pixels") else subject.processor.image_processor


def _pixels(processor: Any) -> dict[str, Any]:
    """What the processor does with a picture; settings of steps that it leaves out say nothing."""
    told: Mapping[str, Any] = processor.to_dict()
    left_out = {name for step, named in _STEPS.items() if not told.get(step) for name in (step, *named)}
    # The same processor has several implementations: CLIPImageProcessorPil, CLIPImageProcessorFast.
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    return {"kind": kind} | {
        key: value for key, value in told.items()
        if key[0] != "_" and key not in left_out and key not in _SAID and key != "image_processor_type"
        and value is not None
    }  # fmt: skip
