"""Classify: CLIP's zero-shot classification, and what becomes of it when latents of its vision tower are edited.

Every class is put into every template; the embeddings of its sentences are averaged, and a picture's probabilities
are a softmax over its likeness to each class, at the temperature that the model has learned. Steerings are those of
`maths.edits`, at vision.N. Every batch carries the unedited row, and a `reconstruct` steering is told beside
"reconstructed, nothing edited". Layers below the tap run once for all steerings.

CLIP reads the class token of the last layer and nothing else, while LLaVA reads the patches of a layer below it: a tap
that counts in both is the same module in both, so that one SAE serves them. At the last layer an edit of patches
would be read by nobody, and is refused. Changes are taken against the unedited row of the same batch, because in low
precision a row depends on how many there are.

Axes: B rows (the unedited one first), C classes, E width of an embedding, S sites, D width of the tower.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel, PreTrainedConfig

from vsp_report import paths
from vsp_report.errors import CaseError, CheckpointError, ModelError, SteeringError
from vsp_report.maths import edits as formulas
from vsp_report.maths import grids
from vsp_report.maths.edits import Steering
from vsp_report.maths.grids import ImageMap, Size
from vsp_report.model import taps as places
from vsp_report.model.adapter import Batch, Family, laid_out, single_tile
from vsp_report.model.class_lists import ClassList
from vsp_report.model.sae import Sae
from vsp_report.model.sites import BEFORE, Editor, Row, Sites
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import load_image


class _Tower(Family):
    """CLIP as taps see it: vision layers, and no language model behind them."""

    title = "CLIP"

    def vision_tower(self, model: nn.Module) -> nn.Module:
        return getattr(model.vision_model, "vision_model", model.vision_model)

    def layouts(self, batch: Batch) -> list[grids.Layout]:
        cut = [single_tile(batch, size) for size in batch.sizes]
        return [laid_out(grid, grids.one_to_one(len(grid)), prefix=1) for grid in cut]


@dataclass(frozen=True, eq=False)
class Clip:
    model: nn.Module
    pixels: Any
    """its image processor"""
    tokenizer: Any
    name: str
    family: Family

    @property
    def device(self) -> torch.device:
        return self.model.device

    # -- texts --------------------------------------------------------------------------------------

    @torch.no_grad()
    def classes(self, chosen: ClassList) -> Classes:
        """The embeddings of a class list, worked out once for all pictures."""
        unread = tuple(t for t in chosen.templates if self._unknown(t.replace("{}", " ")))
        for k, name in enumerate(chosen.classes):
            if words := self._unknown(name):
                raise CaseError(f"{chosen.name}: classes[{k}]", f"{self.name} does not know {words[0]!r}, of {name!r}",
                                "Leave it out, or ask a model that knows it.")  # fmt: skip
        means = [self._embedded(chosen.sentences(template)) for template in chosen.templates]
        return Classes(chosen, normalize(torch.stack(means).mean(0), dim=-1), unread)

    def _embedded(self, texts: list[str], at_once: int = 256) -> torch.Tensor:
        parts, room = [], self.model.config.text_config.max_position_embeddings
        for start in range(0, len(texts), at_once):
            tokens = self.tokenizer(texts[start : start + at_once], padding=True, return_tensors="pt").to(self.device)
            if tokens["input_ids"].shape[1] > room:
                longest = max(texts, key=len)
                fault = f"{longest[:60]!r} takes more than the {room} tokens that {self.name} reads"
                raise CaseError("classes", fault, "Write shorter classes or templates.")
            accepted = {key: tokens[key] for key in ("input_ids", "attention_mask")}
            pooled = self.model.text_model(**accepted).pooler_output
            parts.append(normalize(self.model.text_projection(pooled).float(), dim=-1))
        return torch.cat(parts)

    def _unknown(self, text: str) -> list[str]:
        unknown = self.tokenizer.unk_token_id
        # Tokenizers of bytes know every word; their unknown token is the one that ends a text.
        if unknown is None or unknown == self.tokenizer.eos_token_id:
            return []
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [text[start:end] for token, (start, end) in spans if token == unknown]

    # -- pictures -----------------------------------------------------------------------------------

    def read(self, image: Any) -> Picture:
        image = load_image(image)
        size = Size(image.height, image.width)
        pixels = self.pixels(images=[image], return_tensors="pt")["pixel_values"].to(self.device, self.model.dtype)
        layout = self.family.layouts(Batch(self.model.config, self.pixels, {}, [size], [0]))[0]
        return Picture(pixels, (ImageMap(layout, np.arange(layout.n_outputs)),))

    @torch.no_grad()
    def likeness(self, images: Sequence[Any], classes: Classes) -> np.ndarray:
        """(B, C): the cosine of each picture with each class."""
        pixels_BCHW = torch.cat([self.read(image).pixels_BCHW for image in images])
        return (self.logits(pixels_BCHW, classes) / self.model.logit_scale.float().exp()).cpu().numpy()

    def logits(self, pixels_BCHW: torch.Tensor, classes: Classes) -> torch.Tensor:
        """(B, C): likeness at the model's own temperature. Gradients flow if they are enabled."""
        pooled = self.model.vision_model(pixel_values=pixels_BCHW).pooler_output
        image_BE = normalize(self.model.visual_projection(pooled).float(), dim=-1)
        return image_BE @ classes.embeddings_CE.mT * self.model.logit_scale.float().exp()


