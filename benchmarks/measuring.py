"""Measuring: models of a chosen size with random weights, and one process for each way of doing a thing.

A process of its own, because what one way leaves allocated, cached or compiled would be the next one's gain. It
builds the model, runs a short answer to warm up, and only then starts to count: CPU seconds of user and system,
and the highest resident set above where it stood; on a GPU milliseconds between two synchronisations and the
allocator's highest mark. Ways are run in turn, round after round, and medians are taken, because other work on
the machine comes and goes.

On a CPU memory is measured in another run, in which the allocator gives back at once what is freed. By default
glibc keeps up to 32 MiB of each size for later, and the highest mark would be of what it keeps, not of what is
in use; but giving back costs time, so that run's time is not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers.utils import logging

from vsp_report.model.families import family_of
from vsp_report.model.sae import Sae
from vsp_report.model.vlm import Vlm

MIB, NAN = 1 << 20, float("nan")
UNTIMED = ("floor, one row", "floor, two rows")
"""Ways whose memory alone is asked for."""
WORDS = "what is the person doing standing sitting on a chair look closely and say in one word whether it rests".split()
QUESTION = " ".join((WORDS * 3)[:45])


class Size(NamedTuple):
    vision: dict
    text: dict
    image_px: tuple[int, int]
    tap: str
    latents: int
    pinpoints: list | None = None


SIZES = {
    # as `small` as a test: whether the scripts run, not how fast
    "tiny": Size(
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
         "image_size": 56, "patch_size": 14},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 200},
        (56, 56), "vision.1", 64,
    ),
    # a ViT-B tower of 24 x 24 patches, and a language model of 8 layers
    "mid": Size(
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "image_size": 336, "patch_size": 14},
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 1000},
        (336, 336), "vision.8", 24576,
    ),
    "llava-next-8b": Size(
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "image_size": 336, "patch_size": 14},
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128320, "rope_theta": 500000.0},
        (672, 672), "vision.18", 32768, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    ),
}  # fmt: skip


def make_vlm(size: Size, device: str) -> Vlm:
    """A LLaVA, or a LLaVA-NeXT where there are pinpoints. It never ends an answer by itself."""
    torch.manual_seed(0)
    order = {word: k for k, word in enumerate(["<pad>", "<unk>", "<bos>", "<eos>", "<image>", *WORDS])}
    made = Tokenizer(models.WordLevel(order, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(word, special=True) for word in list(order)[:5]])
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left",
    )  # fmt: skip
    px, anyres = size.vision["image_size"], size.pinpoints is not None
    kind = "LlavaNext" if anyres else "Llava"
    more = {"image_grid_pinpoints": size.pinpoints} if anyres else {}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = getattr(hf, f"{kind}Config")(
        vision_config=hf.CLIPVisionConfig(**size.vision),
        text_config=hf.LlamaConfig(**size.text, max_position_embeddings=8192, **special),
        image_token_index=4, **more,
    )  # fmt: skip
    pixels = (hf.LlavaNextImageProcessor if anyres else hf.CLIPImageProcessor)(
        size={"shortest_edge": px}, crop_size={"height": px, "width": px}, **more
    )
    part = "{{ '<image> ' if p['type'] == 'image' else p['text'] }}"
    processor = getattr(hf, f"{kind}Processor")(
        image_processor=pixels, tokenizer=tokenizer, patch_size=size.vision["patch_size"],
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for p in m['content'] %}" + part + "{% endfor %}{% endfor %}",
    )  # fmt: skip
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = getattr(hf, f"{kind}ForConditionalGeneration")._from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.get_decoder().named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(6)  # flat attention would not notice an edit
    model.generation_config = hf.GenerationConfig(do_sample=False, pad_token_id=0, bos_token_id=2)
    return Vlm(model, processor, family_of(config), "random")


def make_sae(size: Size, device: str) -> Sae:
    """The paper's kind, a plain ReLU, of random directions."""
    sae = Sae.untrained(0, size.vision["hidden_size"], size.latents).replace(tap=size.tap, name="random")
    return sae.replace(**{key: getattr(sae, key).to(device) for key in ("W_enc", "W_dec", "b_enc", "b_dec")})


