"""Rounds: one case open on a model, and rounds of it: asked, streamed, looked at, compared. Runs inside the kernel.

A round goes the way that cases go: the same declaration reads its edits, the same step finds its latents, the same
`study.steer` makes them. Listening and looking are done from outside, by a model that is spoken to in its own
`generate`, so that no figure depends on whether somebody watches.

Each part of a round is told as it is found: `started`, a `token` for each token, `answered`, `odds`, `looked`,
`controls`, `done`. What there is no figure for is not told.

Axes: T tokens, P patches, L latents, V vocabulary.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsp_report.case import Case, make_case
from vsp_report.errors import SteeringError, VspError
from vsp_report.live.asked import ROUND, Run, case_of
from vsp_report.live.saving import Seen
from vsp_report.maths.edits import ALL, Steering, changed
from vsp_report.maths.effects import beyond_controls, flip_share, permutation_p
from vsp_report.model.capture import capture
from vsp_report.model.vlm import Answer, Vlm, load_image
from vsp_report.recording import Answered, Token, sha
from vsp_report.render import replay
from vsp_report.study import evidence
from vsp_report.study.controls import Judged, matched_steerings
from vsp_report.study.inquiry import Inquiry
from vsp_report.study.observe import _tokens
from vsp_report.study.pictures import Seen as Picture
from vsp_report.study.resolve import Resolved
from vsp_report.study.steer import Looked, Said, look_once, steer
from vsp_report.study.subjects import Asking, load_subject, said_texts

STRONGEST = 24
"""So many latents are shown where a new answer looks."""
CHUNK = 16
"""So many controls are drawn before it is asked whether to stop."""
KEPT = 64
"""So many rounds are remembered, for saving."""

Tell = Callable[[dict[str, Any]], None]


class Stopped(Exception):
    """The reader did not want to wait."""


# --- opening -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Sitting:
    """A case, open: its model, its picture, and what was found about both."""

    inquiry: Inquiry
    picture_file: tuple[str, bytes] | None = None
    """of an uploaded picture: where it lies beside the case, and its bytes"""
    known: dict[str, Seen] = field(default_factory=dict)
    """what came out, by what was asked"""
    asked_before: dict[str, Inquiry] = field(default_factory=dict)
    """the same in other words"""
    looked: dict[str, Looked] = field(default_factory=dict)
    """each of these questions, read, and its picture looked at"""

    @property
    def case(self) -> Case:
        return self.inquiry.case

    @property
    def active(self) -> tuple[int, ...]:
        return tuple(int(k) for k in np.flatnonzero(self.inquiry.ranks.mass_L > 0))

    def spec(self, *, saves: bool) -> dict[str, Any]:
        """What a panel shows before anything is tried."""
        recording = self.inquiry.recording()
        spec = replay.spec(recording, replay.data_address(self.inquiry.seen.copy[1]))
        asking = isinstance(self.inquiry.subject, Asking)
        return spec | {
            "live": True,
            "d_sae": int(self.inquiry.looked.latents_PL.shape[1]),
            "active": len(self.active),
            "active_bits": _bits(self.inquiry.ranks.mass_L > 0),
            "steerings": self._steerings(),
            "can": {"prompt": asking, "edit": True, "look": asking, "controls": True, "save": saves, "upload": True},
            "looked": self._looked_clean(),
        }

    def _steerings(self) -> list[dict[str, Any]]:
        """Those of the case, with their latents found."""
        found = []
        for one in self.case.steer:
            with suppress(VspError):  # a run of the case says what is wrong with it
                resolved = self.inquiry.resolved.get(one.name) or evidence._resolve(self.inquiry, one)
                self.inquiry.resolved[one.name] = resolved
                made = zip(resolved.steering.edits, _boxes(resolved.steering), strict=True)
                edits = [replay.edit(edit.latents, edit.op, edit.value, boxes) for edit, boxes in made]
                found.append({"name": one.name, "mode": one.mode, "edits": edits})
        return found

    def _looked_clean(self) -> dict[str, Any]:
        looked = self.inquiry.looked
        return _looking(self.inquiry, None, looked.tokens, looked.predicting_TP)

    # -- a round ------------------------------------------------------------------------------------

    def round(self, run: Run, tell: Tell, stop: Callable[[], bool]) -> None:
        began = time.perf_counter()
        inquiry = self._inquiry(run.prompt)
        case = case_of(run, inquiry.case, self.active)
        resolved = _resolved(inquiry, case)
        edits = [replay.edit(one.latents, one.op, one.value, one.boxes) for one in resolved.made] if resolved else []
        tell({"type": "started", "prompt": run.prompt, "edits": edits, "mode": run.mode})
        steering = resolved and resolved.steering
        if isinstance(inquiry.subject, Asking):
            looked = self._looked(inquiry.subject)
            before, answered, change, shift = _say(inquiry.subject, looked, steering, tell, stop)
            tell(replay.answered(answered, change))
            if stop():
                raise Stopped
            if inquiry.subject.contrast is not None:
                ((right, wrong),) = inquiry.subject._probabilities([steering])
                answered = replace(answered, p_right=right, p_wrong=wrong)
                if right is not None:
                    tell(replay.odds(answered))
            if run.look:
                tell({"type": "looked", **_look(inquiry, looked, resolved, answered, stop)})
        else:
            found = inquiry.subject.answers([steering] if steering else [])
            before, answered = found.clean, found.after[0] if steering else found.clean
            change, shift = _moved(found.changes[0], found.beyond[0]) if steering else (None, 0.0)
            scores = found.scores[-1] if steering else found.scores[0]
            tell(replay.answered(answered, change, inquiry.subject.classes.of.classes, scores.probabilities))
        p = None
        if run.controls and resolved is not None:
            p = self._compare(inquiry, case, resolved, (change, shift), run.controls, tell, stop)
        self.known[_key(run)] = Seen(before, answered if steering else None, p)
        while len(self.known) > KEPT:
            del self.known[next(iter(self.known))]
        tell({"type": "done", "ms": round(1000 * (time.perf_counter() - began), 1)})

    def _compare(self, inquiry: Inquiry, case: Case, resolved: Resolved, moved: tuple[float | None, float], draws: int,
                 tell: Tell, stop: Callable[[], bool]) -> float | None:  # fmt: skip
        change, shift = moved
        margin = inquiry.subject.answers([]).clean.margin if inquiry.clean is None else inquiry.clean.margin
        judged = Judged(resolved, evidence._where(inquiry, resolved), change)
        others = matched_steerings(inquiry.ranks, judged, draws, case.seed).steerings
        if margin is None or change is None or not others:
            why = "There is no contrast to compare on." if margin is None else "There are too few other latents."
            tell({"type": "controls", "changes": [], "p": None, "flips": None, "interval": None, "why": why})
            return None
        changes: list[float] = []
        for start in range(0, len(others), CHUNK):
            if stop():
                raise Stopped
            changes += map(float, inquiry.subject.changes(others[start : start + CHUNK]) - shift)
        rounded = tuple(round(one, 6) for one in changes)
        p = permutation_p(change, changes)
        tell(replay.controls(rounded, p, flip_share(margin + shift, changes), beyond_controls(change, rounded)))
        return p

    def _looked(self, subject: Asking) -> Looked:
        if subject.prompt not in self.looked:
            while len(self.looked) > 4:
                del self.looked[next(iter(self.looked))]
            self.looked[subject.prompt] = look_once(
                subject.vlm, subject.sae, subject.image, subject.prompt, system=subject.system, tap=subject.tap
            )
        return self.looked[subject.prompt]

    def _inquiry(self, prompt: str) -> Inquiry:
        """The inquiry into this prompt; what depends on the words alone is looked for again."""
        subject = self.inquiry.subject
        if not isinstance(subject, Asking) or prompt == subject.prompt:
            return self.inquiry
        if prompt not in self.asked_before:
            data = self.case.resolved() | {"prompt": prompt}
            other = Inquiry(make_case(data, self.case.id, "round", self.case.path), self.inquiry.folder)
            other.seen, other.model, other.sae = self.inquiry.seen, self.inquiry.model, self.inquiry.sae
            other.subject = subject.asked(prompt, subject.contrast)
            _acquaint(other)
            while len(self.asked_before) >= 4:
                del self.asked_before[next(iter(self.asked_before))]
            self.asked_before[prompt] = other
        return self.asked_before[prompt]

    def seen(self, run: Run) -> Seen | None:
        return self.known.get(_key(run))

    def as_case(self, run: Run) -> Case:
        return case_of(run, self.case, self.active)

    # -- another picture ----------------------------------------------------------------------------

    def with_picture(self, name: str, data: bytes, folder: Path) -> Sitting:
        """The same question about a picture of the reader's own. What the case steers and expects stays behind."""
        file = f"images/upload-{sha(data)[:12]}{_ending(data)}"
        place = folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        image = load_image(place)
        asked = self.case.resolved()
        kept = {key: value for key, value in asked.items() if key not in ("steer", "sweep", "rephrase", "expect")}
        case = make_case(kept | {"image": {"file": file}}, self.case.id, "round", folder / f"{self.case.id}.yaml")
        other = Inquiry(case, self.inquiry.folder)
        other.seen = Picture(image, sha(data))
        other.subject, other.model, other.sae = load_subject(case, image)
        _acquaint(other)
        return Sitting(other, (file, data))