class Picture(NamedTuple):
    """One picture as the tower is given it, and where its patches are."""

    pixels_BCHW: torch.Tensor
    images: tuple[ImageMap, ...]


@dataclass(frozen=True, eq=False)
class Classes:
    """A class list as one model reads it."""

    of: ClassList
    embeddings_CE: torch.Tensor
    unread: tuple[str, ...] = ()
    """templates with words that the model does not know; they still tell classes apart, but say less"""


class Guess(NamedTuple):
    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class Scores:
    """What one picture was taken for, under one steering or under none."""

    name: str
    classes: tuple[str, ...]
    logits_C: np.ndarray

    @property
    def probabilities_C(self) -> np.ndarray:
        likely_C = np.exp(self.logits_C - self.logits_C.max())
        return likely_C / likely_C.sum()

    def top(self, k: int = 5) -> list[Guess]:
        """The k likeliest classes, the likeliest first."""
        probabilities_C = self.probabilities_C
        order = np.argsort(-probabilities_C, kind="stable")[: max(k, 0)]
        return [Guess(self.classes[c], float(probabilities_C[c])) for c in order]

    def log_odds(self, right: str, wrong: str) -> float:
        for name in (right, wrong):
            if name not in self.classes:
                raise CaseError("contrast", f"{name!r} is none of the classes", "Name two of the class list.")
        return float(self.logits_C[self.classes.index(right)] - self.logits_C[self.classes.index(wrong)])


class Shift(NamedTuple):
    """Scores of one batch before and after."""

    before: Scores
    after: Scores

    def of(self, right: str, wrong: str) -> float:
        return self.after.log_odds(right, wrong) - self.before.log_odds(right, wrong)


@dataclass(frozen=True, eq=False)
class Classified:
    tap: str | None
    before: Scores
    reconstructed: Scores | None
    """reconstructed, nothing edited; None where no steering reconstructs"""
    after: tuple[Scores, ...]
    """one for each steering, in their order"""
    unedited: tuple[Scores, ...] = ()
    """for each steering, the unedited row of its batch"""
    errors: tuple[Shift | None, ...] = ()
    """for each steering that reconstructs, what that does by itself"""

    def changes(self, right: str, wrong: str) -> list[float]:
        """How far each steering moves the log-odds."""
        return [Shift(*pair).of(right, wrong) for pair in zip(self.unedited, self.after, strict=True)]

    def beyond(self, right: str, wrong: str) -> list[float | None]:
        """The same without the SAE's own error; None where nothing is reconstructed."""
        pairs = zip(self.changes(right, wrong), self.errors, strict=True)
        return [None if error is None else change - error.of(right, wrong) for change, error in pairs]

    def __getitem__(self, name: str) -> Scores:
        if (found := next((one for one in self.after if one.name == name), None)) is None:
            known = ", ".join(one.name for one in self.after) or "none"
            raise SteeringError(name, "is not among what was steered", f"There are: {known}.")
        return found


# --- the one way in ------------------------------------------------------------------------------------------------


@torch.no_grad()
def classify(
    clip: Clip,
    image: Any,
    classes: Classes | ClassList,
    *,
    sae: Sae | None = None,
    steerings: Sequence[Steering] = (),
    tap: Tap | str | None = None,
    batch: int = 32,
) -> Classified:
    """What one picture is taken for, as it is and under each steering. The model is left as it was found.

    `tap` is the SAE's own unless another is named; `batch` is how many edited rows run beside an unedited one.
    """
    classes = clip.classes(classes) if isinstance(classes, ClassList) else classes
    picture = clip.read(image)
    pixels_BCHW = picture.pixels_BCHW
    if not steerings:
        return Classified(None, _scores([BEFORE], clip.logits(pixels_BCHW, classes), classes)[0], None, ())
    tap = _placed(clip, sae, tap, steerings)
    kept: list[torch.Tensor] = []
    with places.editing(clip, tap, lambda states, start: kept.append(states) or states):
        clip.logits(pixels_BCHW, classes)
    states = kept[0]
    sites, editor = Sites.of(clip, picture, tap), Editor(sae, steerings, clip.device)
    codes = editor.codes(states[0, sites.rows_S])
    remade = sorted({steering.cls for steering in steerings if steering.mode == "reconstruct"})
    rows = [*(Row.baseline(sites, cls) for cls in remade), *(Row.of(steering, sites) for steering in steerings)]
    unedited, scored = [], []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        states_BSD = states.repeat(1 + len(some), 1, 1)
        for b, row in enumerate(some, start=1):
            states_BSD[b, sites.rows_S] = editor.edited(codes, row)
        with places.starting_from(clip, {tap: states_BSD}):
            logits_BC = clip.logits(pixels_BCHW.expand(len(states_BSD), -1, -1, -1), classes)
        first, *others = _scores([BEFORE, *(row.name for row in some)], logits_BC, classes)
        unedited, scored = unedited + [first] * len(others), scored + others
    n, errors = len(remade), dict(zip(remade, map(Shift, unedited, scored), strict=False))
    own = tuple(errors[steering.cls] if steering.mode == "reconstruct" else None for steering in steerings)
    return Classified(str(tap), unedited[0], scored[0] if n else None, tuple(scored[n:]), tuple(unedited[n:]), own)


