"""Parts: what was seen in one run of one case, as frozen values. Read without torch; arrays are numpy's.

Figures are natural-logarithm odds and probabilities from 0 to 1. A figure that does not exist is None: never NaN.

Axes: T tokens (of `Recording.tokens`), P patches, L latents (of `Recording.latents`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from vsp_report.case import Case, make_case
from vsp_report.errors import InputError

SCHEMA = 1
"""Goes up when a reader of the older form would misread the newer one."""

Status = Literal["ok", "error", "not-run"]
TokenKind = Literal["template", "system", "image", "prompt", "answer"]
Mode = Literal["limited-alignment", "misleading-cue", "hidden-cue", "perception-missing", "none", "undetermined"]
Row = Literal["predicting", "own"]
"""Whose attention a token has: that of the position which said it, or that of its own position, where it is read."""
ControlKind = Literal["latents", "directions", "untrained"]


@dataclass(frozen=True)
class Stop:
    """Why a run has no result, or only a part of one."""

    step: str
    """what it was doing: observe, steer no-chair, …; for a case that was not run: needs"""
    message: str
    """one line: place, fault, remedy"""
    traceback: str = ""


@dataclass(frozen=True)
class Provenance:
    """What made the recording, so that it can be made again."""

    run_key: str = ""
    """the content hash that decides whether the case must run again"""
    case_sha: str = ""
    """of the case's canonical form"""
    image_sha: str = ""
    """of the picture's bytes"""
    model: str = ""
    """the model with its revision"""
    model_sha: str = ""
    sae: str = ""
    sae_sha: str = ""
    tap: str = ""
    notebook_sha: str = ""
    """of the notebook's code cells"""
    package_sha: str = ""
    """of the source of what computes"""
    versions: dict[str, str] = field(default_factory=dict)
    """python, vsp_report, torch, transformers, numpy, …"""
    device_class: str = ""
    """cpu, or cuda with its architecture: cuda sm_90"""
    device_name: str = ""
    dtype: str = ""
    seed: int = 0
    command: str = ""
    """reproduces the recording"""
    seconds: float = 0.0
    created: str = ""
    """UTC: 2030-01-31T12:00:00Z"""
    states_sha: str = ""
    """of what the states at the tap depend on: at vision.N the tower up to there and what its processor makes of a
    picture, elsewhere the whole model; empty in a recording from before there was such a hash"""


VARYING = ("seconds", "created", "device_name")
"""The fields of `Provenance` in which two runs of the same case may differ."""


@dataclass(frozen=True)
class Picture:
    file: str
    """inside the recording: images/input.png"""
    width_px: int
    height_px: int
    alt: str = ""
    """what it shows, for who cannot see it"""


@dataclass(frozen=True)
class Grid:
    """The patches that the language model reads; `Arrays.boxes_P4` has their places in pixels."""

    patches: int
    rows: int | None = None
    """None where the patches make no single grid"""
    columns: int | None = None


@dataclass(frozen=True)
class Token:
    text: str
    """as it reads in the text, with its space in front"""
    kind: TokenKind
    id: int
    log_prob: float | None = None
    """of this token after all before it"""


@dataclass(frozen=True)
class Reference:
    """A picture of the survey that a latent answers to strongly."""

    id: str
    activation: float


@dataclass(frozen=True)
class Latent:
    """A latent chosen for display; `Arrays.maps_LP` has its activation on every patch."""

    number: int
    label: str = ""
    """from the atlas"""
    strongest: float = 0.0
    """its largest activation on this image"""
    total: float = 0.0
    """the sum of its activations over the patches"""
    frequency: float | None = None
    """the share of the survey's images in which it is active"""
    mean_activation: float | None = None
    """over the survey's images in which it is active"""
    noisy: bool = False
    """left out of the heatmap for being active everywhere"""
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class Clustering:
    """One grouping of the heatmap's latents."""

    cluster: Literal["hierarchical", "k-means"]
    distance: Literal["correlation", "euclidean"]
    order: tuple[int, ...]
    """numbers of `Heatmap.columns` (positions, not latents), from left to right"""
    clusters: tuple[int, ...]
    """for each column, in the order of `Heatmap.columns`: its cluster, from 0 by first place from the left"""
    names: tuple[str, ...] = ()
    """what each cluster is called"""


@dataclass(frozen=True)
class Heatmap:
    """The token-latent heatmap. `Arrays.heatmap_TL` has its values, weighted by attention and not normalised."""

    rows: tuple[int, ...]
    """positions in `Recording.tokens`"""
    columns: tuple[int, ...]
    """positions in `Recording.latents`"""
    top: int
    normalize: Literal["none", "row", "column"]
    """what the case asks for"""
    clusterings: tuple[Clustering, ...]
    """the first is what the case asks for"""
    row: Row = "predicting"
    """whose attention weighs"""


