"""Latents: the active latents of states, and nothing of the rest. States in, a sparse matrix out.

Nothing is left out: an SAE without a fixed number of active latents is kept with all of them, however many.

Axes: S sites, D width, L latents.
"""

from __future__ import annotations

import numpy as np
import torch

from vsp_report.maths.grids import Weights
from vsp_report.model.sae import Sae

LATENTS_BYTES = 32 << 20
"""No more than this is held densely at once."""


@torch.no_grad()
def active(sae: Sae, z_SD: torch.Tensor) -> Weights:
    """(S, L): the latents of each site, sparse, in float32."""
    values, columns, counts = [], [], [np.zeros(1, np.int64)]
    for piece_SD in z_SD.split(max(1, LATENTS_BYTES // (4 * sae.d_sae))):
        rows_E, latents_E, values_E = (part.cpu() for part in sae.active(piece_SD.to(sae.device)))
        values.append(values_E.float().numpy())
        columns.append(latents_E.numpy())
        counts.append(np.bincount(rows_E.numpy(), minlength=len(piece_SD)))
    starts = np.concatenate(counts).cumsum()
    found = Weights((np.concatenate(values), np.concatenate(columns), starts), (len(z_SD), sae.d_sae))
    found.sort_indices()
    return found
