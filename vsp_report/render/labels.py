"""Labels: what an atlas of the site calls the latents of a case, how good each word is, and where it is from.

A label is a guess. Wherever it stands as plain text a poor one ends in a question mark; where there is room it has its
score beside it. Labels are the atlas's of today and not those that a recording was made with: only of these is it
known what they are worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from vsp_report.atlas import Atlas
from vsp_report.recording import Recording

DOUBT = "?"
SOURCES = {"given": "given by hand", "truth": "by the world's ground truth", "images": "by the pictures' labels",
           "words": "by CLIP, from a list of words"}  # fmt: skip
WAYS = {
    "given": "Labels were given by hand",
    "truth": "A latent's label is the concept that it finds best",
    "images": "A latent's label is the one that most of its strongest pictures bear",
    "words": "A latent's label is the word that CLIP finds nearest to its strongest pictures",
}
MEANINGS = {
    "average precision": "how well the latent alone ranks pictures that show it before those that do not, 1 being "
    "without a fault",
    "share of references": "how many of the pictures that activate it most are labelled so, 1 being all",
    "cosine": "how near CLIP finds the word to the pictures that activate it most, 1 being the same",
}


class Labelled(NamedTuple):
    """A label as a page shows it."""

    word: str
    score: float | None
    poor: bool
    made: int
    """which of `Known.made`"""

    @property
    def text(self) -> str:
        return self.word + DOUBT * self.poor

    @property
    def said(self) -> str:
        return "" if self.score is None else f"{self.score:.2f}"


class Made(NamedTuple):
    """How some of the labels were made."""

    source: str
    how: str
    score: str
    """what the score is; empty where there is none"""
    least: float | None
    """a label below it is poor"""


@dataclass(frozen=True)
class Known:
    """What the site's atlases know of the latents of one case."""

    address: str = ""
    """of the atlas's page, from the page of the case; empty where there is none"""
    labels: Mapping[int, Labelled] = field(default_factory=dict)
    made: tuple[Made, ...] = ()
    other: str = ""
    """where it has none: the address of an atlas of the same SAE, surveyed with another model"""
    other_model: str = ""
    other_states: bool = False
    """it is known that the SAE reads other states there"""
    shared_with: str = ""
    """the model that the atlas was surveyed with, where it is another one that shares the states at the tap"""


NOTHING = Known()


def labels_of(atlas: Atlas, latents: Iterable[int]) -> dict[str, Any]:
    """As plain values, which are kept from build to build."""
    found: dict[str, list[Any]] = {}
    for latent in sorted({n for n in latents if 0 <= n < atlas.d_sae}):
        label = atlas.label(latent)
        if label is not None and atlas.alive_L[latent]:
            score = None if label.score is None else float(f"{label.score:.4g}")
            found[str(latent)] = [label.word, score, is_poor(label.score, label.labelling.least),
                                  atlas.labellings.index(label.labelling)]  # fmt: skip
    made = [[one.source, one.made, one.score, one.least] for one in atlas.labellings]
    return {"labels": found, "made": made}


def is_poor(score: float | None, least: float | None) -> bool:
    return least is not None and (score or 0) < least


def known_of(kept: Mapping[str, Any], address: str, shared_with: str = "") -> Known:
    labels = {int(latent): Labelled(*one) for latent, one in kept["labels"].items()}
    return Known(address, labels, tuple(Made(*one) for one in kept["made"]), shared_with=shared_with)


def relabelled(recording: Recording, known: Known) -> Recording:
    """With the atlas's labels; a latent that the atlas has no word for keeps none. Without an atlas, as recorded."""
    if not known.address and not known.labels:
        return recording
    words = {latent: one.text for latent, one in known.labels.items()}
    latents = tuple(replace(one, label=words.get(one.number, "")) for one in recording.latents)
    return replace(recording, latents=latents)


def told(recording: Recording, known: Known) -> tuple[str, ...]:
    """How to read the labels on this page, in sentences; empty where there are none."""
    shown = [known.labels[one.number] for one in recording.latents if one.number in known.labels]
    if not shown:
        unknown = "Labels are as they were recorded. Their atlas is no part of this site: how good they are is unknown."
        return (unknown,) if any(one.label for one in recording.latents) else ()
    said = []
    for number in sorted({one.made for one in shown}):
        made = known.made[number]
        here = [one for one in shown if one.made == number]
        said.append(f"{WAYS.get(made.source, 'Labels')}{f' ({made.how})' if made.how else ''}.")
        if any(one.score is not None for one in here):
            means = f": {MEANINGS[made.score]}" if made.score in MEANINGS else ""
            said.append(f"The figure beside one is its {made.score or 'score'}{means}.")
        poor = sum(one.poor for one in here)
        if poor and made.least is not None:
            said.append(f"Below {made.least:g} a label is poor: grey, with a question mark. Of the {len(here)} here, "
                        f"{poor} {'is' if poor == 1 else 'are'}.")  # fmt: skip
    return tuple(said)
