"""Survey: pictures in, tallies of every latent out. One pass for several SAEs; stopped, it goes on where it was.

    plan     looks at some of the pictures first: units, neighbours, the middle of the embeddings; writes all of it down
    shard    surveys some hundred pictures and writes their tallies; shards know nothing of each other
    merge    tallies of shards that follow each other become one; any grouping gives the same

Plan, shards and merged tallies are files of one work folder. Whoever sees it can survey a shard: this process, others,
or the workers of a cluster. A shard is whole or absent, so a survey that is stopped, or killed, has lost the shards at
work and nothing else; the same command finds the folder by what is asked and goes on. Memory holds one batch, one tally
of each SAE, and the pictures whose truth is known, of which so many are judged and no more.

Beside each SAE an untrained one of the same kind is surveyed in the same way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vsp_report import paths
from vsp_report.errors import CheckpointError, ImageError, InputError, VspError
from vsp_report.maths import projection
from vsp_report.maths.tallies import Frame, Tally, Truth, unit_for
from vsp_report.model import feeding
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.devices import device_of, without_progress
from vsp_report.model.feeding import Feeder
from vsp_report.model.sae import Sae
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Vlm, load_vlm
from vsp_report.recording import file_sha, folder_sha, package_sha, sha_of
from vsp_report.recording.folder import write_folder
from vsp_report.study import photographs, sheets
from vsp_report.study.photographs import Photograph, Source

CONTROL_SEED = 20_240
PROBED, PROBED_ROWS = 256, 32
"""So many pictures are looked at first, and so many patches of each kept for explained variance."""
NEIGHBOURS = 8
JUDGED = 20_000
"""So many pictures with a truth are kept one by one."""
EMBEDDING_BYTES = 64 << 20
"""What the sums of embeddings may take for one SAE; wider ones are projected by chance to fewer dimensions."""
CELL_PX, SMALLER_PX, MANY = 96, 64, 20_000
"""Reference pictures are shown this large; those of surveys of so many pictures smaller."""
MOST_AT_ONCE = 64
MEMORY_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
MERGED_AT_ONCE = 8
ROOMS = ("maths", "model", "sketchworld", "study")
_SHARD = re.compile(r"tally-(\d{6})-(\d{6})\.npz")


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


class Dictionary(NamedTuple):
    """One SAE of a survey."""

    name: str
    sha: str
    tap: Tap
    sae: Sae
    frame: Frame
    control: bool


class Progress(NamedTuple):
    done: int
    """pictures that are surveyed, those of an earlier run among them"""
    total: int
    fresh: int
    """of this run"""


Report = Callable[[Progress], None]


# --- the plan ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plan:
    """What all shards share, as it stands in the work folder."""

    folder: Path
    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, folder: str | Path) -> Plan:
        folder = Path(folder)
        facts = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        with np.load(folder / "plan.npz", allow_pickle=False) as archive:
            return cls(folder, facts, {name: archive[name] for name in archive.files})

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
                     concepts=concepts)  # fmt: skip

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
    vlm = _load_vlm(asked.model, asked.device, asked.dtype)
    saes = [load_sae(paths.bundled(name) or name) for name in asked.saes]
    taps = feeding.vision_taps(vlm, _taps(asked, saes))
    twice = [name for name in asked.saes if asked.saes.count(name) > 1]
    if twice:
        raise InputError("--sae", f"{twice[0]} is given twice", "Give each once.")
    device = device_of(vlm.model)
    facts = {
        "model": vlm.name, "model_sha": identity_of(asked.model, vlm.model), "source": asked.source.plain(),
        "images": asked.source.title, "images_sha": asked.source.identity, "seed": asked.seed,
        "device": asked.device, "device_class": device.kind, "dtype": device.dtype, "asked_dtype": asked.dtype,
        "references": asked.references, "package_sha": package_sha(ROOMS), "cell_px": (CELL_PX, SMALLER_PX)[len(asked.source) > MANY],
        "shard": asked.shard or _shard_size(len(asked.source)),
        "saes": [{"name": name, "sha": identity_of(name), "tap": str(tap)}
                 for name, tap in zip(asked.saes, taps, strict=True)],
        "control": asked.control, "memory": asked.memory_bytes or 0,
    }  # fmt: skip
    key = sha_of(facts)
    folder = Path(os.path.abspath(parent)) / f".survey-{key[:16]}"
    if not (folder / "plan.npz").is_file():
        made, arrays = _look(asked, vlm, saes, taps, on_look)
        facts |= {"key": key} | made
        text = json.dumps(facts, ensure_ascii=False, indent=1).encode()
        write_folder(folder, {"plan.json": text, "plan.npz": _npz(arrays)})
    return Plan.read(folder)


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
    largest, alive = [0.0] * len(pairs), [np.zeros(sae.d_sae, bool) for sae, _ in pairs]
    means, rows, done, most = [], {tap: [] for tap in taps}, 0, 0
    for batch in photographs.batches(source, numbers, 16):
        good = [one for one in batch if one.image is not None]
        done += len(batch)
        if not good:
            continue
        fed = feeder.feed([one.image for one in good])
        _check_widths(vlm, asked.saes, saes, taps, fed)
        most = max(most, int(fed.patches_B.max()))
        for k, ((sae, _), tap) in enumerate(zip(pairs, at, strict=True)):
            entries = feeding.entries_of(sae, fed, tap, range(len(good)))
            largest[k] = max(largest[k], float(entries.value_E.max(initial=0)))
            alive[k][entries.latent_E] = True
        means.append(feeding.mean_states(fed, feeder.top))
        for tap in rows:
            rows[tap].append(feeding.some_rows(fed, tap, PROBED_ROWS))
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
        nearest = projection.nearest(sae.directions.float().cpu().numpy(), 0 if control else NEIGHBOURS, alive[k])
        arrays |= {f"{k}.neighbours": nearest.latents_LN, f"{k}.cosines": nearest.cosines_LN}
        told.append({
            "control": control, "of": k % len(saes), "latents": sae.d_sae, "unit": unit_for(largest[k]),
            "explained": feeding.explained(sae, np.concatenate(rows[tap])),
        })  # fmt: skip
    return {"dictionaries": told, "width": width, "batch": _batch_size(asked, vlm, most)}, arrays


def _width(wide: int, latents: int) -> int:
    while wide * latents * 8 > EMBEDDING_BYTES and wide > 16:
        wide = -(-wide // 2)
    return wide


def _check_widths(vlm: Vlm, names: Sequence[str], saes: Sequence[Sae], taps: Sequence[Tap], fed: feeding.Fed) -> None:
    for name, sae, tap in zip(names, saes, taps, strict=True):
        if sae.d_in != (width := fed.states[tap].shape[-1]):
            fault = f"reads states {sae.d_in} wide; {tap} of {vlm.name} gives {width}"
            raise CheckpointError(name, fault, "Take an SAE of this tap.")


def _batch_size(asked: Asked, vlm: Vlm, patches: int) -> int:
    """Pictures at once: what a tower's widest moment takes, within the budget."""
    budget = asked.memory_bytes or MEMORY_BYTES[vlm.device.type]
    vision = vlm.model.config.vision_config
    width, heads = getattr(vision, "hidden_size", 1024), getattr(vision, "num_attention_heads", 16)
    one = 4 * patches * (16 * width + 2 * heads * patches)
    return int(np.clip(budget // max(one, 1), 1, MOST_AT_ONCE))


def identity_of(name: str, model: Any = None) -> str:
    """A hash of its files, or a commit of the Hub."""
    place = paths.bundled(name) or Path(name)
    if place.exists():
        return folder_sha(place) if place.is_dir() else file_sha(place)
    return getattr(getattr(model, "config", None), "_commit_hash", None) or name.partition("@")[2]


@lru_cache(maxsize=1)
def _load_vlm(name: str, device: str, dtype: str | None) -> Vlm:
    with without_progress():
        return load_vlm(name, device=device, dtype=dtype)


# --- a shard -----------------------------------------------------------------------------------------------------


class Surveyor:
    """A plan with its model and SAEs loaded."""

    def __init__(self, plan: Plan) -> None:
        facts = plan.facts
        self.plan, self.vlm = plan, _load_vlm(facts["model"], facts["device"], facts["asked_dtype"])
        trained = [load_sae(paths.bundled(one["name"]) or one["name"]) for one in facts["saes"]]
        self.dictionaries: list[Dictionary] = []
        for k, told in enumerate(facts["dictionaries"]):
            of, sae = facts["saes"][told["of"]], trained[told["of"]]
            sae = Sae.untrained(CONTROL_SEED, like=sae) if told["control"] else sae
            sae = sae.to(self.vlm.device)
            self.dictionaries.append(Dictionary(of["name"], of["sha"], Tap.parse(of["tap"]), sae, plan.frame(k),
                                                told["control"]))  # fmt: skip
        self.feeder = Feeder(self.vlm, [one.tap for one in self.dictionaries])

    def tallies(self) -> list[Tally]:
        return [Tally(one.frame) for one in self.dictionaries]

    def add(self, tallies: Sequence[Tally], numbers: Sequence[int], fed: feeding.Fed) -> None:
        """One batch, to the tally of each SAE."""
        embeddings_BD = self.plan.embedded(feeding.mean_states(fed, self.feeder.top))
        truth = self._truth(numbers, fed) if self.plan.source.truth else None
        for tally, one in zip(tallies, self.dictionaries, strict=True):
            entries = feeding.entries_of(one.sae, fed, one.tap, numbers)
            tally.add(entries, embeddings_BD=embeddings_BD, truth=truth)

    def _truth(self, numbers: Sequence[int], fed: feeding.Fed) -> Truth:
        source, patches_B = self.plan.source, fed.patches_B
        first_B = patches_B.cumsum() - patches_B
        shown = [source.shown(number, *map(int, grid)) for number, grid in zip(numbers, fed.grids_B2, strict=True)]
        row_X = np.concatenate([one.patch_X + first for one, first in zip(shown, first_B, strict=True)])
        halves = [source.half(number) if number < JUDGED else 2 for number in numbers]
        return Truth(np.array(halves), np.stack([s.concepts_C for s in shown]),
                     row_X, np.concatenate([one.concept_X for one in shown]))  # fmt: skip


@lru_cache(maxsize=1)
def _surveyor(folder: str, key: str) -> Surveyor:
    return Surveyor(Plan.read(folder))


def survey_shard(folder: str, shard: int, on_batch: Callable[[int], None] | None = None) -> int:
    """Survey one shard and write its file; says how many pictures it has."""
    key = json.loads((Path(folder) / "plan.json").read_text(encoding="utf-8"))["key"]
    surveyor = _surveyor(folder, key)
    plan, tallies, small, broken = surveyor.plan, surveyor.tallies(), {}, []
    numbers = plan.numbers(shard)
    done = 0
    for batch in photographs.batches(plan.source, numbers, plan.facts["batch"]):
        good = [one for one in batch if one.image is not None]
        broken += [[one.number, plan.source.name(one.number), one.fault] for one in batch if one.image is None]
        if good:
            fed = surveyor.feeder.feed([one.image for one in good])
            surveyor.add(tallies, [one.number for one in good], fed)
            small |= {one.number: (sheets.packed(photographs.grid_crop(one.image, box, plan.facts["cell_px"])), grid)
                      for one, box, grid in zip(good, fed.boxes_B4, fed.grids_B2.tolist(), strict=True)}  # fmt: skip
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    save_tallies(plan, shard, shard, tallies, small, broken)
    return len(numbers)


Small = dict[int, tuple[bytes, list[int]]]
"""Small pictures by their number, with rows and columns of patches."""


def save_tallies(plan: Plan, first: int, last: int, tallies: Sequence[Tally], small: Small, broken: list) -> None:
    arrays: dict[str, np.ndarray] = {}
    for k, tally in enumerate(tallies):
        arrays |= {f"{k}.{name}": _narrow(array) for name, array in tally.arrays().items()}
    needed = {int(i) for k, tally in enumerate(tallies) if not plan.facts["dictionaries"][k]["control"]
              for i in tally.references.picture_A}  # fmt: skip
    kept = sorted(needed & small.keys())
    arrays["small.numbers"] = np.array(kept, np.int64)
    arrays["small.grids"] = np.array([small[i][1] for i in kept], np.uint16).reshape(-1, 2)
    arrays["small.ends"] = np.cumsum([len(small[i][0]) for i in kept], dtype=np.int64)
    arrays["small.bytes"] = np.frombuffer(b"".join(small[i][0] for i in kept), np.uint8)
    arrays["broken"] = np.frombuffer(json.dumps(sorted(broken)).encode(), np.uint8)
    _write(plan.folder / f"tally-{first:06}-{last:06}.npz", _npz(arrays))


def load_tallies(plan: Plan, name: str) -> tuple[list[Tally], Small, list]:
    with np.load(plan.folder / name, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    tallies = []
    for k in range(len(plan.facts["dictionaries"])):
        frame = plan.frame(k)
        kinds = {name: array.dtype for name, array in Tally(frame).arrays().items()}
        mine = {key.partition(".")[2]: array for key, array in arrays.items() if key.startswith(f"{k}.")}
        tallies.append(Tally.of(frame, {name: array.astype(kinds[name], copy=False) for name, array in mine.items()}))
    starts, held = np.append(0, arrays["small.ends"]), arrays["small.bytes"].tobytes()
    grids = arrays["small.grids"].tolist()
    small = {int(i): (held[a:b], grid) for i, a, b, grid in zip(arrays["small.numbers"], starts[:-1], starts[1:],
                                                               grids, strict=True)}  # fmt: skip
    return tallies, small, json.loads(arrays["broken"].tobytes())


def merge_files(folder: str, names: Sequence[str]) -> str:
    """Files of shards that follow each other become one; the parts go once the whole is there."""
    plan = Plan.read(folder)
    ordered = sorted(names)
    loaded = [load_tallies(plan, name) for name in ordered]
    merged = [first.merged(*others) for first, *others in zip(*(tallies for tallies, _, _ in loaded), strict=True)]
    small = {number: one for _, some, _ in loaded for number, one in some.items()}
    broken = [one for _, _, some in loaded for one in some]
    first, last = int(_SHARD.fullmatch(ordered[0])[1]), int(_SHARD.fullmatch(ordered[-1])[2])
    save_tallies(plan, first, last, merged, small, broken)
    for name in ordered:
        if len(ordered) > 1:
            (plan.folder / name).unlink(missing_ok=True)
    return f"tally-{first:06}-{last:06}.npz"


def _narrow(array: np.ndarray) -> np.ndarray:
    """Whole numbers in as few bytes as hold them."""
    if array.dtype.kind != "i" or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    import io

    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# --- all of them -------------------------------------------------------------------------------------------------


def finished(plan: Plan) -> list[tuple[int, int, str]]:
    """First shard, last shard and name of every file that counts: of one inside another, the other."""
    found = [(int(m[1]), int(m[2]), m[0]) for m in map(_SHARD.fullmatch, os.listdir(plan.folder)) if m]
    kept: list[tuple[int, int, str]] = []
    for one in sorted(found, key=lambda f: (f[0], -f[1])):
        if not kept or one[0] > kept[-1][1]:
            kept.append(one)
    return kept


def survey(plan: Plan, executor: Executor | None = None, on_progress: Report = lambda progress: None) -> Path:
    """Survey what is not surveyed yet, here or by an executor's workers, and merge all; says where the tallies are."""
    there = {shard for first, last, _ in finished(plan) for shard in range(first, last + 1)}
    left = [shard for shard in range(plan.shards) if shard not in there]
    before = sum(len(plan.numbers(shard)) for shard in there)
    total, fresh, folder = len(plan.source), 0, str(plan.folder)
    on_progress(Progress(before, total, 0))
    if executor is None:
        for shard in left:
            said = lambda done, so_far=fresh: on_progress(Progress(before + so_far + done, total, so_far + done))  # noqa: E731
            fresh += survey_shard(folder, shard, said)
        on_progress(Progress(before + fresh, total, fresh))
        return plan.folder / _merged(plan, None)
    tasks = [executor.submit(survey_shard, folder, shard) for shard in left]
    try:
        for task in as_completed(tasks):
            fresh += task.result()
            on_progress(Progress(before + fresh, total, fresh))
        return plan.folder / _merged(plan, executor)
    except BaseException as error:
        for task in tasks:
            task.cancel()
        if type(error).__name__ == "BrokenProcessPool":
            raise VspError("survey", "a worker died", "Give --jobs fewer, or less memory; then go on.") from error
        raise


def _merged(plan: Plan, executor: Executor | None) -> str:
    """A tree: so many files at once become one, until one is left."""
    while len(files := [name for _, _, name in finished(plan)]) > 1:
        groups = [files[k : k + MERGED_AT_ONCE] for k in range(0, len(files), MERGED_AT_ONCE)]
        groups = [group for group in groups if len(group) > 1]
        if executor is None or len(groups) == 1:
            for group in groups:
                merge_files(str(plan.folder), group)
        else:
            for task in [executor.submit(merge_files, str(plan.folder), group) for group in groups]:
                task.result()
    return finished(plan)[0][2]


def forget(plan: Plan) -> None:
    """Clear the work folder of a survey whose atlases are written."""
    with suppress(OSError):
        shutil.rmtree(plan.folder)


__all__ = [
    "Asked", "Photograph", "Plan", "Progress", "finished", "forget", "load_tallies", "merge_files", "plan", "survey",
    "survey_shard",
]  # fmt: skip
