"""Packing: several questions of one picture in one sequence, each seeing the picture and itself only.

Each starts where the picture ends. Without the block mask later questions would read the answers of earlier ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import DynamicCache, LlavaForConditionalGeneration

from vsp_report.sketchworld import language
from vsp_report.sketchworld.pool import NO_LABEL
from vsp_report.sketchworld.rules import Question


class Packer:
    """Questions of pictures as rows of tokens, in the words of the world."""

    def __init__(self) -> None:
        self._id = {word: i for i, word in enumerate(language.vocabulary())}

    def ids(self, text: str) -> list[int]:
        return [self._id[word] for word in language.words(text)]

    def prompt(self, question: str) -> list[int]:
        return [self._id[language.USER], *self.ids(question), self._id[language.ASSISTANT]]

    def batch(self, asked: list[list[Question]]) -> dict[str, torch.Tensor]:
        """Text columns only: ids, labels, segment (0 is padding) and position after the picture."""
        rows = []
        for questions in asked:
            row = []
            for segment, question in enumerate(questions, start=1):
                prompt, answer = self.prompt(question.text), [*self.ids(question.answer), self._id[language.EOS]]
                tokens = [(i, NO_LABEL) for i in prompt] + [(i, i) for i in answer]
                row += [(i, label, segment, place) for place, (i, label) in enumerate(tokens)]
            rows.append(row)
        longest = max(map(len, rows))
        table = torch.tensor([row + [(0, NO_LABEL, 0, 0)] * (longest - len(row)) for row in rows])
        return dict(zip(("ids", "labels", "segments", "places"), table.unbind(-1), strict=True))


class _Picture(NamedTuple):
    """What has been read of pictures: their last states, and the keys and values that text looks at."""

    last_B1D: torch.Tensor
    cache: DynamicCache
    tokens: int


def _read_picture(llava: LlavaForConditionalGeneration, features_BPD: torch.Tensor) -> _Picture:
    inner, read = llava.model, llava.model.language_model
    image = inner.multi_modal_projector(features_BPD)
    start = torch.full((len(image), 1), 2, device=image.device)
    picture = torch.cat([inner.get_input_embeddings()(start).to(image.dtype), image], dim=1)
    cache = DynamicCache(config=read.config)
    last = read(inputs_embeds=picture, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
    return _Picture(last, cache, picture.shape[1])


def text_logits(
    llava: LlavaForConditionalGeneration, features_BPD: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """(B, text, vocabulary): the logits that predict every text token, from the picture's features on.

    The picture is read once, and its keys and values by all of its questions, as in decoding with a cache.
    """
    last, cache, head = _read_picture(llava, features_BPD)
    ids, segments, places = (batch[k].to(last.device) for k in ("ids", "segments", "places"))
    rows, columns = ids.shape
    causal = torch.ones(columns, columns, dtype=torch.bool, device=last.device).tril()
    own = (segments[:, :, None] == segments[:, None, :]) & causal
    embeds = llava.model.get_input_embeddings()(ids).to(last.dtype)
    closed = torch.finfo(embeds.dtype).min * (~own).to(embeds.dtype)
    mask = torch.cat([closed.new_zeros(rows, columns, head), closed], dim=-1)
    hidden = llava.model.language_model(
        inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=places + head,
        past_key_values=cache, use_cache=True,
    ).last_hidden_state  # fmt: skip
    first = (places == 0) & (segments > 0)  # a segment's first token follows the picture, not the segment before it
    before = torch.where(first[..., None], last, torch.cat([last, hidden[:, :-1]], dim=1))
    return llava.lm_head(before)


def continued(
    llava: LlavaForConditionalGeneration, features_BPD: torch.Tensor, prompts_BT: torch.Tensor, most: int, end: int
) -> list[list[int]]:
    """What is said to prompts of one length, each to a picture of its own, taking the likeliest word each time, without
    the end."""
    cache, embed = _read_picture(llava, features_BPD).cache, llava.model.get_input_embeddings()
    ids_BT, said = prompts_BT.to(features_BPD.device), []
    ended_B = torch.zeros(len(ids_BT), dtype=torch.bool, device=ids_BT.device)
    while len(said) < most and not bool(ended_B.all()):
        hidden = llava.model.language_model(inputs_embeds=embed(ids_BT), past_key_values=cache, use_cache=True)
        ids_BT = llava.lm_head(hidden.last_hidden_state[:, -1:]).argmax(-1)
        said.append(ids_BT)
        ended_B |= ids_BT[:, 0] == end
    rows = torch.cat(said, 1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def wrong_answers(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, segments) of bool: where greedy decoding would leave the answer, that is where some word of it is not the
    likeliest so far."""
    wrong = (logits.argmax(-1).cpu() != batch["labels"]) & (batch["labels"] != NO_LABEL)
    segments = batch["segments"]
    return torch.stack([(wrong & (segments == s)).any(1) for s in range(1, int(segments.max()) + 1)], dim=1)
