"""Checkpoints: an SAE of any format, on disk or on the Hub -> Sae, and Sae -> one format.

Here is where a checkpoint lies, how its bytes are read and how ours are written; what its tensors mean is in
`formats`, and how pickles are read without running them in `pickles`.

What we write is the layout of SAELens 6, `cfg.json` beside `sae_weights.safetensors`, so that SAELens loads
what we train. `metadata.vsp_report` in it keeps what that layout has no word for: tap, name, provenance.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from vsp_report.errors import CheckpointError
from vsp_report.model.formats import Found, understand
from vsp_report.model.pickles import AGAIN, Standin, module_tensors, read_pickled, settings_of
from vsp_report.model.sae import TENSORS, THRESHOLDED, Sae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SUFFIXES = (".safetensors", ".pt", ".pth", ".pkl", ".pkl.gz")


def load_sae(path_or_id: str | Path, *, d_in: int | None = None, revision: str | None = None) -> Sae:
    """One SAE from a file, a folder, or a Hub id `owner/repo[/path][@revision]`, in float32 on the CPU.

    `d_in`: the width of the activations it is meant for; another width is an error.
    """
    path, revision = _locate(path_or_id, revision)
    path = _only_checkpoint(path) if path.is_dir() else path
    sae = understand(_read(path))
    if d_in is not None and sae.d_in != d_in:
        raise CheckpointError(
            str(path), f"reads activations {sae.d_in} wide; this tap gives {d_in}", "Pick an SAE of this tap."
        )
    return sae.replace(provenance=sae.provenance | ({"revision": revision} if revision else {}))


def save_sae(sae: Sae, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write `folder` whole or not at all. The two matrices are stored in `dtype`, vectors in float32."""
    folder = Path(folder)
    tensors = {}
    for key in TENSORS:
        tensor = getattr(sae, key)
        if tensor is None:
            continue
        stored = tensor.detach().cpu().to(dtype if tensor.dim() == 2 else torch.float32)
        if not stored.isfinite().all():
            raise CheckpointError(str(folder), f"{key} does not fit {dtype}", "Save it with float32.")
        tensors[key] = stored.contiguous()
    config = {
        # SAELens too reads what was trained with a budget per batch as a jumprelu
        "architecture": "jumprelu" if sae.architecture in THRESHOLDED else sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": sae.normalise,
        "reshape_activations": "none",
        **({"k": sae.k, "rescale_acts_by_decoder_norm": False} if sae.architecture == "topk" else {}),
        "metadata": {
            "sae_lens_version": "6.0.0",  # the layout; without it SAELens reads an older one
            "vsp_report": {
                "architecture": sae.architecture,
                "k": sae.k,
                "tap": sae.tap,
                "name": sae.name,
                "provenance": sae.provenance,
            },
        },
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    before = folder.with_name(f".{folder.name}.{os.getpid()}.before")
    try:
        beside.mkdir()
        save_file(tensors, beside / WEIGHTS)
        (beside / CONFIG).write_text(json.dumps(config, indent=1, default=str) + "\n")
        # safetensors writes for its owner alone; weights are as readable as what stands beside them.
        (beside / WEIGHTS).chmod((beside / CONFIG).stat().st_mode)
        if folder.exists():
            folder.rename(before)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
    return folder


# -- where it is --------------------------------------------------------------------------------------


def fetch_from_hub(repo: str, inside: str, revision: str | None) -> Path:
    """Download what can be part of one SAE, and nothing else, of a Hub repository; return its folder."""
    from huggingface_hub import snapshot_download

    if inside.endswith(SUFFIXES):
        settings = f"{inside.rpartition('/')[0]}/*.json".lstrip("/")
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[inside, settings]))
    kinds = [f"{inside}/*{suffix}".lstrip("/") for suffix in (*SUFFIXES, ".json")]
    deeper = [f"{inside}/*/*".lstrip("/")]  # in these patterns a star crosses folders
    return Path(snapshot_download(repo, revision=revision, allow_patterns=kinds, ignore_patterns=deeper))


