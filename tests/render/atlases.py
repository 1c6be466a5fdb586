"""Atlases that no model made, for the tests of pages: seeded numbers over drawn pictures, of any size.

`make_atlas` has every part. A latent belongs to a concept, its references show that concept, and it is active where
the picture does; every seventh latent is dead, and every fifth one's label is poor. Some names are a stranger's
mischief. `save` writes it with its sheets.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vsp_report import atlas as rooms
from vsp_report.atlas import ABSENT, Arrays, Atlas, Cluster, Concept, Labelling, Measure, Provenance, Sheets

CONCEPTS = (
    "chair", "cup", "dog", "rabbit", "duck", "red", "blue", "yellow", "stripes", "person", "hand", "mitten", "table",
    "bar", "text", "sky", "grass", "elephant", "pig", "cat",
)  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7*7 }}</script>"
TAPS = ("vision.1", "vision.2", "vision.3")
GRID, CELL, ACROSS, DOWN, BINS, REFERENCES, NEIGHBOURS = 8, 48, 16, 8, 24, 8, 6


def make_atlas(
    latents: int = 240, tap: str = "vision.3", *, pictures: int = 200, seed: int = 0, labels: bool = True,
    dead: float = 1 / 7, model_sha: str = "model", sae_sha: str = "sae", states_sha: str = "",
    sheets: Sheets | None = None,
) -> Atlas:  # fmt: skip
    """`dead`: the share of latents that nothing activates. `labels`: whether pictures and latents have any."""
    rng = np.random.default_rng(seed)
    L, R, N, C = latents, REFERENCES, NEIGHBOURS, len(CONCEPTS)
    alive = rng.random(L) >= dead
    concept_L = rng.integers(0, C, L)
    shown_I, spot_I2 = np.arange(pictures) % C, rng.integers(1, GRID - 2, (pictures, 2))
    frequency = np.clip(np.exp(rng.normal(-4.5, 1.6, L)), 2e-4, 1).astype(np.float32)
    mean = np.exp(rng.normal(0.3, 0.7, L)).astype(np.float32) * (1 + frequency)
    depth = 0.35 + 0.3 * (TAPS.index(tap) if tap in TAPS else 2)
    poor = rng.random(L) < 0.2
    score = np.where(poor, rng.uniform(0.05, 0.4, L), np.clip(rng.normal(depth, 0.1, L), 0.3, 1)).astype(np.float32)

    per = pictures // C
    of_concept = concept_L[:, None] + C * np.argsort(rng.random((L, per)), 1)[:, :R]
    references = np.where(alive[:, None], of_concept, -1)
    references[:, R - 1][rng.random(L) < 0.3] = -1
    there = references >= 0
    strengths = np.where(there, -np.sort(-rng.uniform(0.6, 1, (L, R)), 1) * (3 * mean)[:, None], 0)
    # Active on the four patches around the spot of the picture, and on one elsewhere.
    spots = spot_I2[np.clip(references, 0, None)]
    first = spots[..., 0] * GRID + spots[..., 1]
    stray = rng.integers(0, GRID * GRID, first.shape)
    patches = np.stack([first, first + 1, first + GRID, first + GRID + 1, stray], -1)
    values = np.stack([np.full(first.shape, v) for v in (255, 180, 140, 90, 40)], -1)
    patches, values = patches[there], values[there]
    starts = np.concatenate([[0], np.cumsum(there.ravel() * patches.shape[1])])

    centres = rng.uniform(0.1, 0.9, (C, 2))
    place = np.clip(centres[concept_L] + rng.normal(0, 0.03, (L, 2)), 0, 1) * alive[:, None]
    clustered = alive & (rng.random(L) < 0.85)
    living = np.flatnonzero(alive)
    neighbours = living[rng.integers(0, max(1, len(living)), (L, N))] if len(living) else np.full((L, N), -1)
    cosines = -np.sort(-rng.uniform(0.1, 0.9, (L, N)), 1)
    shown = np.where(alive, 1, 0)
    arrays = Arrays(
        frequency_L=frequency * shown, patch_frequency_L=frequency * shown / 9, mean_L=mean * shown,
        mean_overall_L=mean * frequency * shown, max_L=mean * 3 * shown,
        histogram_LB=np.rint(shown[:, None] * 4000 * np.exp(-np.linspace(0, 5, BINS)) * frequency[:, None]),
        entropy_L=np.where(alive & labels, rng.gamma(2, 0.5, L), ABSENT),
        monosemanticity_L=np.where(alive, rng.uniform(0, 0.8, L), ABSENT),
        uniqueness_L=np.where(alive, rng.uniform(0.2, 1, L), ABSENT),
        references_LR=references, strengths_LR=strengths, grid_starts=starts, grid_patches=patches.ravel(),
        grid_values=values.ravel(), picture_grids_I2=np.full((pictures, 2), GRID),
        neighbours_LN=np.where(alive[:, None], neighbours, -1), cosines_LN=cosines * shown[:, None],
        coactivations_LN=rng.uniform(0, 0.6, (L, N)) * shown[:, None], map_L2=place,
        cluster_L=np.where(clustered, concept_L, -1),
        label_SL=np.where(alive, concept_L, -1)[None] if labels else np.zeros((0, L)),
        label_score_SL=np.where(alive, score, ABSENT)[None] if labels else np.zeros((0, L)),
    )  # fmt: skip
    concepts = tuple(
        _concept(name, c, np.flatnonzero(alive & (concept_L == c)), score) for c, name in enumerate(CONCEPTS)
    )
    made = Provenance(
        model="sketchworld", model_sha=model_sha, sae=f"sketchworld/{tap}", sae_sha=sae_sha, tap=tap,
        architecture="topk, k = 20", images="sketchworld", images_sha="i" * 64, n_images=5000, n_patches=320_000,
        seed=0, package_sha="p" * 64, versions={"numpy": np.__version__}, device_class="cpu", dtype="float32",
        command=f"vsp-report atlas --model sketchworld --sae sketchworld/{tap}", states_sha=states_sha,
    )  # fmt: skip
    return Atlas(
        schema=rooms.SCHEMA, slug=rooms.slug_of("sketchworld", made.sae, tap), provenance=made,
        edges=tuple(np.geomspace(0.01, 30, BINS + 1).tolist()), mapped="UMAP of decoder directions, seed 0",
        quality=(
            Measure("explained variance", 0.91, 0.12, "more", "of the model's states"),
            Measure("active latents per patch", 20.0, 20.0, "", "of all latents"),
            Measure("dead share", float(1 - alive.mean()), 0.4, "less", "latents that no picture activates"),
        ),
        concepts=(*(concepts if labels else ()), *((Concept(HOSTILE, 0, 0.0),) if labels else ())),
        labellings=(Labelling("truth", "best concept of the world", "average precision", CONCEPTS, 0.5),) * labels,
        clusters=tuple(Cluster(name, int((clustered & (concept_L == c)).sum()), 0.8)
                       for c, name in enumerate(["" if c % 5 == 0 else HOSTILE if c == 7 else name
                                                 for c, name in enumerate(CONCEPTS)])),
        pictures=(HOSTILE, *(f"scene {i:05}" for i in range(1, pictures))),
        picture_labels=("", *(CONCEPTS[c] for c in shown_I[1:])) if labels else ("",) * pictures,
        sheets=sheets or Sheets("pictures-0123456789ab", ("000.webp",), CELL, ACROSS, -(-pictures // ACROSS)),
        arrays=arrays,
    )  # fmt: skip


def _concept(name: str, number: int, latents: np.ndarray, score: np.ndarray) -> Concept:
    if not len(latents):
        return Concept(name, 40, 0.05)
    best = int(latents[np.argmax(score[latents])])
    found = float(score[best])
    return Concept(name, 40 + number, 0.05, best, found, found * 0.6, int(latents[0]), 0.1 + number / 100, 0.05)


def sheets_of(pictures: int = 200, seed: int = 0) -> tuple[list[bytes], Sheets]:
    """A disc where `make_atlas` says that the latents are active, on a ground of the concept's colour."""
    rng = np.random.default_rng(seed)
    hues = rng.integers(70, 230, (len(CONCEPTS), 3))
    per = ACROSS * DOWN
    made = []
    for at in range(0, pictures, per):
        sheet = Image.new("RGB", (CELL * ACROSS, CELL * DOWN), "white")
        pen = ImageDraw.Draw(sheet)
        for i in range(at, min(at + per, pictures)):
            row, column = divmod(i - at, ACROSS)
            x, y, hue = column * CELL, row * CELL, tuple(hues[i % len(CONCEPTS)].tolist())
            pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=tuple(255 - (255 - c) // 3 for c in hue))
            pen.ellipse((x + CELL // 4, y + CELL // 4, x + 3 * CELL // 4, y + 3 * CELL // 4), fill=hue)
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=80)
        made.append(buffer.getvalue())
    return made, Sheets("", tuple(f"{n:03}.webp" for n in range(len(made))), CELL, ACROSS, DOWN)


def save(parent: Path, latents: int = 240, taps: tuple[str, ...] = TAPS, **of: object) -> list[Path]:
    """Atlases of one pass: one for each tap, over the same pictures."""
    data, sheets = sheets_of()
    sheets = replace(sheets, folder=rooms.save_sheets(parent, data))
    return [
        rooms.save_atlas(parent, make_atlas(latents, tap, seed=n, sheets=sheets, **of)) for n, tap in enumerate(taps)
    ]
