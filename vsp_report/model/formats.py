"""Formats: the tensors and settings of a checkpoint -> the Sae they mean. One function per format, no files.

    SAELens 6           d_in, d_sae, architecture, `metadata`
    SAELens before 6    the same, flat; TopK hides in `activation_fn_str`
    PatchSAE, ConceptScope    settings with `block_layer`; ReLU, no normalisation
    ViT-Prisma          settings with `hook_point_layer`; normalises each row unless told not to
    saev                d_vit or d_model; its newer files do not subtract b_dec
    overcomplete        transposed encoder, no b_dec at all, thresholds as logarithms
    dictionary_learning transposed layers, or W_enc with `group_sizes` (sae-for-vlm has the same)

A format is told by what is inside, never by the name of the file. Where two readings would both run and only
one be right (which way round a square matrix lies, a k, a threshold, a scale or a normalisation that is not
written down), the checkpoint is refused, with what to put beside it. None of these files says how well it
fits the activations it will get: `sae.quality` on real ones is the last check.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vsp_report.errors import CheckpointError
from vsp_report.model.pickles import AGAIN, Standin, settings_of
from vsp_report.model.sae import NORMALISATIONS, Sae

OTHER = "Take another checkpoint."
BESIDE = "Put a config.json beside it with"
PATCHSAE_WORDS = {"block_layer", "module_name", "class_token", "gated_sae"}
PRISMA_WORDS = {"activation_fn_str", "normalize_activations", "hook_point_layer", "layer_subtype"}


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds, before anyone says what it means."""

    path: Path
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    """its own settings, and those of cfg.json or config.json beside it"""
    kind: str
    """safetensors, saev, wrapped (weights and settings in one file), bare (a state_dict) or module"""
    sha256: str

    def refuse(self, fault: str, remedy: str = OTHER) -> CheckpointError:
        return CheckpointError(str(self.path), fault, remedy)

    def tensor(self, key: str) -> torch.Tensor:
        if key not in self.tensors:
            raise self.refuse(f"has no {key} (it has {', '.join(sorted(self.tensors)[:8]) or 'no tensors'})")
        return self.tensors[key].float()

    def whole(self, *path: str) -> int:
        """A number that the settings must name: `whole("activation", "params", "top_k")`."""
        value: Any = self.config
        for name in path:
            value = settings_of(value).get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
            raise self.refuse(f"{'.'.join(path)} is {value!r}; expected a whole number", "Write it there.")
        return int(value)

    def matrices(self, documented: bool = False) -> dict[str, torch.Tensor]:
        """W_enc (D, L) and W_dec (L, D), transposed if the biases say that they lie the other way round."""
        D = len(self.tensor("b_dec"))
        L = len(self.tensor("b_gate" if "b_gate" in self.tensors else "b_enc"))
        for word in ("d_in", "d_model", "d_vit"):
            if self.config.get(word, D) != D:
                raise self.refuse(f"is {D} wide, but its settings say {word} {self.config[word]}", AGAIN)
        if D == L and not documented:
            raise self.refuse(f"is square ({D} x {L}): its orientation cannot be told", "Convert it by hand.")
        oriented = {}
        for key, shape in (("W_enc", (D, L)), ("W_dec", (L, D))):
            matrix = self.tensor(key)
            if tuple(matrix.shape) not in (shape, shape[::-1]):
                raise self.refuse(f"{key} is {tuple(matrix.shape)}, but the biases say {D} and {L}", AGAIN)
            oriented[key] = matrix if tuple(matrix.shape) == shape else matrix.T
        return oriented

    def sae(self, form: str, architecture: str, **parts: Any) -> Sae:
        """An Sae of finite tensors, with where it came from."""
        for key, value in parts.items():
            if isinstance(value, torch.Tensor):
                parts[key] = value = value.float().contiguous()
                if not value.isfinite().all():
                    raise self.refuse(f"has NaN or infinite values in {key}")
        kept = {key: value for key, value in self.config.items() if isinstance(value, str | int | float)}
        known = {"format": form, "file": self.path.name, "sha256": self.sha256, "config": kept}
        try:
            return Sae(architecture, **({"name": self.path.stem, "provenance": known} | parts))
        except ValueError as error:
            raise self.refuse(str(error)) from error


