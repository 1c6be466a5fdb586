"""Pictures: what a case says of its image: a file, a SketchWorld scene, or a chart. Nothing is drawn here."""

# ruff: noqa: RUF009  (`asked` is dataclasses.field with a declaration)
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from vsp_report.case.kinds import (
    Anything,
    As,
    Choice,
    Either,
    Flag,
    Number,
    Plain,
    Record,
    Several,
    Text,
    Whole,
    asked,
    nearest,
)
from vsp_report.case.source import Node
from vsp_report.case.words import SEED, Wrong

PLANTED = {
    "limited-alignment": ("mitten", "puppet", "boot", "hat"),
    "misleading-cue": ("chair", "bench", "stool", "sofa", "highlight"),
    "hidden-cue": ("pig-rabbit", "goat-pig", "duck-cat", "duck-deer"),
    "none": ("objects", "animals", "people", "cups", "charts"),
    "cue-missing": ("objects", "animals", "people", "cups"),
}
FAMILIES = ("objects", "animals", "people", "cups", "charts", "portraits")
THINGS = (
    "fish", "turtle", "star", "ball", "boat", "tree", "animal", "bill", "trunk", "snout", "beak", "ears", "antlers",
    "horns", "points", "person", "chair", "bench", "stool", "sofa", "cane", "walker", "lamp", "plant", "cup", "table",
    "shelf", "box", "rock", "book", "cushion", "stump", "bucket", "hand", "fist", "foot", "head", "mitten", "puppet",
    "boot", "hat", "curtain",
)  # fmt: skip
TABLES = (
    "airports", "anscombe", "barley", "burtin", "cars", "crimea", "driving", "iowa-electricity", "iris", "la-riots",
    "ohlc", "seattle-temps", "seattle-weather", "sf-temps", "stocks", "us-employment", "wheat",
)  # fmt: skip
"""The tables inside the vega_datasets package; the others would have to be downloaded. The four lists above are
repeated here because a case is checked without numpy and pandas; a test holds them to what they repeat."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class ImageFile:
    """A picture beside the case file, or in a folder there."""

    file: str = asked(Text("the name of a picture beside the case", 400), "a picture, named from the case's folder")

    def faults(self) -> Wrong:
        path = PurePosixPath(self.file)
        if path.is_absolute() or "\\" in self.file or re.match(r"[A-Za-z]:", self.file) or ".." in path.parts:
            yield ("file",), f"is {self.file!r}", "Name a picture in the case's own folder, without '..' and with '/'."
        elif path.suffix.lower() not in PICTURES:
            yield ("file",), f"is {self.file!r}", f"Name a picture: {', '.join(PICTURES)}."


@dataclass(frozen=True)
class Planted:
    """A SketchWorld scene that is made to fail for a known reason."""

    mode: str = asked(Choice(tuple(PLANTED)), "the failure mode")
    variation: str = asked(Text("a variation", 60), "which of the mode's variations")
    seed: int = asked(SEED, "which scene", 0)

    def faults(self) -> Wrong:
        if self.variation not in PLANTED[self.mode]:
            yield ("variation",), f"is {self.variation!r}", nearest(self.variation, PLANTED[self.mode])


@dataclass(frozen=True)
class Sampled:
    """An ordinary SketchWorld scene, as training shows them."""

    family: str = asked(Choice(FAMILIES), "the family of scenes")
    seed: int = asked(SEED, "which scene", 0)


_COLOR = Several(Whole(0, 255), 3, 3)
_PLACE = Number(-1000, 1000)


@dataclass(frozen=True)
class SceneThing:
    kind: str = asked(Choice(THINGS), "what it is: cup, mitten, person, chair, …")
    x: float = asked(_PLACE, "its place, from the left; a scene is 96 wide")
    y: float = asked(_PLACE, "its place, from the top; a scene is 96 high")
    size: float = asked(Number(0.01, 100), "how many times its usual size", 1.0)
    color: str | None = asked(Text("a colour", 40), "the word for its colour", None)
    tint: tuple[int, ...] | None = asked(_COLOR, "the colour it is drawn with: red, green, blue", None)
    pose: str | None = asked(Text("a pose", 40), "sitting or standing, of a person", None)
    flip: bool = asked(Flag(), "drawn from right to left", False)


@dataclass(frozen=True)
class SceneBackdrop:
    base: tuple[int, ...] | None = asked(_COLOR, "its colour: red, green, blue", None)
    horizon: float | None = asked(_PLACE, "where the floor begins", None)
    spots: tuple[tuple[float, ...], ...] = asked(
        Several(Several(_PLACE, 4, 4), 0, 100), "round spots: x, y, radius, tone", ()
    )


@dataclass(frozen=True)
class SceneBar:
    label: str = asked(Text("a label", 80), "what stands below the bar")
    value: float = asked(Number(), "its height")
    color: str = asked(Text("a colour", 40), "the word for its colour")


@dataclass(frozen=True)
class SceneChart:
    table: str = asked(Text("a table", 80), "the table that the numbers are from")
    measure: str = asked(Text("a measure", 200), "what the bars show")
    bars: tuple[SceneBar, ...] = asked(Several(Record(SceneBar), 1, 12), "the bars, from left to right")
    background: tuple[int, ...] = asked(_COLOR, "its colour: red, green, blue")
    highlighted: int | None = asked(Whole(0, 11), "the bar that is highlighted, counted from 0", None)

    def faults(self) -> Wrong:
        if self.highlighted is not None and self.highlighted >= len(self.bars):
            yield ("highlighted",), f"is {self.highlighted}", f"Count the {len(self.bars)} bars from 0."


@dataclass(frozen=True)
class Drawn:
    """A SketchWorld scene given thing by thing; `vsp-report sketchworld draw` writes some to start from."""

    EXACTLY_ONE = (("things", "chart"),)
    family: str = asked(Choice(FAMILIES), "the family of scenes")
    things: tuple[SceneThing, ...] = asked(Several(Record(SceneThing), 1, 100), "the things, from back to front", ())
    chart: SceneChart | None = asked(Record(SceneChart), "a bar chart, instead of things", None)
    backdrop: SceneBackdrop | None = asked(Record(SceneBackdrop), "what is behind the things", None)

    @property
    def parts(self) -> tuple[str, ...]:
        """What `where: {thing: …}` can name, as the scene itself will call it."""
        if self.chart is None:
            return tuple(f"{thing.color or ''} {thing.kind}".strip() for thing in self.things)
        highlight = () if self.chart.highlighted is None else ("highlight",)
        return (*(f"{bar.color} bar" for bar in self.chart.bars), *highlight)

    @property
    def data(self) -> dict[str, Any]:
        """What `sketchworld.scene.make_scene` takes."""
        return Record(Drawn).plain(self)


def numbered(parts: Sequence[str]) -> str:
    return ", ".join(f"{i} {name}" for i, name in enumerate(parts)) or "nothing"


SceneValue: TypeAlias = Planted | Sampled | Drawn


@dataclass(frozen=True)
class SceneImage:
    """A picture that SketchWorld draws."""

    scene: SceneValue = asked(
        Either(
            (Record(Planted, ("mode", "variation")), Record(Drawn, ("things", "chart", "backdrop")), Record(Sampled)),
            "{mode, variation, seed}, {family, seed} or {family, things}",
            lambda value: (Planted, Drawn, Sampled).index(type(value)),
        ),
        "a planted failure {mode, variation, seed}, an ordinary scene {family, seed}, or {family, things}",
    )
    size: int = asked(Whole(32, 4096), "its width and height in pixels", 384)


@dataclass(frozen=True)
class ChartImage:
    """A Vega-Lite chart over a table of the vega_datasets package."""

    table: str = asked(Choice(TABLES), "a table of vega_datasets that is inside the package")
    spec: Plain = asked(Anything("a Vega-Lite chart without its data"), "the chart in Vega-Lite, without its data")
    width: int = asked(Whole(32, 4096), "in pixels", 384)
    height: int = asked(Whole(32, 4096), "in pixels", 384)

    def faults(self) -> Wrong:
        # A chart must not read a file or an address; `data` in a layer would also hide the table.
        for path in _mentions(self.spec.data, ("data", "url", "datasets", "href"), ("spec",)):
            yield path, "is not for a case", "Delete it: the data is the table, and nothing else is read."
        if not self.spec.data:
            yield ("spec",), "is empty", "Write at least a mark and an encoding."


def _mentions(data: Any, keys: tuple[str, ...], path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    steps = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for step, inner in steps:
        if step in keys:
            yield (*path, step)
        yield from _mentions(inner, keys, (*path, step))


@dataclass(frozen=True)
class ChartForm:
    chart: ChartImage = asked(Record(ChartImage), "a Vega-Lite chart over a table of vega_datasets")


Image: TypeAlias = ImageFile | SceneImage | ChartImage


class _Chart(As):
    """{chart: {…}} gives the chart itself."""

    def read(self, node: Node, path: str, faults: Any) -> Any:
        value = self.of.read(node, path, faults)
        return getattr(value, self.name, value)

    def plain(self, value: Any) -> Any:
        return self.of.plain(ChartForm(value))


class _File(Text):
    """A bare name stands for {file: name}."""

    def read(self, node: Node, path: str, faults: Any) -> Any:
        return Record(ImageFile).read(Node({"file": node}, node.line), path, faults)


IMAGE = Either(
    (
        _File("the name of a picture", 400),
        Record(ImageFile, ("file",)),
        Record(SceneImage, ("scene",)),
        _Chart(ChartImage, "chart", Record(ChartForm, ("chart",))),
    ),
    "the name of a picture, {scene: …} or {chart: …}",
    lambda value: {ImageFile: 1, SceneImage: 2, ChartImage: 3}[type(value)],
)
