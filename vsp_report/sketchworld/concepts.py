"""Concepts: the words by which a scene's truth is asked of latents, and which patches show what each word means.

A thing has its kind, the colour that it is drawn in, and a person's pose. An animal is its head and its mark together.
A chart is its whole picture.

Colour goes by what is drawn, and not by what is asked about: nobody here asks for the colour of a mitten, but who finds
green things finds a green mitten too, and every plant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vsp_report.sketchworld import rules
from vsp_report.sketchworld.drawing import COLORS
from vsp_report.sketchworld.scene import COVERED, Scene, Thing

CONCEPTS = (
    *rules.OBJECTS, *rules.MARKS, "person", "sitting", "standing", *rules.SEATS, *rules.AIDS, *rules.FURNITURE,
    *rules.SURFACES, *rules.BARE_PARTS, *rules.COVERS, "cup", "chart", "highlight", "red", "green", "blue", "yellow",
    "purple", "white",
)  # fmt: skip
_NUMBER = {concept: i for i, concept in enumerate(CONCEPTS)}
SHADE = 14
"""In no channel is a shade further from its colour."""
DRAWN_IN = {"plant": "green", "shelf": "white", "stool": "red"}
"""Kinds that are drawn in one colour always: about half of what is seen of them, or more, lies next to it."""


class Shown(NamedTuple):
    """Of one scene: its concepts, and the patches that show them."""

    concepts_C: np.ndarray
    patch_X: np.ndarray
    """with `concept_X`: row by row, which patch shows which concept"""
    concept_X: np.ndarray


def concepts_in(scene: Scene) -> set[str]:
    said = {thing.kind for thing in scene.things} | set(rules.animals_in(scene))
    said |= {word for thing in scene.things for word in (color_of(thing), thing.pose)}
    if scene.chart:
        said |= {
            "chart",
            *(bar.color for bar in scene.chart.bars),
            *(["highlight"] if scene.chart.highlighted is not None else []),
        }
    return said


def color_of(thing: Thing) -> str:
    """The word for what it is drawn in; empty where there is none."""
    if named := thing.color or DRAWN_IN.get(thing.kind):
        return named
    near = (word for word, color in COLORS.items()
            if all(abs(a - b) <= SHADE for a, b in zip(thing.tint, color, strict=True)))  # fmt: skip
    return next(near, "")


def masks_of(scene: Scene, size_px: int) -> list[np.ndarray]:
    """Of each part; at the size at which a scene was just drawn they are there already."""
    return [scene.mask(i, size_px) for i in range(len(scene.parts))]


def shown(scene: Scene, rows: int, columns: int, masks: Sequence[np.ndarray]) -> Shown:
    """What a scene shows on a grid of patches. A patch shows a thing when the thing covers `COVERED` of it."""
    named: list[tuple[np.ndarray, set[str]]] = []
    for i, part in enumerate(scene.parts):
        patches = np.flatnonzero(_shares(masks[i], rows, columns) >= COVERED)
        named.append((patches, _words(scene, i, part)))
    if scene.chart:
        named.append((np.arange(rows * columns), {"chart"}))
    pairs = {(int(patch), _NUMBER[word]) for patches, words in named for word in words if word in _NUMBER
             for patch in patches}  # fmt: skip
    patch_X, concept_X = (np.array(column, np.int64) for column in zip(*sorted(pairs), strict=True)) if pairs else (
        np.zeros(0, np.int64), np.zeros(0, np.int64)
    )  # fmt: skip
    there = concepts_in(scene)
    return Shown(np.array([concept in there for concept in CONCEPTS]), patch_X, concept_X)


def _words(scene: Scene, index: int, part: str) -> set[str]:
    if scene.chart:  # "red bar", and "highlight", which no colour comes before
        return {part.removesuffix(" bar")}
    thing = scene.things[index]
    if thing.kind == "animal" or thing.kind in rules.MARKS.values():
        of = {mark: animal for animal, mark in rules.MARKS.items()}
        return {of[thing.kind]} if thing.kind in of else set(rules.animals_in(scene))
    return {thing.kind, color_of(thing), thing.pose}


def _shares(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows * columns,): how much of every patch a mask covers; what does not divide evenly is left out at the end."""
    tall, wide = mask.shape[0] // rows, mask.shape[1] // columns
    return mask[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide).mean(axis=(1, 3)).ravel()


def topic_of(scene: Scene) -> str:
    """The one word for a whole picture: what a folder of such pictures would be called."""
    match scene.family:
        case "objects":
            return scene.things[0].kind
        case "animals" | "portraits":
            return rules.kind_of(scene)
        case "people":
            return f"person {rules.person_in(scene).pose}"
        case "cups":
            return f"cup on a {rules.support_of(scene)}"
    return scene.family
