"""Shelf: the atlases of a site. Which one belongs to a model and an SAE, and what its folder is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vsp_report.atlas.folder import ATLAS, atlas_sha, atlases_in
from vsp_report.recording import sha_of

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
    for folder, made in _shelved(parent):
        fits = made.get("model_sha") == model_sha and made.get("sae_sha") == sae_sha
        if fits and (not tap or made.get("tap") == tap) and model_sha and sae_sha:
            return folder
    return None


def shelf_sha(parent: str | Path, *, model: tuple[str, str], sae: tuple[str, str]) -> str:
    """Of the atlases that may belong to a model and an SAE, each told by name and hash; empty if there is none.

    Before a run it is not always known what a name stands for: an atlas too many does no harm here.
    """
    fits = [atlas_sha(folder) for folder, made in _shelved(parent)
            if {made.get("model"), made.get("model_sha")} & {*model} - {""}
            and {made.get("sae"), made.get("sae_sha")} & {*sae} - {""}]  # fmt: skip
    return sha_of(fits) if fits else ""


def _shelved(parent: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every atlas' folder, and what made it."""
    for folder in atlases_in(parent):
        with suppress(OSError, ValueError, KeyError, TypeError):
            made = json.loads((folder / ATLAS).read_text(encoding="utf-8"))["provenance"]
            if isinstance(made, dict):
                yield folder, made
