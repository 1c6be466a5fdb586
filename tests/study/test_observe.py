"""Observe: what is told of a run is what capture, tokenizer and SAE say of it, each asked by itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import vsp_report
from tests.model.tiny_families import FAMILIES, picture, tiny
from vsp_report.errors import CaseError, CheckpointError, ImageError, ModelError, VspError
from vsp_report.model.capture import capture
from vsp_report.model.latents import active
from vsp_report.model.sae import Sae
from vsp_report.model.steering import see_states
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Vlm, load_vlm
from vsp_report.study.observe import Observation, _texts, load_sae, observe
from vsp_report.study.subjects import said_texts

PROMPT = "what is the person doing ?"


def system_of(name: str) -> str | None:
    return None if name.startswith("paligemma") else "you are careful ."


def made(vlm: Vlm, tap: str, latents: int = 40, k: int | None = None) -> Sae:
    prompt = vlm.prepare(picture(40, 70), "what ?")
    if tap.startswith("text"):
        width = vlm.model.get_decoder().config.hidden_size
    else:
        width = see_states(vlm, prompt, [Tap.parse(tap)])[Tap.parse(tap)].shape[-1]
    return Sae.untrained(0, width, latents, k=k).replace(tap=tap, name="made")


def looked(vlm: Vlm, name: str, **choices: object) -> Observation:
    sae = choices.pop("sae", None) or made(vlm, "vision.1")
    return observe(vlm, sae, picture(40, 70), PROMPT, system=system_of(name), max_new_tokens=4, **choices)


@pytest.mark.parametrize("row", ["predicting", "own"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_an_observation_is_what_its_parts_say(name: str, row: str) -> None:
    vlm = tiny(name)
    tap, sae = Tap("vision", 1), made(vlm, "vision.1")
    seen = looked(vlm, name, row=row, sae=sae)
    prompt = vlm.prepare(picture(40, 70), PROMPT, system_of(name))
    (said,) = vlm.generate(prompt, 4)
    ids = [token.id for token in seen.tokens if token.kind == "answer"]
    assert seen.answer == said.text and tuple(ids) == said.ids and seen.ended == said.ended
    assert [t.text.strip() for t in seen.tokens if t.kind == "prompt"] == PROMPT.split()
    assert [t.text.strip() for t in seen.tokens if t.kind == "system"] == (system_of(name) or "").split()
    if vlm.model.config.image_token_id in ids:
        return  # said by an untrained model, and not for a replay to read
    image = prompt.images[0]
    with capture(vlm, prompt, taps=[tap]) as plain:
        (replay,) = vlm.replay(prompt, [ids])
    T = prompt.ids_BT.shape[1]
    at = [t for t, kind in enumerate(prompt.kinds[0]) if kind != "image"] + list(range(T, T + 4))
    attention = plain.attention.of(0, at, row).numpy() @ image.tokens_IP.toarray()
    assert seen.attention_TP.shape == (len(seen.tokens), len(image.grid))
    assert np.allclose(seen.attention_TP, attention, atol=1e-5, equal_nan=True)
    assert np.isnan(seen.attention_TP).any(1).tolist() == [row == "predicting" and t == 0 for t in at]
    h_PL = sae.encode(plain.at(tap, prompt, 0)).numpy()
    assert np.allclose(seen.latents_PL.toarray(), h_PL, atol=1e-5)
    assert np.array_equal(seen.boxes_P4, image.grid.boxes_P4, equal_nan=True)
    latents_K, values_TK = seen.token_latents
    assert latents_K.tolist() == np.flatnonzero(h_PL.any(0)).tolist()
    assert np.allclose(values_TK, (seen.attention_TP @ h_PL)[:, latents_K], atol=1e-4, equal_nan=True)
    log_probs = [token.log_prob for token in seen.tokens]
    assert np.allclose(log_probs[-4:], replay.log_probs_N.numpy(), atol=1e-3) and set(log_probs[:-4]) == {None}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tap_has_its_sites(name: str) -> None:
    vlm = tiny(name)
    for tap in ("connector", "text.1"):
        if tap == "text.1" and vlm.family.cross:
            with pytest.raises(ModelError, match=r"^text\.1: .* cross-attends to the image"):
                looked(vlm, name, sae=made(vlm, tap))
            continue
        seen = looked(vlm, name, sae=made(vlm, tap))
        P = len(seen.boxes_P4)
        assert seen.attention_TP.shape == (len(seen.tokens), P) and seen.latents_PL.shape[0] == P
        assert seen.tap == tap and np.nanmax(seen.boxes_P4) <= 70


def test_an_answer_that_is_given_is_read() -> None:
    vlm = tiny("llava")
    said = looked(vlm, "llava")
    given = looked(vlm, "llava", answer=" sitting on a chair")
    assert given.answer == "sitting on a chair" and not given.ended
    assert [t.text.strip() for t in given.tokens if t.kind == "answer"] == "sitting on a chair".split()
    assert all(t.log_prob < 0 for t in given.tokens if t.kind == "answer")
    n = len(said.positions("template", "system", "prompt"))
    assert np.allclose(said.attention_TP[1:n], given.attention_TP[1:n], atol=1e-5)


def test_layers_and_heads_are_chosen() -> None:
    vlm = tiny("llava")
    whole = looked(vlm, "llava").attention_TP
    by_layer = [looked(vlm, "llava", layers=[k]).attention_TP for k in range(4)]
    by_head = [looked(vlm, "llava", heads=[k]).attention_TP for k in range(4)]
    for parts in (by_layer, by_head):
        assert np.allclose(np.mean(parts, 0), whole, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("k", [None, 3])
def test_sparse_latents_are_the_dense_ones(k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsp_report.model.latents.LATENTS_BYTES", 4 * 40 * 3)
    sae, z_SD = Sae.untrained(0, 8, 40, k=k), torch.randn(10, 8)
    found = active(sae, z_SD)
    assert np.allclose(found.toarray(), sae.encode(z_SD).numpy(), atol=1e-6) and found.shape == (10, 40)
    assert found.nnz == int((sae.encode(z_SD) > 0).sum())


def test_the_bundled_world_is_observed_through_the_public_names() -> None:
    vlm, sae = vsp_report.load_vlm("sketchworld"), vsp_report.load_sae("sketchworld/vision.2")
    seen = vsp_report.observe(vlm, sae, picture(112, 112), "What is this?", max_new_tokens=8)
    assert seen.answer and seen.tap == "vision.2" and seen.latents_PL.nnz > 0
    n = np.diff(seen.latents_PL.indptr)
    assert n.max() <= sae.k and (seen.attention_TP[1:].sum(1) < 1).all()


def test_the_public_names_are_found_late() -> None:
    assert set(vsp_report.__all__) <= set(dir(vsp_report))
    assert all(getattr(vsp_report, name) is not None for name in vsp_report.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vsp_report.nothing  # noqa: B018
    code = "import sys; from vsp_report import Steering, Edit, Region, Contrast; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# --- words -------------------------------------------------------------------------------------------------------


def _of_bytes(kind: str) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A tokenizer that has a token for each byte and a few words, and a text with characters of two to four of them."""
    if kind == "bytes as letters":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
        return tokenizer, tokenizer(TEXT)["input_ids"]
    names = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁a", "▁cup", "▁"]
    made = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, [], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    words = [names.index({"a": "▁a", "cup": "▁cup"}[word]) if word.isascii() else None for word in TEXT.split(" ")]
    ids = []
    for word, number in zip(TEXT.split(" "), words, strict=True):
        ids += [number] if number is not None else [258, *word.encode()]
    return PreTrainedTokenizerFast(tokenizer_object=made), ids


