"""Steering: nothing edited changes nothing; a batch is its rows; an edit is the dense difference, hooked in plainly."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.model.tiny_families import FAMILIES, picture, tiny
from vsp_report.errors import CaseError, CheckpointError, ModelError, SteeringError, VspError
from vsp_report.maths.edits import ALL, Contrast, Edit, Region, Steering
from vsp_report.model import memory, taps
from vsp_report.model import steering as module
from vsp_report.model.answers import log_odds
from vsp_report.model.capture import capture
from vsp_report.model.sae import ARCHITECTURES, Sae
from vsp_report.model.sites import Editor, Row, Sites
from vsp_report.model.steering import Said, see_states, steer
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Prompt, Vlm

LATENTS = 48
LEFT = Region(boxes=((0.0, 0.0, 30.0, 40.0),))
CONTRAST = Contrast("sitting on a chair", "standing")
STEERINGS = (
    Steering("off", (Edit(tuple(range(20)), "set", 0.0),)),
    Steering("left", (Edit((3, 5), "add", 4.0, LEFT), Edit((5, 7), "scale", 3.0))),
    Steering("all", (Edit(ALL, "scale", 0.5),), cls=True),
    Steering("remade", (Edit((1, 2), "set", 2.0, LEFT),), mode="reconstruct"),
    Steering("remade with class", (Edit(ALL, "scale", 2.0),), mode="reconstruct", cls=True),
)


def asked(vlm: Vlm) -> Prompt:
    return vlm.prepare(picture(40, 70), "what is it ?")


def last_read(vlm: Vlm) -> str:
    return f"vision.{vlm.family.reading(vlm.model.config, len(taps.layers_at(vlm, 'vision'))).last}"


def width(vlm: Vlm, tap: Tap | str) -> int:
    tap = taps.resolve(vlm, tap)
    if tap.place == "text":
        return vlm.model.get_decoder().config.hidden_size
    return see_states(vlm, asked(vlm), [tap])[tap].shape[-1]


def made(vlm: Vlm, tap: str, architecture: str = "standard", **changes: object) -> Sae:
    D = width(vlm, tap)
    g = torch.Generator().manual_seed(0)
    more = {"threshold": 0.1} if architecture in ("jumprelu", "batchtopk", "matryoshka") else {}
    if architecture == "gated":
        more = {key: torch.rand(LATENTS, generator=g) * 0.1 for key in ("b_gate", "r_mag", "b_mag")}
    return Sae(
        architecture, W_enc=torch.randn(D, LATENTS, generator=g), W_dec=torch.randn(LATENTS, D, generator=g),
        b_enc=torch.randn(LATENTS, generator=g) * 0.1, b_dec=torch.randn(D, generator=g) * 0.1,
        k=5 if architecture == "topk" else None, tap=tap, name="made", **(more | changes),
    )  # fmt: skip


def numbers(said: Said) -> torch.Tensor:
    return torch.tensor([said.log_odds, *said.log_probs])


def state_of(vlm: Vlm) -> tuple:
    """All that a run could leave behind."""
    hooks = [
        (name, [len(getattr(m, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks")], "forward" in m.__dict__)
        for name, m in vlm.model.named_modules()
    ]
    kinds = [c._attn_implementation for c in (vlm.model.config, vlm.model.get_decoder().config)]
    return hooks, kinds, [p.requires_grad for p in vlm.model.parameters()], torch.is_grad_enabled()


# --- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_edited_is_the_same_to_the_last_bit(name: str) -> None:
    vlm = tiny(name)
    prompt = asked(vlm)
    for tap in (last_read(vlm), "connector", "text.1"):
        same = [Steering("none", ()), Steering("once", (Edit(ALL, "scale", 1.0), Edit((3,), "add", 0.0)), cls=True)]
        result = steer(vlm, made(vlm, tap), prompt, same, contrast=CONTRAST, max_new_tokens=4)
        for said in result.after:
            assert said.ids == result.before.ids
            assert said.log_odds == pytest.approx(result.before.log_odds, abs=1e-5)
    clean = see_states(vlm, prompt, [Tap("vision", 1)])[Tap("vision", 1)].flatten(0, -2)
    sites, editor = Sites.of(vlm, prompt, Tap("vision", 1)), Editor(made(vlm, "vision.1"), same, vlm.device)
    for row in (Row.of(steering, sites) for steering in same):
        z_SD = clean[sites.rows_S]
        assert torch.equal(editor.edited(editor.codes(z_SD), row), z_SD)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_unedited_row_is_the_plain_run(name: str) -> None:
    vlm = tiny(name)
    prompt = asked(vlm)
    (plain,) = vlm.generate(prompt, 5)
    with torch.no_grad():
        odds = float(log_odds(vlm, prompt, CONTRAST))
    for tap in ("vision.1", "text.1"):
        before = steer(vlm, made(vlm, tap), prompt, [], contrast=CONTRAST, max_new_tokens=5).before
        assert (before.ids, before.text, before.ended) == plain
        assert before.log_odds == pytest.approx(odds, abs=1e-4)


@pytest.mark.parametrize("place", ["vision", "connector", "text"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_its_rows_in_any_order(name: str, place: str) -> None:
    vlm = tiny(name)
    tap = {"vision": last_read(vlm), "connector": "connector", "text": "text.1"}[place]
    prompt, sae = asked(vlm), made(vlm, tap)
    steerings = [s for s in STEERINGS if place != "text" or not vlm.family.cross or s.name in ("off", "all")]
    together = steer(vlm, sae, prompt, steerings, contrast=CONTRAST, max_new_tokens=3, budget_bytes=1 << 40)
    singly = steer(vlm, sae, prompt, steerings[::-1], contrast=CONTRAST, max_new_tokens=3, budget_bytes=0)
    assert together.batches == 1 and singly.batches == len(steerings)
    for steering in steerings:
        one, other = together[steering.name], singly[steering.name]
        assert one.log_odds == pytest.approx(other.log_odds, abs=2e-4)
        assert one.change == pytest.approx(other.change, abs=4e-4)
        assert (one.beyond_reconstruction is None) == (steering.mode == "delta")
        if one.ids == other.ids:  # in an untrained model two words may be as likely as each other
            assert torch.allclose(numbers(one), numbers(other), atol=2e-4)
    # Also where nothing above reads the states again.
    assert all(abs(said.change) > 1e-4 for said in together.after)


def test_a_batch_may_take_a_share_of_what_could_be_had_not_of_what_lies_idle(monkeypatch) -> None:
    after_many_files = SimpleNamespace(total=64 << 30, available=24 << 30, free=1 << 20)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: after_many_files)
    assert memory.free_bytes(torch.device("cpu")) == 12 << 30


def dense(sae: Sae, z_RD: torch.Tensor, steering: Steering, meets: dict[Region | None, list[int]]) -> torch.Tensor:
    """The steering written out over whole tensors, one latent of one row at a time."""
    h_RL = sae.encode(z_RD)
    new_RL = h_RL.clone()
    for edit in steering.edits:
        for row in meets[edit.where]:
            for k in range(sae.d_sae) if edit.latents == ALL else edit.latents:
                h = new_RL[row, k]
                new_RL[row, k] = {"set": edit.value, "scale": h * edit.value, "add": h + edit.value}[edit.op]
    if steering.mode == "delta":
        return z_RD + sae.decode(new_RL, z_RD) - sae.decode(h_RL, z_RD)
    rows = meets[None]
    z_RD = z_RD.clone()
    z_RD[rows] = sae.decode(new_RL, z_RD)[rows]
    return z_RD


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_an_edit_is_the_dense_difference_in_a_full_run(name: str) -> None:
    vlm = tiny(name)
    tap, prompt = last_read(vlm), asked(vlm)
    sae = made(vlm, tap)
    image = prompt.images[0]
    patches, boxes = image.at("vision").rows_S, image.grid.boxes_P4
    left = [row for row, box in zip(patches, boxes, strict=True) if box[0] < 30]
    result = steer(vlm, sae, prompt, STEERINGS[:2] + STEERINGS[3:4], contrast=CONTRAST, max_new_tokens=3)
    for said, steering in zip(result.after, STEERINGS[:2] + STEERINGS[3:4], strict=True):
        meets = {None: patches.tolist(), LEFT: left}

        def hook(module: object, args: tuple, z: torch.Tensor, s: Steering = steering, m: dict = meets) -> torch.Tensor:
            return dense(sae, z.flatten(0, -2), s, m).view(z.shape)

        handle = taps.module_at(vlm, tap).register_forward_hook(hook, prepend=True)
        plain, (told,) = float(log_odds(vlm, prompt, CONTRAST)), vlm.generate(prompt, 3)
        handle.remove()
        assert said.log_odds == pytest.approx(plain, abs=5e-4) and told.ids == said.ids
    # The usual way to hook comes too late where transformers collects the states: it would have been a no-op.
    assert abs(result.after[0].change) > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalise", ["none", "layer_norm", "constant_norm_rescale"])
def test_every_architecture_is_edited_by_its_own_latents(architecture: str, normalise: str) -> None:
    vlm = tiny("llava")
    prompt, tap = asked(vlm), Tap("vision", 1)
    sae, sites = made(vlm, "vision.1", architecture, normalise=normalise), Sites.of(vlm, prompt, tap)
    z_SD = see_states(vlm, prompt, [tap])[tap].flatten(0, -2)[sites.rows_S]
    patches = list(range(len(z_SD) - 1))
    for steering in STEERINGS:
        meets = {None: patches + [len(patches)] * steering.cls}
        meets[LEFT] = np.flatnonzero(sites.boxes_S4[:, 0] < 30).tolist()
        editor = Editor(sae, STEERINGS, vlm.device)
        found = editor.edited(editor.codes(z_SD), Row.of(steering, sites))
        assert torch.allclose(found, dense(sae, z_SD, steering, meets), atol=1e-4)


def test_small_pieces_are_one_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("llava")
    prompt, sae = asked(vlm), made(vlm, "vision.1", "topk")
    whole = steer(vlm, sae, prompt, STEERINGS, contrast=CONTRAST, max_new_tokens=0)
    monkeypatch.setattr("vsp_report.model.sites.LATENTS_BYTES", 4 * LATENTS * 3)
    pieces = steer(vlm, sae, prompt, STEERINGS, contrast=CONTRAST, max_new_tokens=0)
    for one, other in zip(whole.after, pieces.after, strict=True):
        assert one.log_odds == pytest.approx(other.log_odds, abs=1e-5)


# --- where it acts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_class_tokens_and_padding_are_left_alone(name: str) -> None:
    vlm = tiny(name)
    prompt, tap = asked(vlm), Tap("vision", 1)
    z = see_states(vlm, prompt, [tap])[tap].flatten(0, -2)
    sites = Sites.of(vlm, prompt, tap)
    prefix = name in ("llava", "llava_next", "internvl", "mllama")
    tiles = len(prompt.images[0].grid.tiles)
    assert sites.class_S.sum() == (tiles if prefix else 0)
    assert sorted(sites.rows_S[~torch.as_tensor(sites.class_S)].tolist()) == sorted(
        prompt.images[0].at("vision").rows_S.tolist()
    )
    if name != "mllama":  # which pads its tiles
        assert sorted(sites.rows_S.tolist()) == list(range(len(z)))
    without, with_class = (Row.of(Steering("x", (Edit((1,), "set", 0.0),), cls=c), sites) for c in (False, True))
    assert without.touched_ES[0].tolist() == (~sites.class_S).tolist() and with_class.touched_ES.all()


def test_text_edits_act_on_the_prompt_and_on_what_is_said() -> None:
    vlm = tiny("llava")
    prompt, tap = asked(vlm), Tap("text", 1)
    sae, T = made(vlm, "text.1"), prompt.ids_BT.shape[1]
    added = 3.0 * sae.W_dec[4]
    for region, cls in ((None, False), (None, True), (LEFT, False)):
        steering = Steering("x", (Edit((4,), "add", 3.0, region),), cls=cls)
        with capture(vlm, prompt.repeat(2), taps=[tap], attention=False) as seen:
            steer(vlm, sae, prompt, [steering], max_new_tokens=3, budget_bytes=1 << 40)
        change_TD = seen.states[tap][1] - seen.states[tap][0]
        moved = set((change_TD[:T] - added).abs().amax(1).lt(1e-4).nonzero()[:, 0].tolist())
        image = prompt.images[0]
        if region is None:
            assert prompt.ids_BT[0, 0] == vlm.tokenizer.bos_token_id
            assert moved == set(range(0 if cls else 1, T))
        else:
            assert moved == set(image.columns_I[image.boxes_I4[:, 0] < 30].tolist())
    # What is said: the same words again, as a prompt, get the same states.
    both = Steering("x", (Edit((4,), "add", 3.0),))
    with capture(vlm, prompt.repeat(2), taps=[tap, "text.3"], attention=False) as said:
        result = steer(vlm, sae, prompt, [both], max_new_tokens=3, budget_bytes=1 << 40)
    longer = vlm.continued(prompt, [result.after[0].ids[:-1]])
    plain = torch.ones(longer.ids_BT.shape[1], 1)
    plain[0] = 0
    with (
        torch.no_grad(),
        taps.editing(vlm, tap, lambda z, start: z + plain * added),
        capture(vlm, longer, taps=["text.3"], attention=False) as again,
    ):
        vlm.logits(longer)
    top = Tap("text", 3)
    assert torch.allclose(said.states[top][1], again.states[top][0], atol=1e-4)


def test_skipped_layers_are_not_run() -> None:
    vlm = tiny("llava")
    prompt, ran, tower, words = asked(vlm), [], made(tiny("llava"), "vision.1"), made(tiny("llava"), "text.1")
    layers = taps.layers_at(vlm, "vision")
    handles = [
        layer.mlp.register_forward_hook(lambda m, a, o, k=k: ran.append((k, len(o)))) for k, layer in enumerate(layers)
    ]
    steer(vlm, tower, prompt, STEERINGS[:3], contrast=CONTRAST, max_new_tokens=2, budget_bytes=1 << 40)
    # Nor is the last: a LLaVA reads the one before it.
    assert ran == [(0, 1), (1, 1), (2, 4)]
    ran.clear()
    steer(vlm, words, prompt, STEERINGS[:3], contrast=CONTRAST, max_new_tokens=2, budget_bytes=1 << 40)
    assert ran == [(0, 1), (1, 1), (2, 1)]
    for handle in handles:
        handle.remove()


# --- what is told ------------------------------------------------------------------------------------------------


def test_changes_are_against_the_rows_of_the_same_batch() -> None:
    vlm = tiny("llava")
    result = steer(vlm, made(vlm, "vision.1"), asked(vlm), STEERINGS, contrast=CONTRAST, max_new_tokens=2)
    assert [said.name for said in result.after] == [steering.name for steering in STEERINGS]
    before, remade = result.before, result.reconstructed
    assert before.change is None and remade.change == pytest.approx(remade.log_odds - before.log_odds)
    said = result["remade"]
    assert said.change == pytest.approx(said.log_odds - before.log_odds)
    assert said.beyond_reconstruction == pytest.approx(said.log_odds - remade.log_odds)
    assert result["off"].beyond_reconstruction is None
    with pytest.raises(SteeringError, match="nobody: is not among what was steered"):
        result["nobody"]


@pytest.mark.parametrize("name", ["llava", "paligemma2", "qwen3_vl", "mllama"])
def test_log_probabilities_are_those_of_a_replay(name: str) -> None:
    vlm = tiny(name)
    prompt = asked(vlm)
    before = steer(vlm, made(vlm, "vision.1"), prompt, [], max_new_tokens=4).before
    assert before.log_odds is None and before.change is None
    with torch.no_grad():
        (replay,) = vlm.replay(prompt, [before.ids])
    assert torch.allclose(torch.tensor(before.log_probs), replay.log_probs_N, atol=1e-3)


def test_an_answer_that_ends_is_cut_there() -> None:
    vlm = tiny("llava")
    prompt, sae = asked(vlm), made(vlm, "vision.1")
    whole = steer(vlm, sae, prompt, [], max_new_tokens=6).before
    end = whole.ids[2]
    model = vlm.model.generation_config
    model.eos_token_id = end
    try:
        cut = steer(vlm, sae, prompt, [], max_new_tokens=6).before
    finally:
        model.eos_token_id = None
    n = whole.ids.index(end)
    assert cut.ended and cut.ids == whole.ids[:n] and len(cut.log_probs) == n


def test_a_contrast_can_be_scored_without_a_word() -> None:
    vlm = tiny("llava")
    prompt, sae = asked(vlm), made(vlm, "vision.1")
    for contrast in (CONTRAST, Contrast("sitting", "standing")):
        silent = steer(vlm, sae, prompt, STEERINGS, contrast=contrast, max_new_tokens=0)
        loud = steer(vlm, sae, prompt, STEERINGS, contrast=contrast, max_new_tokens=2)
        for one, other in zip(silent.after, loud.after, strict=True):
            assert one.ids == () and one.log_odds == pytest.approx(other.log_odds, abs=1e-4)


def test_a_model_may_say_its_own_image_token() -> None:
    """Untrained ones do; a replay of it would look for a second image."""
    vlm = tiny("llava")
    head, said = vlm.model.get_output_embeddings(), vlm.model.config.image_token_id
    bias = torch.zeros(head.weight.shape[0])
    bias[said] = 1e3
    handle = head.register_forward_hook(lambda module, args, logits: logits + bias)
    try:
        result = steer(vlm, made(vlm, "vision.1"), asked(vlm), STEERINGS, contrast=CONTRAST, max_new_tokens=3)
    finally:
        handle.remove()
    assert {one.ids for one in result.after} == {(said,) * 3}


def test_the_budget_sets_the_batch() -> None:
    vlm = tiny("llava")
    prompt, sae = asked(vlm), made(vlm, "vision.1")
    row = module.row_bytes(vlm, prompt, see_states(vlm, prompt, [Tap("vision", 1)]), 2)
    many = [dataclasses.replace(STEERINGS[0], name=str(k)) for k in range(6)]
    found = {n: steer(vlm, sae, prompt, many, max_new_tokens=2, budget_bytes=n * row + 1).batches for n in (1, 2, 4, 7)}
    assert found == {1: 6, 2: 6, 4: 2, 7: 1}
    assert steer(vlm, sae, prompt, [], max_new_tokens=2).batches == 1


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is one; what an accelerator has is another."""
    vlm = tiny("llava")
    prompt, sae, run, most = asked(vlm), made(vlm, "vision.1"), module._Run.__call__, 4
    whole = steer(vlm, sae, prompt, STEERINGS, contrast=CONTRAST, max_new_tokens=2)

    def limited(self: object, batch: list[Row]) -> list[Said]:
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, batch)

    monkeypatch.setattr(module._Run, "__call__", limited)
    halved = steer(vlm, sae, prompt, STEERINGS, contrast=CONTRAST, max_new_tokens=2, budget_bytes=1 << 40)
    assert halved.batches > 1
    for one, other in zip(whole.after, halved.after, strict=True):
        assert one.log_odds == pytest.approx(other.log_odds, abs=1e-4)
    most = 1
    with pytest.raises(ModelError, match=r"has no memory for 2 answers of 2 tokens at once\. Ask for"):
        steer(vlm, sae, prompt, STEERINGS, contrast=CONTRAST, max_new_tokens=2)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_bfloat16_keeps_what_is_not_edited(name: str) -> None:
    vlm = tiny(name, "bfloat16")
    prompt, tap = asked(vlm), Tap("vision", 1)
    sae, sites = made(vlm, "vision.1"), Sites.of(vlm, prompt, tap)
    result = steer(vlm, sae, prompt, [Steering("none", ()), *STEERINGS], contrast=CONTRAST, max_new_tokens=2)
    assert result["none"].log_odds == result.before.log_odds and result["none"].ids == result.before.ids
    assert all(math.isfinite(said.log_odds) for said in result.after)
    z_SD = see_states(vlm, prompt, [tap])[tap].flatten(0, -2)[sites.rows_S]
    editor = Editor(sae, STEERINGS, vlm.device)
    edited = editor.edited(editor.codes(z_SD), Row.of(STEERINGS[1], sites))
    assert edited.dtype == z_SD.dtype and not torch.equal(edited, z_SD)


