"""Streams: rows of states for training, mixed, in a fixed order that a stopped run finds again.

A source gives the states of a few pictures at a time (a chunk), at all taps out of one forward pass. A stream visits
chunks in an order of its own in each epoch, holds as many as fit its buffer, shuffles their rows and hands them out in
batches; what is left over goes into the next buffer, so that every row is seen once before any is seen twice. All of
it follows from the seed and a position, which is small: what a batch holds never depends on whether the run was
stopped before it, nor on whether states come from pictures or from a cache.

Taps of one model have different numbers of rows (text has more than vision): a chunk's larger ones are thinned.

Axes: N rows of a chunk or a buffer, B rows of a batch, D width, S sites of one picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch

from vsp_report.errors import ImageError, ModelError
from vsp_report.model import taps as places
from vsp_report.model.sites import Sites
from vsp_report.model.steering import see_states
from vsp_report.model.taps import Tap
from vsp_report.model.vlm import Asked, Prompt, Vlm, load_image

BUFFER_BATCHES = 16
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DECODERS = 4

Rows = dict[str, torch.Tensor]
"""Of each tap, (N, D)."""


class Picture(NamedTuple):
    name: str
    make: Callable[[], Any]
    """gives a PIL image, or the path of a file"""


class Source(Protocol):
    taps: tuple[str, ...]
    chunks: int

    def load(self, chunk: int, then: int | None = None) -> Rows:
        """The rows of a chunk, or {} if it has none; `then` is the one that is likely to be asked for next."""
        ...


class Position(NamedTuple):
    """Where a stream is: in which epoch, at which chunk its buffer began, with what, and how many batches of it
    were handed out."""

    epoch: int
    first: int
    batches: int
    carried: Rows


class Stream:
    """Batches of `batch` rows of every tap, for ever."""

    def __init__(
        self,
        source: Source,
        batch: int,
        seed: int,
        *,
        buffer: int | None = None,
        share: tuple[int, int] = (0, 1),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`share`: which part of the chunks, of how many. `check` is called between chunks, and may raise."""
        self.source, self.batch, self.seed, self.check = source, batch, seed, check
        self.buffer = BUFFER_BATCHES * batch if buffer is None else max(buffer, batch)
        self.rank, self.size = share
        if source.chunks < self.size:
            fault = f"are {source.chunks} batches; {self.size} processes cannot share them"
            raise ImageError("images", fault, "Give more pictures, or start fewer processes.")
        self._held: _Held | None = None
        self._at = Position(0, 0, 0, {})

    @property
    def position(self) -> Position:
        return self._at

    @property
    def epoch(self) -> int:
        return self._at.epoch

    def go_to(self, position: Position) -> None:
        self._at, self._held = position, None

    def sample(self) -> Rows:
        """The rows of the buffer that comes first, none of them consumed."""
        return dict(self._filled().rows)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Rows:
        held = self._filled()
        start = self._at.batches * self.batch
        self._at = self._at._replace(batches=self._at.batches + 1)
        return {tap: rows[start : start + self.batch] for tap, rows in held.rows.items()}

    def _filled(self) -> _Held:
        """A buffer with a batch left in it."""
        if self._held is None:
            self._held = self._fill(self._at)
        idle = 0
        while self._held.n - self._at.batches * self.batch < self.batch:
            done, held = self._at.batches * self.batch, self._held
            carried = {tap: rows[done:].clone() for tap, rows in held.rows.items()}
            next_ = Position(held.epoch, held.next, 0, carried)
            filled = self._fill(next_)
            idle = idle + 1 if filled.n == held.n - done else 0
            if idle > 2:
                raise ImageError(
                    "images", "none of them gives a state to learn from", "Give pictures that can be read."
                )
            self._at, self._held = next_._replace(epoch=filled.epoch, first=filled.first), filled
        return self._held

    def _fill(self, at: Position) -> _Held:
        order = self._order(at.epoch)
        epoch, first = (at.epoch, at.first) if at.first < len(order) else (at.epoch + 1, 0)
        order = order if epoch == at.epoch else self._order(epoch)
        parts: dict[str, list[torch.Tensor]] = {
            tap: [at.carried[tap]] if at.carried else [] for tap in self.source.taps
        }
        n, place = len(next(iter(at.carried.values()), ())), first
        while n < self.buffer and place < len(order):
            self.check()
            chunk, then = order[place], order[place + 1] if place + 1 < len(order) else None
            place += 1
            if rows := self._thinned(self.source.load(chunk, then), epoch, chunk):
                n += len(next(iter(rows.values())))
                for tap, part in rows.items():
                    parts[tap].append(part)
        generator = self._generator("rows", epoch, first)
        mixed = torch.randperm(n, generator=generator)
        return _Held({tap: torch.cat(part)[mixed] if part else torch.empty(0, 0) for tap, part in parts.items()},
                     n, epoch, first, place)  # fmt: skip

    def _thinned(self, rows: Rows, epoch: int, chunk: int) -> Rows:
        least = min(map(len, rows.values()), default=0)
        thinned = {}
        for tap, part in rows.items():
            if len(part) > least:
                generator = self._generator(f"thin {tap}", epoch, chunk)
                part = part[torch.randperm(len(part), generator=generator)[:least].sort().values]
            thinned[tap] = part
        return thinned

    def _order(self, epoch: int) -> list[int]:
        order = torch.randperm(self.source.chunks, generator=self._generator("chunks", epoch, 0))
        return order.tolist()[self.rank :: self.size]

    def _generator(self, what: str, epoch: int, number: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {what} {epoch} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class _Held(NamedTuple):
    rows: Rows
    n: int
    epoch: int
    first: int
    next: int


# --- states of pictures ------------------------------------------------------------------------------------------


@dataclass
class PictureRows:
    """A source: the states of pictures, a few pictures in one forward pass, from the topmost tap down.

    The class token and the token that opens a text are left out, as everywhere. A picture that cannot be read is left
    out as well, and its name kept in `skipped`.
    """

    vlm: Vlm
    at: tuple[Tap, ...]
    pictures: Sequence[Picture]
    per_pass: int = 8
    prompt: str = "Describe the image."
    dtype: torch.dtype = torch.float16
    skipped: dict[str, str] = field(default_factory=dict)
    """name -> reason"""

    def __post_init__(self) -> None:
        order = {"vision": 0, "connector": 1, "text": 2}
        self._downwards = sorted(self.at, key=lambda tap: (order[tap.place], tap.layer or 0), reverse=True)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="picture")
        self._coming: tuple[int, list[Future]] | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        return tuple(map(str, self.at))

    @property
    def chunks(self) -> int:
        return -(-len(self.pictures) // self.per_pass)

    def load(self, chunk: int, then: int | None = None) -> Rows:
        coming = self._coming[1] if self._coming and self._coming[0] == chunk else self._decoding(chunk)
        self._coming = None if then is None else (then, self._decoding(then))
        images = []
        for picture, future in zip(self._of(chunk), coming, strict=True):
            try:
                images.append((picture.name, future.result()))
            except ImageError as error:
                self.skipped[picture.name] = error.fault
        return self._states(images)

    def _of(self, chunk: int) -> Sequence[Picture]:
        return self.pictures[chunk * self.per_pass : (chunk + 1) * self.per_pass]

    def _decoding(self, chunk: int) -> list[Future]:
        return [self._decoders.submit(lambda p: load_image(p.make(), p.name), picture) for picture in self._of(chunk)]

    @torch.no_grad()
    def _states(self, images: list[tuple[str, Any]]) -> Rows:
        if not images:
            return {}
        try:
            prompt = self.vlm.prepare_batch([Asked(image, self.prompt) for _, image in images])
        except ImageError as error:
            if len(images) == 1:  # the processor's own reasons
                self.skipped[images[0][0]] = error.fault
                return self._states([])
            parts = [part for image in images if (part := self._states([image]))]
            return {tap: torch.cat([part[tap] for part in parts]) for tap in self.taps} if parts else {}
        states = see_states(self.vlm, prompt, self._downwards)
        return {str(tap): self._kept(tap, states[tap], prompt) for tap in self.at}

    def _kept(self, tap: Tap, states: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        parts = []
        for sample in range(len(prompt)):
            sites = Sites.of(self.vlm, only(prompt, sample), tap)
            rows_S = sites.rows_S[torch.as_tensor(~sites.class_S, device=sites.rows_S.device)]
            parts.append((states[sample] if tap.place == "text" else states.flatten(0, -2))[rows_S])
        exact_ND = torch.cat(parts)
        rows_ND = exact_ND.to(self.dtype)
        if not rows_ND.isfinite().all():
            if not exact_ND.isfinite().all():
                raise ModelError(str(tap), f"{self.vlm.name} gives states that are not finite", "Try another --dtype.")
            most = float(exact_ND.abs().max())
            fault = f"its states, up to {most:.3g}, do not fit {str(self.dtype).removeprefix('torch.')}"
            raise ModelError(str(tap), fault, "Keep them in bfloat16 or float32 (--states).")
        return rows_ND.cpu()


def only(prompt: Prompt, sample: int) -> Prompt:
    """One sample of a batch, where it stands in the batch: for whoever asks about its positions."""
    inputs = {key: prompt.inputs[key][sample : sample + 1] for key in ("input_ids", "attention_mask")}
    return replace(prompt, inputs=inputs, images=(prompt.images[sample],), kinds=(prompt.kinds[sample],))


def trained_taps(vlm: Vlm, words: Sequence[str]) -> tuple[Tap, ...]:
    """Taps as they were asked for, each once; an error where nothing would read an edit."""
    found = dict.fromkeys(places.resolve(vlm, word, "--tap") for word in words)
    for tap in found:
        places.check_read(vlm, tap)
    return tuple(found)
