"""Answers: what an answer of a contrast is in tokens, and how likely a model finds it.

An answer is tokenized behind the prompt and not by itself, because what a model says next depends on what it
has just read: after `ASSISTANT:` comes ` yes`, after `<|im_start|>assistant` and a line break comes `yes`.
Which of the two it is, the end of the chat template says. The answers that a model has given come back as
their own tokens; there is a test.

An answer is scored as far as it goes and not to the end of the sentence: "yes" counts for "yes" and for
"yes, it is". So where one answer begins with the other, the odds can only be against the longer one.

Axes: B samples, N answer tokens.
"""

from __future__ import annotations

import torch

from vsp_report.errors import CaseError
from vsp_report.maths.edits import Contrast
from vsp_report.model.vlm import Asked, Prompt, Vlm


def answer_ids(vlm: Vlm, text: str, place: str = "answer") -> tuple[int, ...]:
    """The tokens of an answer, as the model itself would say it after a prompt."""
    text = text.strip() if isinstance(text, str) else ""
    if not text:
        raise CaseError(place, "is empty", "Write the words that the model would answer.")
    tokenizer, before = vlm.tokenizer, _before(vlm)
    special = set(tokenizer.all_special_ids) | {vlm.model.config.image_token_id}
    read = _tokens(vlm, before)
    apart = before[-1:].isspace() or read[-1] in special
    behind = text if apart else f" {text}"
    joined = _tokens(vlm, before + behind)
    found = [joined[len(read) :]] if joined[: len(read)] == read else []
    # A template that ends in a space may lose it to the answer's first token; the model has read that space.
    found += [tokenizer(words, add_special_tokens=False)["input_ids"] for words in (behind, text)]
    for ids in found:
        if ids and special.isdisjoint(ids) and _letters(tokenizer.decode(ids)) == _letters(text):
            return tuple(ids)
    raise CaseError(place, f"{text!r} cannot be said in {vlm.name}'s tokens", "Take words that it knows.")


def contrast_ids(vlm: Vlm, contrast: Contrast) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the right answer and of the wrong one."""
    right = answer_ids(vlm, contrast.right, "contrast.right")
    wrong = answer_ids(vlm, contrast.wrong, "contrast.wrong")
    if right == wrong:
        raise CaseError(
            "contrast",
            f"its answers are the same in tokens ({contrast.right!r} and {contrast.wrong!r})",
            "Name two different answers.",
        )
    return right, wrong


def log_odds(vlm: Vlm, prompt: Prompt, contrast: Contrast) -> torch.Tensor:
    """(B,): log p(right) - log p(wrong) of whole answers, teacher-forced. Gradients flow if they are enabled."""
    right, wrong = contrast_ids(vlm, contrast)
    if len(right) == len(wrong) == 1:
        return first_log_odds(vlm.logits(prompt)[:, -1], right, wrong)
    return _log_prob(vlm, prompt, right) - _log_prob(vlm, prompt, wrong)


def first_log_odds(logits_BV: torch.Tensor, right: tuple[int, ...], wrong: tuple[int, ...]) -> torch.Tensor:
    """(B,): of answers that are one token each, from what the model gives right after the prompt."""
    return logits_BV[:, right[0]].float() - logits_BV[:, wrong[0]].float()


def _log_prob(vlm: Vlm, prompt: Prompt, ids: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([replay.log_probs_N.sum() for replay in vlm.replay(prompt, [ids] * len(prompt))])


def _before(vlm: Vlm) -> str:
    """What stands before an answer. A model without a template is asked by a line of its own."""
    if vlm.processor.chat_template is None and vlm.tokenizer.chat_template is None:
        return f"{vlm.processor.image_token}\n"
    return vlm._rendered(Asked(None, "x"))


def _tokens(vlm: Vlm, text: str) -> list[int]:
    bos = vlm.tokenizer.bos_token
    ids = vlm.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
    # Some tokenizers end every text with a token of their own, which would stand between prompt and answer.
    ends = vlm.tokenizer.eos_token_id
    return ids[:-1] if len(ids) > 1 and ids[-1] == ends and not text.endswith(vlm.tokenizer.eos_token) else ids


def _letters(text: str) -> str:
    """Tokenizers may lower the case and set spaces of their own."""
    return "".join(text.split()).casefold()
