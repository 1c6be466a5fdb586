"""Case data: what the script of a case's page gets to play with. Plain values for JSON, each as short as it may be."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

import numpy as np

from vsp_report.recording import Recording
from vsp_report.render.labels import NOTHING, SOURCES, Known
from vsp_report.render.looking import Start


def script_data(recording: Recording, opens: Start | None, known: Known = NOTHING) -> dict[str, Any] | None:
    """None where nothing of the page answers to the hand."""
    arrays = recording.arrays
    if opens is None and arrays.maps_LP is None:
        return None
    data: dict[str, Any] = {
        "tokens": [token.text.strip() or token.text for token in recording.tokens] if opens else [],
        "start": opens.token if opens else None,
        "whose": opens.row if opens else "predicting",
        "width": recording.image.width_px if recording.image else 1,
        "height": recording.image.height_px if recording.image else 1,
        "attention": {row: _packed(arrays.attention(row)) for row in ("predicting", "own")
                      if opens is not None and arrays.attention(row) is not None},
        "latents": [[one.number, one.label, short(one.strongest), one.frequency, one.mean_activation, one.noisy,
                     [[reference.id, short(reference.activation)] for reference in one.references[:5]],
                     *_label(known, one.number)]
                    for one in recording.latents],
        "labellings": [[SOURCES.get(one.source, one.source), one.how, one.score, one.least] for one in known.made],
        "atlas": known.address,
    }  # fmt: skip
    if arrays.boxes_P4 is not None:
        data["boxes"] = [
            [short(round(float(v), 1)) for v in box] if np.isfinite(box).all() else None for box in arrays.boxes_P4
        ]
    if arrays.maps_LP is not None:
        data["maps"] = _packed(arrays.maps_LP)
    if recording.heatmap is not None and arrays.heatmap_TL is not None:
        values = [[short(v) for v in row] for row in np.nan_to_num(arrays.heatmap_TL)]
        data["heatmap"] = asdict(recording.heatmap) | {"values": values}
    return data


def _label(known: Known, latent: int) -> list[Any]:
    """Its score, whether it is poor, and by which labelling it is; nothing where that is not known."""
    label = known.labels.get(latent)
    return [] if label is None else [label.score, label.poor, label.made]


FINE, COARSE, MANY = 255, 63, 60_000
"""Steps from nothing to a row's largest value: fewer where there are many values, so that a page stays light."""


def _packed(values: np.ndarray) -> dict[str, Any]:
    """Rows of bytes, each scaled to its own largest value; even a 63rd of it is hardly seen in an overlay. A row of NaN
    has no top."""
    steps = FINE if values.size <= MANY else COARSE
    there = np.isfinite(values).any(1)
    values = np.nan_to_num(values.astype(float))
    top = values.max(axis=1, initial=0)
    whole = np.rint(steps * np.divide(values, top[:, None], out=np.zeros_like(values), where=top[:, None] > 0))
    tops = [short(value) if seen else None for value, seen in zip(top, there, strict=True)]
    return {"top": tops, "steps": steps, "bytes": base64.b64encode(whole.astype(np.uint8).tobytes()).decode()}


def short(value: Any) -> float | int:
    few = float(f"{float(value):.4g}")
    return int(few) if few == int(few) else few
