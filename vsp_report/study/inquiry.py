"""Inquiry: one case while it is looked into. What is loaded, what was found so far, and the recording that makes.

The steps in `evidence` add to it, one after the other. It is the one value here that changes, because a step that
fails must leave behind what the steps before it found: that too is a recording, and says where it stopped.
"""

from __future__ import annotations

import functools
import json
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

import vsp_report
from vsp_report import paths
from vsp_report.atlas import Atlas
from vsp_report.case import Case
from vsp_report.errors import VspError
from vsp_report.model.attribution import Attribution as Gradients
from vsp_report.model.depends import states_sha
from vsp_report.model.devices import Device, device_of
from vsp_report.recording import (
    SCHEMA,
    Agreement,
    Answered,
    Arrays,
    Attribution,
    Classified,
    Clustering,
    Diagnosis,
    Grid,
    Heatmap,
    Latent,
    MinimalSet,
    Provenance,
    Recording,
    Reference,
    Repeated,
    Rephrased,
    Steered,
    Stop,
    Swept,
    notebook_code_sha,
    package_sha,
    run_key,
    save_recording,
    sha_of,
)
from vsp_report.study.pictures import Seen
from vsp_report.study.resolve import Rankings, Resolved
from vsp_report.study.subjects import Loaded, Looked, Subject

STRONGEST = 24
"""So many latents are shown for being most active, and as many for what they are predicted to do."""
MOST_STEERED = 200
"""No more latents are shown for having been steered."""
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pillow")

P = ParamSpec("P")
T = TypeVar("T")


class Heat(NamedTuple):
    """The heatmap before it is written down: latents by their numbers."""

    rows: tuple[int, ...]
    latents_L: np.ndarray
    values_TL: np.ndarray
    noisy: frozenset[int]
    clusterings: tuple[Clustering, ...]


@dataclass(eq=False)
class Inquiry:
    case: Case
    folder: Path
    """where the recording goes"""
    started: float = field(default_factory=time.monotonic)
    step: str = "open"
    seen: Seen | None = None
    subject: Subject | None = None
    model: Loaded | None = None
    sae: Loaded | None = None
    atlas: Atlas | None = None
    """of this SAE on these states, if the site has one"""
    looked: Looked | None = None
    clean: Answered | None = None
    reconstructed: Answered | None = None
    classified: Classified | None = None
    heat: Heat | None = None
    gradients: Gradients | None = None
    effects_L: np.ndarray | None = None
    """predicted change of the margin by ablating each latent"""
    measured: dict[int, float] = field(default_factory=dict)
    agreements: tuple[Agreement, ...] = ()
    resolved: dict[str, Resolved] = field(default_factory=dict)
    steered: tuple[Steered, ...] = ()
    swept: tuple[Swept, ...] = ()
    rephrased: tuple[Rephrased, ...] = ()
    minimal: MinimalSet | None = None
    diagnosis: Diagnosis | None = None
    repeats: tuple[Repeated, ...] = ()

    @property
    def states_sha(self) -> str:
        """Of what the states at the tap depend on."""
        return states_sha(self.subject.asks, self.subject.tap, self.model.sha) if self.subject and self.model else ""

    @property
    def ranks(self) -> Rankings:
        """Everything known so far that latents can be found by."""
        looked = self.looked
        answered_T = np.array([one.kind == "answer" for one in looked.tokens], bool)[:, None]
        attention_TP = np.where(answered_T, looked.predicting_TP, looked.own_TP)
        labels, living_L = (None, None) if self.atlas is None else (self.atlas.by_label, self.atlas.alive_L)
        return Rankings(looked.latents_PL, looked.tokens, attention_TP, self.effects_L, self.clusters, labels, living_L)

    @property
    def clusters(self) -> dict[int, tuple[int, ...]]:
        """The latents of each cluster of the heatmap, as the case asks for it, from left to right."""
        if self.heat is None or not self.heat.clusterings:
            return {}
        first, found = self.heat.clusterings[0], {}
        for column in first.order:
            found.setdefault(first.clusters[column], []).append(int(self.heat.latents_L[column]))
        return {cluster: tuple(latents) for cluster, latents in sorted(found.items())}

    def place(self, path: str) -> str:
        """Where in the case file something stands. The file's name only: recordings are read elsewhere."""
        line, file = self.case.line_of(path), self.case.path.name if self.case.path else self.case.id
        return f"{file}:{line}: {path}" if line else f"{file}: {path}"

    # -- the recording ------------------------------------------------------------------------------

    def recording(self, stop: Stop | None = None, status: str = "ok") -> Recording:
        """What was found so far."""
        shown = _shown(self)
        return Recording(
            schema=SCHEMA, id=self.case.id, status=status, case=self.case.resolved(), stop=stop,
            provenance=_provenance(self),
            image=self.seen and self.seen.recorded(self.case.title),
            grid=self.looked and _grid(self.looked.boxes_P4),
            tokens=self.looked.tokens if self.looked else (),
            clean=self.clean, reconstructed=self.reconstructed,
            latents=tuple(_latent(self, k) for k in shown),
            heatmap=self.heat and _heatmap(self, shown),
            attributions=_attributions(self), agreements=self.agreements, steered=self.steered, swept=self.swept,
            rephrased=self.rephrased, classified=self.classified, minimal=self.minimal, diagnosis=self.diagnosis,
            repeats=self.repeats, arrays=_arrays(self, shown),
        )  # fmt: skip

    def save(self, stop: Stop | None = None, status: str = "ok") -> Path:
        files = dict([self.seen.copy]) if self.seen else {}
        return save_recording(self.folder, self.recording(stop, status), files)


