"""The recipe runs, leaves ordinary directories behind, and goes on where it was cut short."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel

from vsp_report.errors import InputError
from vsp_report.model.checkpoints import load_sae
from vsp_report.sketchworld import language, rules, train
from vsp_report.sketchworld.autoencoders import SAES
from vsp_report.sketchworld.models import FEATURE_LAYER, PATCHES, make_clip, make_llava, normalized
from vsp_report.sketchworld.packing import NO_LABEL, Packer, text_logits, wrong_answers
from vsp_report.sketchworld.pool import draw_pool
from vsp_report.sketchworld.rules import Question


def test_a_quick_run_leaves_everything_that_ships(quick_weights):
    record = json.loads((quick_weights / "training.json").read_text())
    stages = {row["stage"].split()[0] for row in record["curve"]}
    assert stages == {"pool", "tower", "words", "language", "sae"}
    assert record["recipe"]["seed"] == 0 and record["versions"]["torch"] == torch.__version__
    assert set(record["seconds"]) == {"clip", "llava", "saes"}
    assert {p.name for p in (quick_weights / "saes").iterdir()} == set(SAES)
    assert (quick_weights / "README.md").read_text().count("<!-- figures -->") == 1
    for name, plan in SAES.items():
        sae = load_sae(quick_weights / "saes" / name)
        assert (sae.tap, sae.d_sae) == (plan.tap, 32 * sae.d_in)


def test_all_weights_fit_the_limit(quick_weights):
    assert sum(p.stat().st_size for p in quick_weights.rglob("*") if p.is_file()) <= 16_000_000


def test_llava_and_clip_share_one_tower(quick_weights):
    clip = CLIPModel.from_pretrained(quick_weights / "clip").vision_model.state_dict()
    tower = AutoModelForImageTextToText.from_pretrained(quick_weights / "sketchworld").model.vision_tower
    tower = getattr(tower, "vision_model", tower).state_dict()
    assert clip.keys() == tower.keys() and all(torch.equal(clip[k], tower[k]) for k in clip)


def test_the_saved_model_answers_through_the_ordinary_classes(quick_weights):
    model = AutoModelForImageTextToText.from_pretrained(quick_weights / "sketchworld", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(quick_weights / "sketchworld", backend="pil")
    prompt = processor.apply_chat_template(language.conversation("Describe the image."), add_generation_prompt=True)
    inputs = processor(images=rules.sample_scene(3).draw(384), text=prompt, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == PATCHES
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]


def test_finished_stages_are_not_run_again(quick_weights, tmp_path, monkeypatch):
    work = tmp_path / "work"
    monkeypatch.setattr(train, "train_saes", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "out", work=work, device="cpu", quick=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(train, "train_tower", lambda *a: pytest.fail("the tower was trained again"))
    train.train(tmp_path / "out", work=work, device="cpu", quick=True)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert [row["stage"] for row in record["curve"]].count("tower") == 2
    with pytest.raises(InputError, match="holds the stages of another recipe"):
        train.train(tmp_path / "other", work=work, device="cpu", quick=True, seed=1)


def test_what_is_there_is_not_written_over(tmp_path):
    with pytest.raises(InputError, match="is there already"):
        train.train(tmp_path, quick=True)


# --- packing -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    llava = make_llava(make_clip()).eval()
    scenes = [rules.sample_scene(i, "cups") for i in range(3)]
    pool = draw_pool(0, 3, 96, 12, family="cups", workers=1)
    assert pool.scenes == scenes
    with torch.no_grad():
        seen = llava.model.vision_tower(normalized(pool.pixels, "cpu"), output_hidden_states=True)
    return llava, scenes, seen.hidden_states[FEATURE_LAYER][:, 1:]


@torch.no_grad()
def test_packed_questions_do_not_see_each_other(fresh):
    """The law of the block mask: a question's logits are those it has alone."""
    llava, scenes, features = fresh
    asked = [rules.questions(scene, 1) for scene in scenes]
    packed = Packer().batch(asked)
    together = text_logits(llava, features, packed)
    for row, questions in enumerate(asked):
        for number, question in enumerate(questions, start=1):
            alone = Packer().batch([[question]])
            lonely = text_logits(llava, features[row : row + 1], alone)[0]
            assert torch.allclose(together[row][packed["segments"][row] == number], lonely, atol=1e-4)


@torch.no_grad()
def test_packing_equals_the_ordinary_forward_pass(fresh, quick_weights):
    llava, scenes, features = fresh
    processor = AutoProcessor.from_pretrained(quick_weights / "sketchworld", backend="pil")
    question = Question(rules.DESCRIBE, rules.caption(scenes[0]))
    prompt = processor.apply_chat_template(language.conversation(question.text), add_generation_prompt=True)
    ids = processor.tokenizer(f"{prompt} {question.answer}", return_tensors="pt").input_ids
    at = int((ids[0] == 4).nonzero()[0])
    ids = torch.cat([ids[:, :at], torch.full((1, PATCHES), 4), ids[:, at + 1 :]], dim=1)
    pixels = normalized(draw_pool(0, 1, 96, 12, family="cups", workers=1).pixels, "cpu")
    expected = llava(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits[0, PATCHES:]
    packed = Packer().batch([[question]])
    ours = text_logits(llava, features[:1], packed)[0]
    assert torch.allclose(ours, expected[: len(ours)], atol=1e-4)


def test_an_answer_is_wrong_where_one_word_is():
    packed = Packer().batch([[Question("What is this?", "a fish"), Question("What is this?", "a star")]])
    logits = torch.nn.functional.one_hot(packed["labels"].clamp_min(0), 110).float()
    assert wrong_answers(logits, packed).tolist() == [[False, False]]
    last = int(((packed["segments"][0] == 2) & (packed["labels"][0] != NO_LABEL)).nonzero()[1])
    logits[0, last] = torch.nn.functional.one_hot(torch.tensor(0), 110).float()
    assert wrong_answers(logits, packed).tolist() == [[False, True]]


def test_the_pool_is_the_same_in_one_process_and_in_two():
    one, two = draw_pool(50, 450, 96, 12, workers=1), draw_pool(50, 450, 96, 12, workers=2)
    assert one.scenes == two.scenes
    assert all(np.array_equal(a, b) for a, b in zip(one[1:], two[1:], strict=True))


def test_a_device_that_is_not_there_is_said_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train, "draw_pool", lambda *a, **k: pytest.fail("scenes were drawn"))
    with pytest.raises(InputError, match=r"--device: is cuda, and torch finds none\. Take cpu or auto"):
        train.train(tmp_path / "out", device="cuda")
    assert list(tmp_path.iterdir()) == []


def test_a_word_is_said_by_few_patches_and_never_where_it_is_not():
    words = torch.tensor([[1.0, 0.0]])

    def cost(said: int, not_there: int = 0) -> float:
        logits = torch.full((1, PATCHES, 2), -6.0)
        logits[0, :said, 0] = logits[0, :not_there, 1] = 6.0
        return float(train._said_in_place(logits, words))

    few = cost(train.WITNESSES)
    assert cost(train.SPEAKERS) <= few + 1e-3, "as many as may speak"
    assert few < cost(train.SPEAKERS + 6) < cost(PATCHES), "everyone more costs"
    assert cost(0) > 10 * few, "somebody has to say it"
    assert cost(train.WITNESSES, train.WITNESSES) > 10 * few, "nobody says what is not there"
