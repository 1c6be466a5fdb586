"""Photographs: a survey's pictures, read by workers ahead of the model; where from, and which are broken.

A source is a folder of pictures or scenes of SketchWorld. It is plain data, so that another process, or another
machine that sees the same folder, reads the same pictures by their numbers. A picture that cannot be read is named with
its fault and passed over; one that claims more pixels than any camera makes (a decompression bomb) is not unpacked.

Workers are threads: decoding leaves Python's lock alone. Pictures come one by one and in order, and no more are open
than fit a budget: a camera's are a hundred times the size of what a model is shown. One that is larger than all of the
budget is read alone. Scenes are small, and drawn in Python, many at once where they are charts: a batch at a time.
"""

from __future__ import annotations

import csv
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vsp_report.errors import ImageError, InputError, VspError
from vsp_report.recording import sha_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SCENES = "sketchworld"
UNSEEN = 1_600_000_000
"""The first seed of a survey's scenes: neither training, nor the evaluation, nor a check draws from there on."""
SCENE_PX = 192
"""Scenes are drawn at twice the size of the bundled model's pictures, as in training."""
MOST_PIXELS = 100_000_000
MAX_ASPECT = 200
"""As for a picture that is asked about: a longer one would be blown up to gigabytes."""
THREADS = 4
OPEN_BYTES = 256 << 20
"""What pictures that are open may take, where nothing else is said."""
PIXEL_BYTES = 8
"""What one pixel takes while a picture is decoded: Pillow keeps RGB in four bytes, and copies it to turn it."""


class Photograph(NamedTuple):
    number: int
    image: Any
    """upright, RGB; None for a broken one"""
    fault: str = ""
    masks: tuple[np.ndarray, ...] = ()
    """of a scene's parts"""


# --- sources -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """Pictures of a folder and its folders, by name."""

    root: str
    """absolute: another process, or machine, need not work where this one does"""
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    """of each picture: its folder's name, or what a table says; None where neither says anything"""
    labelled: str = ""
    """where labels are from"""
    sizes: tuple[int, ...] = ()

    kind = "folder"
    truth = False

    @property
    def title(self) -> str:
        return title_of(self.root)

    @property
    def identity(self) -> str:
        return sha_of([list(self.names), list(self.sizes), list(self.labels or ())])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        return self.names[number]

    def label(self, number: int) -> str:
        return self.labels[number] if self.labels else ""

    def check_there(self) -> None:
        """That this process sees the folder: without it every picture would be called broken."""
        if not Path(self.root).is_dir():
            remedy = "Put it where this machine sees it, or name another; then give the same command again."
            raise VspError(self.root, "is not there", remedy)

    def can_read(self, number: int) -> bool:
        with no_bombs():
            return self._one(number, 0, _Room(0))[0].image is not None

    def stream(self, numbers: Sequence[int], ahead: int, open_bytes: int) -> Iterator[Photograph]:
        room, waiting = _Room(open_bytes), deque()
        with ThreadPoolExecutor(THREADS) as workers:
            try:
                for turn, number in enumerate(numbers):
                    waiting.append(workers.submit(self._one, number, turn, room))
                    if len(waiting) >= ahead:
                        yield from _let_go(waiting.popleft().result(), room)
                while waiting:
                    yield from _let_go(waiting.popleft().result(), room)
            finally:
                room.close()
                for coming in waiting:
                    coming.cancel()

    def _one(self, number: int, turn: int, room: _Room) -> tuple[Photograph, int]:
        """A picture, and what it has taken of the room."""
        taken: list[int] = []

        def enter(size_bytes: int) -> None:
            taken.append(size_bytes)
            room.enter(turn, size_bytes)

        try:
            found = Photograph(number, read_picture(Path(self.root) / self.names[number], enter))
        except ImageError as error:
            found = Photograph(number, None, error.fault)
        if not taken:  # it was broken from the start, and its turn is over
            enter(0)
        return found, taken[0]

    def plain(self) -> dict[str, Any]:
        labels = list(self.labels) if self.labels is not None else None
        return {"kind": self.kind, "root": self.root, "names": list(self.names), "labels": labels,
                "labelled": self.labelled, "sizes": list(self.sizes)}  # fmt: skip