def make_picture(size: Size) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (*size.image_px, 3), dtype=np.uint8)
    return Image.fromarray(noise)


# --- one process -------------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    cpu_seconds: float
    wall_seconds: float
    extra_mib: float
    """the highest resident set (GPU: allocated memory) above the loaded model"""


def measured(work: Callable[[], Any], device: str) -> Figures:
    gc.collect()
    if device == "cpu":
        with suppress(OSError, AttributeError):  # what was freed is given back, or it would hide what is taken
            ctypes.CDLL(None).malloc_trim(0)
        start = _resident()
    else:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
    peak = _peak() if device == "cpu" else torch.cuda.max_memory_allocated()
    return Figures(cpu, wall, max(0, peak - start) / MIB)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident() -> int:
    """What is resident now; the system starts to count its highest mark anew where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return _peak()


def _peak() -> int:
    with suppress(OSError):
        return _status("VmHWM")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


# --- all of them -------------------------------------------------------------------------------------------------


def arguments(what: str, argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--steerings", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", metavar="WAY", help="run one way in this process and print its figures")
    return parser, parser.parse_args(argv)


def run(
    script: str, ways: Mapping[str, Callable], args: argparse.Namespace, held: Mapping[str, int]
) -> dict[str, Figures] | None:
    """Every way in a process of its own; in such a process, that way. `held` says with how many steerings the
    memory of a way is measured, and a way that is only in `held` is not timed."""
    logging.set_verbosity_error()
    if args.only:
        print(json.dumps(ways[args.only](args)._asdict()))
        return None
    figures: dict[str, list[Figures]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:
            if way not in UNTIMED:
                figures[way].append(_child(script, way, args, args.steerings))
    found = {}
    for way, rounds in figures.items():
        found[way] = Figures(*map(median, zip(*rounds, strict=True))) if rounds else Figures(NAN, NAN, NAN)
        if args.device == "cpu" or way in UNTIMED:
            found[way] = found[way]._replace(extra_mib=_child(script, way, args, held[way], exact=True).extra_mib)
    return found


def _child(script: str, way: str, args: argparse.Namespace, steerings: int, exact: bool = False) -> Figures:
    asked = {"size": args.size, "device": args.device, "new-tokens": args.new_tokens, "steerings": steerings}
    command = [sys.executable, script, "--only", way, *(f"--{key}={value}" for key, value in asked.items())]
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"} if exact else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | at_once)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def report(figures: Mapping[str, Figures], args: argparse.Namespace, **ratios: float) -> None:
    first = next(iter(figures.values()))
    on_gpu = args.device != "cpu"
    print(f"{args.size} on {where(args.device)}; medians of {args.rounds}")
    unit, memory = ("ms", "GiB") if on_gpu else ("CPU s", "MiB")
    print(f"{'':34}{unit:>10}{'ratio':>8}{memory:>10}{'ratio':>8}")
    for way, found in figures.items():
        spent, base = (found.wall_seconds, first.wall_seconds) if on_gpu else (found.cpu_seconds, first.cpu_seconds)
        held = found.extra_mib / (1024 if on_gpu else 1)
        shown = spent * 1000 if on_gpu else spent
        over = found.extra_mib / first.extra_mib if first.extra_mib else NAN
        print(f"{way:34}{shown:>10.2f}{spent / base:>8.2f}{held:>10.2f}{over:>8.2f}")
    for key, value in ratios.items():
        print(f"{key} = {value:.3f}")
    if args.json:
        asked = {key: getattr(args, key) for key in ("size", "device", "new_tokens", "steerings", "rounds")}
        ways = {way: {k: None if v != v else v for k, v in f._asdict().items()} for way, f in figures.items()}
        told = {**ratios, "ways": ways, "asked": asked,
                "where": where(args.device), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
                "transformers": hf.__version__}  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(told, indent=1) + "\n")


def where(device: str) -> str:
    name = torch.cuda.get_device_name() if device != "cpu" else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads" if device == "cpu" else name
