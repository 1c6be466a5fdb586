"""Doctor: proves on the user's own machine that a model, a sparse autoencoder and this package fit together.

Full-size weights are not at hand where this package is made; so its proofs come to them. Each check is one function,
measures one thing on one picture and one prompt, and says what to do if it fails. What is measured, and by which
second way, stands in `model.proofs` and `model.fit`. A check that needs what another has not found is skipped, and
says so: a table without failures is a proof only of what passed.

Limits are those of float32 and, in half precision, of what is left of a number there.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vsp_report.errors import VspError
from vsp_report.maths.edits import Contrast
from vsp_report.model import proofs
from vsp_report.model.answers import contrast_ids
from vsp_report.model.attribution import Attribution, attribute, confirm
from vsp_report.model.fit import Fitting, measure_fit
from vsp_report.model.sae import Sae
from vsp_report.model.steering import tap_of
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Prompt, Vlm

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
ATTENTION_APART = {4: 1e-5, 2: 2e-2}
"""By bytes of a number. In half precision eager attention rounds every weight, and its rounding goes on from layer
to layer."""
STEP, STEP_WITHIN = 0.01, 0.1
"""Float32: a latent made so much stronger, and as much weaker, moves the answer by the first order and little else."""
WHOLE_WITHIN = 0.5
"""Half precision: a small step would drown in rounding, so the whole step is taken and less is asked of it."""
REPORT = "Please report it, with the name of the model and the versions that `pip freeze` prints."


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["passed", "failed", "skipped"]
    measured: str
    remedy: str = ""


@dataclass(frozen=True)
class Examination:
    model: str
    sae: str
    tap: str
    question: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == FAILED)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "checks": [asdict(check) for check in self.checks], "passed": not self.failed}


@dataclass
class _Patient:
    """What is examined; checks that come later use what earlier ones found."""

    vlm: Vlm
    sae: Sae
    image: Any
    question: str
    tap: Tap
    prompt: Prompt
    contrast: Contrast | None
    seed: int
    fitting: Fitting | None = None
    before: proofs.Print | None = None

    @property
    def half(self) -> bool:
        return self.vlm.model.dtype.itemsize < 4


def examine(
    vlm: Vlm,
    sae: Sae,
    image: Any,
    question: str,
    *,
    tap: Tap | str | None = None,
    contrast: Contrast | None = None,
    seed: int = 0,
    on_check: Callable[[Check], None] = lambda check: None,
) -> Examination:
    """Every check, in order. What is wrong with the input is raised; what is wrong with the set-up is a failed check.

    Without a contrast the two likeliest beginnings of the model's answer are taken.
    """
    tap = tap_of(vlm, sae, tap)
    prompt = vlm.prepare(image, question)
    if contrast is not None:
        contrast_ids(vlm, contrast)
    patient = _Patient(vlm, sae, image, question, tap, prompt, contrast, seed)
    checks = []
    for name, check in CHECKS.items():
        checks.append(_examined(name, check, patient))
        on_check(checks[-1])
    return Examination(vlm.name, sae.name or "-", str(tap), question, tuple(checks))


def _examined(name: str, check: Callable[[_Patient], tuple[bool | None, str, str]], patient: _Patient) -> Check:
    try:
        good, measured, remedy = check(patient)
    except VspError as error:
        return Check(name, FAILED, f"{error.place}: {error.fault}", error.remedy or REPORT)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        # What breaks in a model that this package has not met is a finding too, and the other checks go on.
        said = (str(error).strip().splitlines() or [""])[0][:160]
        remedy = "Use a shorter prompt, a smaller picture or --dtype bfloat16." if "memory" in said.lower() else REPORT
        return Check(name, FAILED, f"{type(error).__name__}: {said}", remedy)
    if good is None:
        return Check(name, SKIPPED, measured, remedy)
    return Check(name, PASSED if good else FAILED, measured, "" if good else remedy)


# --- the checks ----------------------------------------------------------------------------------------------------


def _capture(patient: _Patient) -> tuple[bool, str, str]:
    vlm = patient.vlm
    vlm.logits(patient.prompt)  # lets transformers install its own hooks before the model is looked at
    patient.before = proofs.print_of(vlm)
    apart, limit = proofs.attention_apart(vlm, patient.prompt), ATTENTION_APART[2 if patient.half else 4]
    remedy = "Do not trust heatmaps of this model. Try float32 and attn_implementation sdpa; if it stays, report it."
    return apart < limit, f"captured and eager attention differ by at most {apart:.1e} (limit {limit:.0e})", remedy


def _image_map(patient: _Patient) -> tuple[bool, str, str]:
    found = proofs.probe_map(patient.vlm, patient.image, patient.question, seed=patient.seed)
    measured = (f"{found.pixels_right} of {found.tried} painted patches and {found.tokens_right} of {found.tried} "
                "moved patches were seen where the map says")  # fmt: skip
    remedy = "Do not trust places in pictures of this model: check that its processor is the one it was trained with."
    return found.pixels_right == found.tokens_right == found.tried > 0, measured, remedy


def _fit(patient: _Patient) -> tuple[bool, str, str]:
    patient.fitting = f = measure_fit(
        patient.vlm, patient.sae, [patient.image], tap=patient.tap, prompt=patient.question
    )
    measured = (f"explains {f.sae.explained_variance:.3f} of the variance with {f.sae.mean_l0:.1f} latents per patch; "
                f"untrained {f.untrained.explained_variance:.3f} with {f.untrained.mean_l0:.1f}")  # fmt: skip
    faults = "; ".join(finding.fault for finding in f.findings)
    remedy = " ".join(finding.remedy for finding in f.findings)
    return not f.findings, f"{measured}; {faults}" if faults else measured, remedy


def _nothing(patient: _Patient) -> tuple[bool | None, str, str]:
    if patient.fitting is None:
        return None, "needs an SAE of this tap's width", ""
    found = proofs.edit_nothing(patient.vlm, patient.sae, patient.prompt, tap=patient.tap)
    measured = "states and answer are the same to the last bit"
    if not (same := found.states_equal and found.logits_apart == 0):
        states = "the same" if found.states_equal else "not the same"
        measured = f"states are {states}, and the answer's logits differ by {found.logits_apart:.1e}"
    remedy = "Effects of this size are noise here. Make the machine deterministic (torch.use_deterministic_algorithms)."
    return same, measured, remedy


def _effect(patient: _Patient) -> tuple[bool | None, str, str]:
    if patient.fitting is None:
        return None, "needs an SAE of this tap's width", ""
    vlm, prompt = patient.vlm, patient.prompt
    contrast = patient.contrast or proofs.likely_contrast(vlm, prompt)
    found = attribute(vlm, patient.sae, prompt, contrast, tap=patient.tap)
    strongest = _strongest(found)
    if strongest is None:
        return False, "no latent is active in the picture", "Try another picture, or an SAE that fits this tap."
    whole = confirm(vlm, prompt, found, latents=[strongest])
    ranked = confirm(vlm, prompt, found, n=12, seed=patient.seed)
    slope, within, how = whole.agreement.slope, WHOLE_WITHIN, "set to zero"
    if not patient.half:
        doses = 1 + STEP, 1 - STEP
        more, less = (confirm(vlm, prompt, found, op="scale", value=dose, latents=[strongest]) for dose in doses)
        there, predicted = more.measured_N - less.measured_N, more.predicted_N - less.predicted_N
        slope, within, how = float((there / predicted)[0]), STEP_WITHIN, f"changed by {STEP:.0%} up and down"
    rho = f"{ranked.agreement.spearman:.2f}" if np.isfinite(ranked.agreement.spearman) else "-"
    measured = (
        f"latent {strongest}, {how}, moves {contrast.right!r} against {contrast.wrong!r} by {slope:.3f} times what is "
        f"predicted; set to zero, by {whole.measured_N[0]:+.3f} where {whole.predicted_N[0]:+.3f} is predicted; rank "
        f"correlation {rho} over {len(ranked.latents_N)} latents set to zero"
    )
    remedy = "Use attribution of this model to look around only, and confirm every effect by steering."
    return abs(slope - 1) < within, measured, remedy


def _strongest(found: Attribution) -> int | None:
    effects_L = np.abs(found.effects().double().numpy())
    return int(effects_L.argmax()) if effects_L.max() > 0 else None


def _memory(patient: _Patient) -> tuple[bool | None, str, str]:
    if patient.fitting is None:
        return None, "needs an SAE of this tap's width", ""
    room = proofs.room_for(patient.vlm, patient.sae, patient.prompt, tap=patient.tap)
    measured = (f"model and SAE take {_size(room.weights_bytes)}, each steering of a batch {_size(room.row_bytes)}; "
                f"{_size(room.free_bytes)} may be used, room for {room.rows} at once")  # fmt: skip
    return room.rows >= 2, measured, "Use --dtype bfloat16, a smaller picture, or a machine with more memory."


def _unchanged(patient: _Patient) -> tuple[bool | None, str, str]:
    if patient.before is None:
        return None, "the first check has not looked at the model", ""
    changed = patient.before.changes(proofs.print_of(patient.vlm))
    measured = f"changed: {', '.join(changed)}" if changed else "weights, hooks and attention are as before"
    return not changed, measured, f"Load the model again before you go on. {REPORT}"


CHECKS: dict[str, Callable[[_Patient], tuple[bool | None, str, str]]] = {
    "capture is eager attention": _capture,
    "image-token map holds": _image_map,
    "SAE fits the tap": _fit,
    "editing nothing changes nothing": _nothing,
    "a latent moves the answer": _effect,
    "memory is enough": _memory,
    "model is left unchanged": _unchanged,
}


# --- for people ----------------------------------------------------------------------------------------------------


def table(examination: Examination, width: int = 100) -> str:
    lines = [f"{examination.model} with {examination.sae} at {examination.tap}", ""]
    for check in examination.checks:
        lines += _row(f"{check.status:<9}{check.name:<34}", check.measured, width)
        if check.status == FAILED:
            lines += _row(" " * 9 + "remedy: ", check.remedy, width)
    n = {status: sum(check.status == status for check in examination.checks) for status in (PASSED, FAILED, SKIPPED)}
    lines += ["", ", ".join(f"{count} {status}" for status, count in n.items() if count)]
    return "\n".join(lines)


def _row(head: str, text: str, width: int) -> Sequence[str]:
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head)) or [head.rstrip()]


def _size(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.3g} {unit}"
