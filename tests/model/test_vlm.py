"""VLM: every family through load, prepare, generate and replay; then what a user can get wrong."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.smolvlm import processing_smolvlm

from tests.model.tiny_families import FAMILIES, build, image_only, picture, template, tiny
from vsp_report import paths
from vsp_report.errors import ImageError, ModelError
from vsp_report.model.capture import capture
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import KINDS, Asked, load_image, load_vlm

PROMPT, SYSTEM = "what is the person doing ?", "you are careful ."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llava"
    built = build("llava")
    built.model.save_pretrained(folder)
    built.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "llava"))


def system_of(name: str) -> str | None:
    return None if name.startswith("paligemma") else SYSTEM


# --- preparing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_knows_whose_it_is(name: str) -> None:
    vlm, system = tiny(name), system_of(name)
    prompt = vlm.prepare(picture(40, 70), PROMPT, system)
    (kinds,), ids = prompt.kinds, prompt.ids_BT[0].tolist()
    assert len(kinds) == len(ids) and set(kinds) <= set(KINDS)
    said = {
        kind: [vlm.tokenizer.convert_ids_to_tokens(ids[t]) for t in prompt.positions(0, kind)]
        for kind in KINDS
    }
    assert said["prompt"] == PROMPT.split() and said["system"] == (system or "").split()
    assert not said["padding"] and not said["answer"]
    if vlm.family.cross:
        assert not said["image"] and "<|image|>" in said["template"]
    else:
        assert prompt.positions(0, "image") == prompt.images[0].columns_I.tolist() != []


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "idefics3", "mllama"])
def test_a_batch_is_its_prompts(name: str) -> None:
    """Padding, tiles and packed patches of the one change nothing for the other."""
    vlm = tiny(name)
    asked = [Asked(picture(40, 70), PROMPT, SYSTEM), Asked(picture(90, 31, seed=1), "what ?")]
    together, singly = vlm.prepare_batch(asked), [vlm.prepare_batch([one]) for one in asked]
    tap = Tap("vision", 1)
    with capture(vlm, together, taps=[tap]) as all_seen, torch.no_grad():
        logits = vlm.logits(together)
    for b, prompt in enumerate(singly):
        pad = together.kinds[b].count("padding")
        assert together.kinds[b][pad:] == prompt.kinds[0]
        with capture(vlm, prompt, taps=[tap]) as seen, torch.no_grad():
            assert torch.allclose(logits[b], vlm.logits(prompt)[0], atol=1e-3)
        assert torch.allclose(all_seen.at(tap, together, b), seen.at(tap, prompt, 0), atol=1e-5)
        t = prompt.positions(0, "prompt")
        ours = all_seen.attention.of(b, [pad + k for k in t])
        assert torch.allclose(ours, seen.attention.of(0, t), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_repeated_prompt_is_the_prompt_again(name: str) -> None:
    vlm = tiny(name)
    prompt = vlm.prepare_batch(
        [Asked(picture(40, 70), "what is it ?"), Asked(picture(50, 30, seed=1), "what ?")]
    )
    thrice = prompt.repeat(3)
    assert len(thrice) == 6
    for tap in (Tap("vision", 1), Tap("connector")):
        with capture(vlm, thrice, taps=[tap]) as seen, torch.no_grad():
            logits = vlm.logits(thrice)
        for b in range(6):
            assert torch.allclose(seen.at(tap, thrice, b), seen.at(tap, thrice, b % 2), atol=1e-6)
            assert torch.allclose(logits[b], logits[b % 2], atol=1e-4)
        assert not torch.allclose(seen.at(tap, thrice, 0)[:4], seen.at(tap, thrice, 1)[:4], atol=1e-3)


def test_smolvlm_prompts_are_its_own_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read with Idefics3's, because its own asks for a package that only videos need."""
    monkeypatch.setattr(processing_smolvlm, "num2words", lambda n: str(n))
    vlm = tiny("smolvlm")
    own = image_only(processing_smolvlm.SmolVLMProcessor)(
        image_processor=vlm.processor.image_processor, tokenizer=vlm.tokenizer, image_seq_len=4,
        chat_template=template("<image>"), video_processor=None,
    )  # fmt: skip
    for shape in ((40, 70), (10, 10), (90, 31)):
        text = vlm.processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
        theirs = own(images=[[picture(*shape)]], text=[text], return_tensors="pt")
        ours = vlm.processor(images=[[picture(*shape)]], text=[text], return_tensors="pt")
        assert torch.equal(theirs["input_ids"], ours["input_ids"])
        assert torch.equal(theirs["pixel_values"], ours["pixel_values"])


