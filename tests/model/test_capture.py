"""Capture: what is streamed equals what eager attention returns, for every family, on padded batches of
unequal length and with peaked attention; and the model is afterwards as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tests.model.tiny_families import FAMILIES, picture, tiny
from vsp_report.errors import ModelError
from vsp_report.model import capture as room
from vsp_report.model import taps
from vsp_report.model.capture import NAME, SLOT, Attention, capture
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Asked, Prompt, Vlm

NEW = 6
WITH_SYSTEM = [name for name in FAMILIES if not name.startswith("paligemma")]


def batch(vlm: Vlm) -> Prompt:
    """Two pictures of different shapes, two prompts of different lengths: one of them is padded at the left."""
    system = None if vlm.family.without_template else "you are careful ."
    asked = [Asked(picture(40, 70), "what is the person doing ? look closely .", system),
             Asked(picture(90, 31, seed=1), "what ?", None)]  # fmt: skip
    return vlm.prepare_batch(asked)


class Eager:
    """The slow reference: eager attention, every head of every layer returned."""

    def __init__(
        self, vlm: Vlm, prompt: Prompt, layers: Sequence[int] | None = None, heads: Any = None
    ) -> None:
        text = vlm.model.get_decoder()
        before = text.config._attn_implementation
        vlm.model.set_attn_implementation({"text_config": "eager"})
        try:
            with torch.no_grad():
                made = vlm.model.generate(
                    **prompt.inputs, max_new_tokens=NEW, output_attentions=True, return_dict_in_generate=True
                )
        finally:
            vlm.model.set_attn_implementation({"text_config": before})
        self.sequences, T = made.sequences, prompt.ids_BT.shape[1]
        looking = [k for k, layer in enumerate(text.layers) if vlm.family.attention(layer) is not None]
        chosen = [k for k in looking if layers is None or k in layers]
        self.rows = [torch.zeros(T + NEW - 1, len(image.columns_I)) for image in prompt.images]
        self.sharpest = 0.0
        for step, per_layer in enumerate(made.attentions):
            for k in chosen:
                p_BHQN = per_layer[k].float().cpu()
                start, Q, N = (0 if step == 0 else T + step - 1), *p_BHQN.shape[2:]
                dropped = 0 if vlm.family.cross else max(0, start + Q - N)
                for b, image in enumerate(prompt.images):
                    at = torch.as_tensor(image.columns_I) - dropped
                    p_HQI = p_BHQN[b][:, :, at.clamp(min=0)] * (at >= 0)
                    self.sharpest = max(self.sharpest, float(p_HQI[:, -1].max()))
                    p_HQI = p_HQI if heads is None else p_HQI[list(heads)]
                    self.rows[b][start : start + Q] += p_HQI.mean(0) / len(chosen)

    def apart(self, prompt: Prompt, attention: Attention, new: int = NEW) -> float:
        """The largest difference, in the prompt's rows and in those of `new` words that follow."""
        worst = 0.0
        for b, rows_TI in enumerate(self.rows):
            T = prompt.ids_BT.shape[1]
            positions = [*prompt.positions(b, "template", "system", "prompt"), *range(T, T + new - 1)]
            worst = max(worst, float((attention.of(b, positions) - rows_TI[positions]).abs().max()))
        return worst


def live(vlm: Vlm, prompt: Prompt, **options: Any) -> tuple[torch.Tensor, Attention]:
    choice = {key: options.pop(key) for key in ("layers", "heads") if key in options}
    with capture(vlm, prompt, **choice) as seen, torch.no_grad():
        made = vlm.model.generate(**prompt.inputs, max_new_tokens=NEW, disable_compile=True, **options)
    return made, seen.attention


