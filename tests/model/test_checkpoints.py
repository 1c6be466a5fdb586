"""Checkpoints. Each format: a file written to its documented layout loads, agrees with that format's own
encoder as written out here, and survives conversion. Then bad files, and hostile ones."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from vsp_report.errors import CheckpointError
from vsp_report.model import checkpoints
from vsp_report.model.checkpoints import load_sae, save_sae
from vsp_report.model.sae import Sae

D, L, P, K = 6, 24, 40, 5
Latents = torch.Tensor


def weights(*, decoder_length: float | None = 1.0, seed: int = 0) -> types.SimpleNamespace:
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g)

    W_dec = random(L, D)
    if decoder_length is not None:
        W_dec = decoder_length * W_dec / W_dec.norm(dim=1, keepdim=True)
    vectors = {name: random(L) * 0.5 for name in ("b_enc", "b_gate", "r_mag", "b_mag")}
    return types.SimpleNamespace(
        W_enc=random(D, L), W_dec=W_dec, b_dec=random(D), threshold=random(L).abs() + 0.1, **vectors
    )


def rows() -> torch.Tensor:
    return torch.randn(P, D, generator=torch.Generator().manual_seed(9)) * 2 + 0.5


def std4(w) -> dict[str, torch.Tensor]:
    return {key: getattr(w, key) for key in ("W_enc", "b_enc", "W_dec", "b_dec")}


def topk(pre_PL: Latents, k: int = K) -> Latents:
    return torch.where(pre_PL >= pre_PL.sort(dim=1, descending=True).values[:, k - 1 : k], pre_PL, 0).relu()


def layer_norm(z):
    mean, std = z.mean(1, keepdim=True), z.std(1, keepdim=True)
    return (z - mean) / (std + 1e-5), lambda x: x * std + mean


def constant_norm(z):
    factor = D**0.5 / z.norm(dim=1, keepdim=True)
    return z * factor, lambda x: x / factor


# -- the formats: each writer returns (what to load, expected latents, expected reconstruction) -------


def saelens(folder: Path, config: dict, tensors: dict) -> Path:
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": L, "dtype": "float32"} | config))
    return folder


def saelens_6_standard(tmp):
    w, z = weights(), rows()
    path = saelens(tmp / "a", {"architecture": "standard", "metadata": {}}, std4(w))
    h = torch.relu((z - w.b_dec) @ w.W_enc + w.b_enc)
    return path, h, h @ w.W_dec + w.b_dec


def saelens_6_without_pre_bias_layer_norm(tmp):
    w, z = weights(decoder_length=None), rows()
    config = {
        "architecture": "standard",
        "normalize_activations": "layer_norm",
        "apply_b_dec_to_input": False,
    }
    path = saelens(tmp / "a", config | {"metadata": {"sae_lens_version": "6.1.0"}}, std4(w))
    x, undo = layer_norm(z)
    h = torch.relu(x @ w.W_enc + w.b_enc)
    return path, h, undo(h @ w.W_dec + w.b_dec)


def saelens_6_topk_rescaled(tmp):
    w, z = weights(decoder_length=None), rows()
    config = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True, "metadata": {}}
    path = saelens(tmp / "a", config, std4(w))
    norm = w.W_dec.norm(dim=1)
    h = topk(((z - w.b_dec) @ w.W_enc + w.b_enc) * norm)
    return path, h, (h / norm) @ w.W_dec + w.b_dec


def saelens_6_jumprelu_constant_norm(tmp):
    w, z = weights(), rows()
    config = {"architecture": "jumprelu", "normalize_activations": "constant_norm_rescale", "metadata": {}}
    path = saelens(tmp / "a", config, std4(w) | {"threshold": w.threshold})
    x, undo = constant_norm(z)
    pre = (x - w.b_dec) @ w.W_enc + w.b_enc
    h = torch.relu(pre) * (pre > w.threshold)
    return path, h, undo(h @ w.W_dec + w.b_dec)


def saelens_6_gated(tmp):
    w, z = weights(), rows()
    tensors = {key: getattr(w, key) for key in ("W_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag")}
    path = saelens(tmp / "a", {"architecture": "gated", "metadata": {}}, tensors)
    x = z - w.b_dec
    h = (x @ w.W_enc + w.b_gate > 0) * torch.relu(x @ (w.W_enc * w.r_mag.exp()) + w.b_mag)
    return path, h, h @ w.W_dec + w.b_dec


def saelens_6_matryoshka_training(tmp):
    w, z = weights(decoder_length=None), rows()
    config = {"architecture": "matryoshka_batchtopk", "k": 5.0, "rescale_acts_by_decoder_norm": True}
    tensors = std4(w) | {"topk_threshold": torch.tensor(0.8, dtype=torch.float64)}
    path = saelens(tmp / "a", config | {"metadata": {}}, tensors)
    norm = w.W_dec.norm(dim=1)
    pre = ((z - w.b_dec) @ w.W_enc + w.b_enc) * norm
    h = torch.relu(pre) * (pre > 0.8)
    return path, h, (h / norm) @ w.W_dec + w.b_dec


def saelens_6_scaled_input(tmp):
    w, z = weights(), rows()
    config = {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.4}
    path = saelens(tmp / "a", config | {"architecture": "standard", "metadata": {}}, std4(w))
    h = torch.relu((z * 0.4 - w.b_dec) @ w.W_enc + w.b_enc)
    return path, h, (h @ w.W_dec + w.b_dec) / 0.4


def saelens_5_topk_in_disguise(tmp):
    w, z = weights(), rows()
    config = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    path = saelens(tmp / "a", config | {"hook_point": "blocks.3.hook_resid_post"}, std4(w))
    h = topk((z - w.b_dec) @ w.W_enc + w.b_enc)
    return path, h, h @ w.W_dec + w.b_dec


def saelens_3_finetuned_and_transposed(tmp):
    w, z = weights(), rows()
    tensors = std4(w) | {"W_enc": w.W_enc.T, "W_dec": w.W_dec.T, "scaling_factor": torch.linspace(0.5, 2, L)}
    config = {"normalize_activations": False, "finetuning_scaling_factor": True, "expansion_factor": 4}
    path = saelens(tmp / "a", config, tensors)
    h = torch.relu((z - w.b_dec) @ w.W_enc + w.b_enc)
    return path, h, (h * tensors["scaling_factor"]) @ w.W_dec + w.b_dec


@dataclass
class ViTSAERunnerConfig:
    """Stands for PatchSAE's, ConceptScope's and, by another name, ViT-Prisma's own class."""

    d_in: int = D
    d_sae: int = L
    block_layer: int = 3
    module_name: str = "resid"
    class_token: bool = True
    gated_sae: bool = False
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    dtype: torch.dtype = torch.float32
    checkpoint_path: Path = Path("checkpoints")
    seen: set = field(default_factory=lambda: {1, 2})


