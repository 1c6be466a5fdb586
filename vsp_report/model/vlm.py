"""VLM: one vision-language model with its processor. Load it, ask it, replay what it said.

Answers are greedy: whatever sampling, beams or penalties a checkpoint asks for are set aside, because every
effect is measured between the words that the model itself finds most likely. Weights are read from
safetensors, no code that comes with a model is run, and images go through the PIL processors, the same on
every machine.

Axes: B samples, T positions of the padded prompt (padding at the left), N answer tokens, V vocabulary.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.image_utils import load_image as load_rgb

from vsp_report import paths
from vsp_report.errors import ImageError, ModelError
from vsp_report.maths.grids import ImageMap, Size
from vsp_report.model.adapter import Family
from vsp_report.model.families import family_of, image_maps

MAX_ASPECT = 200
"""A longer picture would be blown up to gigabytes by processors that scale its shorter side."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
KINDS = ("padding", "template", "system", "image", "prompt", "answer")


@dataclass(frozen=True, eq=False)
class Prompt:
    """One batch, ready for the model."""

    inputs: Mapping[str, torch.Tensor]
    images: tuple[ImageMap, ...]
    kinds: tuple[tuple[str, ...], ...]
    """what each position of each sample is: one of KINDS"""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ids_BT(self) -> torch.Tensor:
        return self.inputs["input_ids"]

    @property
    def mask_BT(self) -> torch.Tensor:
        return self.inputs["attention_mask"]

    def positions(self, sample: int, *kinds: str) -> list[int]:
        return [t for t, kind in enumerate(self.kinds[sample]) if kind in kinds]

    def repeat(self, times: int) -> Prompt:
        """The whole batch so many times over: one copy for each steering."""
        states, outputs = (sum(getattr(m.layout, n) for m in self.images) for n in ("n_states", "n_outputs"))
        images = [
            replace(m, first_state=m.first_state + k * states, first_output=m.first_output + k * outputs)
            for k in range(times) for m in self.images
        ]  # fmt: skip
        inputs = {key: torch.cat([value] * times) for key, value in self.inputs.items()}
        return Prompt(inputs, tuple(images), self.kinds * times)


class Asked(NamedTuple):
    image: Any
    """a PIL image, or the path of a file"""
    prompt: str
    system: str | None = None


class Answer(NamedTuple):
    ids: tuple[int, ...]
    text: str
    ended: bool
    """the model ended it; else it was cut at the length allowed"""


class Replay(NamedTuple):
    """An answer read by the model, token by token."""

    log_probs_N: torch.Tensor
    greedy_N: torch.Tensor
    """the token that the model would have said in each place"""


