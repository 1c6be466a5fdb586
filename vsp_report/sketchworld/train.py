"""Train: the recipe that makes SketchWorld's models from nothing. `vsp-report sketchworld train` runs it.

Four stages, each from one seed, each recorded with its curve and its seconds:

1. pool: scenes are drawn once, with what every patch shows.
2. tower: a CLIP learns pictures against captions; at the layer that LLaVA reads and at the one before, patches also
   learn the world's patch truth (things and colours), which of the captions' words the picture is called by, wherever
   that shows, and their own pixels, so that nothing visible is thrown away. Then the tower is done, and only its words
   and both projections learn on, from pictures read once.
3. language: the tower is frozen. A projector and a small Llama learn to answer, several questions of one picture in
   one sequence, each seeing the picture and itself only.
4. saes: sparse autoencoders on taps of the frozen tower and of the language model.

Why a frozen tower: captions of four things are learned in a quarter of the time, and LLaVA and CLIP share one tower.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, GenerationConfig, LlavaForConditionalGeneration

from vsp_report.errors import InputError
from vsp_report.model.checkpoints import save_sae
from vsp_report.model.sae import Sae
from vsp_report.sketchworld import language, rules
from vsp_report.sketchworld.autoencoders import train_saes
from vsp_report.sketchworld.drawing import COLORS
from vsp_report.sketchworld.language import PATCH_PX
from vsp_report.sketchworld.models import (
    FEATURE_LAYER,
    LABELLED,
    PATCHES,
    attend_fast,
    make_clip,
    make_llava,
    normalized,
    tower_features,
)
from vsp_report.sketchworld.packing import Packer, text_logits, wrong_answers
from vsp_report.sketchworld.pool import KINDS, NO_LABEL, Pool, draw_pool
from vsp_report.sketchworld.recipe import QUICK, Recipe, Record
from vsp_report.sketchworld.scene import Scene


def _schedule(optimizer: torch.optim.Optimizer, rate: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.08, final_div_factor=20)


def _batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:size].numpy()
        order = order[size:]


# --- stage 2: the tower ------------------------------------------------------------------------------------------


def _mean(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses)).mean()


def _contrast(image_BE: torch.Tensor, text_BE: torch.Tensor, scale: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """CLIP's loss, in which equal captions are equally right: a small world repeats itself within a batch."""
    logits = scale * F.normalize(image_BE, dim=-1) @ F.normalize(text_BE, dim=-1).mT
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = torch.tensor([number[text] for text in texts], device=logits.device)
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target))


def _caption_for_contrast(pool: Pool, index: int, draw: float) -> str:
    """All of the scene, or one thing of it."""
    scene = pool.scenes[index]
    if scene.family == "objects" and draw < 0.4:
        thing = scene.things[int(draw / 0.4 * len(scene.things))]
        return f"a {thing.kind}" if draw < 0.2 else f"a {thing.name}"
    if scene.family == "portraits" and draw < 0.5:
        return f"a {rules.kind_of(scene)}"
    if scene.family == "cups" and draw < 0.35:
        return f"a {rules.support_of(scene)}"
    if scene.family == "people" and draw < 0.35:
        return f"a {scene.things[int(draw / 0.35 * len(scene.things))].kind}"
    return rules.plain_caption(scene)


WORDS = (*rules.PORTRAITS, "chart")
"""The kinds that a caption for contrast may name: of the picture, never of a place in it. So an animal is named and its
mark is not, a cover and never the part that it covers, a person and never the pose."""
WITNESSES, SPEAKERS = 2, 6
"""So many patches, those that say a word the loudest, answer for the picture, and so many may say it at all: otherwise
a word is said all over the place, and an animal's on the whole head."""
WORDS_WEIGHT = 10


class Directions(nn.Module):
    """A linear reading by directions of length one: what is to be read has to be loud in the state itself."""

    def __init__(self, width: int, count: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) / width**0.5)
        self.bias = nn.Parameter(torch.full((count,), bias))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, F.normalize(self.weight, dim=-1), self.bias)