@dataclass
class VisionModelSAERunnerConfig:
    d_in: int = D
    d_sae: int = 999  # derived by ViT-Prisma when it loads, and wrong in its files
    expansion_factor: int = L // D
    hook_point_layer: int = 9
    layer_subtype: str = "hook_resid_post"
    architecture: str = "standard"
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict = field(default_factory=dict)
    normalize_activations: str = "layer_norm"


@pytest.fixture(autouse=True)
def foreign_classes():
    """The classes of other projects exist while a test writes files, under the names those projects use."""
    known = {
        "src.sae_training.config": {"ViTSAERunnerConfig": ViTSAERunnerConfig},
        "vit_prisma.sae.config": {"VisionModelSAERunnerConfig": VisionModelSAERunnerConfig},
        "overcomplete.sae.all": {
            cls.__name__: cls for cls in (TopKSAE, BatchTopKSAE, DictionaryLayer, MLPEncoder)
        },
        "overcomplete.sae.dictionary": {"normalize_l2": normalize_l2},
    }
    made = set()
    for name, members in known.items():
        parts = name.split(".")
        for parent in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
            if parent not in sys.modules:
                sys.modules[parent] = types.ModuleType(parent)
                made.add(parent)
        for key, member in members.items():
            setattr(sys.modules[name], key, member)
            member.__module__ = name
    yield
    for name in made:
        del sys.modules[name]


def patchsae_object(tmp):
    w, z = weights(), rows()
    path = tmp / "clip-vit-base-patch16_3_resid_24.pt"
    torch.save(
        {"cfg": ViTSAERunnerConfig(), "state_dict": torch.nn.ParameterDict(std4(w)).state_dict()}, path
    )
    h = torch.relu((z - w.b_dec) @ w.W_enc + w.b_enc)
    return path, h, h @ w.W_dec + w.b_dec


def patchsae_before_2020_transposed(tmp):
    path, h, x = patchsae_object(tmp)
    w = weights()
    tensors = std4(w) | {"W_enc": w.W_enc.T.contiguous()}
    whole = {"cfg": ViTSAERunnerConfig(block_layer=-2), "state_dict": tensors}
    torch.save(whole, path, _use_new_zipfile_serialization=False)
    return path, h, x


def conceptscope_dictionary(tmp):
    path, h, x = patchsae_object(tmp)
    config = {"d_in": D, "d_sae": L, "block_layer": -2, "gated_sae": False, "l1_coefficient": 8e-5}
    torch.save({"config": config, "state_dict": std4(weights())}, path)
    return path, h, x


def patchsae_pickle_gz(tmp):
    path, h, x = patchsae_object(tmp)
    path = path.with_suffix(".pkl.gz")
    with gzip.open(path, "wb") as stream:
        pickle.dump({"cfg": ViTSAERunnerConfig(), "state_dict": std4(weights())}, stream)
    return path, h, x


def patchsae_pickle_protocol_0(tmp):
    path, h, x = patchsae_object(tmp)
    path = path.with_suffix(".pkl")
    whole = {"cfg": ViTSAERunnerConfig(), "state_dict": std4(weights())}
    path.write_bytes(pickle.dumps(whole, protocol=0))
    return path, h, x


def prisma_legacy_layer_norm(tmp):
    w, z = weights(), rows()
    path = tmp / "n_images_1300020.pt"
    torch.save({"cfg": VisionModelSAERunnerConfig(), "state_dict": std4(w)}, path)
    x, undo = layer_norm(z)
    h = torch.relu((x - w.b_dec) @ w.W_enc + w.b_enc)
    return path, h, undo(h @ w.W_dec + w.b_dec)


def prisma_config_beside_topk(tmp):
    w, z = weights(), rows()
    torch.save(std4(w), tmp / "weights.pt")
    config = vars(VisionModelSAERunnerConfig(normalize_activations="none", activation_fn_str="topk"))
    (tmp / "config.json").write_text(json.dumps(config | {"activation_fn_kwargs": {"k": K}}))
    h = topk((z - w.b_dec) @ w.W_enc + w.b_enc)
    return tmp, h, h @ w.W_dec + w.b_dec