# --- against eager attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_attention_is_eager_attention(name: str) -> None:
    vlm = tiny(name)
    prompt = batch(vlm)
    assert not prompt.mask_BT.all() and len({len(image.columns_I) for image in prompt.images}) >= 1
    eager = Eager(vlm, prompt)
    sequences, attention = live(vlm, prompt)
    assert torch.equal(sequences, eager.sequences)
    assert eager.sharpest > 0.5  # flat attention would hide a lost mask
    assert eager.apart(prompt, attention) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_replay_reads_what_the_run_read(name: str) -> None:
    vlm = tiny(name)
    prompt = batch(vlm)
    sequences, attention = live(vlm, prompt)
    T = prompt.ids_BT.shape[1]
    answers = sequences[:, T:].tolist()
    with capture(vlm, prompt) as seen, torch.no_grad():
        replays = vlm.replay(prompt, answers)
    assert [replay.greedy_N.tolist() for replay in replays] == answers
    for b in range(2):
        positions = [*prompt.positions(b, "template", "system", "prompt"), *range(T, T + NEW - 1)]
        assert torch.allclose(seen.attention.of(b, positions), attention.of(b, positions), atol=1e-5)
        last = [T + NEW - 1]  # generate never reads its last word; the replay does, and both predict it
        assert attention.of(b, last).isnan().all() and not seen.attention.of(b, last).isnan().any()
        predicting = seen.attention.of(b, last, "predicting")
        assert torch.allclose(predicting, attention.of(b, last, "predicting"), atol=1e-5)
        assert torch.equal(predicting, seen.attention.of(b, [T + NEW - 2]))


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma", "mllama"])
def test_without_the_mask_registration_attention_is_silently_wrong(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = tiny(name)
    prompt = batch(vlm)
    eager = Eager(vlm, prompt)
    monkeypatch.delitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, NAME)
    _, attention = live(vlm, prompt)  # no exception
    assert eager.apart(prompt, attention) > 1e-3


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "qwen3_vl", "mllama"])
def test_layers_and_heads_can_be_chosen(name: str) -> None:
    vlm = tiny(name)
    prompt = batch(vlm)
    eager = Eager(vlm, prompt, layers=[1, 2, 3], heads=[0, 3])
    _, attention = live(vlm, prompt, layers=range(1, 4), heads=[3, -4])
    assert eager.apart(prompt, attention) < 1e-5
    assert Eager(vlm, prompt).apart(prompt, attention) > 1e-3


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "mllama"])
def test_in_bfloat16_it_is_as_close_as_bfloat16_is(name: str) -> None:
    vlm = tiny(name, "bfloat16", gain=4.0)
    prompt = batch(vlm)
    assert vlm.model.dtype == prompt.inputs["pixel_values"].dtype == torch.bfloat16
    eager = Eager(vlm, prompt)
    sequences, attention = live(vlm, prompt)
    assert attention.rows_BTI.dtype == torch.float32
    same = torch.equal(sequences, eager.sequences)  # in bfloat16 two words are sometimes as likely
    assert eager.apart(prompt, attention, NEW if same else 1) < 0.02


@pytest.mark.cuda
@pytest.mark.parametrize("name", FAMILIES)
def test_on_cuda_it_is_what_it_is_on_the_cpu(name: str) -> None:
    cpu, cuda = tiny(name), tiny(name, device="cuda")
    prompt = batch(cuda)
    eager = Eager(cuda, prompt)
    sequences, attention = live(cuda, prompt)
    assert torch.equal(sequences, eager.sequences) and attention.rows_BTI.device.type == "cpu"
    assert eager.apart(prompt, attention) < 1e-4
    answers = sequences[:, prompt.ids_BT.shape[1] :].tolist()
    rows = []
    for vlm in (cpu, cuda):
        with capture(vlm, batch(vlm)) as seen, torch.no_grad():
            vlm.replay(batch(vlm), answers)
        rows.append(seen.attention.of(0, prompt.positions(0, "prompt")))
    assert torch.allclose(*rows, atol=1e-3)


# --- other ways to run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llava", {"use_cache": False}),
        ("llava", {"prefill_chunk_size": 8}),
        ("llava", {"cache_implementation": "static"}),
        ("gemma3", {"use_cache": False}),
        ("paligemma2", {"use_cache": False}),
    ],
)
def test_however_the_cache_works(name: str, options: dict[str, Any]) -> None:
    vlm = tiny(name)
    prompt = batch(vlm)
    eager = Eager(vlm, prompt)
    sequences, attention = live(vlm, prompt, **options)
    assert torch.equal(sequences, eager.sequences)
    assert eager.apart(prompt, attention) < 1e-5


@pytest.mark.parametrize("name", ["llava", "paligemma2"])
def test_rows_scored_piece_by_piece_are_the_same_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny(name)
    prompt = batch(vlm)
    _, at_once = live(vlm, prompt)
    monkeypatch.setattr(room, "SCORES_BYTES", 1)
    _, piecewise = live(vlm, prompt)
    assert torch.allclose(at_once.rows_BTI, piecewise.rows_BTI, atol=1e-6)


def test_what_is_kept_is_text_times_image() -> None:
    vlm = tiny("llava_next")
    prompt = vlm.prepare(picture(60, 60), "what is it ?")
    _, attention = live(vlm, prompt)
    text, image = len(prompt.kinds[0]) - prompt.kinds[0].count("image"), len(prompt.images[0].columns_I)
    # one row more: the image's last token predicts the first word after it
    assert attention.rows_BTI.shape == (1, text + 1 + NEW - 1, image)


def test_sequences_that_are_not_the_prompts_are_refused() -> None:
    vlm = tiny("llava")
    prompt = batch(vlm)
    for options in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
        with pytest.raises(ModelError, match="2 prompts run as 4 sequences; beams"):
            live(vlm, prompt, **options)


