"""Plan: which cases need running, and in what order. Reads files and hashes; starts nothing, imports no torch.

A case needs running when its recording is missing, unreadable or of a failed run, or was made from something else:
the content hash `Provenance.run_key` covers the case, its picture, the model's and the autoencoder's files, what an
atlas says of its latents, the notebook's code, this package's source, the versions of what computes, and the kind of
device. A new title or expectation runs nothing: the recording is given the case's present words.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from vsp_report import __version__, paths
from vsp_report.atlas import ATLASES, shelf_sha
from vsp_report.case import Case
from vsp_report.errors import InputError
from vsp_report.recording import (
    Provenance,
    Recording,
    file_sha,
    load_recording,
    package_sha,
    recording_sha,
    run_key,
    sha_of,
)

COMPUTED_WITH = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pillow", "altair", "pandas",
    "vega-datasets", "vl-convert-python",
)  # fmt: skip
"""The packages whose versions change figures; the last four draw charts that are pictures of cases."""
SMALL_FILE_BYTES = 64 * 2**20
_SAMPLE_BYTES, _SAMPLES = 2**20, 16
_COMMIT = re.compile(r"[0-9a-f]{40}")

State = Literal["done", "run", "restate", "not-run"]


@dataclass(frozen=True)
class Surroundings:
    """The machine that computes, which is not always the one that plans."""

    versions: dict[str, str]
    gpu: str = ""
    """cuda with its architecture, or empty"""
    found: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """of models and autoencoders that were asked for by name: what they are there, and whether their weights are; the
    disk that plans need not have them"""

    def identity(self, name: str) -> str:
        return self.found[name][0] if name in self.found else identity(name)

    def has(self, name: str) -> bool:
        return self.found[name][1] if name in self.found else has_weights(name)

    def device_class(self, asked: str) -> str:
        """For `auto`, `cpu`, `cuda` or `cuda:1`."""
        if asked == "cpu" or (asked == "auto" and not self.gpu):
            return "cpu"
        return self.gpu or "cuda"


class Step(NamedTuple):
    """What is to be done for one case."""

    case: Case
    state: State
    folder: Path
    """its recording's"""
    foreseen: Provenance
    """as much of it as is known before the run, with its `run_key`"""
    why: str
    replaces: str = ""
    """the hash of the recording that is there; another one later is somebody else's work"""


# --- the machine -------------------------------------------------------------------------------------------------


def look_around(names: Iterable[str] = ()) -> Surroundings:
    """This machine; with what it has of these models and autoencoders."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2]), "vsp_report": __version__}
    builds = {}
    for name in COMPUTED_WITH:
        try:
            builds[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # 2.13.0+cpu and 2.13.0 are one torch for two kinds of device, and those have their own place in the key.
    versions |= {name: version.partition("+")[0] for name, version in builds.items()}
    gpu = "" if "+cpu" in builds.get("torch", "+cpu") else _gpu()
    return Surroundings(versions, gpu, {name: (identity(name), has_weights(name)) for name in names})


def of_the_hub(cases: Iterable[Case]) -> tuple[str, ...]:
    """The models and autoencoders of cases that are neither bundled nor folders: each machine has its own of them."""
    names = {name for case in cases for name in (case.model, case.sae)}
    return tuple(sorted(name for name in names if paths.bundled(name) is None and not Path(name).exists()))


def _gpu() -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    words = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"cuda sm_{told[0].replace('.', '')}" if told else ""


# --- what a case depends on --------------------------------------------------------------------------------------


def foresee(
    case: Case, surroundings: Surroundings, *, notebook_sha: str, device: str | None = None, shown: str = "",
    notebook: str = "", site: Path | None = None,
) -> Provenance:  # fmt: skip
    """What is known of a recording before it is made. `shown`: the case's file, as a command names it, and `notebook`,
    if it is not the bundled one; `site`: where the recording will be, whose atlases name its latents."""
    image = case.image_path
    known = Provenance(
        case_sha=sha_of(case.resolved()),
        image_sha=file_sha(image) if image is not None and image.is_file() else "",
        model=case.model,
        model_sha=surroundings.identity(case.model),
        sae=case.sae,
        sae_sha=surroundings.identity(case.sae),
        tap=case.tap or "",
        notebook_sha=notebook_sha,
        package_sha=_package_sha(),
        versions=surroundings.versions,
        device_class=surroundings.device_class(device or case.device),
        seed=case.seed,
        command=shlex.join(
            [
                "vsp-report",
                "run",
                shown or case.id,
                "--force",
                *(["--device", device] if device else []),
                *(["--notebook", notebook] if notebook else []),
            ]
        ),
    )
    known_latents = "" if site is None else shelf_sha(site / ATLASES, sae=(case.sae, known.sae_sha))
    key = run_key(
        case,
        image_sha=known.image_sha,
        model_id=f"{case.model} {known.model_sha}",
        sae_id=f"{case.sae} {known.sae_sha}",
        notebook_sha=notebook_sha,
        package_sha=known.package_sha,
        versions=known.versions,
        device_class=known.device_class,
        atlas_sha=known_latents,
    )
    return replace(known, run_key=key)


_package_sha = cache(package_sha)


def identity(name: str) -> str:
    """Of the files of a model or an autoencoder: a hash, or a commit of the Hub; empty for what is not here yet."""
    place = paths.bundled(name) or Path(name)
    if place.exists():
        return _files_sha(place.resolve())
    repo, revision = _of_the_hub(name)
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        return (repo / "refs" / (revision or "main")).read_text().strip()
    except (OSError, ValueError):
        return ""


def _of_the_hub(name: str) -> tuple[Path, str]:
    """Where the Hub's cache has `OWNER/REPO[/path][@revision]`, and the revision."""
    said, _, revision = name.partition("@")
    owner_and_repo = said.split("/")[:2]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return hub / "--".join(["models", *owner_and_repo]), revision