def prisma_gated_default_norm(tmp):
    w, z = weights(), rows()
    tensors = std4(w) | {"b_gate": w.b_gate, "r_mag": w.r_mag, "b_mag": w.b_mag}  # b_enc is there, unused
    torch.save({"cfg": None, "state_dict": tensors}, tmp / "weights.pt")
    (tmp / "config.json").write_text(
        json.dumps({"d_in": D, "hook_point_layer": 3, "architecture": "gated", "normalize_activations": None})
    )
    x = z - w.b_dec
    h = (x @ w.W_enc + w.b_gate > 0) * torch.relu(x @ (w.W_enc * w.r_mag.exp()) + w.b_mag)
    return tmp / "weights.pt", h, h @ w.W_dec + w.b_dec


def prisma_autoencoder(tmp):
    w, z = weights(), rows()
    config = vars(VisionModelSAERunnerConfig(normalize_activations="constant_norm_rescale"))
    torch.save({"config": config, "autoencoder": {"state_dict": std4(w)}}, tmp / "old.pt")
    x, undo = constant_norm(z)
    h = torch.relu((x - w.b_dec) @ w.W_enc + w.b_enc)
    return tmp / "old.pt", h, undo(h @ w.W_dec + w.b_dec)


def saev(path: Path, header: dict, tensors: dict) -> Path:
    stream = io.BytesIO()
    torch.save(tensors, stream)
    path.write_bytes(json.dumps(header).encode() + b"\n" + stream.getvalue())
    return path


def saev_pre_schema(tmp):
    w, z = weights(), rows()
    header = {"d_vit": D, "exp_factor": 4, "sparsity_coeff": 4e-4, "ghost_grads": False, "seed": 0}
    h = torch.relu((z - w.b_dec) @ w.W_enc + w.b_enc)
    return saev(tmp / "sae.pt", header, std4(w)), h, h @ w.W_dec + w.b_dec


def saev_schema_1_first(tmp):
    w, z = weights(), rows()
    header = {"schema": 1, "cls": "TopK", "cfg": {"d_vit": D, "exp_factor": 4, "top_k": K}}
    h = topk((z - w.b_dec) @ w.W_enc + w.b_enc)
    return saev(tmp / "sae.pt", header, std4(w)), h, h @ w.W_dec + w.b_dec


def saev_schema_2(tmp):
    w, z = weights(), rows()
    config = {"d_vit": D, "exp_factor": 4, "activation": {"cls": "TopK", "params": {"top_k": K}}}
    h = topk(z @ w.W_enc + w.b_enc)  # b_dec is not subtracted any more
    return saev(tmp / "sae.pt", {"schema": 2, "cfg": config}, std4(w)), h, h @ w.W_dec + w.b_dec


def saev_schema_5_batchtopk(tmp):
    w, z = weights(), rows()
    activation = {"cls": "BatchTopK", "params": {"top_k": K, "momentum": 0.1}}
    header = {"schema": 5, "cfg": {"d_model": D, "d_sae": L, "activation": activation}}
    pre = z @ w.W_enc + w.b_enc
    h = torch.where(pre > 0.7, pre, 0)
    path = saev(tmp / "sae.pt", header, std4(w) | {"activation.threshold": torch.tensor(0.7)})
    return path, h, h @ w.W_dec + w.b_dec