def understand(found: Found) -> Sae:
    """Tell the format and read it."""
    keys, words = found.tensors.keys(), found.config.keys()
    if found.kind == "saev":
        return _saev(found)
    if "dictionary._weights" in keys or any(key.startswith("encoder.final_block.") for key in keys):
        return _overcomplete(found)
    if {"encoder.weight", "decoder.weight"} <= keys or "group_sizes" in keys or "trainer" in words:
        return _dictionary_learning(found)
    if words & PATCHSAE_WORDS:
        return _patchsae(found)
    if "W_enc" in keys and found.kind == "safetensors" and "d_in" in words:  # alone in never using pickle
        return _saelens(found)
    if "W_enc" in keys and found.kind != "safetensors" and words & PRISMA_WORDS:
        return _prisma(found)
    listed = ", ".join(sorted(keys)[:8]) or "no tensors"
    remedy = "Put the cfg.json or config.json that was saved with it beside it."
    raise found.refuse(f"is of no known format (it has {listed})", remedy)


# -- SAELens ----------------------------------------------------------------------------------------


def _saelens(found: Found) -> Sae:
    config, tensors = found.config, found.tensors
    metadata = settings_of(config.get("metadata"))
    ours = settings_of(metadata.get("vsp_report"))
    before_6 = "metadata" not in config
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu")) if before_6 else "relu"
    architecture, k = str(config.get("architecture", "standard")), ours.get("k")
    if before_6 and activation == "topk":  # its architecture says standard: a TopK would run as a ReLU
        architecture, k = "topk", found.whole("activation_fn_kwargs", "k")
    elif activation == "relu" and architecture == "topk":
        k = found.whole("k")
    elif activation != "relu":
        raise found.refuse(f"its activation is {activation!r}; known are relu and topk")
    if config.get("reshape_activations", "none") != "none" or "hook_z" in str(config.get("hook_name")):
        raise found.refuse("reads the heads of an attention layer (hook_z), not a tap of the residual stream")
    known = {"standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"}
    if architecture not in known:
        raise found.refuse(f"is of architecture {architecture!r}; known are {', '.join(sorted(known))}")
    parts = found.matrices(documented=True) | {"b_dec": found.tensor("b_dec")}
    for key in ("b_enc", "b_gate", "r_mag", "b_mag", "threshold"):
        if key in tensors:
            parts[key] = found.tensor(key)
    if architecture.endswith("batchtopk"):  # a training checkpoint; finished ones are saved as jumprelu
        architecture = "matryoshka" if architecture.startswith("m") else "batchtopk"
        parts["threshold"] = found.tensor("topk_threshold").expand(len(found.tensor("b_enc")))
    if "scaling_factor" in tensors and (found.tensor("scaling_factor") - 1).abs().max() > 1e-6:
        if not config.get("finetuning_scaling_factor"):
            raise found.refuse("has a scaling_factor", "Set finetuning_scaling_factor to true in cfg.json.")
        parts["W_dec"] = parts["W_dec"] * found.tensor("scaling_factor")[:, None]
    normalise, scale = _saelens_normalisation(found)
    sae = found.sae(
        "SAELens before 6" if before_6 else "SAELens 6",
        ours.get("architecture", architecture),
        **parts,
        k=k,
        normalise=normalise,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        rescale_acts_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        name=ours.get("name") or found.path.parent.name,
        **({"tap": ours.get("tap", ""), "provenance": ours.get("provenance", {})} if ours else {}),
    )
    return sae if scale == 1.0 else sae.on_raw(scale=scale)


def _saelens_normalisation(found: Found) -> tuple[str, float]:
    value = found.config.get("normalize_activations")
    value = {None: "none", False: "none", True: "expected_average_only_in"}.get(value, value)
    if value == "expected_average_only_in":
        # One scale for all inputs, which SAELens keeps outside of the weights and outside of this file.
        scale = found.config.get("norm_scaling_factor")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            remedy = "Add norm_scaling_factor to cfg.json (1 if it was folded into the weights)."
            raise found.refuse("scales its input (expected_average_only_in) by a number not given", remedy)
        return "none", float(scale)
    if value not in NORMALISATIONS:
        raise found.refuse(f"normalize_activations is {value!r}; known are {', '.join(NORMALISATIONS)}")
    return value, 1.0