# --- answering ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_what_the_model_finds_likeliest(name: str) -> None:
    vlm = tiny(name)
    asked = [Asked(picture(40, 70), PROMPT, system_of(name)), Asked(picture(50, 30, seed=1), "what ?")]
    prompt = vlm.prepare_batch(asked)
    answers = vlm.generate(prompt, 5)
    assert [len(answer.ids) for answer in answers] == [5, 5] and not answers[0].ended
    with torch.no_grad():
        replays = vlm.replay(prompt, [answer.ids for answer in answers])
    assert [tuple(replay.greedy_N.tolist()) for replay in replays] == [answer.ids for answer in answers]
    assert all((replay.log_probs_N <= 0).all() for replay in replays)


def test_a_replay_is_the_chain_of_single_steps() -> None:
    """Two answers of different lengths at once, against one word at a time."""
    vlm = tiny("gemma3")
    prompt = vlm.prepare_batch(
        [Asked(picture(40, 70), PROMPT, SYSTEM), Asked(picture(50, 30, seed=1), "what ?")]
    )
    answers = [[20, 21, 22, 23], [24, 25]]
    with torch.no_grad():
        replays = vlm.replay(prompt, answers)
        for b, ids in enumerate(answers):
            for k, token in enumerate(ids):
                sofar = vlm.continued(prompt, [ids[:k], ids[:k]])
                step = vlm.logits(sofar)[b, -1].log_softmax(-1)
                assert replays[b].log_probs_N[k] == pytest.approx(float(step[token]), abs=1e-3)
                assert replays[b].greedy_N[k] == step.argmax()
    longer = vlm.continued(prompt, answers)
    assert longer.kinds[1][-4:] == ("answer", "answer", "padding", "padding")
    assert longer.mask_BT[1, -4:].tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="1 answers for 2 prompts"):
        vlm.replay(prompt, [[5]])


def test_an_answer_ends_where_the_model_ends_it() -> None:
    vlm = tiny("llava")
    prompt = vlm.prepare(picture(40, 70), PROMPT)
    (free,) = vlm.generate(prompt, 6)
    stop = free.ids[2]
    first = free.ids.index(stop)
    try:
        for ends in (stop, [stop, 1]):
            vlm.model.generation_config.eos_token_id = ends
            (answer,) = vlm.generate(prompt, 6)
            assert answer.ids == free.ids[:first] and answer.ended
    finally:
        vlm.model.generation_config.eos_token_id = None
    assert free.text == vlm.tokenizer.decode(free.ids, skip_special_tokens=True).strip() and not free.ended


def test_whatever_a_checkpoint_asks_for_answers_are_greedy(copy: Path) -> None:
    asked = {
        "do_sample": True,
        "temperature": 2.0,
        "num_beams": 3,
        "repetition_penalty": 9.0,
        "eos_token_id": 3,
    }
    (copy / "generation_config.json").write_text(json.dumps(asked))
    vlm = load_vlm(copy)
    prompt = vlm.prepare(picture(40, 70), PROMPT)
    (answer,) = vlm.generate(prompt, 6)
    (replay,) = vlm.replay(prompt, [answer.ids])
    assert tuple(replay.greedy_N.tolist()) == answer.ids
    assert vlm.model.generation_config.eos_token_id == 3 and not vlm.model.training
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())


# --- loading -----------------------------------------------------------------------------------------------------


def test_names_of_bundled_models_and_directories(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "bundled", lambda name: saved if name == "world" else None)
    assert load_vlm("world").name == "world"
    vlm = load_vlm(saved, dtype="bfloat16", device="auto")
    assert vlm.model.dtype == torch.bfloat16 and vlm.name == str(saved)
    assert vlm.processor.image_processor.backend == "pil"