@dataclass(frozen=True)
class Attribution:
    latent: int
    """its number in the SAE"""
    predicted: float
    """change of the margin by ablating it, to first order, from one backward pass"""
    measured: float | None = None
    """the true change, for the sample that was measured"""


@dataclass(frozen=True)
class Agreement:
    """How well a ranking of latents agrees with true effects, over the latents that were measured."""

    by: Literal["attribution", "attention", "activation"]
    spearman: float | None
    slope: float | None
    measured: int
    """how many latents"""
    flips_after: int | None = None
    """ablating in this order, how many latents until the answer flips"""


@dataclass(frozen=True)
class Answered:
    """One answer of the model, and the contrast measured there. A classification answers with its likeliest class."""

    text: str
    tokens: tuple[Token, ...] = ()
    ended: bool = True
    """the model ended it; else it was cut at the length allowed"""
    margin: float | None = None
    """log-odds of the right answer against the wrong one"""
    p_right: float | None = None
    p_wrong: float | None = None
    log_probs: dict[str, float] | None = None
    """of other answers that were measured, by their text"""


@dataclass(frozen=True)
class ControlDraws:
    """Matched controls of one kind for one steering."""

    kind: ControlKind
    changes: tuple[float, ...]
    """of the margin, one for each draw, against the clean run"""
    flips: float | None = None
    """the share of draws that take the margin to the other side of zero; without a contrast, after which other words
    are said"""
    p: float | None = None
    """(1 + draws at least as far) / (1 + draws): never zero. In reconstruct mode, without the SAE's own error on both
    sides"""
    mass_ratio: float | None = None
    """of other latents: their activation on this image against that of those they stand for, 1 for as active; None in
    a recording from before it was kept"""


@dataclass(frozen=True)
class Collateral:
    """Another question about the same image, before and after."""

    prompt: str
    before: str
    after: str

    @property
    def changed(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True)
class EditMade:
    """An edit with its latents found: numbers, whatever the case called them."""

    latents: tuple[int, ...] | Literal["all"]
    op: Literal["set", "scale", "add"]
    value: float
    boxes: tuple[tuple[float, ...], ...] = ()
    """x0, y0, x1, y1 in pixels; none is everywhere"""
    asked: str = ""
    """the words of the case: label chair, top 10"""


@dataclass(frozen=True)
class Steered:
    """What one steering did."""

    name: str
    edits: tuple[EditMade, ...]
    after: Answered
    mode: Literal["delta", "reconstruct"] = "delta"
    onto: str | None = None
    """an earlier steering that was in place"""
    change: float | None = None
    """of the margin, against the clean run"""
    beyond_reconstruction: float | None = None
    """the same against "reconstructed, nothing edited": without the SAE's own error"""
    interval: tuple[float, float] | None = None
    """of the change, 95 %; in reconstruct mode of `beyond_reconstruction`"""
    p: float | None = None
    """of the same among matched latents"""
    flipped: bool = False
    """whether the answer differs from the clean one; in reconstruct mode, from the reconstructed one"""
    controls: tuple[ControlDraws, ...] = ()
    collateral: tuple[Collateral, ...] = ()


@dataclass(frozen=True)
class Dose:
    factor: float
    answered: Answered


@dataclass(frozen=True)
class Swept:
    """A steering's latents at several strengths."""

    of: str
    doses: tuple[Dose, ...]
    flip_factor: float | None = None
    """where the answer flips, going away from 1"""


@dataclass(frozen=True)
class Rephrased:
    name: str
    prompt: str
    answered: Answered
    contrast: tuple[str, str] | None = None
    """right and wrong, if they are worded differently"""


@dataclass(frozen=True)
class ClassScores:
    """A classification, of the clean run or of a steering."""

    name: str
    """clean, reconstructed, or the steering's"""
    probabilities: tuple[float, ...]
    """of `Classified.classes`"""


@dataclass(frozen=True)
class Classified:
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    scores: tuple[ClassScores, ...]
    """clean first"""


@dataclass(frozen=True)
class MinimalSet:
    """The smallest set of latents found that takes the log-odds to the other side of zero."""

    latents: tuple[int, ...]
    after: Answered
    runs: int
    """how many model runs the search took"""


@dataclass(frozen=True)
class Evidence:
    """One line of the table that led to the diagnosis."""

    test: str
    """rephrasing, ablate what supports the wrong answer, …"""
    finding: str
    """what came out, in words"""
    holds: bool | None
    """whether it speaks for the mode under test; None where it could not be tested"""
    change: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    mode: Mode
    evidence: tuple[Evidence, ...] = ()
    runs: int | None = None
    """how many model runs it took"""


@dataclass(frozen=True)
class Repeated:
    """The figures of one more seed."""

    seed: int
    figures: dict[str, float | str | None]
    """as `Recording.figures()`"""