# -- PatchSAE, ConceptScope, ViT-Prisma -----------------------------------------------------------------


def _patchsae(found: Found) -> Sae:
    if found.config.get("gated_sae"):
        raise found.refuse("is a gated SAE, whose encoder PatchSAE never defined")
    layer = found.config.get("block_layer")
    counted = isinstance(layer, int) and layer >= 0 and found.config.get("module_name", "resid") == "resid"
    return found.sae(
        "PatchSAE",
        "standard",
        **found.matrices(),
        b_enc=found.tensor("b_enc"),
        b_dec=found.tensor("b_dec"),
        tap=f"vision.{layer}" if counted else "",  # -2 is a tap only for one who knows the model's depth
    )


def _prisma(found: Found) -> Sae:
    config = found.config
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn_str", "relu")
    if architecture not in ("standard", "gated"):
        raise found.refuse(f"is of architecture {architecture!r}; ViT-Prisma's are standard and gated")
    if activation not in ("relu", "topk"):
        raise found.refuse(f"its activation is {activation!r}; known are relu and topk")
    if found.kind == "wrapped" and "normalize_activations" not in config:
        # Old files lack it; ViT-Prisma of today would read them with layer_norm, that of then did without.
        raise found.refuse("does not say how its input is normalised", f"{BESIDE} normalize_activations.")
    normalise = config.get("normalize_activations", "layer_norm") or "none"
    if normalise not in NORMALISATIONS:
        raise found.refuse(f"normalize_activations is {normalise!r}; known are {', '.join(NORMALISATIONS)}")
    layer, subtype = config.get("hook_point_layer"), config.get("layer_subtype")
    layer = layer[0] if isinstance(layer, list) and len(layer) == 1 else layer
    parts = {key: found.tensor(key) for key in ("b_gate", "r_mag", "b_mag") if architecture == "gated"}
    if architecture == "standard":
        parts["b_enc"] = found.tensor("b_enc")
    return found.sae(
        "ViT-Prisma",
        "topk" if activation == "topk" and architecture == "standard" else architecture,
        **found.matrices(),
        **parts,
        b_dec=found.tensor("b_dec"),
        k=found.whole("activation_fn_kwargs", "k") if activation == "topk" else None,
        normalise=normalise,
        tap=f"vision.{layer}" if isinstance(layer, int) and subtype == "hook_resid_post" else "",
    )


# -- saev -----------------------------------------------------------------------------------------------


def _saev(found: Found) -> Sae:
    header = found.config
    schema = header.get("schema", 0)
    if schema not in range(6):
        raise found.refuse(f"has schema {schema!r}; known are 1 to 5 and none")
    settings = settings_of(header.get("cfg")) if schema else header
    activation = settings_of(settings.get("activation"))
    kind, top_k = activation.get("cls", "Relu"), settings_of(activation.get("params")).get("top_k")
    first_schema_1 = schema == 1 and header.get("cls") in ("Relu", "TopK", "BatchTopK")
    if first_schema_1:  # "a cautionary tale", says saev: two layouts share this number
        kind, top_k = header["cls"], settings.get("top_k")
    architecture = {"Relu": "standard", "TopK": "topk", "BatchTopK": "batchtopk"}.get(kind)
    if architecture is None:
        raise found.refuse(f"its activation is {kind!r}; known are Relu, TopK and BatchTopK")
    b_enc, parts = found.tensor("b_enc"), {}
    if architecture == "batchtopk":
        if "activation.threshold" not in found.tensors:
            raise found.refuse("is a BatchTopK without the threshold it is used with outside of its batches")
        parts["threshold"] = found.tensor("activation.threshold").clamp_min(0).expand(len(b_enc))
    sae = found.sae(
        "saev",
        architecture,
        **found.matrices(),
        **parts,
        b_enc=b_enc,
        b_dec=found.tensor("b_dec"),
        k=top_k,
        # Until schema 1 grew its second layout the encoder subtracted b_dec; since then it does not.
        apply_b_dec_to_input=schema == 0 or first_schema_1,
    )
    # saev trains on centred and scaled activations, and keeps the statistics with the activations
    mean, scale = header.get("mean"), header.get("scale")
    if mean is None and scale is None:
        note = "saev may have trained on centred, scaled activations; this file does not keep the statistics"
        return sae.replace(provenance=sae.provenance | {"input": note})
    return sae.on_raw(0.0 if mean is None else torch.tensor(mean), 1.0 if scale is None else float(scale))