def test_choices_that_are_not_there_are_refused() -> None:
    vlm = tiny("mllama")
    prompt = batch(vlm)
    for choice, match in (
        ({"layers": [9]}, "9 is not in"), ({"heads": [4]}, "4 is not in"), ({"layers": [0, 2]}, r"these do: \[1, 3\]"),
        ({"heads": []}, "none is chosen"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=match), capture(vlm, prompt, **choice):
            pass
    with pytest.raises(ModelError, match="captured already"), capture(vlm, prompt), capture(vlm, prompt):
        pass
    with pytest.raises(ValueError, match="own and predicting"):
        live(vlm, prompt)[1].of(0, [1], "next")


def test_rows_that_do_not_exist_are_nan() -> None:
    vlm = tiny("llava")
    prompt = vlm.prepare(picture(40, 70), "what ?")
    _, attention = live(vlm, prompt)
    assert attention.of(0, [0], "predicting").isnan().all()
    assert attention.of(0, [0, 10**6])[1].isnan().all()
    assert attention.of(0, [prompt.positions(0, "image")[0]]).isnan().all()
    assert attention.of(0, []).shape == (0, 16)


# --- states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_what_every_layer_gave(name: str) -> None:
    """Against transformers' own collection of hidden states, in the same run as the attention."""
    vlm = tiny(name)
    prompt = batch(vlm)
    words = ["vision.0", "vision.-1", "connector", "text.0", "text.2"]
    with capture(vlm, prompt, taps=words) as seen, torch.no_grad():
        made = vlm.model.generate(
            **prompt.inputs, max_new_tokens=NEW, output_hidden_states=True, return_dict_in_generate=True
        )
    states, T = {str(tap): tensor for tap, tensor in seen.states.items()}, prompt.ids_BT.shape[1]
    for k in (0, 2):
        theirs = torch.cat([step[k + 1] for step in made.hidden_states], 1)
        assert torch.equal(states[f"text.{k}"], theirs)
    assert seen.attention is not None
    n_layers = len(taps.layers_at(vlm, "vision"))
    assert f"vision.{n_layers - 1}" in states
    for b, image in enumerate(prompt.images):
        assert len(seen.at(Tap("vision", 0), prompt, b)) == len(image.grid)
        assert len(seen.at(Tap("connector"), prompt, b)) == image.layout.tokens_IC.shape[1]
        if not vlm.family.cross:
            ours = seen.at(Tap("text", 0), prompt, b)
            assert torch.equal(ours, made.hidden_states[0][1][b, image.columns_I])
    assert states["text.0"].shape[1] == T + NEW - 1


def test_vision_states_are_the_towers_hidden_states() -> None:
    vlm = tiny("llava")
    prompt = batch(vlm)
    with capture(vlm, prompt, taps=["vision.1", "vision.-2"], attention=False) as seen:
        vlm.logits(prompt)
    tower = vlm.model.get_encoder(modality="image")
    theirs = tower(prompt.inputs["pixel_values"], output_hidden_states=True).hidden_states
    assert torch.equal(seen.states[Tap("vision", 1)], theirs[2])
    assert torch.equal(seen.states[Tap("vision", 2)], theirs[-2])
    assert torch.equal(seen.at(Tap("vision", 1), prompt, 1), theirs[2][1, 1:])


def test_a_capture_sees_what_an_edit_made() -> None:
    vlm = tiny("llava")
    prompt = batch(vlm)
    edit = lambda states, start: states + 1.0  # noqa: E731
    with taps.editing(vlm, "vision.1", edit), capture(vlm, prompt, taps=["vision.1"]) as inside:
        vlm.logits(prompt)
    with capture(vlm, prompt, taps=["vision.1"]) as outside, taps.editing(vlm, "vision.1", edit):
        vlm.logits(prompt)
    with capture(vlm, prompt, taps=["vision.1"]) as clean:
        vlm.logits(prompt)
    tap = Tap("vision", 1)
    assert torch.equal(inside.states[tap], outside.states[tap])
    assert torch.equal(inside.states[tap], clean.states[tap] + 1.0)


# --- the model afterwards ----------------------------------------------------------------------------------------


def snapshot(vlm: Vlm) -> dict[str, Any]:
    """Everything of a model that a capture or an edit could leave behind."""
    result: dict[str, Any] = {}
    for name, module in vlm.model.named_modules():
        hooks = [
            list(getattr(module, kind))
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        ]
        result[name] = hooks, "forward" in module.__dict__, SLOT in module.__dict__, module.training
        if config := getattr(module, "config", None):
            result[name] += (config._attn_implementation,)
    result |= {
        name: (p.sum().item(), p.requires_grad, p._version) for name, p in vlm.model.named_parameters()
    }
    return result


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    vlm = tiny(name)
    prompt = batch(vlm)
    words = ["vision.1", "connector", "text.1"]
    # transformers hooks its own collectors in, once, when hidden states are first asked for
    vlm.model(**prompt.inputs, output_hidden_states=True, output_attentions=True)
    before = snapshot(vlm)
    with capture(vlm, prompt, taps=words), taps.editing(vlm, "text.1", lambda states, start: states * 1.1):
        assert vlm.model.get_decoder().config._attn_implementation == NAME
        vlm.generate(prompt, 2)
    assert snapshot(vlm) == before

    def fail(states: torch.Tensor, start: int) -> torch.Tensor:
        if start:
            raise RuntimeError("cut")
        return states

    with (
        pytest.raises(RuntimeError, match="cut"),
        capture(vlm, prompt, taps=words),
        taps.editing(vlm, "text.1", fail),
    ):
        vlm.generate(prompt, 4)
    assert snapshot(vlm) == before