class Module(torch.nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for key, value in attributes.items():
            setattr(self, key, value)


class TopKSAE(Module):
    pass


class BatchTopKSAE(Module):
    pass


class DictionaryLayer(Module):
    pass


class MLPEncoder(Module):
    pass


def normalize_l2(x):
    return x


def overcomplete_parts(w):
    first = torch.nn.Linear(D, L)
    first.weight.data, first.bias.data = w.W_enc.T.contiguous(), w.b_enc
    encoder = MLPEncoder(
        final_block=torch.nn.Sequential(first, torch.nn.Identity(), torch.nn.ReLU()),
        hidden_activation=torch.nn.ReLU,
        mlp_blocks=torch.nn.ModuleList(),
    )
    dictionary = DictionaryLayer(_weights=torch.nn.Parameter(w.W_dec), normalization=normalize_l2)
    dictionary.multiplier = torch.nn.Parameter(torch.tensor(0.3))
    return {"encoder": encoder, "dictionary": dictionary, "device": "cpu"}


def overcomplete_module_topk(tmp):
    w, z = weights(decoder_length=None), rows()
    torch.save(TopKSAE(top_k=K, **overcomplete_parts(w)), tmp / "sae.pth")
    h = topk(z @ w.W_enc + w.b_enc)
    return tmp / "sae.pth", h, h @ (w.W_dec / w.W_dec.norm(dim=1, keepdim=True)) * torch.tensor(0.3).exp()


def overcomplete_module_batchtopk(tmp):
    w, z = weights(), rows()
    module = BatchTopKSAE(top_k=K, running_threshold=torch.tensor(0.9), **overcomplete_parts(w))
    torch.save(module, tmp / "sae.pth")
    pre = torch.relu(z @ w.W_enc + w.b_enc)
    h = pre * (pre >= 0.9)
    return tmp / "sae.pth", h, h @ w.W_dec * torch.tensor(0.3).exp()


def overcomplete_state_jump(tmp):
    w, z = weights(), rows()
    state = TopKSAE(**overcomplete_parts(w)).state_dict() | {"thresholds": w.threshold.log()}
    torch.save(state, tmp / "jump.pt")
    pre = torch.relu(z @ w.W_enc + w.b_enc)
    h = torch.where(pre < w.threshold, 0, pre)  # the file keeps logarithms
    return tmp / "jump.pt", h, h @ w.W_dec * torch.tensor(0.3).exp()


def overcomplete_state_with_class(tmp):
    path, w = tmp / "sae.pth", weights()
    torch.save(TopKSAE(**overcomplete_parts(w)).state_dict(), path)
    (tmp / "config.json").write_text(json.dumps({"class": "TopKSAE", "top_k": K}))
    h = topk(rows() @ w.W_enc + w.b_enc)
    return path, h, h @ w.W_dec * torch.tensor(0.3).exp()


def linear_state(w, bias: str = "bias") -> dict[str, torch.Tensor]:
    layers = {"encoder.weight": w.W_enc.T, "encoder.bias": w.b_enc, "decoder.weight": w.W_dec.T}
    return {key: value.contiguous() for key, value in layers.items()} | {bias: w.b_dec}


def dictionary_learning_standard(tmp):
    w, z = weights(), rows()
    torch.save(linear_state(w), tmp / "ae.pt")
    h = torch.relu((z - w.b_dec) @ w.W_enc + w.b_enc)
    return tmp / "ae.pt", h, h @ w.W_dec + w.b_dec


def dictionary_learning_new(tmp):
    w, z = weights(decoder_length=None), rows()
    torch.save(linear_state(w, "decoder.bias"), tmp / "ae.pt")
    h = torch.relu(z @ w.W_enc + w.b_enc)
    return tmp / "ae.pt", h, h @ w.W_dec + w.b_dec


def dictionary_learning_topk(tmp):
    w, z = weights(), rows()
    state = linear_state(w, "b_dec") | {"k": torch.tensor(K), "threshold": torch.tensor(0.5)}
    torch.save(state, tmp / "ae.pt")
    (tmp / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", "k": K}}))
    h = topk((z - w.b_dec) @ w.W_enc + w.b_enc)
    return tmp, h, h @ w.W_dec + w.b_dec


def dictionary_learning_batchtopk(tmp):
    path, _, _ = dictionary_learning_topk(tmp)
    (tmp / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", "k": K}}))
    w = weights()
    pre = torch.relu((rows() - w.b_dec) @ w.W_enc + w.b_enc)
    h = pre * (pre > 0.5)
    return path, h, h @ w.W_dec + w.b_dec


def dictionary_learning_gated(tmp):
    w, z = weights(decoder_length=None), rows()
    state = linear_state(w, "decoder_bias")
    del state["encoder.bias"]
    state |= {"gate_bias": w.b_gate, "mag_bias": w.b_mag, "r_mag": w.r_mag}
    torch.save(state, tmp / "ae.pt")
    x, norm = (z - w.b_dec) @ w.W_enc, w.W_dec.norm(dim=1)
    h = (x + w.b_gate > 0) * torch.relu(w.r_mag.exp() * x + w.b_mag) * norm
    return tmp / "ae.pt", h, (h / norm) @ w.W_dec + w.b_dec


def dictionary_learning_jumprelu(tmp):
    w, z = weights(decoder_length=None), rows()
    torch.save(std4(w) | {"threshold": w.threshold}, tmp / "ae.pt")
    (tmp / "config.json").write_text(json.dumps({"trainer": {"dict_class": "JumpReluAutoEncoder"}}))
    pre, norm = z @ w.W_enc + w.b_enc, w.W_dec.norm(dim=1)
    h = torch.relu(pre * (pre > w.threshold)) * norm
    return tmp / "ae.pt", h, (h / norm) @ w.W_dec + w.b_dec


def sae_for_vlm_matryoshka(tmp):
    w, z = weights(), rows()
    sizes = {"k": torch.tensor(K), "group_sizes": torch.tensor([8, 16]), "threshold": torch.tensor(0.6)}
    torch.save(std4(w) | sizes, tmp / "ae.pt")
    pre = torch.relu((z - w.b_dec) @ w.W_enc + w.b_enc)
    h = pre * (pre > 0.6)
    return tmp / "ae.pt", h, h @ w.W_dec + w.b_dec


FORMATS = {
    saelens_6_standard: ("SAELens 6", "standard", ""),
    saelens_6_without_pre_bias_layer_norm: ("SAELens 6", "standard", ""),
    saelens_6_topk_rescaled: ("SAELens 6", "topk", ""),
    saelens_6_jumprelu_constant_norm: ("SAELens 6", "jumprelu", ""),
    saelens_6_gated: ("SAELens 6", "gated", ""),
    saelens_6_matryoshka_training: ("SAELens 6", "matryoshka", ""),
    saelens_6_scaled_input: ("SAELens 6", "standard", ""),
    saelens_5_topk_in_disguise: ("SAELens before 6", "topk", ""),
    saelens_3_finetuned_and_transposed: ("SAELens before 6", "standard", ""),
    patchsae_object: ("PatchSAE", "standard", "vision.3"),
    patchsae_before_2020_transposed: ("PatchSAE", "standard", ""),
    conceptscope_dictionary: ("PatchSAE", "standard", ""),
    patchsae_pickle_gz: ("PatchSAE", "standard", "vision.3"),
    patchsae_pickle_protocol_0: ("PatchSAE", "standard", "vision.3"),
    prisma_legacy_layer_norm: ("ViT-Prisma", "standard", "vision.9"),
    prisma_config_beside_topk: ("ViT-Prisma", "topk", "vision.9"),
    prisma_gated_default_norm: ("ViT-Prisma", "gated", ""),
    prisma_autoencoder: ("ViT-Prisma", "standard", "vision.9"),
    saev_pre_schema: ("saev", "standard", ""),
    saev_schema_1_first: ("saev", "topk", ""),
    saev_schema_2: ("saev", "topk", ""),
    saev_schema_5_batchtopk: ("saev", "batchtopk", ""),
    overcomplete_module_topk: ("overcomplete", "topk", ""),
    overcomplete_module_batchtopk: ("overcomplete", "batchtopk", ""),
    overcomplete_state_jump: ("overcomplete", "jumprelu", ""),
    overcomplete_state_with_class: ("overcomplete", "topk", ""),
    dictionary_learning_standard: ("dictionary_learning", "standard", ""),
    dictionary_learning_new: ("dictionary_learning", "standard", ""),
    dictionary_learning_topk: ("dictionary_learning", "topk", ""),
    dictionary_learning_batchtopk: ("dictionary_learning", "batchtopk", ""),
    dictionary_learning_gated: ("dictionary_learning", "gated", ""),
    dictionary_learning_jumprelu: ("dictionary_learning", "jumprelu", ""),
    sae_for_vlm_matryoshka: ("dictionary_learning", "matryoshka", ""),
}


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_a_format_loads_agrees_with_its_own_formula_and_converts(write, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    path, h_PL, x_PD = write(source)
    assert 0 < (h_PL > 0).float().mean() < 1
    first = load_sae(path, d_in=D)
    assert (first.provenance["format"], first.architecture, first.tap) == FORMATS[write]
    second = load_sae(save_sae(first, tmp_path / "converted", dtype=torch.float32), d_in=D)
    for sae in (first, second):
        torch.testing.assert_close(sae.encode(rows()), h_PL, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae(rows()), x_PD, rtol=1e-4, atol=1e-4)
        assert (sae.d_in, sae.d_sae) == (D, L)
    for kept in ("architecture", "k", "tap", "name", "provenance", "normalise", "apply_b_dec_to_input"):
        assert getattr(second, kept) == getattr(first, kept)


# -- what we write ----------------------------------------------------------------------------------


def some_sae(**changes) -> Sae:
    return Sae.untrained(3, D, L, k=K).replace(tap="vision.3", name="mine", **changes)


def test_saved_files_are_what_saelens_6_reads(tmp_path):
    folder = save_sae(some_sae(), tmp_path / "a" / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    tensors = load_file(folder / "sae_weights.safetensors")
    assert set(tensors) == {"W_enc", "b_enc", "W_dec", "b_dec"}  # SAELens loads strictly
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # who may read one, may read the other
    assert tensors["W_enc"].dtype == torch.float16 and tensors["b_dec"].dtype == torch.float32
    assert tuple(tensors["W_enc"].shape) == (D, L)
    assert {key: config[key] for key in ("architecture", "d_in", "d_sae", "k", "dtype")} == {
        "architecture": "topk", "d_in": D, "d_sae": L, "k": K, "dtype": "float32",
    }  # fmt: skip
    assert config["rescale_acts_by_decoder_norm"] is False  # SAELens assumes otherwise
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert config["metadata"]["vsp_report"]["tap"] == "vision.3"


def test_half_precision_is_close(tmp_path):
    sae = some_sae()
    loaded = load_sae(save_sae(sae, tmp_path / "sae"))
    torch.testing.assert_close(loaded.W_dec, sae.W_dec, rtol=1e-3, atol=1e-3)
    assert loaded.dtype == torch.float32


def test_saving_is_whole_or_absent(tmp_path, monkeypatch):
    folder = save_sae(some_sae(), tmp_path / "sae")
    before = (folder / "cfg.json").read_text()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_sae(some_sae(), folder)
    assert (folder / "cfg.json").read_text() == before
    assert os.listdir(tmp_path) == ["sae"]


def test_saving_twice_replaces(tmp_path):
    save_sae(some_sae(), tmp_path / "sae")
    save_sae(some_sae().replace(name="other"), tmp_path / "sae")
    assert load_sae(tmp_path / "sae").name == "other" and os.listdir(tmp_path) == ["sae"]


def test_what_does_not_fit_half_precision_is_refused(tmp_path):
    sae = some_sae()
    with pytest.raises(CheckpointError, match="W_dec does not fit"):
        save_sae(sae.replace(W_dec=sae.W_dec * 1e6), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


# -- the Hub ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A snapshot as huggingface_hub lays it out; records what was asked for."""
    asked = []
    snapshot = tmp_path / "snapshots" / ("0123456789" * 4)
    saelens(snapshot / "layer_3", {"architecture": "standard", "metadata": {}}, std4(weights()))
    torch.save(linear_state(weights()), snapshot / "ae.pt")

    def fake_download(repo, **options):
        asked.append((repo, options))
        if repo == "no/body":
            raise OSError("401 Client Error.\nRepository Not Found for url: https://...")
        return str(snapshot)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_download)
    return asked


def test_a_hub_id_with_a_folder_and_a_revision(hub):
    sae = load_sae("someone/saes/layer_3", revision="main")
    assert hub[0][0] == "someone/saes" and hub[0][1]["revision"] == "main"
    assert "layer_3/*.safetensors" in hub[0][1]["allow_patterns"]
    assert sae.provenance["revision"] == "0123456789" * 4  # the commit, whatever was asked for


def test_a_hub_id_with_a_file_fetches_it_and_its_settings_only(hub):
    assert load_sae("someone/saes/ae.pt").provenance["format"] == "dictionary_learning"
    assert hub[0][1]["allow_patterns"] == ["ae.pt", "*.json"]


def test_a_hub_id_that_is_not_there(hub):
    says("cannot be fetched (401 Client Error.)", "no/body")
    says("holds no layer_9", "someone/saes/layer_9")


# -- bad input: place, fault and remedy in one line -----------------------------------------------------


def says(fault: str, path: Path | str, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_sae(path, **options)
    text = str(caught.value)
    assert text.startswith(f"{path}") and fault in text and "\n" not in text, text
    assert caught.value.remedy, text
    return text


def test_missing_files(tmp_path):
    says("does not exist", tmp_path / "none.pt")
    says("does not exist", str(tmp_path / "none"))
    says("does not exist", "models/none.safetensors")
    says("holds no checkpoint", tmp_path)


def test_two_checkpoints_in_a_folder(tmp_path):
    for name in ("n_images_1.pt", "n_images_2.pt"):
        (tmp_path / name).touch()
    says("holds 2 checkpoints (n_images_1.pt, n_images_2.pt)", tmp_path)


@pytest.mark.parametrize("name", ["sae.safetensors", "sae.pt", "sae.pkl"])
def test_files_that_are_something_else(name, tmp_path):
    path = tmp_path / name
    contents = {
        "hello, this is a text file\n": "is ",
        '{"hello": 1}\n': "is ",
        "<!doctype html>": "is ",
        "": "is empty",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "Git LFS pointer",
    }
    for content, fault in contents.items():
        path.write_text(content)
        says(fault, path)
    path.write_bytes(bytes(range(256)) * 9)
    says("is ", path)


def test_text_named_safetensors_is_called_text(tmp_path):
    path = tmp_path / "sae.safetensors"
    path.write_text("hello, this is a text file\n")
    says("is text, not safetensors", path)


@pytest.mark.parametrize(
    "write",
    [
        saelens_6_standard,
        patchsae_object,
        patchsae_before_2020_transposed,
        patchsae_pickle_gz,
        saev_pre_schema,
    ],
    ids=lambda write: write.__name__,
)
def test_truncated_anywhere(write, tmp_path):
    path, _, _ = write(tmp_path)
    path = path / "sae_weights.safetensors" if path.is_dir() else path
    whole = path.read_bytes()
    for share in (0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        says("", path)


def test_damaged_anywhere_is_an_error_of_ours_or_loads(tmp_path):
    """Flip bytes: whatever the unpickler makes of it, nothing but a CheckpointError comes out."""
    g = torch.Generator().manual_seed(0)
    for write in (patchsae_object, patchsae_before_2020_transposed, patchsae_pickle_protocol_0):
        path, _, _ = write(tmp_path)
        whole = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for at in torch.randint(len(whole), (3,), generator=g).tolist():
                damaged[at] = int(torch.randint(256, (1,), generator=g))
            path.write_bytes(damaged)
            try:
                load_sae(path)
            except CheckpointError as error:
                assert "\n" not in str(error)


def test_wrong_width(tmp_path):
    path, _, _ = saelens_6_standard(tmp_path)
    with pytest.raises(CheckpointError, match="reads activations 6 wide; this tap gives 768"):
        load_sae(path, d_in=768)
    path = saelens(tmp_path / "b", {"architecture": "standard", "metadata": {}, "d_in": 7}, std4(weights()))
    with pytest.raises(CheckpointError, match="is 6 wide, but its settings say d_in 7"):
        load_sae(path)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"architecture": "crosscoder"}, "is of architecture 'crosscoder'; known are batchtopk, gated"),
        ({"architecture": "topk"}, "k is None; expected a whole number"),
        ({"architecture": "topk", "k": 999}, "k is 999; a topk SAE needs a whole number from 1 to 24"),
        ({"architecture": "jumprelu"}, "threshold is absent"),
        ({"architecture": "batchtopk"}, "has no topk_threshold"),
        ({"normalize_activations": "expected_average_only_in"}, "by a number not given"),
        ({"normalize_activations": "batch_norm"}, "normalize_activations is 'batch_norm'"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"metadata": {"vsp_report": {"architecture": "magic"}}}, "architecture is 'magic'"),
    ],
)
def test_saelens_settings_that_cannot_be_followed(config, fault, tmp_path):
    config = {"architecture": "standard", "metadata": {}} | config
    path = saelens(tmp_path / "a", config, std4(weights()))
    with pytest.raises(CheckpointError) as caught:
        load_sae(path)
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_saelens_tanh_relu_is_not_read_as_relu(tmp_path):
    path = saelens(tmp_path / "a", {"activation_fn_str": "tanh-relu"}, std4(weights()))
    with pytest.raises(CheckpointError, match="its activation is 'tanh-relu'"):
        load_sae(path)


def test_a_scaling_factor_nobody_mentions(tmp_path):
    tensors = std4(weights()) | {"scaling_factor": torch.full((L,), 2.0)}
    with pytest.raises(CheckpointError, match="has a scaling_factor"):
        load_sae(saelens(tmp_path / "a", {"architecture": "standard"}, tensors))
    ones = tensors | {"scaling_factor": torch.ones(L)}
    assert load_sae(saelens(tmp_path / "b", {"architecture": "standard"}, ones)).d_sae == L


@pytest.mark.parametrize("key", ["W_enc", "b_dec"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(key, value, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in std4(weights()).items()}
    tensors[key].view(-1)[3] = value
    path = saelens(tmp_path / "a", {"architecture": "standard", "metadata": {}}, tensors)
    with pytest.raises(CheckpointError, match=f"NaN or infinite values in {key}"):
        load_sae(path)


def test_broken_settings_beside_good_weights(tmp_path):
    path, _, _ = saelens_6_standard(tmp_path)
    for content in ("{", "[1, 2]", "3"):
        (path / "cfg.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"cfg\.json: is not a JSON object"):
            load_sae(path)
    (path / "cfg.json").unlink()
    with pytest.raises(CheckpointError, match="of no known format"):
        load_sae(path)


def test_a_square_matrix_without_a_layout_is_refused(tmp_path):
    square = {"W_enc": torch.eye(D), "W_dec": torch.eye(D), "b_enc": torch.zeros(D), "b_dec": torch.zeros(D)}
    torch.save({"cfg": {"block_layer": 3}, "state_dict": square}, tmp_path / "a.pt")
    says("its orientation cannot be told", tmp_path / "a.pt")
    config = {"architecture": "standard", "metadata": {}, "d_sae": D}
    assert load_sae(saelens(tmp_path / "b", config, square)).d_sae == D  # its layout is documented


def test_matrices_that_contradict_their_biases(tmp_path):
    tensors = std4(weights()) | {"W_enc": torch.zeros(D, L + 1)}
    torch.save({"cfg": {"block_layer": 3}, "state_dict": tensors}, tmp_path / "a.pt")
    says("W_enc is (6, 25), but the biases say 6 and 24", tmp_path / "a.pt")


def test_what_two_classes_could_have_written_is_refused(tmp_path):
    w = weights()
    state = linear_state(w, "b_dec") | {"k": torch.tensor(K), "threshold": torch.tensor(0.5)}
    torch.save(state, tmp_path / "ae.pt")
    says("could be of several classes", tmp_path / "ae.pt")
    torch.save(std4(w) | {"threshold": w.threshold}, tmp_path / "ae.pt")
    says("of no known format", tmp_path / "ae.pt")
    torch.save(TopKSAE(**overcomplete_parts(w)).state_dict(), tmp_path / "ae.pt")
    says("no known class", tmp_path / "ae.pt")
    torch.save(std4(w), tmp_path / "ae.pt")
    says("of no known format", tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}}))
    torch.save(linear_state(w), tmp_path / "ae.pt")
    says("is a AutoEncoder by its keys, a AutoEncoderTopK by its config.json", tmp_path / "ae.pt")


def test_what_a_format_does_not_store_is_refused(tmp_path):
    w, path = weights(), tmp_path / "sae.pt"
    header = {"schema": 3, "cfg": {"d_model": D, "activation": {"cls": "BatchTopK", "params": {"top_k": 3}}}}
    says("without the threshold", saev(path, header, std4(w)))
    says("has schema 99", saev(path, {"schema": 99, "cfg": {}}, std4(w)))
    torch.save({"cfg": {"hook_point_layer": 3, "activation_fn_str": "relu"}, "state_dict": std4(w)}, path)
    says("does not say how its input is normalised", path)
    torch.save({"cfg": {"block_layer": 3, "gated_sae": True}, "state_dict": std4(w)}, path)
    says("is a gated SAE", path)
    torch.save(BatchTopKSAE(top_k=K, running_threshold=None, **overcomplete_parts(w)), path)
    says("without running_threshold", path)
    sizes = {"k": torch.tensor(K), "group_sizes": torch.tensor([24]), "threshold": torch.tensor(-1.0)}
    torch.save(std4(w) | sizes, path)
    says("its threshold was never set", path)


def test_saev_statistics_are_asked_for_in_the_open(tmp_path):
    path, h_PL, x_PD = saev_schema_2(tmp_path)
    assert "does not keep the statistics" in load_sae(path).provenance["input"]
    header, _, rest = path.read_bytes().partition(b"\n")
    mean, scale = torch.arange(D) / 2.0, 0.25
    path.write_bytes(
        json.dumps(json.loads(header) | {"mean": mean.tolist(), "scale": scale}).encode() + b"\n" + rest
    )
    sae = load_sae(path)
    torch.testing.assert_close(sae.encode(rows() / scale + mean), h_PL, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(rows() / scale + mean), x_PD / scale + mean, rtol=1e-4, atol=1e-3)


# -- hostile input: refused, and nothing runs -------------------------------------------------------


class Calls:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class EvilConfig:
    """A configuration class by its name, whose state is a call."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return EvilConfig, (1,), self.state

    def __setstate__(self, state):
        raise AssertionError("never imported, so never run")


def hostile_payloads(marker: Path) -> dict[str, object]:
    shell = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w')"
    nested = io.BytesIO()
    torch.save(Calls(os.system, shell), nested)
    return {
        "os.system": Calls(os.system, shell),
        "eval": Calls(eval, python),
        "exec": Calls(exec, python),
        "getattr": Calls(getattr, "", "join"),
        "import": Calls(__import__, "antigravity"),
        "open": Calls(open, str(marker), "w"),
        "torch.load": Calls(torch.load, str(marker)),
        "torch.hub": Calls(torch.hub.load, "evil/repo", "model"),
        "nested in a storage": Calls(torch.storage._load_from_bytes, nested.getvalue()),
        "nested pickle in a storage": Calls(
            torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, shell))
        ),
        "a config whose state calls": EvilConfig({"a": Calls(os.system, shell)}),
        "a config whose state is a list": EvilConfig([1, 2]),
        "a config that reduces to a call": {"cfg": Calls(os.system, shell), "state_dict": std4(weights())},
        "partial": Calls(functools.partial, os.system, shell),
        "a function of ours": Calls(save_sae, None, str(marker)),
        "numpy": Calls(numpy.load, str(marker)),
    }


HOSTILE = list(hostile_payloads(Path("x")))


@pytest.mark.parametrize("container", ["torch", "torch before 2020", "pickle", "gzip", "saev"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_runs_nothing(name, container, tmp_path):
    marker, path = tmp_path / "pwned", tmp_path / "sae.pt"
    payload = {"state_dict": std4(weights()), "cfg": hostile_payloads(marker)[name]}
    stream = io.BytesIO()
    if container in ("pickle", "gzip"):
        stream.write(pickle.dumps(payload))
    else:
        torch.save(payload, stream, _use_new_zipfile_serialization=container != "torch before 2020")
    data = stream.getvalue()
    if container == "gzip":
        data = gzip.compress(data)
    path.write_bytes(b'{"d_vit": 6, "exp_factor": 4}\n' + data if container == "saev" else data)
    text = says("is refused", path)
    assert "nothing in it was run" in text
    assert not marker.exists()


def test_our_own_functions_cannot_be_changed_by_a_file(tmp_path):
    """BUILD on a callable would set attributes of a function that later loads use."""
    for name in (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nfloat32\n",
    ):
        # push the callable, then a state (None, {"__defaults__": 1}), then BUILD
        program = b"\x80\x02" + name + b"N}X\x0c\x00\x00\x00__defaults__K\x01s\x86b."
        (tmp_path / "a.pkl").write_bytes(program)
        says("is refused: it tries to change", tmp_path / "a.pkl")


def test_attributes_of_a_standin_shadow_nothing(tmp_path):
    state = {"__class__": int, "__dict__": 3, "block_layer": 3, "items": 1}

    class ShadowConfig:
        pass

    ShadowConfig.__qualname__ = "ShadowConfig"
    ShadowConfig.__module__ = "__main__"
    sys.modules["__main__"].ShadowConfig = ShadowConfig
    try:
        config = ShadowConfig()
        config.__dict__.update({key: value for key, value in state.items() if key != "__class__"})
        torch.save({"cfg": config, "state_dict": std4(weights())}, tmp_path / "a.pt")
    finally:
        del sys.modules["__main__"].ShadowConfig
    assert load_sae(tmp_path / "a.pt").tap == "vision.3"


def archive(path: Path, program: bytes, *, storages: dict | None = None, method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        out.writestr("archive/data.pkl", program)
        for key, value in (storages or {}).items():
            out.writestr(f"archive/data/{key}", value)
    return path


def test_bombs_are_refused_before_they_unpack(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(gzip.compress(bytes(20_000_000)))
    says("unpacks to more than 100 times its size", path)
    says("its archive is compressed", archive(path, b"\x80\x02N.", method=zipfile.ZIP_DEFLATED))
    path.write_bytes(b"\x80\x02Nr" + struct.pack("<I", 0x7FFFFFF0) + b".")  # a memo of 2 billion entries
    says("its memo is larger than the file", path)
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.")  # a terabyte of bytes, announced
    says("is ", path)


def tensor_program(size: tuple, stride: tuple, offset: int = 0) -> bytes:
    """A pickle of one tensor over storage 0, with any geometry."""

    class Reference:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, Reference) else None

    stream = io.BytesIO()
    call = Calls(torch._utils._rebuild_tensor_v2, Reference(), offset, size, stride, False, {})
    Pickler(stream, protocol=2).dump({"cfg": {"block_layer": 1}, "state_dict": {"W_enc": call}})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((10**6, 10**6), (0, 0), 0), ((5,), (1,), 0), ((4,), (1,), 2), ((2,), (-1,), 1), ((4,), (1,), -1)],
)
def test_tensors_that_reach_beyond_their_storage(size, stride, offset, tmp_path):
    path = archive(tmp_path / "a.pt", tensor_program(size, stride, offset), storages={"0": bytes(16)})
    says("is ", path)
    good = archive(tmp_path / "b.pt", tensor_program((2, 2), (2, 1)), storages={"0": bytes(16)})
    says("has no b_dec", good)


def test_a_storage_that_is_missing_or_of_a_strange_type(tmp_path):
    says("storage 0 is missing", archive(tmp_path / "a.pt", tensor_program((1,), (1,))))
    program = tensor_program((1,), (1,)).replace(b"FloatStorage", b"MagicStorage")
    says("it names torch.MagicStorage", archive(tmp_path / "b.pt", program, storages={"0": bytes(16)}))
