"""Answers: a model's own words come back as its own tokens; log-odds are sums over whole answers."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.model.tiny_families import FAMILIES, picture, template, tiny
from vsp_report.errors import CaseError
from vsp_report.maths.edits import Contrast
from vsp_report.model.answers import answer_ids, log_odds
from vsp_report.model.vlm import Asked, Vlm, load_vlm


def words(vlm: Vlm, text: str) -> tuple[int, ...]:
    return tuple(vlm.tokenizer.convert_tokens_to_ids(text.split()))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_its_words(name: str) -> None:
    vlm = tiny(name)
    assert answer_ids(vlm, " standing on a chair\n") == words(vlm, "standing on a chair")


def test_what_the_bundled_model_says_comes_back_as_its_tokens() -> None:
    vlm = load_vlm("sketchworld")
    prompt = vlm.prepare_batch([Asked(picture(112, 112, seed=k), "What is this?") for k in range(3)])
    for answer in vlm.generate(prompt, 8):
        assert answer_ids(vlm, answer.text) == answer.ids != ()
    assert answer_ids(vlm, "Yes") == answer_ids(vlm, "yes")


class Saying:
    """As much of a Vlm as an answer's tokens depend on."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, ending: str) -> None:
        self.tokenizer, self.ending, self.name = tokenizer, ending, "saying"
        self.processor = type("Processor", (), {"chat_template": template("<image>"), "image_token": "<image>"})
        self.model = type("Model", (), {"config": type("Config", (), {"image_token_id": -1})})

    def _rendered(self, asked: Asked) -> str:
        return f"you:x{self.ending}"


def bpe(prefix_space: bool) -> PreTrainedTokenizerFast:
    """Sentencepiece's way, where a word carries the space before it, and a text begins with one."""
    letters = [*"abcdefghijklmnopqrstuvwxyz:,\n", "▁"]
    pairs = [("y", "e"), ("ye", "s"), ("▁", "yes"), ("n", "o"), ("▁", "no")]
    vocabulary = ["<unk>", "<s>", "</s>", *letters, *["".join(pair) for pair in pairs]]
    made = Tokenizer(models.BPE({word: k for k, word in enumerate(vocabulary)}, pairs, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix_space else "never")
    made.decoder = decoders.Metaspace(prepend_scheme="first" if prefix_space else "never")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("prefix_space", [True, False])
@pytest.mark.parametrize(("ending", "token"), [(" you:", "▁yes"), ("\n", "yes"), ("</s>", "yes")])
def test_the_space_before_an_answer_is_the_templates(prefix_space: bool, ending: str, token: str) -> None:
    vlm = Saying(bpe(prefix_space), ending)
    assert vlm.tokenizer.convert_ids_to_tokens(list(answer_ids(vlm, "yes"))) == [token]
    assert len(answer_ids(vlm, "yes, no")) == 3


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_log_odds_are_summed_over_whole_answers(name: str) -> None:
    vlm = tiny(name)
    asked = [Asked(picture(40, 70), "what is it ?"), Asked(picture(50, 30, seed=1), "what ?")]
    prompt = vlm.prepare_batch(asked)
    right, wrong = "sitting on a chair", "standing"
    score = {}
    for text in (right, wrong):
        ids = list(words(vlm, text))
        longer = vlm.continued(prompt, [ids, ids])
        logits = vlm.logits(longer, len(ids) + 1)[:, :-1].log_softmax(-1)
        score[text] = sum(logits[:, k, token] for k, token in enumerate(ids))
    found = log_odds(vlm, prompt, Contrast(right, wrong))
    assert found.shape == (2,)
    assert torch.allclose(found, score[right] - score[wrong], atol=1e-4)
    assert torch.allclose(log_odds(vlm, prompt, Contrast(wrong, right)), -found, atol=1e-5)


@torch.no_grad()
def test_answers_of_one_token_are_read_from_one_pass() -> None:
    vlm = tiny("llava")
    prompt = vlm.prepare(picture(40, 70), "what is it ?")
    right, wrong = ((vlm.replay(prompt, [words(vlm, text)])[0].log_probs_N.sum()) for text in ("sitting", "standing"))
    found = log_odds(vlm, prompt, Contrast("sitting", "standing"))
    assert torch.allclose(found, (right - wrong)[None], atol=1e-5)


@pytest.mark.parametrize("right", ["sitting", "sitting on a chair"])
def test_gradients_flow(right: str) -> None:
    vlm = tiny("llava")
    prompt = vlm.prepare(picture(40, 70), "what is it ?")
    pixels = prompt.inputs["pixel_values"].requires_grad_()
    log_odds(vlm, prompt, Contrast(right, "standing")).sum().backward()
    assert pixels.grad.abs().sum() > 0


BAD = [
    (Contrast("", "no"), "contrast.right: is empty."),
    (Contrast("sitting", " \n"), "contrast.wrong: is empty."),
    (Contrast("sitting", "sitting "), "contrast: its answers are the same in tokens"),
    (Contrast("sitting", "zebra"), "contrast.wrong: 'zebra' cannot be said in"),
    (Contrast("sitting", "<image>"), "contrast.wrong: '<image>' cannot be said in"),
    (Contrast("sitting", None), "contrast.wrong: is empty."),
    (Contrast("sitting", "​"), "contrast.wrong: '\\u200b' cannot be said in"),
]


@pytest.mark.parametrize(("contrast", "message"), BAD)
def test_what_is_no_contrast_is_an_error_with_its_place(contrast: Contrast, message: str) -> None:
    vlm = tiny("llava")
    prompt = vlm.prepare(picture(40, 70), "what is it ?")
    with pytest.raises(CaseError) as caught:
        log_odds(vlm, prompt, contrast)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