# --- afterwards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    vlm = tiny(name)
    prompt = asked(vlm)
    with torch.no_grad():
        logits = vlm.logits(prompt)
    before = state_of(vlm)
    inputs = {key: value.clone() for key, value in prompt.inputs.items()}
    for tap in ("vision.1", "connector", "text.1"):
        steerings = STEERINGS[:1] if tap == "text.1" else STEERINGS
        steer(vlm, made(vlm, tap), prompt, steerings, contrast=CONTRAST, max_new_tokens=2)
    assert state_of(vlm) == before
    with torch.no_grad():
        assert torch.equal(vlm.logits(prompt), logits)
    assert all(torch.equal(prompt.inputs[key], value) for key, value in inputs.items())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("tap", ["vision.1", "connector", "text.1"])
@pytest.mark.parametrize("where", ["tower", "prompt", "answer"])
def test_a_run_that_is_cut_leaves_nothing_behind(tap: str, where: str, error: type[BaseException]) -> None:
    vlm = tiny("llava")
    prompt, sae = asked(vlm), made(vlm, tap)
    with torch.no_grad():
        logits = vlm.logits(prompt)
    before, steps = state_of(vlm), []
    layer = taps.module_at(vlm, "vision.3" if where == "tower" else "text.3")

    def cut(module: object, args: tuple, output: object) -> None:
        steps.append(0)
        if len(steps) > 2 * (where == "answer"):
            raise error

    handle = layer.register_forward_hook(cut)
    with pytest.raises(error):
        steer(vlm, sae, prompt, STEERINGS, contrast=CONTRAST, max_new_tokens=4)
    handle.remove()
    assert state_of(vlm) == before
    with torch.no_grad():
        assert torch.equal(vlm.logits(prompt), logits)


