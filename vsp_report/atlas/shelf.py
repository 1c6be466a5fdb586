"""Shelf: the atlases of a site. Which one belongs to a model and an SAE, and what its folder is called."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vsp_report.atlas.folder import ATLAS, atlases_in

ATLASES = "atlas"
"""Their folder inside a site."""


def slug_of(model: str, sae: str, tap: str) -> str:
    """The folder of an atlas: sketchworld-vision.3. An SAE that is not called after its tap has both names there."""
    model, sae = _short(model), _short(sae)
    return f"{model}-{sae}" if sae.startswith(tap) else "-".join(part for part in (model, tap, sae) if part)


def _short(name: str) -> str:
    last = name.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-.")[:60]


def find_atlas(parent: str | Path, *, model_sha: str, sae_sha: str, tap: str = "") -> Path | None:
    """The folder of the atlas that was made with this model and this SAE, by their hashes; None if there is none.

    Another model or SAE of the same name has other latents: its atlas says nothing of these.
    """
    for folder in atlases_in(parent):
        try:
            made = json.loads((folder / ATLAS).read_text(encoding="utf-8"))["provenance"]
            fits = made["model_sha"] == model_sha and made["sae_sha"] == sae_sha
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if fits and (not tap or made["tap"] == tap) and model_sha and sae_sha:
            return folder
    return None