def step(name: str) -> Callable[[Callable[Concatenate[Inquiry, P], T]], Callable[Concatenate[Inquiry, P], T]]:
    """A step of an inquiry. If it fails, what was found until then is recorded, and the error goes on its way."""

    def wrap(function: Callable[Concatenate[Inquiry, P], T]) -> Callable[Concatenate[Inquiry, P], T]:
        @functools.wraps(function)
        def taken(inquiry: Inquiry, *args: P.args, **kwargs: P.kwargs) -> T:
            inquiry.step = name
            try:
                return function(inquiry, *args, **kwargs)
            except Exception as error:
                _record_failure(inquiry, error)
                raise

        return taken

    return wrap


def _record_failure(inquiry: Inquiry, error: Exception) -> None:
    written = _without_machine("".join(traceback.format_exception(error)))
    lines = (str(error).strip() or type(error).__name__).splitlines()
    message = _without_machine(lines[0] if isinstance(error, VspError) else f"{type(error).__name__}: {lines[0]}")
    unmet = bool(inquiry.case.needs) and inquiry.step == "load" and isinstance(error, VspError)
    stop = Stop("needs" if unmet else inquiry.step, message[:2000], written[-20_000:])
    inquiry.save(stop, "not-run" if unmet else "error")


def _without_machine(text: str) -> str:
    """Paths as they are inside their package: where they lie on this machine is nobody's business."""
    for root in sorted({str(Path(p)) for p in (*sys.path, sys.prefix, Path.cwd(), Path.home()) if str(p)},
                       key=len, reverse=True):  # fmt: skip
        if len(root) > 1:
            text = text.replace(root + "/", "").replace(root, "…")
    return re.sub(r"(?<![\w.…])/(?:[\w.+-]+/){2,}", "…/", text)


# --- what a recording is made of ---------------------------------------------------------------------------------


def _shown(inquiry: Inquiry) -> tuple[int, ...]:
    """The latents that are shown: of the heatmap, the strongest, those predicted to matter, and those steered."""
    if inquiry.looked is None:
        return ()
    mass_L = inquiry.ranks.mass_L
    found = set() if inquiry.heat is None else set(inquiry.heat.latents_L.tolist())
    found |= {int(k) for k in np.argsort(-mass_L, kind="stable")[:STRONGEST] if mass_L[k] > 0}
    found |= {one.latent for one in _attributions(inquiry)[:STRONGEST]}
    steered = dict.fromkeys(k for one in inquiry.resolved.values() for k in one.latents)
    found |= set(list(steered)[:MOST_STEERED]) | set(inquiry.minimal.latents if inquiry.minimal else ())
    return tuple(sorted(found, key=lambda k: (-mass_L[k], k)))


