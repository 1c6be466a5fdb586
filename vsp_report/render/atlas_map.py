"""Atlas map: where each latent is drawn. A few that lie far out would squeeze all others into a blot.

UMAP sets a handful of latents far from the rest. The frame is where nearly all lie: between two quantiles, with some
room. What lies further out is drawn on the rim, straight out from where it lies, with a mark of its own, and the
caption counts it. A map whose frame would hardly be smaller is drawn whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vsp_report.atlas import Atlas

MOST_OUTSIDE = 0.02
"""So many latents, at most, lie beyond each side of the frame before it is given room."""
ROOM = 0.08
"""On each side, in parts of what lies between the quantiles."""
WORTH = 0.85
"""The frame is used where one of its sides is shorter than this part of the whole map's."""
RIM = 0.035
"""With a rim, the frame ends so far from the edge of the drawing."""


class Drawn(NamedTuple):
    """Places from 0 to 1, of which the frame takes all but the rim."""

    place_L2: np.ndarray
    rim_L: np.ndarray
    """(L,): drawn on the rim, because it lies beyond"""
    furthest: float
    """how far the one that lies furthest out lies beyond the frame, in frames; 0 where none does"""
    inset: float
    """where the frame begins; 0 where there is no rim"""


def drawn(atlas: Atlas) -> Drawn:
    a, alive_L = atlas.arrays, atlas.alive_L
    place_L2, rim_L = a.map_L2.astype(float), np.zeros(atlas.d_sae, bool)
    if not alive_L.any():
        return Drawn(place_L2, rim_L, 0.0, 0.0)
    shown_L2 = place_L2[alive_L]
    least, most = shown_L2.min(0), shown_L2.max(0)
    low, high = np.quantile(shown_L2, (MOST_OUTSIDE, 1 - MOST_OUTSIDE), axis=0)
    low, high = np.maximum(low - ROOM * (high - low), least), np.minimum(high + ROOM * (high - low), most)
    if not ((high - low) < WORTH * (most - least)).any():
        return Drawn(place_L2, rim_L, 0.0, 0.0)
    framed_L2 = (place_L2 - low) / np.maximum(high - low, 1e-9)
    beyond_L2 = np.maximum(framed_L2 - 1, -framed_L2)
    rim_L = alive_L & (beyond_L2 > 1e-9).any(1)
    inside_L2 = RIM + np.clip(framed_L2, 0, 1) * (1 - 2 * RIM)
    on_rim_L2 = np.where(framed_L2 > 1 + 1e-9, 1.0, np.where(framed_L2 < -1e-9, 0.0, inside_L2))
    place_L2 = np.where(rim_L[:, None], on_rim_L2, inside_L2)
    place_L2[~alive_L] = 0
    return Drawn(place_L2, rim_L, float(beyond_L2[rim_L].max()) if rim_L.any() else 0.0, RIM)