def _said_in_place(logits_BPW: torch.Tensor, words_BW: torch.Tensor) -> torch.Tensor:
    """The words of the caption and no others, each by few patches."""
    loudest_BSW = logits_BPW.topk(SPEAKERS, dim=1).values
    said = F.binary_cross_entropy_with_logits(loudest_BSW[:, :WITNESSES].mean(1), words_BW)
    others_BW = F.softplus(logits_BPW).sum(1) - F.softplus(loudest_BSW).sum(1)
    return WORDS_WEIGHT * said + (others_BW * words_BW).sum() / words_BW.sum().clamp_min(1) / (PATCHES - SPEAKERS)


def named_by_captions(scenes: Sequence[Scene]) -> np.ndarray:
    """(scenes, words) of bool: which of `WORDS` the whole caption for contrast has."""
    said = [set(rules.plain_caption(scene).split()) for scene in scenes]
    return np.array([[word in caption for word in WORDS] for caption in said])


def train_tower(pool: Pool, recipe: Recipe, device: str, record: Record) -> CLIPModel:
    torch.manual_seed(recipe.seed)
    clip = make_clip().to(device).train()
    attend_fast(clip)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(10))
    width = clip.config.vision_config.hidden_size
    heads = nn.ModuleDict({f"kind{layer}": Directions(width, len(KINDS)) for layer in LABELLED})
    heads.update({f"color{layer}": Directions(width, len(COLORS)) for layer in LABELLED})
    heads.update({f"word{layer}": Directions(width, len(WORDS), bias=-3.0) for layer in LABELLED})
    heads["pixels"] = nn.Linear(width, 4 * 4 * 3)
    heads.to(device)
    parameters = [*clip.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.tower_rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = _schedule(optimizer, recipe.tower_rate, recipe.tower_steps)
    tokenizer = language.make_tokenizer(closed=True)
    weights = torch.ones(len(KINDS), device=device)
    weights[0] = 0.25  # most patches are background
    generator, named = torch.Generator().manual_seed(recipe.seed), named_by_captions(pool.scenes)
    started = time.monotonic()
    for step, rows in enumerate(_batches(len(pool.scenes), recipe.tower_batch, recipe.tower_steps, generator)):
        clean = normalized(pool.pixels[rows], device)
        noise = torch.randn(clean.shape, generator=generator).to(device) * 0.06
        texts = [_caption_for_contrast(pool, int(i), float(torch.rand((), generator=generator))) for i in rows]
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        kinds = torch.from_numpy(pool.kinds[rows]).long().to(device)
        colors = torch.from_numpy(pool.colors[rows]).long().to(device)
        words = torch.from_numpy(named[rows]).float().to(device)
        coarse = F.avg_pool2d(clean, PATCH_PX // 4).unfold(2, 4, 4).unfold(3, 4, 4)
        coarse = coarse.permute(0, 2, 3, 1, 4, 5).reshape(len(rows), PATCHES, -1)
        with torch.autocast(device, torch.bfloat16):
            seen = clip.vision_model(clean + noise, output_hidden_states=True)
            image = clip.visual_projection(seen.pooler_output)
            text = clip.text_projection(clip.text_model(**tokens).pooler_output)
        patches = {layer: seen.hidden_states[layer][:, 1:].float() for layer in LABELLED}
        said = {layer: heads[f"kind{layer}"](states) for layer, states in patches.items()}
        tinted = {layer: heads[f"color{layer}"](states) for layer, states in patches.items()}
        called = {layer: heads[f"word{layer}"](states) for layer, states in patches.items()}
        losses = {
            "kind": _mean(
                F.cross_entropy(logits.flatten(0, 1), kinds.flatten(), weight=weights, ignore_index=NO_LABEL)
                for logits in said.values()
            ),
            "color": 0.5
            * _mean(
                F.cross_entropy(logits.flatten(0, 1), colors.flatten(), ignore_index=NO_LABEL)
                for logits in tinted.values()
            ),
            "words": _mean(_said_in_place(logits, words) for logits in called.values()),
            "pixels": 0.5 * F.mse_loss(heads["pixels"](patches[FEATURE_LAYER]), coarse),
            "contrast": _contrast(image.float(), text.float(), clip.logit_scale.exp().clamp(max=60), texts),
        }
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == recipe.tower_steps - 1:
            shown = kinds > 0
            right = (said[FEATURE_LAYER].argmax(-1) == kinds)[shown].float().mean()
            seconds = time.monotonic() - started
            record.note(
                "tower", step, **{k: v.detach() for k, v in losses.items()}, patches_right=right, seconds=seconds
            )
    return clip.eval()


def train_words(clip: CLIPModel, pool: Pool, recipe: Recipe, device: str, record: Record) -> CLIPModel:
    """The contrast once more, the tower held still: a batch can be as large as single words ask for."""
    torch.manual_seed(recipe.seed + 3)
    attend_fast(clip)
    started, pictures = time.monotonic(), _pooled(clip, pool, device)
    parts = (clip.text_model, clip.text_projection, clip.visual_projection)
    parameters = [*(p for part in parts for p in part.parameters()), clip.logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.words_rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = _schedule(optimizer, recipe.words_rate, recipe.words_steps)
    tokenizer, generator = language.make_tokenizer(closed=True), torch.Generator().manual_seed(recipe.seed + 3)
    for step, rows in enumerate(_batches(len(pool.scenes), recipe.words_batch, recipe.words_steps, generator)):
        texts = [_caption_for_contrast(pool, int(i), float(torch.rand((), generator=generator))) for i in rows]
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        text = clip.text_projection(clip.text_model(**tokens).pooler_output)
        loss = _contrast(clip.visual_projection(pictures[rows]), text, clip.logit_scale.exp().clamp(max=60), texts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.words_steps - 1:
            record.note("words", step, loss=loss.detach(), seconds=time.monotonic() - started)
    return clip.eval()


@torch.no_grad()
def _pooled(clip: CLIPModel, pool: Pool, device: str) -> torch.Tensor:
    starts = range(0, len(pool.pixels), 128)
    return torch.cat([clip.vision_model(normalized(pool.pixels[i : i + 128], device)).pooler_output for i in starts])


# --- stage 3: the language model ---------------------------------------------------------------------------------


@torch.no_grad()
def _held_out(
    llava: LlavaForConditionalGeneration, asked: list[list[rules.Question]], features: torch.Tensor, device: str
) -> dict[str, float]:
    """The share of exact answers, and of exact captions (every scene's first question)."""
    right, captions, count = 0, 0, 0
    for i in range(0, len(asked), 64):
        packed = Packer().batch(asked[i : i + 64])
        with torch.autocast(device, torch.bfloat16):
            wrong = wrong_answers(text_logits(llava, features[i : i + 64].to(device).float(), packed), packed)
        right += sum(int((~row[: len(qs)]).sum()) for row, qs in zip(wrong, asked[i : i + 64], strict=True))
        captions += int((~wrong[:, 0]).sum())
        count += sum(map(len, asked[i : i + 64]))
    return {"held_out": right / count, "captions": captions / len(asked)}


TIMES = {"objects": 2, "charts": 2}
"""How often a scene of a family comes, where it is not once: finding a thing in the picture by its name is learned
last."""


def train_language(
    llava: LlavaForConditionalGeneration, pool: Pool, features: torch.Tensor, recipe: Recipe, device: str,
    record: Record, held_out: tuple[list[list[rules.Question]], torch.Tensor] | None = None,
) -> LlavaForConditionalGeneration:  # fmt: skip
    torch.manual_seed(recipe.seed + 1)
    llava.to(device).train()
    attend_fast(llava)
    llava.model.vision_tower.requires_grad_(False).eval()
    parameters = [p for p in llava.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.language_rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = _schedule(optimizer, recipe.language_rate, recipe.language_steps)
    packer = Packer()
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    shown = np.asarray([i for i, scene in enumerate(pool.scenes) for _ in range(TIMES.get(scene.family, 1))])
    started, last = time.monotonic(), recipe.language_steps - 1
    for step, picked in enumerate(_batches(len(shown), recipe.language_batch, recipe.language_steps, generator)):
        rows = shown[picked]
        batch = packer.batch([rules.questions(pool.scenes[i], step * 1_000_003 + int(i)) for i in rows])
        with torch.autocast(device, torch.bfloat16):
            logits = text_logits(llava, features[rows].to(device).float(), batch)
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), batch["labels"].to(device).flatten(), ignore_index=NO_LABEL
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == last:
            figures = {}
            if held_out and (step % 400 == 0 or step == last) and step:
                llava.eval()
                figures = _held_out(llava, *held_out, device)
                llava.train()
                llava.model.vision_tower.eval()
            record.note("language", step, loss=loss.detach(), seconds=time.monotonic() - started, **figures)
    return llava.eval()


# --- the whole ---------------------------------------------------------------------------------------------------


def train(
    out: Path, *, work: Path | None = None, device: str = "auto", seed: int = 0, quick: bool = False,
    tell: Callable[[str], object] = lambda _: None,
) -> None:  # fmt: skip
    """Run every stage and write the weights folder, whole or not at all.

    `work` keeps the finished stages: a run that was cut short goes on from them. `tell` hears each row of the record.
    """
    if out.exists():
        raise InputError(str(out), "is there already", "Name a folder that is not, or move it away.")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "is cuda, and torch finds none", "Take cpu or auto.")
    recipe = replace(QUICK if quick else Recipe(), seed=seed)
    record = Record(recipe, device, tell=tell)
    stages = work or out.with_name(f".{out.name}.stages")
    stages.mkdir(parents=True, exist_ok=True)
    _same_recipe(stages, recipe)

    clock = time.monotonic()
    pool = draw_pool(10_000_000 + 1_000_000 * seed, recipe.scenes, language.IMAGE_PX, language.GRID)
    record.note("pool", recipe.scenes, seconds=time.monotonic() - clock)

    def learn_tower() -> CLIPModel:
        return train_words(train_tower(pool, recipe, device, record), pool, recipe, device, record)

    clip = _stage(stages / "clip", CLIPModel, record, learn_tower)
    llava = make_llava(clip.cpu()).to(device).eval()

    def learn_language() -> LlavaForConditionalGeneration:
        features = tower_features(llava, pool.pixels, device)
        unseen = draw_pool(600_000_000, 400 if not quick else 8, language.IMAGE_PX, language.GRID, workers=1)
        asked = [rules.questions(scene, i) for i, scene in enumerate(unseen.scenes)]
        held_out = asked, tower_features(llava, unseen.pixels, device)
        return train_language(llava, pool, features, recipe, device, record, held_out)

    llava = _stage(stages / "llava", LlavaForConditionalGeneration, record, learn_language).to(device)
    clock = time.monotonic()
    saes = train_saes(llava, pool, recipe, device, record, stages / "saes")
    record.seconds["saes"] = round(time.monotonic() - clock, 1)

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(partial, clip.cpu(), llava.cpu(), saes, record)
    os.replace(partial, out)
    if work is None:
        shutil.rmtree(stages)


def _same_recipe(stages: Path, recipe: Recipe) -> None:
    """Its numbers, and the source that trains by them."""
    file, text = stages / "recipe.json", json.dumps(asdict(recipe) | {"source": _source_sha()}, indent=2)
    if file.exists() and file.read_text() != text:
        raise InputError(str(stages), "holds the stages of another recipe", "Empty it, or name another --work folder.")
    file.write_text(text)


def _source_sha() -> str:
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), *(here.parent / "model" / f"{name}.py" for name in ("training", "learning"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _stage(folder: Path, kind: type, record: Record, run) -> nn.Module:
    """The model of a finished stage: from its folder, or trained now and kept there with the record so far."""
    notes = folder / "record.json"
    if notes.exists():
        kept = json.loads(notes.read_text())
        record.curve.extend(row for row in kept["curve"] if row["stage"] != "pool")
        record.seconds.update(kept["seconds"])
        return kind.from_pretrained(folder).eval()
    clock, noted = time.monotonic(), len(record.curve)
    model = run()
    record.seconds[folder.name] = round(time.monotonic() - clock, 1)
    model.save_pretrained(folder)
    kept = {"curve": record.curve[noted:], "seconds": {folder.name: record.seconds[folder.name]}}
    notes.write_text(json.dumps(kept))
    return model


def save(
    out: Path, clip: CLIPModel, llava: LlavaForConditionalGeneration, saes: dict[str, Sae], record: Record
) -> None:
    """Ordinary directories in half precision: what `from_pretrained` and SAELens read."""
    llava.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=3, pad_token_id=0, do_sample=False, max_new_tokens=32
    )
    llava.half().save_pretrained(out / "sketchworld")
    language.make_llava_processor().save_pretrained(out / "sketchworld")
    clip.half().save_pretrained(out / "clip")
    language.make_clip_processor().save_pretrained(out / "clip")
    for name, sae in saes.items():
        save_sae(sae, out / "saes" / name, dtype=torch.float16)
    (out / "training.json").write_text(json.dumps(asdict(record), indent=1) + "\n")
    (out / "README.md").write_text(CARD)


CARD = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
