"""Packing: several questions of one picture in one sequence, each seeing the picture and itself only.

Each starts where the picture ends. Without the block mask later questions would read the answers of earlier ones.
"""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration

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


def text_logits(
    llava: LlavaForConditionalGeneration, features_BPD: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """(B, text, vocabulary): the logits that predict every text token, from the picture's features on."""
    device = features_BPD.device
    ids, segments, places = (batch[k].to(device) for k in ("ids", "segments", "places"))
    inner, rows = llava.model, len(ids)
    embed = inner.get_input_embeddings()
    start = torch.full((rows, 1), 2, device=device)
    image = inner.multi_modal_projector(features_BPD)
    embeds = torch.cat([embed(start).to(image.dtype), image, embed(ids).to(image.dtype)], dim=1)
    head = 1 + features_BPD.shape[1]
    segment = torch.cat(
        [torch.zeros(rows, head, dtype=torch.long, device=device), torch.where(segments > 0, segments, -1)], dim=1
    )
    position = torch.cat([torch.arange(head, device=device).expand(rows, -1), places + head], dim=1)
    length = head + ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = ((segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)) & causal
    seen = inner.language_model(
        inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=position, use_cache=False
    )
    hidden = seen.last_hidden_state
    first = (places == 0) & (segments > 0)  # a segment's first token follows the picture, not the segment before it
    before = torch.where(first[..., None], hidden[:, head - 1 : head], hidden[:, head - 1 : -1])
    return llava.lm_head(before)


def wrong_answers(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, segments) of bool: where greedy decoding would leave the answer, that is where some word of it is not the
    likeliest so far."""
    wrong = (logits.argmax(-1).cpu() != batch["labels"]) & (batch["labels"] != NO_LABEL)
    segments = batch["segments"]
    return torch.stack([(wrong & (segments == s)).any(1) for s in range(1, int(segments.max()) + 1)], dim=1)
