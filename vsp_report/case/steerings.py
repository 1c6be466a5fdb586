"""Steerings: what a case asks to be edited, and what that is compared with. Latents are named, not yet found."""

# ruff: noqa: RUF009  (`asked` is dataclasses.field with a declaration)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from vsp_report.case.kinds import (
    As,
    Choice,
    Constant,
    Either,
    Flag,
    Number,
    Record,
    Several,
    Text,
    Whole,
    asked,
)
from vsp_report.case.words import SLUG, WORDS, Wrong

_PIXELS = Several(Number(0, 100_000), 4, 4)


@dataclass(frozen=True)
class Region:
    """A part of the picture: boxes x0, y0, x1, y1 in pixels of the original image, or a thing of a scene."""

    EXACTLY_ONE = (("box", "boxes", "thing"),)
    box: tuple[float, ...] | None = asked(_PIXELS, "x0, y0, x1, y1 in pixels of the original image", None)
    boxes: tuple[tuple[float, ...], ...] = asked(Several(_PIXELS, 1, 100), "several boxes, taken together", ())
    thing: str | int | None = asked(
        Either((Whole(0, 99), Text("the name of a thing", 80)), "a thing's name or number",
               lambda value: int(isinstance(value, str))),
        "a thing of a SketchWorld scene, by its name or its number",
        None,
    )  # fmt: skip

    @property
    def all_boxes(self) -> tuple[tuple[float, ...], ...]:
        return self.boxes if self.box is None else (self.box,)

    def among(self, parts: Sequence[str]) -> list[int]:
        """Which parts of a scene its thing names; "chair" stands for "red chair" where nothing is called just that."""
        if isinstance(self.thing, int):
            return [self.thing] if self.thing < len(parts) else []
        name = self.thing.casefold()
        exact = [i for i, part in enumerate(parts) if part.casefold() == name]
        return exact or [i for i, part in enumerate(parts) if part.casefold().split()[-1:] == [name]]

    def faults(self) -> Wrong:
        for i, (x0, y0, x1, y1) in enumerate(self.all_boxes):
            if x0 >= x1 or y0 >= y1:
                path = ("box",) if self.box is not None else ("boxes", i)
                yield path, "is empty", "Write x0, y0, x1, y1 with x0 < x1 and y0 < y1."


@dataclass(frozen=True)
class ByNumber:
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class AllLatents:
    """Every latent of the SAE."""


@dataclass(frozen=True)
class ByCluster:
    """The latents of a cluster of this case's heatmap."""

    cluster: int = asked(Whole(0, 999), "a cluster of this case's heatmap, numbered from 0 as the heatmap shows them")


@dataclass(frozen=True)
class ByLabel:
    """The latents whose label in the atlas is this word, those first that are strongest in this image."""

    label: str = asked(Text("a label", 80), "a label of the atlas: chair, mitten, …")
    top: int = asked(Whole(1, 1000), "how many of them, the strongest in this image first", 10)


@dataclass(frozen=True)
class ByRank:
    """The first latents of a ranking of those that are active in this image."""

    top: int = asked(Whole(1, 1000), "how many")
    by: str = asked(
        Choice(("attribution", "attention", "activation")),
        "what ranks them: predicted effect on the contrast, activation weighted by attention, or activation",
    )
    token: str | None = asked(Text("a token", 80), "by attention: the token that attends (default: the answer's)", None)
    supports: str | None = asked(Choice(("wrong", "right")), "by attribution: the answer that they support", None)
    where: Region | None = asked(
        Record(Region), "only latents that belong to this part of the picture: half of their activation is on it", None
    )

    def faults(self) -> Wrong:
        for name, by in (("token", "attention"), ("supports", "attribution")):
            if getattr(self, name) is not None and self.by != by:
                yield (name,), f"means nothing by {self.by}", f"Delete it, or write by: {by}."


Latents: TypeAlias = ByNumber | AllLatents | ByCluster | ByLabel | ByRank

_LATENT = Whole(0, 10_000_000)
LATENTS = Either(
    (
        Constant("all", AllLatents()),
        As(ByNumber, "numbers", Several(_LATENT, 1, 10_000, unique=True, alone=True)),
        Record(ByCluster, ("cluster",)),
        Record(ByLabel, ("label",)),
        Record(ByRank, ("top", "by")),
    ),
    "numbers, all, {cluster: N}, {label: word, top: N} or {top: N, by: attribution}",
    lambda value: (AllLatents, ByNumber, ByCluster, ByLabel, ByRank).index(type(value)),
)


@dataclass(frozen=True)
class Edit:
    """One change to some latents, on every patch or in a part of the picture."""

    EXACTLY_ONE = (("set", "scale", "add"),)
    latents: Latents = asked(LATENTS, "which: numbers, all, {cluster: N}, {label: word}, {top: N, by: attribution}")
    set: float | None = asked(Number(-1e6, 1e6), "set them to this; 0 ablates", None)
    scale: float | None = asked(Number(-1e3, 1e3), "multiply them by this", None)
    add: float | None = asked(Number(-1e6, 1e6), "add this to them", None)
    where: Region | None = asked(Record(Region), "only in this part of the picture", None)

    @property
    def op(self) -> Literal["set", "scale", "add"]:
        return next(op for op in ("set", "scale", "add") if getattr(self, op) is not None)

    @property
    def value(self) -> float:
        return getattr(self, self.op)


@dataclass(frozen=True)
class Steering:
    """A named set of edits, made together."""

    edits: tuple[Edit, ...] = asked(Several(Record(Edit), 1, 100, alone=True), "the edits, one after another")
    mode: str = asked(
        Choice(("delta", "reconstruct")), "keep what the SAE does not explain (delta), or not (reconstruct)", "delta"
    )
    cls: bool = asked(Flag(), "class tokens as well, where an edit is not held to a region", False)
    onto: str | None = asked(
        SLUG, "an earlier steering that stays in place: its latents are looked for again with that one made", None
    )
    name: str = ""


class _Edits(As):
    """One edit, or a list of them, stands for {edits: …}."""

    def plain(self, value: Any) -> Any:
        return Record(Steering).plain(value)


STEERING = Either(
    (Record(Steering, ("edits",)), _Edits(Steering, "edits", Several(Record(Edit), 1, 100, alone=True))),
    "an edit, a list of edits, or {edits: …, mode: …}",
    lambda value: 0,
)


@dataclass(frozen=True)
class Sweep:
    """A steering at several strengths: its latents times each factor, 0 for ablated and 1 for untouched."""

    of: str = asked(SLUG, "the name of a steering")
    factors: tuple[float, ...] = asked(
        Several(Number(-100, 100), 2, 50, unique=True), "the strengths; 1 is untouched", (0.0, 0.5, 1.0, 2.0, 4.0)
    )


@dataclass(frozen=True)
class Controls:
    """What every steering is compared with."""

    draws: int = asked(Whole(0, 10_000), "how many matched controls of each kind", 200)
    kinds: tuple[str, ...] = asked(
        Several(Choice(("latents", "directions", "untrained")), 0, 3, unique=True),
        "other latents active in the image; random directions of the same length; an untrained SAE",
        ("latents", "directions", "untrained"),
    )
    prompts: tuple[str, ...] = asked(
        Several(WORDS, 0, 20, unique=True), "other questions about the same image, whose answers should stay", ()
    )
