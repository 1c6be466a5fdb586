"""Atlas map: latents far out squeeze nobody, and none of them is lost or drawn as if it lay inside."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.render import atlases
from vsp_report.render import atlas_data, atlas_drawings
from vsp_report.render.atlas_map import MOST_OUTSIDE, RIM, WORTH, drawn
from vsp_report.render.atlas_pages import _beyond
from vsp_report.render.findings import counted


def spread(far: int, latents: int = 600) -> np.ndarray:
    """A round cloud, and some latents a long way off."""
    chance = np.random.default_rng(3)
    angle, reach = chance.uniform(0, 2 * np.pi, latents), np.sqrt(chance.uniform(0, 1, latents))
    found = np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]
    found[:far] = [6, 9] + 0.1 * found[:far]
    found = (found - found.min(0)) / (found.max(0) - found.min(0))
    return found.astype(np.float32)


def of(map_L2: np.ndarray):
    atlas = atlases.make_atlas(len(map_L2), dead=0.0)
    return replace(atlas, arrays=replace(atlas.arrays, map_L2=map_L2))


@pytest.fixture(scope="module")
def squeezed():
    return of(spread(far=8))


def test_a_map_without_outliers_is_drawn_as_it_is() -> None:
    atlas = of(spread(far=0))
    shown = drawn(atlas)
    np.testing.assert_array_equal(shown.place_L2, atlas.arrays.map_L2.astype(float))
    assert not shown.rim_L.any() and shown.inset == 0 and _beyond(atlas) == ""
    assert 'class="rim"' not in atlas_drawings.map_of(atlas) and 'class="frame"' not in atlas_drawings.map_of(atlas)


def test_a_few_far_out_squeeze_nobody(squeezed) -> None:
    shown, map_L2 = drawn(squeezed), squeezed.arrays.map_L2.astype(float)
    assert (np.ptp(map_L2[8:], axis=0) < 0.35).all() and (np.ptp(shown.place_L2[8:], axis=0) > 0.85).all()
    assert shown.rim_L[:8].all() and shown.rim_L.sum() <= 8 + 4 * MOST_OUTSIDE * 600


def test_what_is_inside_keeps_its_order_and_what_is_beyond_is_on_the_rim(squeezed) -> None:
    shown, map_L2 = drawn(squeezed), squeezed.arrays.map_L2.astype(float)
    inside = ~shown.rim_L
    for axis in (0, 1):
        slope = np.polyfit(map_L2[inside, axis], shown.place_L2[inside, axis], 1)
        np.testing.assert_allclose(np.polyval(slope, map_L2[inside, axis]), shown.place_L2[inside, axis], atol=1e-6)
        assert slope[0] > 1 / WORTH * 0.9
    assert ((shown.place_L2[inside] >= RIM - 1e-9) & (shown.place_L2[inside] <= 1 - RIM + 1e-9)).all()
    assert np.isin(shown.place_L2[shown.rim_L], (0.0, 1.0)).any(1).all()
    frame = (map_L2[inside].min(0), map_L2[inside].max(0))
    beyond = (map_L2 < frame[0] - 1e-9) | (map_L2 > frame[1] + 1e-9)
    np.testing.assert_array_equal(beyond.any(1), shown.rim_L)
    # Along a side of the frame that it does not cross, one beyond keeps its place.
    assert shown.furthest > 1


def test_the_page_counts_and_marks_them(squeezed) -> None:
    shown = drawn(squeezed)
    said = _beyond(squeezed)
    assert said.startswith(f"{counted(int(shown.rim_L.sum()), 'latent')} (") and "drawn as rings on the rim" in said
    svg = atlas_drawings.map_of(squeezed)
    rings = re.search(r'class="rim" d="([^"]+)"', svg)[1]
    places = {tuple(p) for p in np.rint(8 + shown.place_L2[shown.rim_L] * [544, 384]).astype(int)}
    assert rings.count("M") == len(places) and 'class="frame"' in svg
    overview = atlas_data.overview(squeezed, 1, 16, "").decode()
    assert f'"rim":{str(np.flatnonzero(shown.rim_L).tolist()).replace(" ", "")}' in overview.replace(" ", "")


def test_dead_latents_stand_nowhere(squeezed) -> None:
    frequency_L = squeezed.arrays.frequency_L.copy()
    frequency_L[:8] = 0
    dead = replace(squeezed, arrays=replace(squeezed.arrays, frequency_L=frequency_L))
    assert not drawn(dead).rim_L[:8].any()
    everyone = replace(squeezed, arrays=replace(squeezed.arrays, frequency_L=frequency_L * 0))
    assert not drawn(everyone).rim_L.any()