def _latent(inquiry: Inquiry, number: int) -> Latent:
    column_P = inquiry.looked.latents_PL[:, [number]].toarray()[:, 0]
    noisy = inquiry.heat is not None and number in inquiry.heat.noisy
    known = inquiry.atlas and inquiry.atlas.facts(number)
    told = {} if known is None else {
        "label": known.label.word if known.label else "", "frequency": known.frequency, "mean_activation": known.mean,
        "references": tuple(Reference(one.name, one.strength) for one in known.references),
    }  # fmt: skip
    return Latent(number, strongest=float(column_P.max(initial=0)), total=float(column_P.sum()), noisy=noisy, **told)


def _heatmap(inquiry: Inquiry, shown: tuple[int, ...]) -> Heatmap:
    heat, wanted, places = inquiry.heat, inquiry.case.heatmap, {k: place for place, k in enumerate(shown)}
    columns = tuple(places[int(k)] for k in heat.latents_L)
    return Heatmap(heat.rows, columns, wanted.top, wanted.normalize, heat.clusterings)


def _attributions(inquiry: Inquiry) -> tuple[Attribution, ...]:
    """The strongest, and all that were measured."""
    if inquiry.effects_L is None:
        return ()
    strong = np.argsort(-np.abs(inquiry.effects_L), kind="stable")[: 2 * STRONGEST]
    chosen = {int(k) for k in strong if inquiry.effects_L[k]} | inquiry.measured.keys()
    ordered = sorted(chosen, key=lambda k: (-abs(inquiry.effects_L[k]), k))
    return tuple(Attribution(k, float(inquiry.effects_L[k]), inquiry.measured.get(k)) for k in ordered)


def _arrays(inquiry: Inquiry, shown: tuple[int, ...]) -> Arrays:
    if inquiry.looked is None:
        return Arrays()
    looked, heat = inquiry.looked, inquiry.heat
    most = np.finfo(np.float16).max
    maps_LP = looked.latents_PL[:, list(shown)].toarray().T.clip(-most, most)
    return Arrays(
        predicting_TP=looked.predicting_TP.astype(np.float16) if looked.tokens else None,
        own_TP=looked.own_TP.astype(np.float16) if looked.tokens else None,
        boxes_P4=np.asarray(looked.boxes_P4, np.float32),
        maps_LP=maps_LP.astype(np.float16),
        heatmap_TL=heat and heat.values_TL.astype(np.float32),
    )


def _grid(boxes_P4: np.ndarray) -> Grid:
    """Rows and columns where the patches are one grid, row after row."""
    P = len(boxes_P4)
    if np.isfinite(boxes_P4).all():
        lefts, tops = (np.unique(boxes_P4[:, axis].round(3)) for axis in (0, 1))
        in_rows = (np.diff(boxes_P4[:, 1]) >= -1e-3).all()
        if len(lefts) * len(tops) == P and in_rows:
            return Grid(P, len(tops), len(lefts))
    return Grid(P)


# --- provenance --------------------------------------------------------------------------------------------------


def _provenance(inquiry: Inquiry) -> Provenance:
    case = inquiry.case
    device = device_of(inquiry.subject.model) if inquiry.subject else Device("", "", "")
    model, sae = inquiry.model or Loaded(None, case.model, ""), inquiry.sae or Loaded(None, case.sae, "")
    image_sha = inquiry.seen.sha if inquiry.seen else ""
    identified = {
        "image_sha": image_sha, "notebook_sha": template_sha(), "package_sha": package_sha(), "versions": versions(),
        "device_class": device.kind,
    }  # fmt: skip
    key = run_key(case, model_id=model.sha or model.name, sae_id=sae.sha or sae.name, **identified)
    return Provenance(
        run_key=key, case_sha=sha_of(case.resolved()), model=model.name, model_sha=model.sha, sae=sae.name,
        sae_sha=sae.sha, tap=inquiry.subject.tap if inquiry.subject else case.tap or "",
        states_sha=inquiry.states_sha, **identified,
        device_name=device.name, dtype=device.dtype, seed=case.seed,
        command=f"vsp-report run {case.id}",
        seconds=round(time.monotonic() - inquiry.started, 2),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python, of this package, and of those that figures depend on."""
    found = {"python": platform.python_version(), "vsp_report": vsp_report.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # vendored or built by hand; the case runs all the same
            found[package] = "unknown"
    return found


def template_sha() -> str:
    """Of the code cells of the notebook that runs a case."""
    notebook = paths.templates_dir() / "notebooks" / "case.ipynb"
    return notebook_code_sha(json.loads(notebook.read_text(encoding="utf-8"))) if notebook.is_file() else ""
