"""Subjects: what a case puts to the test. A model that answers, or a CLIP that classifies, behind the same questions.

    look      what there is: tokens, attention, latents
    answers   what it says as it is, through the SAE, and under steerings
    changes   how far steerings move the contrast, and nothing said
    bench     the question held still, for changes that are no steerings; None at a text tap

Models and SAEs are loaded once in a process and kept by their identity: name, device, precision, and for a folder the
names, sizes and times of its files. A warm kernel so keeps them from case to case, and notices new weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vsp_report import paths
from vsp_report.case import Case
from vsp_report.errors import SteeringError
from vsp_report.maths.edits import Contrast, Steering
from vsp_report.maths.grids import Weights
from vsp_report.model import bench as benches
from vsp_report.model import classify as clips
from vsp_report.model.attribution import Attribution, attribute
from vsp_report.model.bench import Bench
from vsp_report.model.class_lists import ClassList
from vsp_report.model.devices import without_progress
from vsp_report.model.sae import Sae
from vsp_report.model.steering import Said, tap_of
from vsp_report.model.taps import resolve
from vsp_report.model.vlm import Vlm, load_vlm
from vsp_report.recording import Answered, ClassScores, Token, file_sha, folder_sha
from vsp_report.study.observe import load_sae, observe, without_half
from vsp_report.study.steer import steer

RECONSTRUCTED = Steering("reconstructed", (), mode="reconstruct")
"""Nothing edited, everything through the SAE."""


class Looked(NamedTuple):
    """What there is to see before anything is steered."""

    tokens: tuple[Token, ...]
    predicting_TP: np.ndarray
    """attention of the position that said each token; NaN where it has none"""
    own_TP: np.ndarray
    """attention of the position at which each token is read"""
    boxes_P4: np.ndarray
    latents_PL: Weights
    tap: str


class Answers(NamedTuple):
    clean: Answered
    reconstructed: Answered | None
    after: tuple[Answered, ...]
    changes: tuple[float | None, ...]
    """of the margin by each steering, against the unedited row of its batch; None without a contrast"""
    beyond: tuple[float | None, ...]
    """the same without the SAE's own error; None where nothing is reconstructed"""
    scores: tuple[ClassScores, ...] = ()
    """of a classification: clean, reconstructed, and every steering"""