# --- bad input ---------------------------------------------------------------------------------------------------


def one(edit: Edit, **changes: object) -> list[Steering]:
    return [Steering("bad", (edit,), **changes)]


FINE = Edit((1,), "set", 0.0)
BAD = {
    "latent": (one(Edit((1, LATENTS), "set", 0.0)), {}, SteeringError, "bad.edits[0].latents: 48 is no latent of"),
    "strength": (one(Edit((1,), "scale", math.nan)), {}, SteeringError, "bad.edits[0].value: is nan."),
    "endless": (one(Edit((1,), "add", math.inf)), {}, SteeringError, "bad.edits[0].value: is inf."),
    "op": (one(Edit((1,), "mul", 0.0)), {}, SteeringError, "bad.edits[0].op: is 'mul'."),
    "mode": (one(FINE, mode="both"), {}, SteeringError, "bad.mode: is 'both'."),
    "region": (one(Edit((1,), "set", 0.0, Region(((90, 0, 99, 9),)))), {}, SteeringError, "bad.edits[0].where: meets"),
    "mask": (one(Edit((1,), "set", 0.0, Region(mask=np.ones((3, 4))))), {}, SteeringError, "bad.edits[0].where: its"),
    "unknown tap": (one(FINE), {"tap": "vison.1"}, ModelError, "tap: 'vison.1' is no tap."),
    "no such layer": (one(FINE), {"tap": "vision.9"}, ModelError, "tap: vision.9 is not in"),
    "twice": (one(FINE) * 2, {}, SteeringError, "bad: names more than one steering."),
    "length": (one(FINE), {"max_new_tokens": -1}, SteeringError, "max_new_tokens: is -1."),
    "silence": (one(FINE), {"max_new_tokens": 0}, SteeringError, "max_new_tokens: is 0."),
    "room": (one(FINE), {"max_new_tokens": 5000}, ModelError, "prompt: with the image and the answer it takes"),
    "contrast": (one(FINE), {"contrast": Contrast("sitting", "")}, CaseError, "contrast.wrong: is empty."),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_place_fault_and_remedy(case: str) -> None:
    steerings, changes, kind, message = BAD[case]
    vlm = tiny("llava")
    with pytest.raises(VspError) as caught:
        steer(vlm, made(vlm, "vision.1"), asked(vlm), steerings, **changes)
    assert type(caught.value) is kind and str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) and caught.value.remedy


