"""Memory: what one more row of a batch costs, estimated from the model's config, and what is free.

The estimate counts the key-value cache, the widest moment of a forward pass, and what is kept of a row
besides. It is meant to be a little too large: too few rows cost some time, too many cost the run. Measured
figures stand beside it in benchmarks/README.md.
"""

from __future__ import annotations

import psutil
import torch

from vsp_report.model.vlm import Prompt, Vlm

MARGIN = 1.25
CPU_SHARE, GPU_SHARE = 0.5, 0.85
"""A machine has other things to hold; an accelerator mostly has not."""


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(GPU_SHARE * (free + held))
    # What could be had, not what lies idle: a machine that has read many files has hardly any of that.
    return int(CPU_SHARE * psutil.virtual_memory().available)


def row_bytes(vlm: Vlm, prompt: Prompt, states: dict, new_tokens: int, forced_tokens: int = 0) -> int:
    """What one row takes: a prompt with its image, an answer, and states of its own at the tap."""
    text, each = vlm.model.config.get_text_config(), vlm.model.dtype.itemsize
    T = prompt.ids_BT.shape[1] + max(new_tokens, forced_tokens)
    heads, width = text.num_attention_heads, text.hidden_size
    head = getattr(text, "head_dim", None) or width // heads
    pairs = 2 * (getattr(text, "num_key_value_heads", None) or heads) * head
    keys = T + (prompt.images[0].layout.n_outputs if vlm.family.cross else 0)
    cache = (text.num_hidden_layers + 1) * keys * pairs * each  # one layer's twice, while it grows
    # Residual stream before and after, its norm in float32; then attention or the MLP, whichever is wider.
    wide = max(2 * heads * head + 2 * pairs, 3 * text.intermediate_size)
    reading = T * (3 * each * width + 4 * width + each * wide) + 5 * T * T
    saying = text.vocab_size * (each + 3 * 4) * max(1, forced_tokens + 1)
    given = sum(tensor.numel() * tensor.element_size() for tensor in states.values())
    given += sum(value.numel() * value.element_size() for value in prompt.inputs.values())
    tower = 12 * max(tensor.numel() for tensor in states.values()) * each
    return int(MARGIN * (cache + max(reading, tower) + saying + 2 * given))
