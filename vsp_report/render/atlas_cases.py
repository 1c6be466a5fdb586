"""Atlas cases: where recordings and atlases meet. In which cases a latent matters, and which atlas a case's are in.

An atlas speaks of the latents of one SAE on the states of one tap. Both are known by their hashes: another model or SAE
of the same name has other latents, and a model that shares the tower below the tap has the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vsp_report.atlas import ATLAS, atlas_sha, atlases_in, same_latents
from vsp_report.recording import Recording
from vsp_report.render.findings import counted, number, p_value, turns

PREDICTED = 20
"""Of the latents with a predicted effect, so many of the strongest are told of."""


class Place(NamedTuple):
    """An atlas of the site, and whose latents it has."""

    folder: Path
    sha: str
    model_sha: str
    sae_sha: str
    tap: str
    model: str = ""
    states_sha: str = ""
    sae: str = ""

    @property
    def slug(self) -> str:
        return self.folder.name


def tap_names(made: Sequence[tuple[str, str]]) -> list[str]:
    """What each of several atlases is called, by its tap and its SAE: by the tap alone where no other has the same."""
    taps, ends = [tap for tap, _ in made], [(tap, _end(sae)) for tap, sae in made]
    found = []
    for (tap, sae), one in zip(made, ends, strict=True):
        name = one[1] if ends.count(one) == 1 else sae.partition("@")[0]
        found.append(tap if taps.count(tap) == 1 else name if _end(name).startswith(tap) else f"{tap}, {name}")
    return found


def _end(sae: str) -> str:
    return sae.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Shelf:
    """The atlases of a site, each file read once."""

    places: tuple[Place, ...]

    @classmethod
    def of(cls, parent: Path) -> Shelf:
        found = []
        for folder in atlases_in(parent):
            try:
                made = json.loads((folder / ATLAS).read_text(encoding="utf-8"))["provenance"]
                found.append(Place(folder, atlas_sha(folder), made["model_sha"], made["sae_sha"], made["tap"],
                                   made["model"], made.get("states_sha", ""), made["sae"]))  # fmt: skip
            except (OSError, ValueError, KeyError, TypeError):
                # Loading it says what is wrong with it.
                found.append(Place(folder, "", "", "", ""))
        return cls(tuple(found))

    def place(self, model_sha: str, sae_sha: str, tap: str = "", states_sha: str = "") -> Place | None:
        """The atlas that has these latents, made with the same model if there is one."""
        sought = {"model_sha": model_sha, "states_sha": states_sha, "sae_sha": sae_sha, "tap": tap}
        fits = [one for one in self.places if same_latents(one._asdict(), sought)]
        return min(fits, key=lambda one: one.model_sha != model_sha, default=None)

    def alike(self, sae_sha: str, tap: str = "") -> Place | None:
        """An atlas of the same SAE, whatever the model. It need not hold for another one: the SAE reads that model's
        states, which are other ones or, in what was made before their hash was kept, not known to be the same."""
        return next(self._of(sae_sha, tap), None)

    def _of(self, sae_sha: str, tap: str) -> Iterator[Place]:
        return (one for one in self.places if sae_sha and one.sae_sha == sae_sha and (not tap or one.tap == tap))


def address(place: Place) -> str:
    """Of the atlas's page, from the page of a case."""
    return f"../../atlas/{place.slug}/index.html"


class Mattering(NamedTuple):
    """Why a latent matters in a case."""

    latent: int
    rank: int
    """less is more"""
    why: str


def matters(recording: Recording) -> dict[str, Any]:
    """What the atlas is told of a case: plain values, kept from build to build."""
    made = recording.provenance
    found: dict[int, Mattering] = {}

    def say(latent: int, rank: int, why: str) -> None:
        old = found.get(latent)
        if old is None or rank < old.rank:
            found[latent] = Mattering(latent, rank, why)

    for one in recording.latents:
        say(one.number, 3, f"active on the picture, at most {one.strongest:.3g}")
    strongest = sorted(recording.attributions, key=lambda one: -abs(one.predicted))[:PREDICTED]
    for place, one in enumerate(strongest, 1):
        moved = f"{number(one.measured, 2, True)}, measured" if one.measured is not None else (
            f"{number(one.predicted, 2, True)}, predicted")  # fmt: skip
        say(one.latent, 2, f"number {place} by attribution: ablating it moves the log-odds by {moved}")
    if recording.minimal is not None:
        for latent in recording.minimal.latents:
            size = len(recording.minimal.latents)
            say(latent, 1, f"in the smallest set that takes the log-odds to the other side ({counted(size, 'latent')})")
    for one in recording.steered:
        chance = "" if one.p is None else f" ({_p(p_value(one.p))})"
        turned = turns(recording, one)
        for edit in one.edits:
            if edit.latents == "all":
                continue
            others = len(edit.latents) - 1
            how = {"set": f"set to {edit.value:g}", "scale": f"multiplied by {edit.value:g}"}.get(
                edit.op, f"{edit.value:+g} added")  # fmt: skip
            together = f", with {counted(others, 'other')}" if others else ""
            why = f"{how} in “{one.name}”{together}{f', which turns the answer{chance}' if turned else ''}"
            for latent in edit.latents:
                say(latent, 0 if turned else 1, why)
    return {
        "id": recording.id,
        "title": recording.case["title"],
        "model_sha": made.model_sha,
        "states_sha": made.states_sha,
        "sae_sha": made.sae_sha,
        "tap": made.tap,
        "latents": [list(one) for one in sorted(found.values(), key=lambda one: (one.rank, one.latent))],
    }


def _p(value: str) -> str:
    return f"p\u00a0{value}" if value.startswith("<") else f"p\u00a0=\u00a0{value}"


def cases_of(place: Place, told: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases that say something of latents of this atlas."""
    return [one for one in told if one["latents"] and same_latents(place._asdict(), one)]


def by_latent(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """For the atlas's script: cases, and for each latent [case, rank, why]."""
    latents: dict[int, list[list[Any]]] = {}
    for n, case in enumerate(cases):
        for latent, rank, why in case["latents"]:
            latents.setdefault(latent, []).append([n, rank, why])
    return {
        "cases": [[case["id"], case["title"]] for case in cases],
        "latents": {str(latent): sorted(lines, key=lambda line: line[1]) for latent, lines in sorted(latents.items())},
    }