# -- overcomplete ---------------------------------------------------------------------------------------


def _overcomplete(found: Found) -> Sae:
    tensors, config = found.tensors, found.config
    others = [key for key in tensors if key.startswith(("encoder.final_block.1.", "encoder.mlp_blocks."))]
    if others:
        raise found.refuse(f"its encoder is more than one linear layer ({others[0]})")
    W_enc = found.tensor("encoder.final_block.0.weight").T
    W_dec, kind = found.tensor("dictionary._weights"), config.get("class")
    if kind is None and "thresholds" in tensors:
        kind = "JumpSAE"
    architecture = {"SAE": "standard", "TopKSAE": "topk", "BatchTopKSAE": "batchtopk", "JumpSAE": "jumprelu"}
    if kind not in architecture:
        remedy = f'{BESIDE} {{"class": "TopKSAE", "top_k": 16}}, or SAE, BatchTopKSAE or JumpSAE.'
        raise found.refuse(f"is a state_dict of no known class ({kind})", remedy)
    output, rule = _overcomplete_details(config)
    if output not in (None, "ReLU"):
        raise found.refuse(f"its encoder ends in {output}; known is ReLU")
    unit = W_dec / (W_dec.norm(dim=1, keepdim=True) + 1e-8)
    if rule == "normalize_l2":
        W_dec = unit
    elif rule != "normalize_identity" and not torch.allclose(W_dec, unit, atol=1e-3):
        # with unit rows every rule but that of l1 gives the same; without, each gives another dictionary
        raise found.refuse(f"has rows of other lengths than 1, and no rule for them ({rule})")
    if "dictionary.multiplier" in tensors:
        W_dec = W_dec * found.tensor("dictionary.multiplier").exp()
    threshold = None
    if kind == "JumpSAE":
        threshold = found.tensor("thresholds").exp()
    if kind == "BatchTopKSAE":
        threshold = config.get("running_threshold")
        if not isinstance(threshold, torch.Tensor | int | float) or isinstance(threshold, bool):
            raise found.refuse("is a BatchTopKSAE without running_threshold", f"{BESIDE} running_threshold.")
        threshold = torch.as_tensor(threshold).float().expand(W_enc.shape[1])
    return found.sae(
        "overcomplete",
        architecture[kind],
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=found.tensor("encoder.final_block.0.bias"),
        threshold=threshold,
        k=found.whole("top_k") if kind == "TopKSAE" else None,
        apply_b_dec_to_input=False,  # there is no b_dec
    )


def _overcomplete_details(config: dict[str, Any]) -> tuple[str | None, str | None]:
    """Of a pickled module: the class that ends its encoder, and the rule that scales its dictionary."""

    def inner(module: Any, *names: str) -> Any:
        for name in names:
            module = settings_of(settings_of(module).get("_modules")).get(name)
        return module

    top = {"_modules": config.get("_modules")}
    last = inner(top, "encoder", "final_block", "2")
    rule = settings_of(inner(top, "dictionary")).get("normalization")
    output = type(last).__name__ if isinstance(last, Standin) else None
    return output, rule.__name__ if isinstance(rule, type) else None


# -- dictionary_learning, sae-for-vlm ---------------------------------------------------------------------


