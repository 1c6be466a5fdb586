"""Survey's plan: what is looked at before a survey, and written down so that all its shards share it.

Some of the pictures, evenly spread, say how large activations and states are (sums are kept in fixed steps of that),
and where the middle of all pictures' embeddings is. A picture's embedding is the mean of its patches' states at the
topmost tap of the survey, which costs no further pass; it is taken from the middle, because raw ones all point the same
way.

Which latents live is known at the end: a latent that is silent on these pictures may be some other's nearest. So
coactivation is counted with more of the nearest directions than an atlas keeps, dead ones among them.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vsp_report import paths
from vsp_report.atlas import slug_of
from vsp_report.errors import CheckpointError, ImageError, InputError, VspError
from vsp_report.maths import projection
from vsp_report.maths.tallies import Frame, unit_for
from vsp_report.model import feeding
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.depends import states_sha
from vsp_report.model.devices import device_of, without_progress
from vsp_report.model.feeding import Feeder
from vsp_report.model.sae import Sae
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Vlm, load_vlm
from vsp_report.recording import file_sha, folder_sha, package_sha, sha_of
from vsp_report.recording.folder import write_folder
from vsp_report.study import photographs
from vsp_report.study.photographs import Source
from vsp_report.study.survey_reading import ready

WORK = ".survey-"
"""So the name of a work folder begins."""
CONTROL_SEED = 20_240
PROBED = 256
"""So many pictures are looked at first."""
NEIGHBOURS, CANDIDATES = 8, 16
"""An atlas keeps so many neighbours of a latent: the first that live of so many nearest directions."""
KEPT = 6
"""References of each latent that an atlas keeps."""
EMBEDDING_BYTES = 64 << 20
"""What the sums of embeddings may take for one SAE; wider ones are projected by chance to fewer dimensions."""
CELL_PX, SMALLER_PX, MANY = 96, 64, 20_000
"""Reference pictures are shown this large; those of surveys of so many pictures smaller."""
MOST_AT_ONCE, LOOKED_AT_ONCE = 64, 16
MEMORY_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
ROOMS = ("maths", "model", "sketchworld", "study")
KEY = "key.json"
"""What stands in a work folder beside the plan, which may be large: its key, and what it is a survey of."""


@dataclass(frozen=True)
class Asked:
    """A survey, as it is asked for."""

    model: str
    saes: tuple[str, ...]
    source: Source
    taps: tuple[str, ...] = ()
    """one for each SAE; its own where empty"""
    device: str = "auto"
    dtype: str | None = None
    seed: int = 0
    references: int = 16
    """that entropy and uniqueness are taken of"""
    control: bool = True
    shard: int | None = None
    memory_bytes: int | None = None
    """what a batch may take; another figure does not make another survey"""
    highest_label: int = -1
    """the highest latent that a user's table labels"""
    labels_from: str = ""