@dataclass(frozen=True, eq=False)
class Vlm:
    model: nn.Module
    processor: Any
    family: Family
    name: str

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int:
        """The longest sequence that the language model is made for."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30

    # -- asking -------------------------------------------------------------------------------------

    def prepare(self, image: Any, prompt: str, system: str | None = None) -> Prompt:
        return self.prepare_batch([Asked(image, prompt, system)])

    def prepare_batch(self, asked: Sequence[Asked]) -> Prompt:
        images = [load_image(question.image) for question in asked]
        texts = [self._rendered(question) for question in asked]
        bos = self.tokenizer.bos_token
        special = not (bos and texts[0].startswith(bos))  # else there would be two, as in apply_chat_template
        try:
            with warnings.catch_warnings():
                # of the labels that PaliGemma's processor makes unasked
                warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
                found = self.processor(
                    images=[[image] for image in images], text=list(texts), return_tensors="pt",
                    padding=len(asked) > 1, padding_side="left", add_special_tokens=special,
                )  # fmt: skip
        except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
            raise ImageError(
                "image",
                f"{self.name}'s processor cannot take it ({_first_line(error)})",
                "Try another picture, or a processor that fits.",
            ) from error
        dtype = self.model.dtype
        inputs = {
            key: value.to(self.device, dtype if value.is_floating_point() else None)
            for key, value in found.items() if isinstance(value, torch.Tensor) and key != "labels"
        }  # fmt: skip
        sizes = [Size(image.height, image.width) for image in images]
        maps = image_maps(self.family, self.model.config, self.processor.image_processor, inputs, sizes)
        ids_BT, mask_BT = inputs["input_ids"].tolist(), inputs["attention_mask"].tolist()
        read = zip(asked, texts, ids_BT, mask_BT, maps, strict=True)
        kinds = [self._kinds(*one, special) for one in read]
        self._check_room(len(ids_BT[0]))
        return Prompt(inputs, tuple(maps), tuple(kinds))

    def _rendered(self, asked: Asked) -> str:
        """The prompt as text, with one marker where the image goes."""
        marker = self.processor.image_token
        if any(marker in text for text in (asked.prompt, asked.system or "")):
            raise ModelError("prompt", f"it contains {marker}, which stands for an image", "Leave it out.")
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        if template is None:
            if not self.family.without_template:
                raise ModelError(self.name, "has no chat template", "Put a chat_template.jinja beside it.")
            if asked.system:
                raise ModelError("system", f"{self.family.title} has no place for it", "Leave it out.")
            return marker + asked.prompt
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked.prompt}]}]
        if asked.system:
            said.insert(0, {"role": "system", "content": [{"type": "text", "text": asked.system}]})
        try:
            text = self.processor.apply_chat_template(
                said, chat_template=template, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of its own, and may raise anything
            raise ModelError(
                self.name,
                f"its chat template fails ({_first_line(error)})",
                "Ask without a system prompt, or mend chat_template.jinja.",
            ) from error
        if text.count(marker) != 1:
            raise ModelError(
                self.name,
                f"its chat template places {text.count(marker)} images where one is given",
                "Use a chat template that places {type: image}.",
            )
        for place, words in (("system", asked.system), ("prompt", asked.prompt)):
            if words and words.strip() not in text:
                raise ModelError(
                    self.name,
                    f"its chat template leaves out or changes the {place} text",
                    "Leave the text out, or mend chat_template.jinja.",
                )
        return text

    def _kinds(
        self, asked: Asked, text: str, ids: list[int], mask: list[int], image: ImageMap, special: bool
    ) -> tuple[str, ...]:
        """Which tokens are the system prompt's, the prompt's and the image's.

        Processors expand the image's marker and may add to the text, so the text is tokenized as rendered,
        with offsets, and matched with what the processor made of it.
        """
        spans = []
        for kind, words, find in (("system", asked.system, text.find), ("prompt", asked.prompt, text.rfind)):
            if words and words.strip():
                start = find(words.strip())
                spans.append((kind, start, start + len(words.strip())))
        plain = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        kinds = ["template" if real else "padding" for real in mask]
        for a, b, n in SequenceMatcher(None, plain["input_ids"], ids, autojunk=False).get_matching_blocks():
            for k in range(n):
                start, end = plain["offset_mapping"][a + k]
                inside = [kind for kind, first, last in spans if start < last and end > first and end > start]
                if inside and mask[b + k]:
                    kinds[b + k] = inside[0]
        if not image.cross:
            for column in image.columns_I.tolist():
                kinds[column] = "image"
        return tuple(kinds)

    def _check_room(self, n: int) -> None:
        if n > self.context:
            raise ModelError(
                "prompt",
                f"with the image and the answer it takes {n} tokens; {self.name} has room for {self.context}",
                "Ask for less, or give a smaller picture.",
            )

    # -- answering ----------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, prompt: Prompt, max_new_tokens: int = 64) -> list[Answer]:
        T = prompt.ids_BT.shape[1]
        self._check_room(T + max_new_tokens)
        # Captures and edits are Python that a compiled decoding loop would not run.
        made = self.model.generate(**prompt.inputs, max_new_tokens=max_new_tokens, disable_compile=True)
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        answers = []
        for row in made[:, T:].tolist():
            stop = next((k for k, token in enumerate(row) if token in ends), None)
            ids = tuple(row[:stop])
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            answers.append(Answer(ids, text, stop is not None))
        return answers

    def continued(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> Prompt:
        """The prompt with an answer after each sample, padded at the right."""
        if len(answers) != len(prompt):
            raise ValueError(f"{len(answers)} answers for {len(prompt)} prompts")
        N, pad = max(map(len, answers)), self.tokenizer.pad_token_id or 0
        ids_BN = torch.full((len(answers), N), pad, device=self.device)
        mask_BN = torch.zeros_like(ids_BN)
        for b, ids in enumerate(answers):
            ids_BN[b, : len(ids)], mask_BN[b, : len(ids)] = torch.tensor(ids, dtype=torch.long), 1
        kinds = tuple(
            (*kinds, *["answer"] * len(ids), *["padding"] * (N - len(ids)))
            for kinds, ids in zip(prompt.kinds, answers, strict=True)
        )
        return replace(prompt, inputs=self.family.continued(prompt.inputs, ids_BN, mask_BN), kinds=kinds)

    def logits(self, prompt: Prompt, last: int = 1) -> torch.Tensor:
        """(B, last, V): of the last positions, in one pass without a cache. Gradients flow if enabled."""
        self._check_room(prompt.ids_BT.shape[1])
        inputs, positions = dict(prompt.inputs), self.family.position_ids(prompt.mask_BT)
        if positions is not None:
            inputs["position_ids"] = positions
        return self.model(**inputs, use_cache=False, logits_to_keep=last).logits

    def replay(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> list[Replay]:
        """Feed each sample its answer. Unlike `generate` it reads the last token too, so that under a capture
        every token of the answer has a row of its own. Gradients flow if they are enabled."""
        longer = self.continued(prompt, answers)
        N = longer.ids_BT.shape[1] - prompt.ids_BT.shape[1]
        log_probs_BNV = self.logits(longer, N + 1)[:, :N].float().log_softmax(-1)
        said_BN = longer.ids_BT[:, prompt.ids_BT.shape[1] :]
        chosen_BN = log_probs_BNV.gather(2, said_BN[..., None])[..., 0]
        greedy_BN = log_probs_BNV.argmax(2)
        return [Replay(chosen_BN[b, : len(ids)], greedy_BN[b, : len(ids)]) for b, ids in enumerate(answers)]


# --- loading -------------------------------------------------------------------------------------------


def load_vlm(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
) -> Vlm:
    """Load a bundled model by its name, a directory, or a Hub id (`owner/repo`, or `owner/repo@revision`).

    `device` "auto" is cuda where there is one. Without `dtype`, float32 on a CPU and the checkpoint's own
    elsewhere.
    """
    source, revision = _located(str(name), revision)
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ModelError("dtype", f"{dtype!r} is none of {', '.join(DTYPES)}", "Write one of them.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    remote = {"revision": revision} if revision else {}
    try:
        chosen = dtype or ("float32" if torch.device(device).type == "cpu" else "auto")
        raw, _ = PreTrainedConfig.get_config_dict(source, **remote)
        family = family_of(SimpleNamespace(model_type=raw.get("model_type")), str(name))
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **remote)
        processor = _load_processor(family, config, source, remote)
        model, loading = AutoModelForImageTextToText.from_pretrained(
            source,
            config=config,
            dtype=chosen,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **remote,
        )
        model = model.to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError, SafetensorError) as error:
        raise ModelError(
            str(name),
            f"cannot be loaded ({_first_line(error)})",
            "Check the name, its files, the device and the connection.",
        ) from error
    if absent := sorted(set(loading["missing_keys"]) | {key for key, *_ in loading["mismatched_keys"]}):
        raise ModelError(str(name), f"lacks {len(absent)} of its weights ({absent[0]})", "Fetch it again.")
    model.eval().requires_grad_(False)
    model.generation_config = _greedy(model.generation_config, processor.tokenizer)
    return Vlm(model, processor, family, str(name))


def load_image(image: Any, place: str = "image") -> Any:
    """An upright RGB picture; `image` is a PIL image or a path. Boxes are in this picture's pixels."""
    if isinstance(image, (str, Path)):
        place = str(image)
        if re.match(r"https?://", place):
            raise ImageError(place, "is a web address", "Save the picture and give its path.")
        if not Path(image).is_file():
            raise ImageError(place, "there is no such file", "Give the path of a PNG or JPEG picture.")
        image = place
    try:
        with warnings.catch_warnings():
            # what PIL only warns of still unpacks to half a gigabyte
            warnings.filterwarnings("error", message=".*decompression bomb")
            if isinstance(image, str):
                with Image.open(image) as opened:  # closed also where the decoder gives up half-way
                    opened.load()
                image = opened
            picture = load_rgb(image)
    except Exception as error:  # decoders raise whatever their format makes them
        raise ImageError(
            place,
            f"cannot be read as a picture ({_first_line(error)})",
            "Give a PNG or JPEG picture of ordinary size.",
        ) from error
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        raise ImageError(
            place, f"is longer than {MAX_ASPECT} to 1 ({picture.width} x {picture.height})", "Crop it."
        )
    return picture


