"""Language: the words of SketchWorld as an ordinary tokenizer, chat template and processors.

One token is one word, in lower case; punctuation stands alone. What the world never says is `<unk>`.
"""

from __future__ import annotations

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, CLIPProcessor, LlavaProcessor, PreTrainedTokenizerFast

from vsp_report.sketchworld import rules
from vsp_report.sketchworld.drawing import COLORS

PAD, UNK, BOS, EOS, IMAGE = "<pad>", "<unk>", "<bos>", "<eos>", "<image>"
USER, ASSISTANT = "USER:", "ASSISTANT:"
IMAGE_PX, PATCH_PX = 96, 8
GRID = IMAGE_PX // PATCH_PX

_PHRASES = (
    rules.DESCRIBE, rules.WHAT, rules.POSE_QUESTION, rules.ANIMAL_QUESTION, rules.TALLEST_QUESTION,
    rules.support_question("hand with a mitten"), "Is there a color?", "What color is the shirt?",
    "How many objects are there?", "How many bars are there?", "Which bar is highlighted?",
    "yes no and beside an chart bars animal person",
)  # fmt: skip

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The image comes first, then what is said in turn; a system prompt stands between the two, with no name before it."""


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary() -> list[str]:
    kinds = (
        *rules.OBJECTS, *rules.SURFACES, *rules.COVERS, *rules.BARE_PARTS, *rules.SEATS, *rules.AIDS, *rules.FURNITURE,
        *rules.MARKS, *rules.MARKS.values(), *COLORS, *rules.NUMBERS, "cup", "curtain", "sitting", "standing",
    )  # fmt: skip
    known = {word for phrase in (*_PHRASES, *kinds) for word in words(phrase)}
    return [PAD, UNK, BOS, EOS, IMAGE, USER, ASSISTANT, *sorted(known)]


def make_tokenizer(*, closed: bool) -> PreTrainedTokenizerFast:
    """The tokenizer; `closed` ends every text with <eos>, which is where CLIP reads a text's meaning."""
    order = {word: i for i, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(order, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (PAD, UNK, BOS, EOS, IMAGE)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in (USER, ASSISTANT)])
    ends = f" {EOS}" if closed else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A{ends}", pair=None, special_tokens=[(BOS, order[BOS]), (EOS, order[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, bos_token=BOS, eos_token=EOS,
        additional_special_tokens=[IMAGE], model_max_length=512, padding_side="right" if closed else "left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"height": IMAGE_PX, "width": IMAGE_PX}, do_center_crop=False, do_resize=True, resample=3,
        image_mean=[0.72, 0.72, 0.70], image_std=[0.2, 0.2, 0.2],
    )  # fmt: skip


def make_llava_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=make_image_processor(), tokenizer=make_tokenizer(closed=False), patch_size=PATCH_PX,
        vision_feature_select_strategy="default", image_token=IMAGE,
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def make_clip_processor() -> CLIPProcessor:
    return CLIPProcessor(image_processor=make_image_processor(), tokenizer=make_tokenizer(closed=True))


def conversation(question: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