def _locate(path_or_id: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """A path that exists, and the commit it is from if it is from the Hub."""
    path, text = Path(path_or_id).expanduser(), str(path_or_id)
    if path.exists():
        return path, None
    match = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)(?:/([^@]+))?(?:@([\w./-]+))?", text)
    is_file = text.endswith(SUFFIXES) and text.count("/") < 2
    if isinstance(path_or_id, Path) or not match or is_file or (path.parent.is_dir() and "/" in text):
        remedy = "Give a file, a folder, or a Hub id owner/repo[/path][@revision]."
        raise CheckpointError(text, "does not exist", remedy)
    repo, inside, revision = match[1], (match[2] or "").strip("/"), revision or match[3]
    try:
        snapshot = fetch_from_hub(repo, inside, revision)
    except Exception as error:  # of the Hub, its transport or the network: they share no class
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise CheckpointError(
            text, f"cannot be fetched ({reason})", "Check the id, the revision and the network, or log in."
        ) from error
    if not (snapshot / inside).exists():
        raise CheckpointError(text, f"holds no {inside}", "Check the path inside the repository.")
    return snapshot / inside, snapshot.name if re.fullmatch(r"[0-9a-f]{40}", snapshot.name) else revision


def _only_checkpoint(folder: Path) -> Path:
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS
    files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    files = [path for path in files if path.name != "sparsity.safetensors"]
    if len(files) == 1:
        return files[0]
    names = ", ".join(path.name for path in files[:4])
    fault = f"holds {len(files)} checkpoints ({names})" if files else "holds no checkpoint"
    raise CheckpointError(str(folder), fault, f"Name one file ({', '.join(SUFFIXES)}).")


# -- what is inside -----------------------------------------------------------------------------------


def _read(path: Path) -> Found:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read ({error.strerror})", "Check the path.") from error
    digest = hashlib.sha256(data).hexdigest()
    beside = _json_beside(path)
    place = str(path)

    def found(kind: str, tensors: Any, config: dict[str, Any]) -> Found:
        tensors = {str(key): value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
        return Found(path, tensors, config, kind, digest)

    if not data or data.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the file" if data else "is empty"
        raise CheckpointError(place, what, "Run git lfs pull." if data else AGAIN)
    if path.suffix == ".safetensors" or data[8:9] == b"{":
        try:
            return found("safetensors", load_safetensors(data), beside)
        except (SafetensorError, ValueError, KeyError) as error:
            text = not any(byte < 9 for byte in data[:64])
            fault = "is text, not safetensors" if text else f"is cut short or damaged ({error})"
            raise CheckpointError(place, fault, AGAIN) from error
    if data[:1] == b"{":
        header, _, rest = data.partition(b"\n")
        try:
            config = json.loads(header)
        except ValueError as error:
            raise CheckpointError(place, "is text, not a checkpoint", AGAIN) from error
        return found("saev", _table(read_pickled(rest, place), place), config)
    if data[:2] != b"\x1f\x8b" and data[:2] != b"PK" and data[:1] != b"\x80" and data[:1] not in b"(}]c":
        raise CheckpointError(place, "is neither safetensors, a torch file nor a pickle", AGAIN)
    whole = read_pickled(data, place)
    if isinstance(whole, Standin):
        return found("module", module_tensors(whole), vars(whole) | {"class": type(whole).__name__})
    whole = _table(whole, place)
    if "autoencoder" in whole and "config" in whole:
        weights = _table(settings_of(whole["autoencoder"]).get("state_dict"), place)
        return found("wrapped", weights, settings_of(whole["config"]) | beside)
    if "state_dict" in whole:
        config = settings_of(whole.get("cfg", whole.get("config")))
        return found("wrapped", _table(whole["state_dict"], place), config | beside)
    return found("bare", whole, beside)


def _table(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(place, "holds no weights", "Take another checkpoint.")
    return value


def _json_beside(path: Path) -> dict[str, Any]:
    for name in (CONFIG, "config.json"):
        beside = path.with_name(name)
        if beside.exists():
            try:
                return dict(json.loads(beside.read_text()))
            except (OSError, ValueError, TypeError) as error:
                raise CheckpointError(str(beside), f"is not a JSON object ({error})", AGAIN) from error
    return {}
