"""Image sets: many pictures in a fixed order: those of a folder, or scenes of SketchWorld; and what tells a set from
another.

Pictures are made when their turn comes. Of a folder's files names, sizes and times are read, not the bytes: a picture
that is changed in place, or copied elsewhere, makes another set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vsp_report.model.streams import Picture
from vsp_report.recording import sha_of
from vsp_report.study.photographs import SCENES, evenly, pictures_of

FIRST_SCENE = 1_000_000_000
"""Scenes to train on; the bundled models were trained on lower seeds, and what measures draws from higher ones."""
DRAWN_PX = 384
PROBES = 16


@dataclass(frozen=True)
class ImageSet:
    pictures: tuple[Picture, ...]
    identity: str
    """where they are from, how many, and a hash"""


def image_set(source: str, n: int | None = None) -> ImageSet:
    """`n` pictures: of a folder evenly many of all (all without `n`), or scenes of `sketchworld` (2,000)."""
    return _scenes(n or 2000) if source == SCENES else _files(source, n)


def _scenes(n: int) -> ImageSet:
    from vsp_report.sketchworld import rules

    def draw(seed: int) -> Any:
        return rules.sample_scene(seed).draw(DRAWN_PX)

    pictures = tuple(Picture(f"scene {FIRST_SCENE + k}", partial(draw, FIRST_SCENE + k)) for k in range(n))
    # The world's code may change: some of its scenes stand for all.
    drawn = [draw(FIRST_SCENE + k).tobytes().hex() for k in sorted({n * k // PROBES for k in range(PROBES)})]
    return ImageSet(pictures, f"{n} scenes of {SCENES} {sha_of(drawn)[:16]}")


def _files(source: str, n: int | None) -> ImageSet:
    folder = Path(source)
    files = evenly(pictures_of(folder), n)
    names = [file.relative_to(folder).as_posix() for file in files]
    stats = [file.stat() for file in files]
    digest = sha_of([[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)])
    pictures = (Picture(name, partial(Path, file)) for name, file in zip(names, files, strict=True))
    return ImageSet(tuple(pictures), f"{len(files)} pictures of {folder.name} {digest[:16]}")