def sit(path: Path, folder: Path, device: str | None = None) -> Sitting:
    """Open a case. Nothing is recorded: `folder` is for what a failing step would leave."""
    inquiry = evidence.open_case(path, folder, device)
    _acquaint(inquiry)
    return Sitting(inquiry)


def _acquaint(inquiry: Inquiry) -> None:
    """What choosing latents needs: what is active where, what belongs together, what would matter."""
    if inquiry.looked is None:
        evidence.look(inquiry)
    if inquiry.heat is None:
        evidence.cluster(inquiry)
    if inquiry.effects_L is None and inquiry.case.contrast is not None:
        with suppress(SteeringError):  # at some taps there is none
            inquiry.gradients = inquiry.subject.attribution()
            inquiry.effects_L = inquiry.gradients.effects().double().cpu().numpy()


def _bits(yes_L: np.ndarray) -> str:
    """One bit for each latent, the first of a byte in its lowest place."""
    return base64.b64encode(np.packbits(yes_L, bitorder="little").tobytes()).decode()


def _boxes(steering: Steering) -> list[tuple]:
    return [edit.where.boxes if edit.where else () for edit in steering.edits]


def _ending(data: bytes) -> str:
    known = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
    found = next((ending for start, ending in known.items() if data.startswith(start)), None)
    if found is None:
        raise VspError("picture", "is no PNG, JPEG, WebP, GIF or BMP", "Choose another.")
    return found