@dataclass(frozen=True, eq=False)
class Plan:
    """What all shards share, as it stands in the work folder."""

    folder: Path
    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, folder: str | Path) -> Plan:
        folder = Path(folder)
        try:
            facts = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
            with np.load(folder / "plan.npz", allow_pickle=False) as archive:
                return cls(folder, facts, {name: archive[name] for name in archive.files})
        except FileNotFoundError as error:
            remedy = "Give --out on storage that every worker sees."
            raise VspError(str(folder), "is not there, or no survey's work folder", remedy) from error

    @cached_property
    def source(self) -> Source:
        return photographs.source_of(self.facts["source"])

    @property
    def shards(self) -> int:
        return -(-len(self.source) // self.facts["shard"])

    def numbers(self, shard: int) -> range:
        size = self.facts["shard"]
        return range(shard * size, min((shard + 1) * size, len(self.source)))

    def frame(self, k: int) -> Frame:
        facts = self.facts["dictionaries"][k]
        concepts = len(self.source.concepts) if self.source.truth else 0
        return Frame(facts["latents"], facts["unit"], self.facts["references"], grids=not facts["control"],
                     neighbours_LN=self.arrays[f"{k}.neighbours"], width=self.facts["width"],
                     concepts=concepts, states=facts["states"], state_unit=facts["state_unit"])  # fmt: skip

    def embedded(self, mean_BD: np.ndarray) -> np.ndarray:
        """(B, width): of length one, around the middle of the pictures that were looked at first."""
        found = mean_BD - self.arrays["middle"]
        if "projected" in self.arrays:
            found = found @ self.arrays["projected"]
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def plan(asked: Asked, parent: str | Path, on_look: Callable[[int, int], None] = lambda done, total: None) -> Plan:
    """Look at some of the pictures, and write the plan into a work folder below `parent`; or find it there."""
    if asked.source.kind == "folder" and not len(asked.source):
        raise ImageError("--images", "there are none", "Name a folder of pictures.")
    asked.source.check_there()
    model_at, saes_at = located(asked.model), [located(name) for name in asked.saes]
    vlm = kept_vlm(model_at, asked.device, asked.dtype)
    saes = [load_sae(paths.bundled(place) or place) for place in saes_at]
    taps = feeding.vision_taps(vlm, _taps(asked, saes))
    _check_slugs(asked, taps)
    if asked.highest_label >= (latents := saes[0].d_sae):
        fault = f"labels latent {asked.highest_label}, and the SAE has {latents}"
        raise InputError(asked.labels_from, fault, "Number from 0.")
    device, identity = device_of(vlm.model), identity_of(asked.model, vlm.model)
    facts = {
        "model": asked.model, "model_at": model_at, "model_sha": identity, "source": asked.source.plain(),
        "images": asked.source.title, "images_sha": asked.source.identity, "seed": asked.seed,
        "device": asked.device, "device_class": device.kind, "dtype": device.dtype, "asked_dtype": asked.dtype,
        "references": asked.references, "package_sha": this_package(),
        "cell_px": (CELL_PX, SMALLER_PX)[len(asked.source) > MANY],
        "shard": asked.shard or _shard_size(len(asked.source)),
        "saes": [{"name": name, "at": at, "sha": identity_of(name), "tap": str(tap),
                  "states_sha": states_sha(vlm, tap, identity)}
                 for name, at, tap in zip(asked.saes, saes_at, taps, strict=True)],
        "control": asked.control,
    }  # fmt: skip
    key = sha_of(facts)
    folder = Path(os.path.abspath(parent)) / f"{WORK}{key[:16]}"
    if not (folder / "plan.npz").is_file():
        made, arrays = _look(asked, vlm, saes, taps, on_look)
        facts |= {"key": key} | made
        told = {"key": key, "package_sha": facts["package_sha"], "of": f"{asked.source.title} with {asked.model}"}
        write_folder(folder, {KEY: _json(told), "plan.json": _json(facts), "plan.npz": npz(arrays)})
    return Plan.read(folder)


def _json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False, indent=1).encode()


def key_of(folder: str | Path) -> str:
    """A plan's key, without the plan."""
    try:
        return json.loads((Path(folder) / KEY).read_text(encoding="utf-8"))["key"]
    except FileNotFoundError as error:
        remedy = "Give --out on storage that every worker sees."
        raise VspError(str(folder), "is not there, or no survey's work folder", remedy) from error


def located(name: str) -> str:
    """A model or SAE by where it is, so that a process that works elsewhere finds it too; what is not on the disk, or
    is bundled, has its name everywhere."""
    return os.path.abspath(name) if paths.bundled(name) is None and Path(name).exists() else name


def _check_slugs(asked: Asked, taps: Sequence[Tap]) -> None:
    """Before the pass: each atlas has a folder of its own."""
    there: dict[str, str] = {}
    for name, tap in zip(asked.saes, taps, strict=True):
        slug = slug_of(asked.model, name, str(tap))
        if name in there.values():
            raise InputError("--sae", f"{name} is given twice", "Give each once.")
        if slug in there:
            fault = f"the atlases of {there[slug]} and {name} would have one folder, {slug}"
            raise InputError("--sae", fault, "Survey one after the other, or rename one's folder.")
        there[slug] = name


def _taps(asked: Asked, saes: Sequence[Sae]) -> list[str]:
    if asked.taps and len(asked.taps) != len(saes):
        raise InputError(
            "--tap", f"{len(asked.taps)} of them for {len(saes)} SAEs", "Give one for each --sae, or none."
        )
    found = [tap or sae.tap for tap, sae in zip(asked.taps or [""] * len(saes), saes, strict=True)]
    for name, tap in zip(asked.saes, found, strict=True):
        if not tap:
            raise InputError("--tap", f"{name} does not say where it belongs", "Give --tap vision.N.")
    return found


