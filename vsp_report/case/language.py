"""Language: a case as a whole. Declared once, as frozen values; what each field means stands beside it.

The same declaration reads a file, makes the JSON Schema that editors complete from, and writes the canonical form
that content hashes are made of (see `kinds`). Rules that join several values are the `faults` of their record.
"""

# ruff: noqa: RUF009  (`asked` is dataclasses.field with a declaration)
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsp_report.case.expectations import FAILURES, Expectation
from vsp_report.case.kinds import As, Choice, Either, Flag, Named, Record, Several, Share, Text, Whole, asked, nearest
from vsp_report.case.pictures import IMAGE, Drawn, Image, ImageFile, SceneImage, numbered
from vsp_report.case.steerings import STEERING, Controls, Edit, Region, Steering, Sweep
from vsp_report.case.words import ANSWER, MARKDOWN, SEED, SLUG, TITLE, WORDS, Wrong

ARMS = ("clean", "reconstructed", "edited", "controls", "before", "after")
"""Names that reports use for other things than a steering."""


@dataclass(frozen=True)
class Contrast:
    """The two answers that every effect is measured between."""

    right: str = asked(ANSWER, "the right answer, in the model's own words")
    wrong: str = asked(ANSWER, "the wrong answer, in the model's own words")

    def faults(self) -> Wrong:
        if self.right.strip().casefold() == self.wrong.strip().casefold():
            yield ("wrong",), "is the right answer", "Name two different answers."


@dataclass(frozen=True)
class Classification:
    """A zero-shot classification: the class whose description is nearest to the picture."""

    classes: tuple[str, ...] = asked(Several(ANSWER, 2, 1000, unique=True), "the names of the classes")
    templates: tuple[str, ...] = asked(
        Several(Text("a text with {}", 400), 1, 100, unique=True), "texts with {} where the class goes", ("a {}",)
    )

    def faults(self) -> Wrong:
        for i, template in enumerate(self.templates):
            if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
                yield ("templates", i), f"is {template!r}", "Write {} once, where the class goes."


@dataclass(frozen=True)
class Rephrasing:
    """The same question in other words."""

    prompt: str = asked(WORDS, "the question in other words")
    contrast: Contrast | None = asked(Record(Contrast), "its answers, if they are worded differently", None)
    name: str = ""


REPHRASING = Either(
    (As(Rephrasing, "prompt", WORDS), Record(Rephrasing)), "a question, or {prompt: …, contrast: …}", lambda value: 1
)


@dataclass(frozen=True)
class Heatmap:
    """How the token-latent heatmap is made."""

    top: int = asked(Whole(1, 1000), "how many latents each token brings", 20)
    noise_filter: float = asked(Share(), "the share of latents left out for being active everywhere", 0.02)
    normalize: str = asked(Choice(("none", "row", "column")), "what is scaled to its own largest value", "column")
    cluster: str = asked(Choice(("hierarchical", "k-means")), "how latents are grouped", "hierarchical")
    distance: str = asked(Choice(("correlation", "euclidean")), "what is near", "correlation")
    k: int = asked(Whole(1, 100), "how many clusters", 6)


@dataclass(frozen=True)
class Decoding:
    """How answers are written. They are greedy, because effects are measured between the likeliest words."""

    max_new_tokens: int = asked(Whole(1, 4096), "at most this many tokens", 64)


# --- a case ------------------------------------------------------------------------------------------------------

_TAP = r"(vision|text)\.-?[0-9]{1,4}|connector"
_DEVICE = r"auto|cpu|cuda(:[0-9]{1,2})?"
TOLD = ("title", "story", "failure", "tags", "expect")
"""What a case says of itself and of what is expected; it changes no figure of a run."""