# --- a model that answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Asking:
    vlm: Vlm
    sae: Sae
    tap: str
    image: Any
    prompt: str
    system: str | None
    contrast: Contrast | None
    max_new_tokens: int

    @property
    def model(self) -> Any:
        return self.vlm.model

    @property
    def asks(self) -> Vlm:
        return self.vlm

    @cached_property
    def bench(self) -> Bench | None:
        if self.tap.startswith("text"):
            return None
        asked = self.vlm.prepare(self.image, self.prompt, self.system)
        return benches.answering(self.vlm, self.sae, asked, self.contrast, self.tap)

    def asked(self, prompt: str, contrast: Contrast | None) -> Asking:
        """The same model and picture, asked something else."""
        return Asking(self.vlm, self.sae, self.tap, self.image, prompt, self.system, contrast, self.max_new_tokens)

    def look(self) -> Looked:
        asked = {"system": self.system, "tap": self.tap}
        said, read = (
            observe(self.vlm, self.sae, self.image, self.prompt, max_new_tokens=self.max_new_tokens, row=row, **asked)
            for row in ("predicting", "own")
        )
        tokens = tuple(Token(t.text, t.kind, t.id, t.log_prob) for t in said.tokens)
        return Looked(tokens, said.attention_TP, read.attention_TP, said.boxes_P4, said.latents_PL, said.tap)

    def answers(self, steerings: Sequence[Steering]) -> Answers:
        said = self._steered([*steerings, RECONSTRUCTED], self.max_new_tokens)
        probabilities = self._probabilities([None, RECONSTRUCTED, *steerings])
        found = [
            self._answered(one, *chances)
            for one, chances in zip((said.before, said.reconstructed, *said.after[:-1]), probabilities, strict=True)
        ]
        moved = [(one.change, one.beyond_reconstruction) for one in said.after[:-1]]
        return Answers(found[0], found[1], tuple(found[2:]), *(zip(*moved, strict=True) if moved else ((), ())))

    def changes(self, steerings: Sequence[Steering]) -> np.ndarray:
        if self.bench is None:
            return np.array([one.change for one in self._steered(steerings, 0).after], float)
        return self.bench.shifts(self.bench.changes(steerings))

    def says(self, steerings: Sequence[Steering]) -> list[str]:
        """What it says under each steering, and first what it says as it is."""
        said = self._steered(steerings, self.max_new_tokens)
        return [said.before.text, *(one.text for one in said.after)]

    def attribution(self, onto: Steering | None = None, *, cls: bool = False) -> Attribution:
        if self.bench is not None:
            return self.bench.attribution(onto, cls=cls)
        if onto is not None:
            fault = f"stays in place while latents are looked for at {self.tap}, which is not done"
            raise SteeringError(onto.name, fault, "Take a vision tap, or name latents by number.")
        asked = self.vlm.prepare(self.image, self.prompt, self.system)
        return attribute(self.vlm, self.sae, asked, self.contrast, tap=self.tap, cls=cls)

    def _steered(self, steerings: Sequence[Steering], most: int) -> Any:
        return steer(
            self.vlm, self.sae, self.image, self.prompt, steerings, system=self.system, contrast=self.contrast,
            max_new_tokens=most, tap=self.tap,
        )  # fmt: skip

    def _probabilities(self, steerings: Sequence[Steering | None]) -> list[tuple[float | None, float | None]]:
        if self.contrast is None or self.bench is None:
            return [(None, None)] * len(steerings)
        still = self.bench.states_SD * 0
        made = self.bench.changes([one for one in steerings if one is not None])
        changes = (still if one is None else next(made) for one in steerings)
        return [(float(right), float(wrong)) for right, wrong in np.exp(self.bench.log_probs(changes))]

    def _answered(self, said: Said, right: float | None, wrong: float | None) -> Answered:
        texts = said_texts(self.vlm.tokenizer, said.ids)
        tokens = tuple(map(Token, texts, ["answer"] * len(texts), said.ids, said.log_probs))
        return Answered(said.text, tokens, said.ended, said.log_odds, right, wrong)


def said_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Token by token, each with the space in front that it brings. A character of several tokens is the last one's."""
    texts, told = [], 0
    for n in range(1, len(ids) + 1):
        whole = tokenizer.decode(list(ids[:n]), clean_up_tokenization_spaces=False)
        sure = without_half(whole) if n < len(ids) else whole
        texts.append(sure[told:])
        told = max(told, len(sure))  # some decoders show a whole character as half ones too while the next is not whole
    return texts


# --- a model that classifies -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Classifying:
    clip: clips.Clip
    sae: Sae
    tap: str
    image: Any
    classes: clips.Classes
    contrast: Contrast | None

    @property
    def model(self) -> Any:
        return self.clip.model

    @property
    def asks(self) -> clips.Clip:
        return self.clip

    @cached_property
    def bench(self) -> Bench:
        picture = self.clip.read(self.image)
        return benches.classifying(self.clip, self.sae, picture, self.classes, self.contrast, self.tap)

    def look(self) -> Looked:
        patches = ~self.bench.sites.class_S
        boxes_P4 = self.bench.sites.boxes_S4[patches]
        nothing_TP = np.zeros((0, len(boxes_P4)), np.float32)
        return Looked((), nothing_TP, nothing_TP, boxes_P4, self.bench.latents()[np.flatnonzero(patches)], self.tap)

    def answers(self, steerings: Sequence[Steering]) -> Answers:
        found = self._classified([*steerings, RECONSTRUCTED])
        clean, remade, *after = (self._answered(one) for one in (found.before, *found.after[-1:], *found.after[:-1]))
        named = zip(("clean", "reconstructed", *(s.name for s in steerings)),
                    (found.before, *found.after[-1:], *found.after[:-1]), strict=True)  # fmt: skip
        scores = tuple(ClassScores(name, tuple(map(float, one.probabilities_C))) for name, one in named)
        moved = ([None] * len(steerings),) * 2
        if self.contrast is not None:
            right, wrong = self.contrast.right, self.contrast.wrong
            moved = (found.changes(right, wrong)[:-1], found.beyond(right, wrong)[:-1])
        return Answers(clean, remade, tuple(after), *map(tuple, moved), scores)

    def changes(self, steerings: Sequence[Steering]) -> np.ndarray:
        return np.array(self._classified(steerings).changes(self.contrast.right, self.contrast.wrong), float)

    def says(self, steerings: Sequence[Steering]) -> list[str]:
        found = self._classified(steerings)
        return [one.top(1)[0].name for one in (found.before, *found.after)]

    def attribution(self, onto: Steering | None = None, *, cls: bool = False) -> Attribution:
        return self.bench.attribution(onto, cls=cls)

    def _classified(self, steerings: Sequence[Steering]) -> clips.Classified:
        return clips.classify(
            self.clip, self.image, self.classes, sae=self.sae, steerings=steerings, tap=self.tap,
            batch=benches.most_rows(self.clip.device),
        )  # fmt: skip

    def _answered(self, scores: clips.Scores) -> Answered:
        likely = dict(zip(scores.classes, map(float, scores.probabilities_C), strict=True))
        text = scores.top(1)[0].name
        if self.contrast is None:
            return Answered(text)
        right, wrong = self.contrast.right, self.contrast.wrong
        return Answered(text, (), True, scores.log_odds(right, wrong), likely[right], likely[wrong])