def _shard_size(n: int) -> int:
    """Some twenty shards, of a size that a stop does not cost much."""
    return int(np.clip(-(-n // (20 * MOST_AT_ONCE)) * MOST_AT_ONCE, MOST_AT_ONCE, 4096))


def _look(asked: Asked, vlm: Vlm, saes: Sequence[Sae], taps: Sequence[Tap], on_look: Callable[[int, int], None]
          ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:  # fmt: skip
    source, feeder = asked.source, Feeder(vlm, taps)
    count = min(PROBED, len(source))
    numbers = [k * len(source) // count for k in range(count)]
    pairs = [(sae, False) for sae in saes] + ([(Sae.untrained(CONTROL_SEED, like=sae), True) for sae in saes]
                                              if asked.control else [])  # fmt: skip
    at = [*taps, *taps][: len(pairs)]
    largest = [0.0] * len(pairs)
    means, longest, done, most, unread = [], dict.fromkeys(taps, 0.0), 0, 0, []
    for batch in ready(source, feeder, numbers, LOOKED_AT_ONCE, budget(asked.memory_bytes, vlm)):
        good = [one.prompt for one in batch if one.prompt is not None]
        unread += [one.photograph.number for one in batch if one.prompt is None]
        done += len(batch)
        if not good:
            continue
        fed = feeder.see(good)
        _check_widths(asked, saes, taps, fed)
        most = max(most, int(fed.patches_B.max()))
        for k, ((sae, _), tap) in enumerate(zip(pairs, at, strict=True)):
            entries = feeding.read(sae, fed, tap, range(len(good))).entries
            largest[k] = max(largest[k], float(entries.value_E.max(initial=0)))
        means.append(feeding.mean_states(fed, feeder.top))
        longest = {tap: max(length, feeding.longest(fed, tap)) for tap, length in longest.items()}
        on_look(done, count)
    if not means:
        raise ImageError(source.title, f"none of {count} pictures can be read", "Give PNG or JPEG pictures.")
    mean_BD = np.concatenate(means)
    arrays = {"middle": mean_BD.mean(0)}
    width = _width(mean_BD.shape[1], max(sae.d_sae for sae in saes))
    if width < mean_BD.shape[1]:
        chance = np.random.default_rng(asked.seed)
        arrays["projected"] = chance.standard_normal((mean_BD.shape[1], width)) / width**0.5
    told = []
    for k, ((sae, control), tap) in enumerate(zip(pairs, at, strict=True)):
        nearest = projection.nearest(sae.directions.float().cpu().numpy(), 0 if control else CANDIDATES)
        arrays |= {f"{k}.neighbours": nearest.latents_LN, f"{k}.cosines": nearest.cosines_LN}
        told.append({
            "control": control, "of": k % len(saes), "latents": sae.d_sae, "unit": unit_for(largest[k]),
            "states": sae.d_in, "state_unit": unit_for(longest[tap]),
        })  # fmt: skip
    return {"dictionaries": told, "width": width, "patches": most, "looked": numbers, "unread": unread}, arrays


def _width(wide: int, latents: int) -> int:
    while wide * latents * 8 > EMBEDDING_BYTES and wide > 16:
        wide = -(-wide // 2)
    return wide


def _check_widths(asked: Asked, saes: Sequence[Sae], taps: Sequence[Tap], fed: feeding.Fed) -> None:
    for name, sae, tap in zip(asked.saes, saes, taps, strict=True):
        if sae.d_in != (width := fed.states[tap].shape[-1]):
            fault = f"reads states {sae.d_in} wide; {tap} of {asked.model} gives {width}"
            raise CheckpointError(name, fault, "Take an SAE of this tap.")


def budget(memory_bytes: int | None, vlm: Vlm) -> int:
    """What a batch may take, where that is said or not."""
    return memory_bytes or MEMORY_BYTES[vlm.device.type]


def batch_size(memory_bytes: int | None, vlm: Vlm, patches: int) -> int:
    """Pictures at once: what a tower's widest moment takes, within the budget."""
    vision = vlm.model.config.vision_config
    width, heads = getattr(vision, "hidden_size", 1024), getattr(vision, "num_attention_heads", 16)
    one = 4 * patches * (16 * width + 2 * heads * patches)
    return int(np.clip(budget(memory_bytes, vlm) // max(one, 1), 1, MOST_AT_ONCE))


def identity_of(name: str, model: Any = None) -> str:
    """A hash of its files, or a commit of the Hub."""
    place = paths.bundled(name) or Path(name)
    if place.exists():
        return folder_sha(place) if place.is_dir() else file_sha(place)
    return getattr(getattr(model, "config", None), "_commit_hash", None) or name.partition("@")[2]


@lru_cache(maxsize=1)
def this_package() -> str:
    """The source that this process computes with."""
    return package_sha(ROOMS)


@lru_cache(maxsize=1)
def kept_vlm(name: str, device: str, dtype: str | None) -> Vlm:
    with without_progress():
        return load_vlm(name, device=device, dtype=dtype)


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()