def _scores(names: Sequence[str], logits_BC: torch.Tensor, classes: Classes) -> list[Scores]:
    rows = logits_BC.double().cpu().numpy()
    return [Scores(name, classes.of.classes, row) for name, row in zip(names, rows, strict=True)]


def _placed(clip: Clip, sae: Sae | None, tap: Tap | str | None, steerings: Sequence[Steering]) -> Tap:
    if sae is None:
        raise SteeringError("sae", "there is none, and a steering needs its latents", "Give a sparse autoencoder.")
    if not (tap or sae.tap):
        raise SteeringError("tap", f"{sae.name or 'the SAE'} names none", "Say where it belongs, as tap='vision.N'.")
    parsed = Tap.parse(tap or sae.tap)
    if parsed.place != "vision":
        raise SteeringError(parsed, f"{clip.name} is a tower with no more than vision taps", "Take a vision tap.")
    tap, width = places.resolve(clip, parsed), clip.model.config.vision_config.hidden_size
    if sae.d_in != width:
        fault = f"is {sae.d_in} wide; {tap} of {clip.name} is {width} wide"
        raise CheckpointError(sae.name or "sae", fault, "Take an SAE that was trained on this tower.")
    names = [steering.name for steering in steerings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SteeringError(twice[0], f"names {names.count(twice[0])} steerings", "Give each a name of its own.")
    for steering in steerings:
        formulas.check(steering, sae.d_sae)
        if not is_last(clip, tap):
            continue
        if not steering.cls:
            fault = f"at {tap} {clip.name} reads its class token alone; {steering.name} edits the patches"
            raise SteeringError(tap, fault, "Take a layer below, or set cls.")
        for e, edit in enumerate(steering.edits):
            if edit.where is not None:
                fault = f"holds patches, and at {tap} {clip.name} reads its class token alone"
                raise SteeringError(f"{steering.name}.edits[{e}].where", fault, "Take a layer below, or leave it out.")
    return tap


def is_last(clip: Clip, tap: Tap) -> bool:
    """Whether nothing of this tap is read but its class token."""
    return tap.layer == len(places.layers_at(clip, "vision")) - 1


# --- loading -------------------------------------------------------------------------------------------------------


def load_clip(
    name: str | Path, *, revision: str | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> Clip:
    """Load a bundled model by its name (`sketchworld-clip`), a directory, or a Hub id (`owner/repo[@revision]`)."""
    source, revision = _located(str(name), revision)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    remote = {"revision": revision} if revision else {}
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source, **remote)
        if (kind := raw.get("model_type")) != "clip":
            raise ModelError(name, f"its model_type is {kind!r}, and only CLIP classifies here", "Give a CLIPModel.")
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **remote)
        pixels = AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False, **remote)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **remote)
        model, loading = CLIPModel.from_pretrained(
            source, config=config, dtype=dtype or torch.float32, use_safetensors=True, output_loading_info=True,
            **remote,
        )  # fmt: skip
        model = model.to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(name, f"cannot be loaded ({reason})", "Check the name, its files and the device.") from error
    absent = {key for key in loading["missing_keys"] if not key.endswith("position_ids")}
    if absent := sorted(absent | {key for key, *_ in loading["mismatched_keys"]}):
        raise ModelError(name, f"lacks {len(absent)} of its weights ({absent[0]})", "Fetch it again.")
    model.eval().requires_grad_(False)
    return Clip(model, pixels, tokenizer, str(name), _Tower())


def _located(name: str, revision: str | None) -> tuple[str, str | None]:
    if (folder := paths.bundled(name)) is not None:
        return str(folder), None
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ModelError(name, "has no config.json", "Give the directory that save_pretrained wrote.")
        return name, None
    name, _, given = name.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or Path(name).exists():
        fault = "is neither a bundled model, nor a directory, nor a Hub id"
        raise ModelError(name, fault, "The bundled one is sketchworld-clip.")
    return name, revision or given or None