def _key(run: Run) -> str:
    return repr((run.prompt, run.edits, run.mode))


def _resolved(inquiry: Inquiry, case: Case) -> Resolved | None:
    one = next((one for one in case.steer if one.name == ROUND), None)
    if one is None:
        return None
    return evidence._resolve(inquiry, one)


# --- saying ------------------------------------------------------------------------------------------------------


def _say(
    subject: Asking, looked: Looked, steering: Steering | None, tell: Tell, stop: Callable[[], bool]
) -> tuple[Answered, Answered, float | None, float]:
    """What it says as it is and steered, how far the edits moved the contrast, and how far the SAE's own error did."""
    row = 0 if steering is None else 2 if steering.mode == "reconstruct" else 1
    spoken = _as(Speaking, subject.vlm, row=row, tell=tell, stop=stop)
    said = _steered(subject, spoken, looked, steering, subject.contrast)
    before = _answered(subject.vlm, said.before)
    if steering is None:
        return before, before, None, 0.0
    steered = said.after[0]
    return before, _answered(subject.vlm, steered), *_moved(steered.change, steered.beyond_reconstruction)


def _moved(change: float | None, beyond: float | None) -> tuple[float | None, float]:
    """What the edits do, and what is the error of reconstructing."""
    return (change, 0.0) if beyond is None else (beyond, change - beyond)


def _steered(subject: Asking, vlm: Vlm, looked: Looked, steering: Steering | None, contrast: Any) -> Any:
    return steer(
        vlm, subject.sae, subject.image, subject.prompt, [steering] if steering else [], system=subject.system,
        contrast=contrast, max_new_tokens=subject.max_new_tokens, tap=subject.tap, looked=looked,
    )  # fmt: skip


def _answered(vlm: Vlm, said: Said) -> Answered:
    texts = said_texts(vlm.tokenizer, said.ids)
    tokens = tuple(map(Token, texts, ["answer"] * len(texts), said.ids, said.log_probs))
    return Answered(said.text, tokens, said.ended, said.log_odds)


def _as(kind: type, vlm: Vlm, **more: Any) -> Any:
    return kind(*(getattr(vlm, one.name) for one in fields(Vlm)), **more)


