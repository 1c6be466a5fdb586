"""Shelved: the atlas that has the latents of a case's SAE and model, kept from case to case. None where there is none.

It lies in the site that the recording is made for: `atlas/` beside `recordings/`, wherever below it the recording is
still being written.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from vsp_report.atlas import ATLASES, Atlas, atlas_sha, find_atlas, load_atlas
from vsp_report.maths.heatmap import noisy

CLIMBED = 4
"""So many folders above a recording may be its site."""


def atlas_for(recording: Path, *, model_sha: str, states_sha: str, sae_sha: str, tap: str) -> Atlas | None:
    for above in list(recording.absolute().parents)[:CLIMBED]:
        if (above / ATLASES).is_dir():
            sought = {"model_sha": model_sha, "states_sha": states_sha, "sae_sha": sae_sha, "tap": tap}
            folder = find_atlas(above / ATLASES, **sought)
            if folder is not None:
                return _kept(folder, atlas_sha(folder))
    return None


@lru_cache(maxsize=4)
def _kept(folder: Path, sha: str) -> Atlas:
    return load_atlas(folder)


def noisy_in(atlas: Atlas, share: float) -> np.ndarray:
    """(L,): the paper's noise, among the `share` of living latents that are most often active or have the largest mean
    activation, over all of the atlas' pictures."""
    found_L = np.zeros(atlas.d_sae, bool)
    alive = np.flatnonzero(atlas.alive_L)
    found_L[alive] = noisy(atlas.arrays.frequency_L[alive], atlas.arrays.mean_L[alive], share=share)
    return found_L