def _located(name: str, revision: str | None) -> tuple[str, str | None]:
    if (folder := paths.bundled(name)) is not None:
        return str(folder), None
    if not Path(name).is_dir():
        name, _, given = name.partition("@")
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or Path(name).exists():
            raise ModelError(
                name,
                "is neither a bundled model, nor a directory, nor a Hub id",
                f"Bundled: {', '.join(paths.bundled_names()) or 'none'}.",
            )
        return name, revision or given or None
    if not (Path(name) / "config.json").is_file():
        raise ModelError(name, "has no config.json", "Give the directory that save_pretrained wrote.")
    return name, None


def _load_processor(family: Family, config: Any, source: str, remote: dict) -> Any:
    """The family's processor with its image half only: the video half needs torchvision, and is not used."""
    full = getattr(transformers, family.processor_name)
    both = classmethod(lambda cls: ["image_processor", "tokenizer"])
    image_only = type(full.__name__, (full,), {"get_attributes": both, "__doc__": full.__doc__})
    pixels = AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False, **remote)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **remote)
    if not tokenizer.is_fast:
        raise ValueError("its tokenizer does not say which characters a token covers; tokenizer.json?")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    settings, _ = image_only.get_processor_dict(source, **remote)
    return image_only.from_args_and_dict([pixels, tokenizer], settings)


def _greedy(asked: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    ends = asked.eos_token_id if asked.eos_token_id is not None else tokenizer.eos_token_id
    pad = asked.pad_token_id if asked.pad_token_id is not None else tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False, num_beams=1, eos_token_id=ends, bos_token_id=asked.bos_token_id, pad_token_id=pad
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