@dataclass(frozen=True)
class Case:
    """One case: a picture, what is asked about it, what is steered, and what is expected."""

    EXACTLY_ONE = (("prompt", "classify"),)
    title: str = asked(TITLE, "the case in a few words")
    model: str = asked(Text("a model", 300), "a bundled name (sketchworld), a directory, or a Hub id, id@revision")
    sae: str = asked(
        Text("a sparse autoencoder", 300), "a bundled name (sketchworld/vision.3), a file or directory, or a Hub id"
    )
    image: Image = asked(IMAGE, "a picture beside the case, {scene: …} of SketchWorld, or {chart: …} in Vega-Lite")
    prompt: str | None = asked(WORDS, "the question to a vision-language model", None)
    classify: Classification | None = asked(Record(Classification), "instead of a prompt: classes for CLIP", None)
    system: str | None = asked(WORDS, "the system prompt", None)
    contrast: Contrast | None = asked(Record(Contrast), "the two answers that every effect is measured between", None)
    story: str | None = asked(MARKDOWN, "what is to be seen, and why it matters, in Markdown", None)
    failure: str | None = asked(Choice(FAILURES), "what the author believes; the diagnosis is computed", None)
    tags: tuple[str, ...] = asked(Several(SLUG, 0, 20, unique=True, alone=True), "words to find it by", ())
    needs: tuple[str, ...] = asked(
        Several(Choice(("gpu", "weights", "image")), 0, 3, unique=True, alone=True),
        "what must be brought: a GPU, the model's weights, the picture; without them the case is not run",
        (),
    )
    tap: str | None = asked(Text("a tap: vision.18, text.16 or connector", 20, _TAP), "where the SAE sits, if it "
                            "does not say so itself", None)  # fmt: skip
    device: str = asked(Text("auto, cpu, cuda or cuda:1", 10, _DEVICE), "cuda where there is one, else cpu", "auto")
    dtype: str = asked(Choice(("auto", "float32", "bfloat16", "float16")), "the numbers that the model runs in", "auto")
    seed: int = asked(SEED, "of everything that is drawn at random", 0)
    heatmap: Heatmap = asked(Record(Heatmap), "how the token-latent heatmap is made", Heatmap())
    decoding: Decoding = asked(Record(Decoding), "how answers are written", Decoding())
    steer: tuple[Steering, ...] = asked(Named(STEERING, "steering"), "the steerings, each a named set of edits", ())
    sweep: tuple[Sweep, ...] = asked(
        Several(Record(Sweep), 0, 20, unique=True, alone=True), "a steering at several strengths", ()
    )
    controls: Controls = asked(Record(Controls), "what every steering is compared with", Controls())
    rephrase: tuple[Rephrasing, ...] = asked(Named(REPHRASING, "rephrasing"), "the question in other words", ())
    diagnose: bool = asked(Flag(), "whether the failure mode is looked for, which takes a hundred runs or so", True)
    expect: Expectation = asked(Record(Expectation), "what must hold for the case to be confirmed", Expectation())

    id: str = field(default="", kw_only=True)
    """the file's name without its ending; also its name in every address"""
    path: Path | None = field(default=None, compare=False, kw_only=True)
    """the file; None for a case that came from elsewhere"""
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @property
    def image_path(self) -> Path | None:
        """The picture's file, where the image is one."""
        if not isinstance(self.image, ImageFile):
            return None
        return (self.path.parent if self.path else Path()) / self.image.file

    def line_of(self, path: str) -> int:
        """The line of a part, or of the nearest part around it; 0 if the case came from no file."""
        while path and path not in self.lines:
            path = re.sub(r"(\.[^.\[]*|\[\d+\])$", "", path) if re.search(r"[.\[]", path) else ""
        return self.lines.get(path, 0)

    def resolved(self) -> dict[str, Any]:
        """The case as canonical plain data, defaults filled in. `make_case` reads it back."""
        return dict(sorted(Record(Case).plain(self).items()))

    def computed(self) -> dict[str, Any]:
        """The part of `resolved()` that figures depend on: without title, story, failure, tags, and expectations, of
        which only the seeds are a matter of the run."""
        seeds = [seed for seed in self.expect.repeat.seeds if seed != self.seed] if self.expect.repeat else []
        computed = {key: value for key, value in self.resolved().items() if key not in (*TOLD, "needs")}
        return computed | ({"repeat": seeds} if seeds else {})

    def faults(self) -> Wrong:
        yield from self._faults_of_names()
        yield from self._faults_of_contrasts()
        parts = [("steer", s.name) for s in self.steer for e in s.edits for w in _regions(e) if w.thing is not None]
        if parts and not isinstance(self.image, SceneImage):
            yield parts[0], "names a thing, but the image is no scene", "Give boxes in pixels: where: {box: …}."
        yield from self._faults_of_things()
        if self.classify is not None and self.rephrase:
            yield ("rephrase",), "rephrases a classification", "Write more templates instead."
        if self.classify is not None and self.system is not None:
            yield ("system",), "is a system prompt for a classification", "Delete it."

    def _faults_of_things(self) -> Wrong:
        """Of a scene that is written out: what else it shows is known when it is drawn."""
        if isinstance(self.image, SceneImage) and isinstance(scene := self.image.scene, Drawn):
            for steering in self.steer:
                for where in (where for edit in steering.edits for where in _regions(edit)):
                    if where.thing is not None and not where.among(scene.parts):
                        fault = f"names {where.thing!r}, which is not in the scene"
                        yield ("steer", steering.name), fault, f"There are: {numbered(scene.parts)}."

    def _faults_of_names(self) -> Wrong:
        steerings, rephrasings = [s.name for s in self.steer], [r.name for r in self.rephrase]
        for i, steering in enumerate(self.steer):
            if steering.name in ARMS:
                yield ("steer", steering.name), "has a name that reports use for something else", "Choose another."
            if steering.onto is not None and steering.onto not in steerings[:i]:
                fault = f"is {steering.onto!r}, which is no steering above it"
                yield ("steer", steering.name, "onto"), fault, nearest(steering.onto, steerings[:i])
        for i, sweep in enumerate(self.sweep):
            if sweep.of not in steerings:
                yield ("sweep", i, "of"), f"is {sweep.of!r}, which is no steering", nearest(sweep.of, steerings)
        for part, known in (("after", steerings), ("rephrase", rephrasings)):
            for outcome in getattr(self.expect, part):
                if outcome.name not in known:
                    yield ("expect", part, outcome.name), "is the name of nothing", nearest(outcome.name, known)
        figures = _figures(steerings, rephrasings)
        for tolerance in self.expect.baseline:
            if tolerance.name not in figures:
                yield ("expect", "baseline", tolerance.name), "is no figure", nearest(tolerance.name, figures)

    def _faults_of_contrasts(self) -> Wrong:
        if self.contrast is None:
            for steering in self.steer:
                if any(getattr(edit.latents, "by", "") == "attribution" for edit in steering.edits):
                    fault = "ranks by attribution, which is to a contrast"
                    yield ("steer", steering.name), fault, "Write contrast: {right: …, wrong: …}."
            for tolerance in self.expect.baseline:
                if not tolerance.name.startswith("controls."):
                    fault = "is measured between two answers"
                    yield ("expect", "baseline", tolerance.name), fault, "Write contrast: {right: …, wrong: …}."
            for check in self.expect.checks:
                if check.metric in ("margin", "p_right", "change", "p", "diagnosis"):
                    where = ("expect", *filter(None, check.where.split(".")), check.metric)
                    yield where, "is measured between two answers", "Write contrast: {right: …, wrong: …}."
        elif self.classify is not None:
            for side in ("right", "wrong"):
                answer = getattr(self.contrast, side)
                if answer not in (classes := self.classify.classes):
                    yield ("contrast", side), f"is {answer!r}, which is no class", nearest(answer, classes)
        if self.expect.diagnosis is not None and not self.diagnose:
            yield ("expect", "diagnosis"), "is expected where there is diagnose: false", "Delete one of the two."
        if self.controls.draws == 0 or not self.controls.kinds:
            for outcome in self.expect.after:
                if outcome.p is not None:
                    yield ("expect", "after", outcome.name, "p"), "is measured among controls", "Draw some."
            for tolerance in self.expect.baseline:
                if tolerance.name == "controls.flips" or tolerance.name.endswith(".p"):
                    yield ("expect", "baseline", tolerance.name), "is measured among controls", "Draw some."
            if self.expect.controls is not None and self.expect.controls.flips is not None:
                yield ("expect", "controls", "flips"), "is measured among controls", "Draw some."


def _regions(edit: Edit) -> list[Region]:
    return [where for where in (edit.where, getattr(edit.latents, "where", None)) if where is not None]


def _figures(steerings: list[str], rephrasings: list[str]) -> list[str]:
    answered = [f"{where}.{metric}" for where in ("before", *(f"rephrase.{name}" for name in rephrasings))
                for metric in ("margin", "p_right")]  # fmt: skip
    steered = [f"after.{name}.{metric}" for name in steerings for metric in ("margin", "p_right", "change", "p")]
    return [*answered, *steered, "controls.flips", "controls.collateral"]