@dataclass(frozen=True)
class Scenes:
    """Scenes of SketchWorld, of which everything is known. Two of three come as often as training draws them; every
    third is a portrait, of each kind in turn, so that seldom kinds are there too."""

    count: int
    first: int = UNSEEN

    kind = "scenes"
    truth = True
    title = SCENES
    labelled = "SketchWorld: the main thing of each scene"

    @property
    def identity(self) -> str:
        return sha_of([SCENES, self.first, self.count, SCENE_PX])

    def __len__(self) -> int:
        return self.count

    def name(self, number: int) -> str:
        return f"scene {self.first + number}"

    def label(self, number: int) -> str:
        from vsp_report.sketchworld.concepts import topic_of

        return topic_of(self.scene(number))

    def scene(self, number: int) -> Any:
        from vsp_report.sketchworld import rules

        seed = self.first + number
        if number % 3 < 2:
            return rules.sample_scene(seed)
        return rules.draw_portraits(rules.Draws(seed), rules.PORTRAITS[number // 3 % len(rules.PORTRAITS)])

    def half(self, number: int) -> int:
        """Latents are chosen on half 0 and measured on half 1; a kind of portrait is in either half in turn."""
        from vsp_report.sketchworld import rules

        return sum(divmod(number // 3, len(rules.PORTRAITS))) % 2

    def check_there(self) -> None:
        """They are everywhere."""

    def can_read(self, number: int) -> bool:
        return True

    def stream(self, numbers: Sequence[int], ahead: int, open_bytes: int) -> Iterator[Photograph]:
        parts = [numbers[start : start + ahead] for start in range(0, len(numbers), ahead)]
        with ThreadPoolExecutor(1) as beside:
            coming = beside.submit(self._drawn, parts[0]) if parts else None
            for following in [*parts[1:], None]:
                if coming is None:
                    return
                drawn = coming.result()
                coming = None if following is None else beside.submit(self._drawn, following)
                yield from drawn

    def _drawn(self, numbers: Sequence[int]) -> list[Photograph]:
        from vsp_report.sketchworld import charts, concepts

        scenes = [self.scene(number) for number in numbers]
        drawn = iter(charts.draw_many([scene.chart for scene in scenes if scene.chart], SCENE_PX))
        # Masks at once: what was drawn is soon forgotten, and would be drawn again.
        return [Photograph(number, next(drawn).convert("RGB") if scene.chart else scene.draw(SCENE_PX), "",
                           tuple(concepts.masks_of(scene, SCENE_PX)))
                for number, scene in zip(numbers, scenes, strict=True)]  # fmt: skip

    def shown(self, photograph: Photograph, rows: int, columns: int) -> Any:
        """What a scene shows on a grid of patches."""
        from vsp_report.sketchworld import concepts

        return concepts.shown(self.scene(photograph.number), rows, columns, photograph.masks)

    @property
    def concepts(self) -> tuple[str, ...]:
        from vsp_report.sketchworld.concepts import CONCEPTS

        return CONCEPTS

    def plain(self) -> dict[str, Any]:
        return {"kind": self.kind, "count": self.count, "first": self.first}


Source = Folder | Scenes


def source_of(plain: Mapping[str, Any]) -> Source:
    if plain["kind"] == Scenes.kind:
        return Scenes(plain["count"], plain["first"])
    labels = plain["labels"]
    return Folder(plain["root"], tuple(plain["names"]), None if labels is None else tuple(labels), plain["labelled"],
                  tuple(plain["sizes"]))  # fmt: skip


def title_of(root: str | Path) -> str:
    """What a folder is called, however it was written: `.` has a name too."""
    return Path(root).resolve().name


def pictures_of(folder: str | Path) -> list[Path]:
    """The files of a folder, and of the folders in it, that are called as pictures are; by name."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(str(folder), "is no folder", "Name a folder of pictures, or sketchworld.")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.name[0] != "."
                   and file.is_file())  # fmt: skip
    if not files:
        raise InputError(str(folder), "holds no picture", f"Put some there ({', '.join(SUFFIXES)}).")
    return files


def evenly(files: Sequence[Path], n: int | None) -> list[Path]:
    """`n` of them, evenly many of all; all without `n`, or where there are fewer."""
    n = len(files) if n is None else min(n, len(files))
    return [files[k * len(files) // n] for k in range(n)]


def open_source(
    images: str, n: int | None = None, labels: Mapping[str, str] | None = None, told_by: str = "",
    tell: Callable[[str], None] = lambda said: None,
) -> Source:  # fmt: skip
    """`n` pictures of a folder, evenly many of all (all without `n`), or scenes of `sketchworld` (5,000).

    `labels` by the picture's name inside the folder, from a table; without one, folders with names label pictures.
    `tell` is told of labels that name no picture.
    """
    if images == SCENES:
        return Scenes(5000 if n is None else n)
    root, every = Path(os.path.abspath(images)), pictures_of(images)
    files = evenly(every, n)
    names = tuple(file.relative_to(images).as_posix() for file in files)
    sizes = tuple(file.stat().st_size for file in files)
    if labels is not None:
        if not any(name in labels for name in names):
            raise InputError(told_by, "labels none of the pictures", f"Write names such as {names[0]}.")
        there = {file.relative_to(images).as_posix() for file in every}
        if astray := [name for name in labels if name not in there]:
            name = "names" if len(astray) == 1 else "name"
            tell(f"{told_by}: {len(astray)} of {len(labels)} lines {name} no picture, such as {astray[0]}.")
        return Folder(str(root), names, tuple(labels.get(name, "") for name in names), told_by, sizes)
    parents = [Path(name).parent.name for name in names]
    several = len(set(parents)) > 1
    return Folder(str(root), names, tuple(parents) if several else None, "their folders" if several else "", sizes)


# --- reading -----------------------------------------------------------------------------------------------------


def read_picture(path: Path, enter: Callable[[int], None] = lambda size_bytes: None) -> Any:
    """An upright RGB picture. `enter` is told what decoding takes, before it is decoded, and may wait."""
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise ImageError(str(path), f"claims {width} x {height} pixels", "Shrink it.")
            enter(PIXEL_BYTES * width * height)
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            picture = opened.convert("RGB")
    except (ImageError, _Closed):
        raise
    except Exception as error:  # decoders raise whatever their format makes them
        fault = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ImageError(str(path), f"cannot be read ({fault.replace(str(path), path.name)})", "Mend it.") from error
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        raise ImageError(str(path), f"is longer than {MAX_ASPECT} to 1 ({width} x {height})", "Crop it.")
    return picture


@contextmanager
def no_bombs() -> Iterator[None]:
    """While open, what Pillow warns of as a decompression bomb is refused. For the whole process: warnings are."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


class _Closed(Exception):
    """Nobody waits for the picture any more."""


class _Room:
    """Lets pictures in while they fit, each when it is its turn: who waits for the next picture does get that one. One
    that is larger than all of the room goes in when it is empty."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._taken, self._turn, self._open = most_bytes, 0, 0, True
        self._changed = threading.Condition()

    def enter(self, turn: int, size_bytes: int) -> None:
        with self._changed:
            fits = lambda: self._turn == turn and (not self._taken or self._taken + size_bytes <= self._most)  # noqa: E731
            self._changed.wait_for(lambda: fits() or not self._open)
            if not self._open:
                raise _Closed
            self._taken, self._turn = self._taken + size_bytes, turn + 1
            self._changed.notify_all()

    def leave(self, size_bytes: int) -> None:
        with self._changed:
            self._taken -= size_bytes
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()


def _let_go(read: tuple[Photograph, int], room: _Room) -> Iterator[Photograph]:
    """A picture, whose room is free again when the next one is asked for."""
    size_bytes = read[1]
    yield read[0]
    room.leave(size_bytes)


def stream(source: Source, numbers: Sequence[int], ahead: int, open_bytes: int = OPEN_BYTES) -> Iterator[Photograph]:
    """Photographs one by one, in order; the next are read while one is worked on, so many `ahead` at most. Who asks for
    the next one is to have let go of the last: what is read ahead takes no more than `open_bytes`."""
    with no_bombs(), closing(source.stream(numbers, ahead, open_bytes)) as photographs:
        yield from photographs


def batches(source: Source, numbers: Sequence[int], size: int) -> Iterator[list[Photograph]]:
    """Small photographs, such as scenes, in batches of this size: a batch is held whole."""
    batch: list[Photograph] = []
    for one in stream(source, numbers, size, 1 << 62):
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# --- tables ------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A user's labels: of pictures by their names, or of latents by their numbers."""

    of: str
    labels: dict[str, str]


def read_labels(path: str | Path) -> Table:
    """A CSV with a header: `image,label` or `latent,label`."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError as error:
        raise InputError(str(path), "there is no such file", "Give a CSV with the header image,label.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), f"cannot be read ({error})", "Save it as CSV in UTF-8.") from error
    head = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if head[:2] not in (["image", "label"], ["latent", "label"]):
        remedy = "Write image,label or latent,label in its first line."
        raise InputError(f"{path}:1", f"its header is {','.join(head) or 'empty'}", remedy)
    found: dict[str, str] = {}
    for line, row in rows[1:]:
        key, label = (cell.strip() for cell in (*row, "", "")[:2])
        if not key or not label or len(label) > 80:
            raise InputError(f"{path}:{line}", f"is {','.join(row)[:60]!r}", "Write a name and a label of up to 80.")
        if head[0] == "latent" and not key.isdecimal():
            raise InputError(f"{path}:{line}", f"latent is {key[:40]!r}", "Write its number, from 0.")
        found[str(int(key)) if head[0] == "latent" else Path(key).as_posix()] = label
    if not found:
        raise InputError(str(path), "labels nothing", "Write a line for each label below its header.")
    return Table(head[0], found)


def grid_crop(image: Any, box: np.ndarray, side_px: int) -> Any:
    """The part of a picture that patches cover, as a small square."""
    return image.resize((side_px, side_px), Image.Resampling.BILINEAR, box=tuple(map(float, box)), reducing_gap=2.0)
