"""What is surveyed in tests, and how two surveys are held against each other."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np

from vsp_report.study import photographs, survey

SAES = ("sketchworld/vision.3", "sketchworld/vision.3-relu")
PICTURES, SHARD = 22, 6
BROKEN = ("a/bomb.png", "b/cut.png", "b/words.jpg")


def bomb() -> bytes:
    """A PNG whose head claims 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def asked(folder: Path, saes: tuple[str, ...] = SAES, **more: object) -> survey.Asked:
    return survey.Asked("sketchworld", saes, photographs.open_source(str(folder)), device="cpu", shard=SHARD, **more)


def drawn(directions_LD: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.asarray(directions_LD[:, :2] * 0.4 + 0.5, np.float32).clip(0, 1)


def contents(tallies: Path) -> dict[str, tuple]:
    """To the last bit; only the hour at which a file was written may differ."""
    with np.load(tallies) as archive:
        return {name: (archive[name].dtype, archive[name].shape, archive[name].tobytes()) for name in archive.files}


def command(folder: str | Path, out: Path, *more: str) -> list[str]:
    return ["atlas", "--model", "sketchworld", "--sae", SAES[0], "--images", str(folder), "--out", str(out), *more]


def written(out: Path) -> dict[str, bytes]:
    """Every file of the atlases below, but the command that made them."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: re.sub(rb'"command": "[^"]*"', b"", data) for name, data in files.items()}