def test_an_sae_must_fit_its_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("llava")
    prompt = asked(vlm)
    with pytest.raises(CheckpointError, match=r"^made: reads states 24 wide; text\.1 of .* gives 32\. Take"):
        steer(vlm, made(vlm, "vision.1"), prompt, one(FINE), tap="text.1")
    with pytest.raises(CheckpointError, match=r"^made: reads states 32 wide; vision\.1 of .* gives 24\. Take"):
        steer(vlm, made(vlm, "connector"), prompt, one(FINE), tap="vision.1")
    with pytest.raises(SteeringError, match=r"^tap: made names none"):
        steer(vlm, made(vlm, "vision.1").replace(tap=""), prompt, one(FINE))
    with pytest.raises(SteeringError, match=r"^prompt: 2 of them"):
        steer(vlm, made(vlm, "vision.1"), prompt.repeat(2), one(FINE))
    monkeypatch.setattr(vlm.model.config, "vision_feature_layer", -2)
    with pytest.raises(SteeringError, match=r"^vision\.3: .* reads vision\.2 and nothing above it"):
        steer(vlm, made(vlm, "vision.1"), prompt, one(FINE), tap="vision.3")


def test_a_cross_attended_image_has_no_region_among_the_text() -> None:
    vlm = tiny("mllama")
    prompt, sae = asked(vlm), made(vlm, "text.1")
    with pytest.raises(SteeringError) as caught:
        steer(vlm, sae, prompt, one(Edit((1,), "set", 0.0, LEFT)))
    said = str(caught.value)
    assert said.startswith("bad.edits[0].where: ") and "cross-attends to the image" in said
    assert caught.value.remedy == "Leave the region out, or take a vision tap or connector."
    assert steer(vlm, sae, prompt, one(FINE), contrast=CONTRAST, max_new_tokens=0).after[0].change != 0
