"""Shelf: the atlases of a site. Which one belongs to a model and an SAE, and what its folder is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vsp_report.atlas.folder import ATLAS, atlas_sha, atlases_in
from vsp_report.recording import sha_of

ATLASES = "atlas"
"""Their folder inside a site."""


def slug_of(model: str, sae: str, tap: str) -> str:
    """The folder of an atlas: sketchworld-vision.3. An SAE that is not called after its tap has both names there."""
    model, sae = _short(model), _short(sae)
    return f"{model}-{sae}" if sae.startswith(tap) else "-".join(part for part in (model, tap, sae) if part)


class Place(NamedTuple):
    """Where an atlas is to be written."""

    slug: str
    note: str = ""
    """what is to be said of it before, where something of that name is there already"""


def place_of(parent: str | Path, made: Mapping[str, Any]) -> Place:
    """The folder for the atlas of this model, SAE and tap. Two SAEs may have one name in the end (a/vision.3 and
    b/vision.3), and their atlases would have one folder: then the second one's ends in a hash of what it is. What has
    the same names throughout is the same thing made again, and takes the place of the older."""
    names = ("model", "sae", "tap")
    slug = slug_of(*(made[name] for name in names))
    with suppress(OSError, ValueError, KeyError, TypeError):  # there is none, or none that can be read
        there = json.loads((Path(parent) / slug / ATLAS).read_text(encoding="utf-8"))["provenance"]
        if same_latents(there, made):
            return Place(slug)
        if all(there[name] == made[name] for name in names):
            changed = [name for name in ("model", "sae") if there[f"{name}_sha"] != made[f"{name}_sha"]]
            what = " and ".join(there[name] for name in changed) or there["sae"]
            return Place(slug, f"{slug} is made anew in its place: {what} changed since it was made")
        longer = f"{slug}-{sha_of([made.get(f'{name}_sha') or made[name] for name in names])[:8]}"
        other = f"{there['sae']} of {there['model']}"
        return Place(longer, f"{slug} is the atlas of {other}, and stays; this one is written to {longer}")
    return Place(slug)


def _short(name: str) -> str:
    last = name.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-.")[:60]


def same_latents(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two makings (of atlases, of recordings) saw the same latents: the same SAE at the same tap, on the same
    states. The same model gives the same states; so does another one with the same tower below the tap, where both
    know the hash of what their states depend on. A tap that one does not tell is left out.

    Another model or SAE of the same name has other latents: an atlas of one says nothing of the other's.
    """
    same = {key for key in ("model_sha", "states_sha", "sae_sha", "tap") if one.get(key) and one[key] == other.get(key)}
    at = "tap" in same or not (one.get("tap") and other.get("tap"))
    return "sae_sha" in same and at and ("model_sha" in same or "states_sha" in same)


def find_atlas(parent: str | Path, *, model_sha: str, sae_sha: str, tap: str = "", states_sha: str = "") -> Path | None:
    """The folder of the atlas that has these latents, by hashes; None if there is none. Where several have, one that
    was made with the same model goes first."""
    sought = {"model_sha": model_sha, "states_sha": states_sha, "sae_sha": sae_sha, "tap": tap}
    fits = [(folder, made) for folder, made in _shelved(parent) if same_latents(made, sought)]
    return min(fits, key=lambda fit: fit[1].get("model_sha") != model_sha, default=(None,))[0]


def shelf_sha(parent: str | Path, *, sae: tuple[str, str]) -> str:
    """Of the atlases that may have the latents of an SAE, which is told by name and hash; empty if there is none.

    Before a run it is neither known what a name stands for nor what a model shares with another: an atlas too many
    does no harm here.
    """
    fits = [atlas_sha(folder) for folder, made in _shelved(parent)
            if {made.get("sae"), made.get("sae_sha")} & {*sae} - {""}]  # fmt: skip
    return sha_of(fits) if fits else ""


def _shelved(parent: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every atlas' folder, and what made it."""
    for folder in atlases_in(parent):
        with suppress(OSError, ValueError, KeyError, TypeError):
            made = json.loads((folder / ATLAS).read_text(encoding="utf-8"))["provenance"]
            if isinstance(made, dict):
                yield folder, made