def has_weights(name: str) -> bool:
    """Whether they are on this disk; a commit alone says which they are, not that they are here."""
    if paths.bundled(name) is not None or Path(name).exists():
        return True
    commit = identity(name)
    return bool(commit) and (_of_the_hub(name)[0] / "snapshots" / commit).is_dir()


@cache
def _files_sha(place: Path) -> str:
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    root = place.parent if place.is_file() else place
    visible = [p for p in files if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    return sha_of([[p.relative_to(root).as_posix(), _sampled_sha(p)] for p in visible])


def _sampled_sha(file: Path) -> str:
    """Of the whole file; of a large one its size, beginning, end and samples between: weights change everywhere."""
    size = file.stat().st_size
    if size <= SMALL_FILE_BYTES:
        return file_sha(file)
    digest = hashlib.sha256(str(size).encode())
    with open(file, "rb") as opened:
        for i in range(_SAMPLES):
            opened.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def unmet(case: Case, surroundings: Surroundings, device: str | None = None) -> list[str]:
    """What the case says that it needs and does not find here."""
    image = case.image_path
    missing = {
        "gpu": not surroundings.device_class(device or case.device).startswith("cuda") or not surroundings.gpu,
        "weights": not all(surroundings.has(name) for name in (case.model, case.sae)),
        "image": image is not None and not image.is_file(),
    }
    return [need for need in case.needs if missing[need]]


# --- what is to be done ------------------------------------------------------------------------------------------


def make_plan(
    cases: Iterable[Case],
    recordings: Path,
    surroundings: Surroundings,
    *,
    notebook_sha: str,
    force: bool = False,
    only_failed: bool = False,
    device: str | None = None,
    notebook: str = "",
) -> list[Step]:
    """One step for each case, those with the same model one after another."""
    words = {"notebook_sha": notebook_sha, "notebook": notebook, "device": device}
    steps = [_step(case, recordings / case.id, surroundings, force=force, **words) for case in cases]
    if only_failed:
        steps = [step for step in steps if step.why == FAILED]
    return _grouped(steps)


FAILED = "its last run failed"


def _step(
    case: Case, folder: Path, surroundings: Surroundings, *, notebook_sha: str, notebook: str, force: bool,
    device: str | None,
) -> Step:  # fmt: skip
    foreseen = foresee(case, surroundings, notebook_sha=notebook_sha, device=device, shown=shown_path(case),
                       notebook=notebook, site=folder.parent.parent)  # fmt: skip
    existing = _existing(folder)
    there = recording_sha(folder) if existing is not None else ""
    same_question = existing is not None and existing.asked().computed() == case.computed()
    missing = unmet(case, surroundings, device)
    if missing:
        # Where it could be run, somebody may have done so: that is worth more than the news that here it cannot.
        if existing is not None and same_question and existing.status == "ok":
            return _done_or_restate(case, folder, foreseen, existing, there)
        foreseen = replace(foreseen, run_key=sha_of(["not-run", case.computed(), missing]))
        if existing is not None and existing.provenance.run_key == foreseen.run_key:
            return _done_or_restate(case, folder, foreseen, existing, there)
        return Step(case, "not-run", folder, foreseen, f"needs {' and '.join(WORDS[need] for need in missing)}", there)
    if existing is None:
        why = "it has no recording"
    elif existing.status == "error":
        why = FAILED
    elif force:
        why = "it is forced"
    elif existing.provenance.run_key != foreseen.run_key:
        why = "its recording was made from something else"
    else:
        return _done_or_restate(case, folder, foreseen, existing, there)
    return Step(case, "run", folder, foreseen, why, there)


WORDS = {"gpu": "a GPU", "weights": "the model's weights", "image": "its picture"}


def _done_or_restate(case: Case, folder: Path, foreseen: Provenance, existing: Recording, there: str) -> Step:
    if existing.case == case.resolved():
        return Step(case, "done", folder, foreseen, "it is recorded", there)
    return Step(case, "restate", folder, foreseen, "its words changed", there)


def _existing(folder: Path) -> Recording | None:
    """None for what this version cannot read, its case included: that is run again."""
    try:
        found = load_recording(folder, arrays=False, verify=False)
        found.asked()
    except InputError:
        return None
    return found


def shown_path(case: Case) -> str:
    """The case's file as a command typed here would name it: no folder of this machine outside the present one."""
    return case.id if case.path is None else as_typed(case.path, case.id)


def as_typed(file: str | Path, otherwise: str) -> str:
    place, here = Path(os.path.abspath(file)), Path.cwd()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else otherwise


def _grouped(steps: Sequence[Step]) -> list[Step]:
    first: dict[tuple[str, str], int] = {}
    for i, step in enumerate(steps):
        first.setdefault((step.case.model, step.case.dtype), i)
    return sorted(steps, key=lambda step: first[step.case.model, step.case.dtype])