@dataclass(frozen=True, eq=False)
class Speaking(Vlm):
    """A model that is heard while it speaks, and can be stopped between two tokens. What it says is its own."""

    row: int = 0
    tell: Tell = print
    stop: Callable[[], bool] = bool

    def generate(self, prompt: Any, max_new_tokens: int = 64) -> list[Answer]:
        with self._heard():
            return super().generate(prompt, max_new_tokens)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        ids: list[int] = []
        over = False

        def hook(module: Any, args: tuple, output: Any) -> None:
            nonlocal over
            if self.stop():
                raise Stopped
            logits_BV = output.logits[:, -1].float()
            said = int(logits_BV[self.row].argmax())
            over = over or said in ends
            if over:
                return
            ids.append(said)
            log_prob = float((logits_BV.amax(1) - logits_BV.logsumexp(1))[self.row])
            before, after = (
                self.tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (ids[:-1], ids)
            )
            self.tell(replay.token(after[len(before) :], log_prob))

        handle = self.model.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


# --- looking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Looking(Vlm):
    """A model that reads what it has said, while its attention is captured."""

    ids: tuple[int, ...] = ()
    seen: list[Any] = field(default_factory=list)

    def generate(self, prompt: Any, max_new_tokens: int = 64) -> list[Answer]:
        with capture(self, prompt) as seen:
            self.replay(prompt, [self.ids] * len(prompt))
        self.seen.append(seen.attention)
        return [Answer(self.ids, "", True)] * len(prompt)


def _look(
    inquiry: Inquiry, looked: Looked, resolved: Resolved | None, answered: Answered, stop: Callable[[], bool]
) -> dict[str, Any]:
    """What each token of the new answer looked at, and what is active there now."""
    subject, ids = inquiry.subject, tuple(token.id for token in answered.tokens)
    steering = resolved and resolved.steering
    row = 0 if steering is None else 2 if steering.mode == "reconstruct" else 1
    if subject.vlm.model.config.image_token_id in ids:
        raise SteeringError("look", "it said its own image token, which cannot be read back", "Ask something else.")
    looking = _as(Looking, subject.vlm, ids=ids)
    _steered(subject, looking, looked, steering, None)
    if stop():
        raise Stopped
    asked = looked.asked
    tokens, positions = _tokens(subject.vlm, asked, ids, [token.log_prob for token in answered.tokens])
    looked_TI = looking.seen[0].of(row, positions, "predicting").numpy()
    rowless_T = np.isnan(looked_TI).any(1)
    sites = asked.images[0].at(subject.tap.partition(".")[0])
    attention_TP = np.asarray((sites.weights_IS.T @ looked_TI.T).T, np.float32)
    attention_TP[rowless_T] = np.nan
    return _looking(inquiry, resolved, tokens, attention_TP)


def _looking(
    inquiry: Inquiry, resolved: Resolved | None, tokens: Sequence[Any], attention_TP: np.ndarray
) -> dict[str, Any]:
    latents, maps_LP = _latents_after(inquiry, resolved, tokens, attention_TP)
    strings = [(token.text, token.kind) for token in tokens]
    return replay.looked(strings, attention_TP, latents, maps_LP)


def _latents_after(
    inquiry: Inquiry, resolved: Resolved | None, tokens: Sequence[Any], attention_TP: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """The strongest latents where the answer looked, and those that were edited, as they are after the edits."""
    looked = inquiry.looked
    named = list(resolved.latents) if resolved else []
    answer_T = [t for t, token in enumerate(tokens) if token.kind == "answer" and np.isfinite(attention_TP[t]).all()]
    weight_P = attention_TP[answer_T].mean(0) if answer_T else np.ones(looked.latents_PL.shape[0])
    strength_L = np.asarray(looked.latents_PL.T @ weight_P, float).ravel()
    if inquiry.heat is not None and inquiry.heat.noisy:
        strength_L[list(inquiry.heat.noisy)] = 0
    strongest = [int(k) for k in np.argsort(-strength_L, kind="stable")[:STRONGEST] if strength_L[k] > 0]
    shown = list(dict.fromkeys([*named[:STRONGEST], *strongest]))
    maps_LP = looked.latents_PL[:, shown].toarray().T.astype(float)
    if resolved is not None:
        for edit, inside_P in zip(resolved.steering.edits, evidence._where(inquiry, resolved), strict=True):
            rows = [i for i, k in enumerate(shown) if edit.latents == ALL or k in edit.latents]
            columns = slice(None) if inside_P is None else np.flatnonzero(inside_P)
            for i in rows:
                maps_LP[i, columns] = changed(edit.op, edit.value, maps_LP[i, columns])
    return shown, maps_LP


__all__ = ["Sitting", "Stopped", "sit"]