Subject = Asking | Classifying


# --- loading -----------------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A model or an SAE, with what identifies it."""

    value: Any
    name: str
    """with its revision, where it has one"""
    sha: str


def load_subject(case: Case, image: Any) -> tuple[Subject, Loaded, Loaded]:
    """What the case asks, with its model and SAE: loaded now, or kept from a case before."""
    load = _kept_vlm if case.classify is None else _kept_clip
    with without_progress():
        model = load(case.model, case.device, case.dtype, _state_of(case.model))
        sae = _kept_sae(case.sae, _state_of(case.sae))
    contrast = case.contrast and Contrast(case.contrast.right, case.contrast.wrong)
    if case.classify is None:
        vlm = model.value
        tap = str(tap_of(vlm, sae.value, case.tap))
        system, most = case.system, case.decoding.max_new_tokens
        subject = Asking(vlm, sae.value, tap, image, case.prompt, system, contrast, most)
    else:
        clip, asked = model.value, case.classify
        if not (case.tap or sae.value.tap):
            raise SteeringError("tap", f"{case.sae} names none", "Write tap: vision.N.")
        classes = clip.classes(ClassList(case.id or "classify", asked.classes, asked.templates))
        place = resolve(clip, case.tap or sae.value.tap)
        if clips.is_last(clip, place):
            fault = f"is the last layer of {case.model}, whose patches nobody reads, and a case edits patches"
            raise SteeringError(place, fault, "Take a layer below.")
        tap = str(place)
        subject = Classifying(clip, sae.value, tap, image, classes, contrast)
    return subject, model, sae


@lru_cache(maxsize=2)
def _kept_vlm(name: str, device: str, dtype: str, state: tuple) -> Loaded:
    vlm = load_vlm(name, device=device, dtype=None if dtype == "auto" else dtype)
    return _loaded(vlm, name, vlm.model)


@lru_cache(maxsize=2)
def _kept_clip(name: str, device: str, dtype: str, state: tuple) -> Loaded:
    clip = clips.load_clip(name, device=device, dtype=None if dtype == "auto" else dtype)
    return _loaded(clip, name, clip.model)


@lru_cache(maxsize=4)
def _kept_sae(name: str, state: tuple) -> Loaded:
    return _loaded(load_sae(name), name)


def forget_models() -> None:
    """Let go of everything that was kept."""
    for kept in (_kept_vlm, _kept_clip, _kept_sae):
        kept.cache_clear()


def _loaded(value: Any, name: str, model: Any = None) -> Loaded:
    place = _place(name)
    if place is not None:
        return Loaded(value, name, folder_sha(place) if place.is_dir() else file_sha(place))
    revision = getattr(getattr(model, "config", None), "_commit_hash", None) or ""
    return Loaded(value, f"{name.partition('@')[0]}@{revision}" if revision else name, revision)


def _place(name: str) -> Path | None:
    place = paths.bundled(name) or Path(name)
    return place if place.exists() else None


def _state_of(name: str) -> tuple:
    """What tells the files that a name stands for from those that stood there before."""
    place = _place(name)
    if place is None:
        return ()
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