def failure(name: object, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_vlm(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_that_lead_nowhere(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sketchwrld", "./nowhere", "/no/where/at/all", "a/b/c", copy / "config.json"):
        assert "is neither a bundled model, nor a directory, nor a Hub id" in failure(name)
    for name in ("nobody/nothing", "nobody/nothing@v1"):  # offline, in the tests
        assert "cannot be loaded" in failure(name)
    (copy / "config.json").unlink()
    assert "has no config.json" in failure(copy)


def test_directories_that_are_no_model(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    for model_type in ("bert", "kosmos-99", None):
        (copy / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        assert f"model_type {model_type!r} is not in vsp_report.model.families.REGISTRY" in failure(copy)
    (copy / "config.json").write_text("{")
    assert "cannot be loaded" in failure(copy)
    (copy / "config.json").write_text(json.dumps(config))
    weights = load_file(copy / "model.safetensors")
    dropped = next(key for key in weights if "q_proj" in key)
    kept = {key: value for key, value in weights.items() if key != dropped}
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    assert "lacks 1 of its weights" in failure(copy)
    (copy / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      and then nothing")
    assert "cannot be loaded" in failure(copy)
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert "cannot be loaded" in failure(copy)  # pickles are not opened


def test_options_that_are_not_there(saved: Path) -> None:
    assert "dtype: 'float33' is none of auto, float32" in failure(saved, dtype="float33")
    assert "cannot be loaded" in failure(saved, device="mars")
    if not torch.cuda.is_available():
        assert "cannot be loaded" in failure(saved, device="cuda")


# --- prompts that cannot be asked --------------------------------------------------------------------------------


def test_a_prompt_that_speaks_for_the_image_is_refused() -> None:
    vlm, image = tiny("llava"), picture(40, 70)
    for prompt, system in (("what <image> ?", None), ("what ?", "you <image>")):
        with pytest.raises(ModelError, match="<image>, which stands for an image"):
            vlm.prepare(image, prompt, system)
    with pytest.raises(ModelError, match="system: PaliGemma has no place for it"):
        tiny("paligemma").prepare(image, "what ?", SYSTEM)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{{ messages[-1]['content'][1]['text'] }}", "places 0 images where one is given"),
        ("<image><image>{{ messages[-1]['content'][1]['text'] }}", "places 2 images"),
        ("<image>{{ messages[-1]['content'][1]['text'] }}", "leaves out or changes the system text"),
        ("<image>{{ messages[0]['content'][0]['text'] }}", "leaves out or changes the prompt text"),
        ("{{ raise_exception('no system here') }}", "its chat template fails .no system here"),
        ("{% if %}", "its chat template fails"),
        (None, "has no chat template"),
    ],
)
def test_templates_that_do_not_fit(template: str | None, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("llava")
    monkeypatch.setattr(vlm.processor, "chat_template", template)
    monkeypatch.setattr(vlm.tokenizer, "chat_template", None)
    with pytest.raises(ModelError, match=match) as caught:
        vlm.prepare(picture(40, 70), PROMPT, SYSTEM)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_is_too_long_is_refused() -> None:
    vlm = tiny("llava")
    with pytest.raises(ModelError, match="has room for 512"):
        vlm.prepare(picture(40, 70), "what " * 600)
    prompt = vlm.prepare(picture(40, 70), "what ?")
    with pytest.raises(ModelError, match="has room for 512"):
        vlm.generate(prompt, 500)
    with pytest.raises(ModelError, match="has room for 512"):
        vlm.replay(prompt, [[5] * 500])


# --- pictures ----------------------------------------------------------------------------------------------------


def refused(path: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    text, cut, empty = tmp_path / "notes.png", tmp_path / "cut.png", tmp_path / "empty.jpg"
    text.write_text("not a picture")
    picture(40, 70).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    empty.touch()
    for path in (text, cut, empty):
        assert refused(path).startswith(f"{path}: cannot be read as a picture")
    assert "there is no such file" in refused(tmp_path / "nothing.png")
    assert "there is no such file" in refused(tmp_path)
    assert "is a web address" in refused("https://example.org/cat.png")
    assert "cannot be read as a picture" in refused(b"bytes")
    assert "longer than 200 to 1" in refused(picture(1, 201))
    with pytest.raises(ImageError):
        tiny("llava").prepare(text, "what ?")


@pytest.mark.parametrize("limit", [1500, 2500])
def test_a_decompression_bomb_is_refused(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL raises for twice its limit, and only warns below that."""
    picture(50, 80).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "decompression bomb" in refused(tmp_path / "bomb.png")


def test_pictures_come_upright_and_in_colour(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # taken with the camera on its side
    picture(40, 70).save(tmp_path / "turned.jpg", exif=turned)
    assert load_image(tmp_path / "turned.jpg").size == (40, 70)
    for mode in ("L", "P", "RGBA", "1", "CMYK", "I;16"):
        assert load_image(Image.new(mode, (30, 20))).mode == "RGB"
    vlm = tiny("llava")
    assert vlm.prepare(tmp_path / "turned.jpg", "what ?").images[0].size == (70, 40)


def test_what_a_processor_cannot_take_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("qwen2_vl")

    def refuse(*args: object, **kwargs: object) -> None:
        raise ValueError("absolute aspect ratio must be smaller\nand more")

    monkeypatch.setattr(type(vlm.processor), "__call__", refuse)
    with pytest.raises(
        ImageError, match=r"cannot take it \(absolute aspect ratio must be smaller\)"
    ) as caught:
        vlm.prepare(picture(40, 70), "what ?")
    assert "\n" not in str(caught.value)
