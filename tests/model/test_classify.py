"""Classify: CLIP's own arithmetic, class lists and their errors, and edits of the tower against a plain hook."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.model.tiny_families import picture
from vsp_report.errors import CaseError, CheckpointError, ModelError, SteeringError
from vsp_report.maths.edits import Edit, Region, Steering
from vsp_report.model.class_lists import CLASS_LISTS, ClassList, load_classes
from vsp_report.model.classify import Clip, Scores, classify, load_clip
from vsp_report.model.sae import Sae
from vsp_report.model.steering import see_states
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import load_vlm
from vsp_report.sketchworld import rules


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("sketchworld-clip")


@pytest.fixture(scope="module")
def sae(clip: Clip) -> Sae:
    return Sae.untrained(0, clip.model.config.vision_config.hidden_size, 64, k=6).replace(tap="vision.3")


PLAIN = ClassList("plain", ("fish", "duck", "chair", "hand"), ("a {}",))


def drawn(seed: int = 3) -> Image.Image:
    return rules.sample_scene(seed, "portraits").draw(192)


# --- class lists ---------------------------------------------------------------------------------------------------


def test_the_world_s_list_is_the_world_s() -> None:
    assert CLASS_LISTS["sketchworld"].classes == rules.PORTRAITS
    assert all(len(built_in.classes) >= 10 for built_in in CLASS_LISTS.values())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "red cup\n\n# a comment\n cat  # a pet\ndog\n"),
        ("a.yaml", "---\n- red cup\n- 'cat'\n- \"dog\" # a pet\n"),
        ("a.yml", '["red cup", "cat", "dog"]'),
        ("bom.txt", "\ufeffred cup\ncat\ndog"),
    ],
)
def test_a_file_of_one_s_own(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_classes(tmp_path / name).classes == ("red cup", "cat", "dog")
    assert load_classes("animals") is CLASS_LISTS["animals"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "there is none"),
        ("a.txt", "# nothing\n", "there is none"),
        ("a.txt", "cat", "there is only 'cat'"),
        ("a.txt", "cat\ndog\n Cat", "'cat' is there twice"),
        ("a.yaml", "classes:\n- cat\n- dog", ":1: 'classes:' is no plain word"),
        ("a.yaml", "cat: 1\ndog: 2", ":1: is no list"),
        ("a.yaml", "- cat\n- {dog: 1}", ":2: '- {dog: 1}' is no plain word"),
        ("a.yaml", "- cat\n-", ":2: '-' is no plain word"),
        ("a.yaml", "['cat', 'dog']", ":1: is no list"),
        ("a.yaml", '["cat", 3]', "3 is no name"),
        ("a.yaml", '["cat", " "]', "classes[1]: is empty"),
    ],
)
def test_what_is_no_class_list_is_one_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CaseError) as caught:
        load_classes(tmp_path / name)
    assert said in str(caught.value) and "\n" not in str(caught.value) and caught.value.remedy


def test_a_file_that_is_no_text_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00cat")
    with pytest.raises(CaseError, match="is no text in UTF-8"):
        load_classes(tmp_path / "a.txt")
    with pytest.raises(CaseError, match="neither a file nor a class list"):
        load_classes("animls")


@pytest.mark.parametrize("templates", [(), ("a cat",), ("{} and {}",), ("a {name}",), ("a {} }",), ("a {}", "a {}")])
def test_templates_have_one_place_for_the_class(templates: tuple[str, ...]) -> None:
    with pytest.raises(CaseError) as caught:
        PLAIN.with_templates(*templates)
    assert str(caught.value).startswith("plain: templates: ") and caught.value.remedy


# --- probabilities -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_probabilities_are_the_model_s_own(clip: Clip) -> None:
    """One template is what CLIPModel itself computes."""
    found = classify(clip, drawn(), PLAIN).before
    tokens = clip.tokenizer(PLAIN.sentences("a {}"), padding=True, return_tensors="pt")
    pixels = clip.pixels(images=[drawn()], return_tensors="pt")["pixel_values"]
    inputs = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    own_C = clip.model(**inputs, pixel_values=pixels).logits_per_image[0]
    assert np.allclose(found.logits_C, own_C, atol=1e-4)
    assert np.allclose(found.probabilities_C, own_C.softmax(-1), atol=1e-5)
    assert found.log_odds("duck", "fish") == pytest.approx(float(own_C[1] - own_C[0]), abs=1e-4)


def test_templates_are_averaged_between_embeddings(clip: Clip) -> None:
    singly = [clip.classes(PLAIN.with_templates(t)).embeddings_CE for t in ("a {}", "a color {}")]
    both = clip.classes(PLAIN.with_templates("a {}", "a color {}"))
    mean = torch.nn.functional.normalize(torch.stack(singly).mean(0), dim=-1)
    assert torch.allclose(both.embeddings_CE, mean, atol=1e-6) and both.unread == ()


def test_the_world_s_kinds_are_recognised(clip: Clip) -> None:
    """Far above chance (1 in 40); how well is for the evaluation to say."""
    classes = clip.classes(CLASS_LISTS["sketchworld"])
    scenes = [rules.sample_scene(9_000 + k, "portraits") for k in range(12)]
    right = [classify(clip, scene.draw(192), classes).before.top(1)[0].name == rules.kind_of(scene) for scene in scenes]
    assert sum(right) >= 6


def test_the_likeliest_come_first() -> None:
    scores = Scores("x", ("a", "b", "c"), np.array([1.0, 3.0, 2.0]))
    assert [name for name, _ in scores.top(2)] == ["b", "c"] and scores.top(0) == []
    assert sum(p for _, p in scores.top(9)) == pytest.approx(1)
    with pytest.raises(CaseError, match="'d' is none of the classes"):
        scores.log_odds("a", "d")


def test_words_that_the_model_does_not_know(clip: Clip) -> None:
    with pytest.raises(CaseError, match=r"plain: classes\[1\]: sketchworld-clip does not know 'zebra'"):
        clip.classes(ClassList("plain", ("fish", "zebra"), ("a {}",)))
    assert clip.classes(PLAIN.with_templates("a {}", "a photo of a {}")).unread == ("a photo of a {}",)
    with pytest.raises(CaseError, match="tokens that sketchworld-clip reads"):
        clip.classes(PLAIN.with_templates("a " * 60 + "{}"))


# --- steering ------------------------------------------------------------------------------------------------------


def hooked(clip: Clip, states: torch.Tensor, layer: int) -> np.ndarray:
    """The slow reference: everything computed, one picture at a time, states put in by a plain hook."""
    handle = clip.family.vision_layers(clip.model)[layer].register_forward_hook(
        lambda module, args, out: states, prepend=True
    )
    try:
        with torch.no_grad():
            return clip.logits(clip.read(drawn()).pixels_BCHW, clip.classes(PLAIN))[0].double().numpy()
    finally:
        handle.remove()


def clean_states(clip: Clip, layer: int) -> torch.Tensor:
    seen = {}
    handle = clip.family.vision_layers(clip.model)[layer].register_forward_hook(lambda m, a, out: seen.update(z=out))
    with torch.no_grad():
        clip.logits(clip.read(drawn()).pixels_BCHW, clip.classes(PLAIN))
    handle.remove()
    return seen["z"]


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("mode", ["delta", "reconstruct"])
@torch.no_grad()
def test_edits_are_the_dense_formula(clip: Clip, sae: Sae, mode: str, cls: bool) -> None:
    z = clean_states(clip, 3)
    h = sae.encode(z[0])
    latents = tuple(int(k) for k in h.sum(0).topk(3).indices)
    half = Region(((0, 0, 96, 192),))
    steering = Steering("s", (Edit(latents, "scale", 0.0), Edit(latents[:1], "add", 4.0, half)), mode, cls)
    new = h.clone()
    new[:, list(latents)] = 0
    left = (torch.arange(144) % 12) < 6
    new[1:][left, latents[0]] += 4
    if not cls:
        new[0] = h[0]
    dense = z[0] + (new - h) @ sae.W_dec if mode == "delta" else new @ sae.W_dec + sae.b_dec
    if not cls:
        dense[0] = z[0, 0]
    found = classify(clip, drawn(), PLAIN, sae=sae, steerings=[steering])
    assert np.allclose(found["s"].logits_C, hooked(clip, dense[None], 3), atol=2e-4)
    assert np.abs(found["s"].logits_C - found.before.logits_C).max() > 1e-3
    if mode == "reconstruct":
        remade = h @ sae.W_dec + sae.b_dec
        remade[0] = remade[0] if cls else z[0, 0]
        assert np.allclose(found.reconstructed.logits_C, hooked(clip, remade[None], 3), atol=2e-4)
    else:
        assert found.reconstructed is None


def test_editing_nothing_changes_nothing(clip: Clip, sae: Sae) -> None:
    nothing = [Steering("empty", ()), Steering("once", (Edit("all", "scale", 1.0),), cls=True),
               Steering("plus", (Edit((0,), "add", 0.0),))]  # fmt: skip
    found = classify(clip, drawn(), PLAIN, sae=sae, steerings=nothing)
    assert all(np.array_equal(after.logits_C, found.before.logits_C) for after in found.after)
    assert np.allclose(found.before.logits_C, classify(clip, drawn(), PLAIN).before.logits_C, atol=1e-4)


def test_a_batch_is_one_at_a_time(clip: Clip, sae: Sae) -> None:
    steerings = [Steering(f"s{k}", (Edit((k,), "set", 8.0),)) for k in range(5)]
    together = classify(clip, drawn(), PLAIN, sae=sae, steerings=steerings)
    singly = classify(clip, drawn(), PLAIN, sae=sae, steerings=steerings, batch=1)
    assert [one.name for one in together.after] == [f"s{k}" for k in range(5)]
    for one, other in zip(together.after, singly.after, strict=True):
        assert np.allclose(one.logits_C, other.logits_C, atol=2e-4)


def test_the_last_layer_is_read_through_its_class_token(clip: Clip, sae: Sae) -> None:
    with pytest.raises(SteeringError, match="reads its class token alone"):
        classify(clip, drawn(), PLAIN, sae=sae, tap="vision.-1", steerings=[Steering("s", ())])
    edit = Steering("s", (Edit("all", "scale", 0.0),), cls=True)
    found = classify(clip, drawn(), PLAIN, sae=sae, tap="vision.-1", steerings=[edit])
    assert found.tap == "vision.5" and np.abs(found["s"].logits_C - found.before.logits_C).max() > 1e-3
    there = Steering("s", (edit.edits[0], Edit((1,), "set", 9.0, Region(((0, 0, 96, 192),)))), cls=True)
    with pytest.raises(SteeringError, match=r"s\.edits\[1\]\.where: holds patches"):
        classify(clip, drawn(), PLAIN, sae=sae, tap="vision.-1", steerings=[there])


def test_changes_are_against_the_unedited_row_of_the_same_batch(clip: Clip, sae: Sae, monkeypatch) -> None:
    """In low precision, rows depend on how many there are: here, by as much as that."""
    edit = Edit((3, 5), "add", 2.0)
    steerings = [Steering("one", (edit,)), Steering("two", (Edit((1,), "set", 4.0),))]
    steerings += [Steering("remade", (edit,), "reconstruct"), Steering("whole", (edit,), "reconstruct", cls=True)]
    plain = classify(clip, drawn(), PLAIN, sae=sae, steerings=steerings)
    logits = Clip.logits

    def rounded(self, pixels_BCHW, classes):
        made = logits(self, pixels_BCHW, classes)
        return made + 10.0 * len(made) * torch.arange(made.shape[1])

    monkeypatch.setattr(Clip, "logits", rounded)
    for batch in (1, 4, 32):  # with 4, the last batch is smaller than the first
        found = classify(clip, drawn(), PLAIN, sae=sae, steerings=steerings, batch=batch)
        assert found.changes("duck", "fish") == pytest.approx(plain.changes("duck", "fish"), abs=1e-3)
        assert found.beyond("duck", "fish") == pytest.approx(plain.beyond("duck", "fish"), abs=1e-3)
    wanted = [one.log_odds("duck", "fish") - plain.before.log_odds("duck", "fish") for one in plain.after]
    assert plain.changes("duck", "fish") == pytest.approx(wanted, abs=1e-3)
    assert plain.beyond("duck", "fish")[:2] == [None, None]
    remade = plain.reconstructed.log_odds("duck", "fish")
    assert plain.beyond("duck", "fish")[2] == pytest.approx(plain["remade"].log_odds("duck", "fish") - remade, abs=1e-3)


@torch.no_grad()
def test_the_model_is_left_as_it_was(clip: Clip, sae: Sae) -> None:
    classes = clip.classes(PLAIN)
    before = clip.logits(clip.read(drawn()).pixels_BCHW, classes)
    bad = Steering("s", (Edit((0,), "set", 1.0, Region(((500, 500, 600, 600),))),))
    with pytest.raises(SteeringError, match=r"s\.edits\[0\]\.where: meets no patch"):
        classify(clip, drawn(), PLAIN, sae=sae, steerings=[bad])
    assert torch.equal(clip.logits(clip.read(drawn()).pixels_BCHW, classes), before)
    assert not any("forward" in layer.__dict__ for layer in clip.family.vision_layers(clip.model))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"sae": None}, SteeringError, "needs its latents"),
        ({"tap": "connector"}, SteeringError, "no more than vision taps"),
        ({"tap": "vision.6"}, ModelError, "vision.0 to vision.5"),
        ({"sae": Sae.untrained(0, 24, 8)}, SteeringError, "names none"),
        ({"sae": Sae.untrained(0, 24, 8), "tap": "vision.1"}, CheckpointError, "is 24 wide"),
        ({"steerings": [Steering("s", (Edit((64,), "set", 0.0),))]}, SteeringError, "no latent"),
        ({"steerings": [Steering("s", ()), Steering("s", ())]}, SteeringError, "names 2 steerings"),
    ],
)
def test_what_cannot_be_steered_is_one_line(change: dict, error: type, said: str, clip: Clip, sae: Sae) -> None:
    with pytest.raises(error) as caught:
        classify(clip, drawn(), PLAIN, **({"sae": sae, "steerings": [Steering("s", ())]} | change))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@torch.no_grad()
def test_one_sae_serves_the_tower_in_both_models(clip: Clip) -> None:
    """LLaVA's tower is CLIP's: vision.3 of one is vision.3 of the other, whichever layer is read above it."""
    vlm, tap = load_vlm("sketchworld"), Tap("vision", 3)
    states = see_states(vlm, vlm.prepare(drawn(), "What is this?"), [tap])[tap]
    assert torch.allclose(states, clean_states(clip, 3), atol=1e-3)


# --- loading -------------------------------------------------------------------------------------------------------


def test_the_patches_of_a_cropped_picture_are_where_they_are(clip: Clip) -> None:
    """A processor that crops, as CLIP's usual one does."""
    pixels = type(clip.pixels)(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}, do_center_crop=True)
    cropping = Clip(clip.model, pixels, clip.tokenizer, "cropping", clip.family)
    boxes = cropping.read(picture(100, 200)).images[0].grid.boxes_P4
    assert boxes[0] == pytest.approx([50, 0, 50 + 100 / 12, 100 / 12]) and boxes[-1, 2:] == pytest.approx([150, 100])


@pytest.mark.parametrize("name", ["sketchworld", "no such clip", "empty"])
def test_what_is_no_clip_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_clip(name)
    assert "\n" not in str(caught.value) and caught.value.remedy