TEXT = "a cup é€ 😀😁 a 茶 cup"


@pytest.mark.parametrize("kind", ["bytes as letters", "bytes as tokens"])
@pytest.mark.parametrize("told", [_texts, said_texts])
def test_a_character_of_several_tokens_is_told_whole_with_the_last_of_them(told, kind: str) -> None:
    tokenizer, ids = _of_bytes(kind)
    texts = told(tokenizer, ids)
    assert len(texts) == len(ids) and "".join(texts).strip() == TEXT and "\ufffd" not in "".join(texts)
    assert [text for text in texts if not text.isascii()] == list("é€😀😁茶")
    assert texts[-1] in ("p", " cup")


@pytest.mark.parametrize("told", [_texts, said_texts])
def test_an_answer_that_is_cut_within_a_character_shows_that_it_is(told) -> None:
    tokenizer, ids = _of_bytes("bytes as letters")
    at = len("a cup é€ ".encode())
    assert told(tokenizer, ids[: at + 2])[at - 1 :] == [" ", "", "\ufffd"]
    assert told(tokenizer, []) == []


BAD = {
    "row": ({"row": "last"}, ModelError, "row: is 'last'."),
    "length": ({"max_new_tokens": 0}, ModelError, "max_new_tokens: is 0."),
    "answer": ({"answer": "zebra"}, CaseError, "answer: 'zebra' cannot be said"),
    "no answer": ({"answer": " "}, CaseError, "answer: is empty."),
    "layer": ({"layers": [9]}, ModelError, "layers: 9 is not in"),
    "head": ({"heads": [9]}, ModelError, "heads: 9 is not in"),
    "tap": ({"tap": "vision.9"}, ModelError, "tap: vision.9 is not in"),
    "width": ({"tap": "text.1"}, CheckpointError, "made: reads states 24 wide; text.1 of"),
    "image": ({"image": "no/such.png"}, ImageError, "no/such.png: there is no such file."),
    "prompt": ({"prompt": "what <image> ?"}, ModelError, "prompt: it contains <image>"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_place_fault_and_remedy(case: str) -> None:
    changes, kind, message = BAD[case]
    vlm = tiny("llava")
    asked = {"image": picture(40, 70), "prompt": PROMPT, "max_new_tokens": 2} | changes
    with pytest.raises(VspError) as caught:
        observe(vlm, made(vlm, "vision.1"), asked.pop("image"), asked.pop("prompt"), **asked)
    assert type(caught.value) is kind and str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) and caught.value.remedy


def test_a_bundled_sae_is_found_by_its_name() -> None:
    assert load_sae("sketchworld/vision.2").tap == "vision.2" and load_vlm("sketchworld").name == "sketchworld"
