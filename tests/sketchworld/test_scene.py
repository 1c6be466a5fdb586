"""Laws of scenes: the same seed gives the same picture, and the truth about a picture is in the picture."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from vsp_report.errors import CaseError
from vsp_report.sketchworld import rules
from vsp_report.sketchworld.drawing import SKETCHES, shade
from vsp_report.sketchworld.scene import Scene, Thing, make_scene

FAMILIES = rules.FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_the_same_scene_and_the_same_pixels(family):
    first, again = rules.sample_scene(7, family), rules.sample_scene(7, family)
    assert first == again
    assert first.draw(96).tobytes() == again.draw(96).tobytes()
    assert first != rules.sample_scene(8, family)


def test_the_values_of_seeds_are_the_same_on_every_machine():
    """A digest of what the seeds say, not of pixels: another Pillow may round an edge."""
    said = json.dumps(
        [rules.sample_scene(seed, family).to_dict() for family in FAMILIES for seed in range(20)], sort_keys=True
    )
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "0b6f9f8104b9c98f"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scene_reads_back_from_plain_data(family):
    scene = rules.sample_scene(11, family)
    assert make_scene(json.loads(json.dumps(scene.to_dict()))) == scene


def test_plain_data_that_is_no_scene_is_refused_with_its_place():
    with pytest.raises(CaseError, match=r"x\.yaml:3: not a scene"):
        make_scene({"family": "objects", "things": [{"kind": "fish", "x": 1, "y": 2, "wings": 2}]}, "x.yaml:3")
    with pytest.raises(CaseError, match="nothing here is called 'unicorn'"):
        make_scene({"family": "objects", "things": [{"kind": "unicorn", "x": 1, "y": 2}]})


@pytest.mark.parametrize("kind", sorted(set(SKETCHES) - {"curtain"}))
def test_a_mask_is_where_the_picture_changes_when_the_thing_is_taken_away(kind):
    """An independent witness of the mask: draw without the thing and compare pixels."""
    thing = Thing(kind, 48, 46, 1.0, "red", (205, 62, 55), "standing" if kind == "person" else "")
    backdrop = rules.sample_scene(1, "objects").backdrop
    scene, empty = Scene("objects", (thing,), backdrop), Scene("objects", (), backdrop)
    changed = (np.asarray(scene.draw(192), int) - np.asarray(empty.draw(192), int)).any(-1)
    mask = scene.mask(0, 192)
    assert mask.any()
    assert (changed & mask).sum() / (
        changed | mask
    ).sum() > 0.75  # smoothing moves edges by half a pixel, and thin things are mostly edge


def test_what_stands_before_hides_what_stands_behind():
    scene = rules.sample_scene(5, "cups")
    masks = [scene.mask(i) for i in range(len(scene.parts))]
    assert not (masks[0] & masks[1]).any()
    alone = scene.without(1).mask(0)
    assert alone.sum() >= masks[0].sum()


@pytest.mark.parametrize("grid", [(12, 12), (24, 24), (7, 7)])
def test_patches_cover_what_masks_cover(grid):
    scene = rules.sample_scene(3, "objects")
    coverage = scene.coverage(*grid)
    assert coverage.shape == (len(scene.things), *grid)
    for i in range(len(scene.things)):
        assert coverage[i].mean() == pytest.approx(scene.mask(i).mean(), abs=0.01)
    owners = scene.owners(*grid)
    assert set(np.unique(owners)) <= {-1, *range(len(scene.things))}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_looks_the_same_at_every_size(family):
    scene = rules.sample_scene(21, family)
    large = np.asarray(scene.draw(384).resize((96, 96), 4), float)
    assert np.abs(large - np.asarray(scene.draw(96), float)).mean() < 4.5


def test_every_size_is_square_and_asked_for():
    assert [rules.sample_scene(2, "people").draw(s).size for s in (64, 336, 384)] == [(64, 64), (336, 336), (384, 384)]


def test_shading_stays_a_color():
    for factor in (0.1, 0.72, 1.0, 1.5, 1.99):
        assert all(0 <= v <= 255 for v in shade((255, 3, 128), factor))


def test_a_scene_is_a_value():
    scene = rules.sample_scene(4, "objects")
    assert replace(scene) == scene and hash(replace(scene)) == hash(scene)