@dataclass(frozen=True, eq=False)
class Arrays:
    """The large part, in arrays.npz. An array that was not made is None."""

    predicting_TP: np.ndarray | None = None
    """float16: how much the position that said each token attended to each patch, mean over layers and heads; NaN
    where a token has no such row"""
    own_TP: np.ndarray | None = None
    """float16: the same of the position at which the token is read"""
    boxes_P4: np.ndarray | None = None
    """float32: x0, y0, x1, y1 of every patch in pixels of the original image; NaN for what has no place"""
    maps_LP: np.ndarray | None = None
    """float16: activation of every displayed latent on every patch"""
    heatmap_TL: np.ndarray | None = None
    """float32: rows and columns of `Heatmap`, Σ_p attention(token, p) · activation(p); NaN where a token has no row"""

    def attention(self, row: Row = "predicting") -> np.ndarray | None:
        return self.predicting_TP if row == "predicting" else self.own_TP

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ((name, array) for name, array in named if array is not None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Arrays):
            return NotImplemented
        mine, theirs = dict(self.items()), dict(other.items())
        return mine.keys() == theirs.keys() and all(
            a.dtype == theirs[name].dtype and a.shape == theirs[name].shape and a.tobytes() == theirs[name].tobytes()
            for name, a in mine.items()
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Recording:
    """One case, run once. A run that failed has `status` error and a `stop`, and what was seen until then."""

    schema: int
    id: str
    """the case's"""
    status: Status
    case: dict[str, Any]
    """`Case.resolved()`"""
    stop: Stop | None = None
    provenance: Provenance = field(default_factory=Provenance)
    image: Picture | None = None
    grid: Grid | None = None
    tokens: tuple[Token, ...] = ()
    """of prompt and answer, in the order that the model reads them, image tokens left out"""
    clean: Answered | None = None
    """the model as it is"""
    reconstructed: Answered | None = None
    """through the SAE, with nothing edited"""
    latents: tuple[Latent, ...] = ()
    heatmap: Heatmap | None = None
    attributions: tuple[Attribution, ...] = ()
    """the strongest, by the size of the predicted change"""
    agreements: tuple[Agreement, ...] = ()
    steered: tuple[Steered, ...] = ()
    """in the order of the case"""
    swept: tuple[Swept, ...] = ()
    rephrased: tuple[Rephrased, ...] = ()
    classified: Classified | None = None
    minimal: MinimalSet | None = None
    diagnosis: Diagnosis | None = None
    repeats: tuple[Repeated, ...] = ()
    arrays: Arrays = field(default_factory=Arrays)
    """kept in arrays.npz beside the JSON"""

    def check(self, place: str) -> None:
        """Refuse parts that do not fit together."""
        if (self.status == "ok") == (self.stop is not None):
            raise InputError(place, f"status {self.status} does not go with its stop", "Only 'ok' goes without one.")
        if self.heatmap is None:
            return
        rows, columns = self.heatmap.rows, self.heatmap.columns
        for name, places, known in (("rows", rows, self.tokens), ("columns", columns, self.latents)):
            if any(not 0 <= at < len(known) for at in places):
                raise InputError(place, f"heatmap.{name} leads beyond what it counts", "Number from 0.")
        for i, one in enumerate(self.heatmap.clusterings):
            if sorted(one.order) != list(range(len(columns))) or len(one.clusters) != len(columns):
                fault = f"heatmap.clusterings[{i}] does not order its {len(columns)} columns"
                raise InputError(place, fault, "Give each column one place and one cluster.")

    def asked(self) -> Case:
        """The case as a value."""
        return make_case(self.case, self.id, f"recording {self.id}")

    def steering(self, name: str) -> Steered | None:
        return next((one for one in self.steered if one.name == name), None)

    def figures(self) -> dict[str, float | str | None]:
        """Everything an expectation may ask for, by `Check.where` and `Check.metric`: before.margin,
        after.no-chair.p, controls.flips, diagnosis. What was not measured is left out."""
        found: dict[str, float | str | None] = {}

        def answered(where: str, one: Answered | None) -> None:
            if one is not None:
                found.update({f"{where}.answer": one.text, f"{where}.margin": one.margin,
                              f"{where}.p_right": one.p_right})  # fmt: skip

        answered("before", self.clean)
        for one in self.steered:
            answered(f"after.{one.name}", one.after)
            found |= {f"after.{one.name}.change": one.change, f"after.{one.name}.p": one.p}
        for one in self.rephrased:
            answered(f"rephrase.{one.name}", one.answered)
        # The worst of all steerings: an expectation of the controls is one of each. Matched latents only: they are what
        # might as well have been taken. What an untrained SAE does in the same place is shown beside them.
        flips = [d.flips for one in self.steered for d in one.controls if d.kind == "latents" and d.flips is not None]
        found["controls.flips"] = max(flips, default=None)
        asked = [one.collateral for one in self.steered if one.collateral]
        shares = [sum(other.changed for other in others) / len(others) for others in asked]
        found["controls.collateral"] = max(shares, default=None)
        found["diagnosis"] = self.diagnosis.mode if self.diagnosis else None
        return {name: figure for name, figure in found.items() if figure is not None}