def _dictionary_learning(found: Found) -> Sae:
    keys = found.tensors.keys()
    named = settings_of(found.config.get("trainer")).get("dict_class")
    if "group_sizes" in keys:
        kind = "MatryoshkaBatchTopKSAE"
    elif "gate_bias" in keys:
        kind = "GatedAutoEncoder"
    elif "bias" in keys:
        kind = "AutoEncoder"
    elif "decoder.bias" in keys:
        kind = "AutoEncoderNew"
    elif "k" in keys and "threshold" not in keys:
        kind = "AutoEncoderTopK"
    else:  # TopK and BatchTopK have the same keys, and a JumpReLU those of half the other formats
        kind = named
    if named is not None and kind != named:
        raise found.refuse(f"is a {kind} by its keys, a {named} by its config.json", "Correct config.json.")
    reader = {
        "AutoEncoder": _dl_linear,
        "AutoEncoderNew": _dl_linear,
        "AutoEncoderTopK": _dl_linear,
        "BatchTopKSAE": _dl_linear,
        "GatedAutoEncoder": _dl_gated,
        "JumpReluAutoEncoder": _dl_matrices,
        "MatryoshkaBatchTopKSAE": _dl_matrices,
    }.get(kind)
    if reader is None:
        remedy = f'{BESIDE} {{"trainer": {{"dict_class": "AutoEncoderTopK"}}}}, or whichever class it is.'
        raise found.refuse(f"could be of several classes of dictionary_learning ({kind})", remedy)
    return reader(found, kind)


def _dl_linear(found: Found, kind: str) -> Sae:
    b_dec = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
    parts: dict[str, Any] = {}
    if kind == "AutoEncoderTopK":
        parts["k"] = int(found.tensor("k"))
    if kind == "BatchTopKSAE":
        parts["threshold"] = _dl_threshold(found)
    return found.sae(
        "dictionary_learning",
        {"AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk"}.get(kind, "standard"),
        W_enc=found.tensor("encoder.weight").T,  # torch.nn.Linear is (out, in): no doubt even when square
        W_dec=found.tensor("decoder.weight").T,
        b_enc=found.tensor("encoder.bias"),
        b_dec=found.tensor(b_dec),
        apply_b_dec_to_input=kind != "AutoEncoderNew",
        **parts,
    )


def _dl_gated(found: Found, _kind: str) -> Sae:
    """Its latents are measured in decoder norms: folded into the magnitudes, so that rows are units."""
    W_dec = found.tensor("decoder.weight").T
    norm_L = W_dec.norm(dim=1)
    if (norm_L == 0).any():
        raise found.refuse("has decoder rows of length 0")
    return found.sae(
        "dictionary_learning",
        "gated",
        W_enc=found.tensor("encoder.weight").T,
        W_dec=W_dec / norm_L[:, None],
        b_dec=found.tensor("decoder_bias"),
        b_gate=found.tensor("gate_bias"),
        r_mag=found.tensor("r_mag") + norm_L.log(),
        b_mag=found.tensor("mag_bias") * norm_L,
    )


def _dl_matrices(found: Found, kind: str) -> Sae:
    matrices = found.matrices()
    parts = {"b_enc": found.tensor("b_enc"), "b_dec": found.tensor("b_dec")}
    if kind == "MatryoshkaBatchTopKSAE":
        return found.sae(
            "dictionary_learning", "matryoshka", **matrices, **parts, threshold=_dl_threshold(found)
        )
    norm_L = matrices["W_dec"].norm(dim=1)  # compared with the threshold first, then measured in norms
    return found.sae(
        "dictionary_learning",
        "jumprelu",
        **matrices,
        **parts,
        threshold=found.tensor("threshold") * norm_L,
        apply_b_dec_to_input=False,
        rescale_acts_by_decoder_norm=True,
    )


def _dl_threshold(found: Found) -> torch.Tensor:
    threshold = found.tensor("threshold")
    if threshold.numel() != 1 or float(threshold) < 0:
        raise found.refuse(f"its threshold was never set ({threshold.flatten()[:1].tolist()})")
    bias = "encoder.bias" if "encoder.bias" in found.tensors else "b_enc"
    return threshold.reshape(()).expand(len(found.tensor(bias)))
