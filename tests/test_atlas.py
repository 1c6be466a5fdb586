"""Atlas: a value that is written and read again, whole or absent, and refuses parts that do not fit together."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vsp_report import atlas as rooms
from vsp_report.atlas import ABSENT, Arrays, Atlas, Cluster, Concept, Labelling, Measure, Provenance, Sheets
from vsp_report.errors import InputError

L, R, N, B = 5, 2, 2, 4


def make_atlas(**changes: object) -> Atlas:
    """Five latents, of which number 2 is dead; number 0 has two references, the others one."""
    alive = np.array([1, 1, 0, 1, 1], np.float32)
    references_LR = np.array([[0, 1], [2, -1], [-1, -1], [1, -1], [0, -1]], np.int32)
    arrays = Arrays(
        frequency_L=alive * 0.5, patch_frequency_L=alive * 0.1, mean_L=alive, mean_overall_L=alive / 2, max_L=alive * 3,
        histogram_LB=np.outer(alive, [1, 2, 3, 4]).astype(np.int64),
        entropy_L=np.full(L, ABSENT, np.float32), monosemanticity_L=np.where(alive > 0, 0.25, ABSENT),
        uniqueness_L=np.where(alive > 0, 0.5, ABSENT),
        references_LR=references_LR, strengths_LR=np.where(references_LR >= 0, 2.0, 0.0),
        grid_starts=np.array([0, 2, 3, 4, 4, 4, 4, 5, 5, 6, 6]), grid_patches=np.array([0, 5, 1, 2, 3, 3]),
        grid_values=np.array([255, 51, 255, 255, 255, 255]), picture_grids_I2=np.array([[2, 3], [2, 2], [1, 4]]),
        neighbours_LN=np.array([[1, 3], [0, -1], [-1, -1], [0, 4], [3, -1]]), cosines_LN=np.zeros((L, N)),
        coactivations_LN=np.zeros((L, N)), map_L2=np.zeros((L, 2)), cluster_L=np.array([0, 0, -1, -1, -1]),
        label_SL=np.array([[0, -1, -1, -1, -1], [1, 0, 0, 1, -1]]),
        label_score_SL=np.array([[ABSENT] * L, [0.9, 0.2, ABSENT, 0.7, ABSENT]]),
    )  # fmt: skip
    made = Provenance(
        model="sketchworld", model_sha="m", sae="sketchworld/vision.3", sae_sha="s", tap="vision.3",
        architecture="topk, k = 20", images="sketchworld", images_sha="i", n_images=4, n_patches=24, seed=0,
        package_sha="p", versions={}, device_class="cpu", dtype="float32", command="vsp-report atlas --demo",
    )  # fmt: skip
    values = {
        "schema": rooms.SCHEMA, "slug": "sketchworld-vision.3", "provenance": made, "edges": (0.0, 1.0, 2.0, 4.0, 8.0),
        "mapped": "by hand", "quality": (Measure("dead share", 0.2, 0.0, "less"),),
        "concepts": (Concept("chair", 2, 0.5, 3, 0.9, 0.4, 1, 0.5, 0.1), Concept("sofa", 0, 0.0)),
        "labellings": (Labelling("given", "labels.csv", "", ("seat",)),
                       Labelling("truth", "SketchWorld", "average precision", ("cup", "chair"), 0.5)),
        "clusters": (Cluster("seats", 2, 0.5),), "pictures": ("a", "b", "c"), "picture_labels": ("x", "", "y"),
        "sheets": Sheets("pictures-0123456789ab", ("000.webp",), 64, 2, 2), "arrays": arrays,
    }  # fmt: skip
    return Atlas(**(values | changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = rooms.save_sheets(tmp_path, [b"a sheet"])
    atlas = make_atlas()
    return rooms.save_atlas(tmp_path, replace(atlas, sheets=replace(atlas.sheets, folder=folder)))


def test_what_is_written_is_read_again(saved: Path) -> None:
    written, read = make_atlas(), rooms.load_atlas(saved, verify=True)
    plain = [f.name for f in dataclasses.fields(Atlas) if f.name not in ("arrays", "sheets")]
    assert {name: getattr(read, name) for name in plain} == {name: getattr(written, name) for name in plain}
    for name, array in written.arrays.items():
        np.testing.assert_array_equal(getattr(read.arrays, name), np.asarray(array, getattr(read.arrays, name).dtype))
        assert not getattr(read.arrays, name).flags.writeable


def test_the_same_atlas_has_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    again = rooms.save_atlas(tmp_path, rooms.load_atlas(saved))
    assert {file.name: file.read_bytes() for file in again.iterdir()} == before


def test_an_atlas_that_did_not_change_keeps_its_pages_and_another_loses_them(saved: Path) -> None:
    page = saved / "index.html"
    page.write_text("a page of it")
    atlas = rooms.load_atlas(saved)
    rooms.save_atlas(saved.parent, atlas)
    assert page.is_file()
    rooms.save_atlas(saved.parent, replace(atlas, provenance=replace(atlas.provenance, seed=7)))
    assert not page.exists() and rooms.load_atlas(saved).provenance.seed == 7


def test_the_schema_comes_first(saved: Path) -> None:
    assert next(iter(json.loads((saved / "atlas.json").read_text()))) == "schema"


def test_a_latent_has_its_figures_references_and_grids(saved: Path) -> None:
    atlas = rooms.load_atlas(saved)
    facts = atlas.facts(0)
    assert [one.name for one in facts.references] == ["a", "b"] and facts.cluster == 0
    assert facts.entropy is None and facts.monosemanticity == 0.25
    np.testing.assert_allclose(atlas.grid(0, 0), [[2, 0, 0], [0, 0, 0.4]], atol=1e-6)
    assert atlas.grid(1, 0).shape == (1, 4)
    assert atlas.spot(3) == (atlas.sheets.folder + "/000.webp", 64, 64, 64)


def test_a_dead_latent_has_nothing(saved: Path) -> None:
    atlas = rooms.load_atlas(saved)
    facts = atlas.facts(2)
    assert not atlas.alive_L[2] and atlas.dead == 1
    assert facts.references == () and facts.place is None and facts.uniqueness is None and facts.frequency == 0


def test_labels_by_precedence_and_by_score(saved: Path) -> None:
    atlas = rooms.load_atlas(saved)
    assert atlas.label(0).word == "seat" and atlas.label(3).word == "chair" and atlas.label(4) is None
    # number 1 is a poor "cup", which is shown and which no case can name; number 2 is dead
    assert atlas.label(1).score == pytest.approx(0.2) and atlas.by_label == {"seat": (0,), "chair": (3,)}


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("frequency_L", np.array([1, 1, np.nan, 1, 1])),
        ("references_LR", np.array([[0, 3], [2, -1], [-1, -1], [1, -1], [0, -1]])),
        ("grid_patches", np.array([0, 6, 1, 2, 3, 3])),
        ("grid_starts", np.array([0, 2, 3, 4, 4, 4, 4, 5, 5, 6, 7])),
        ("neighbours_LN", np.full((L, N), 5)),
        ("cluster_L", np.ones(L)),
        ("label_SL", np.full((2, L), 2)),
        ("map_L2", np.zeros((L, 3))),
    ],
)
def test_parts_that_do_not_fit_are_refused(array: str, value: np.ndarray, tmp_path: Path) -> None:
    atlas = make_atlas()
    with pytest.raises(InputError, match=f"{array} does not fit"):
        rooms.save_atlas(tmp_path, replace(atlas, arrays=replace(atlas.arrays, **{array: value})))
    assert not (tmp_path / atlas.slug).exists()


def test_what_was_changed_is_noticed(saved: Path) -> None:
    sheet = next(saved.parent.glob("pictures-*/000.webp"))
    sheet.write_bytes(b"another sheet")
    with pytest.raises(InputError, match="was changed"):
        rooms.load_atlas(saved, verify=True)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": 99}, "has schema 99"),
        ({"edges": "many"}, "edges is 'many'; expected a list"),
        ({"surprise": 1}, "surprise is unknown"),
        ({"sheets": {"folder": "../..", "files": [], "cell_px": 1, "across": 1, "down": 1}}, "are none of an atlas"),
    ],
)
def test_what_is_no_atlas_is_refused(saved: Path, change: dict, fault: str) -> None:
    data = json.loads((saved / "atlas.json").read_text())
    (saved / "atlas.json").write_text(json.dumps(data | change))
    with pytest.raises(InputError, match=fault):
        rooms.load_atlas(saved)


def test_a_folder_without_an_atlas_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no whole atlas.*`vsp-report atlas` makes one"):
        rooms.load_atlas(tmp_path)


def test_the_atlas_of_other_weights_is_not_found(saved: Path) -> None:
    parent = saved.parent
    assert rooms.find_atlas(parent, model_sha="m", sae_sha="s", tap="vision.3") == saved
    assert rooms.find_atlas(parent, model_sha="m", sae_sha="s") == saved
    assert rooms.find_atlas(parent, model_sha="m", sae_sha="other") is None
    assert rooms.find_atlas(parent, model_sha="m", sae_sha="s", tap="vision.2") is None
    assert rooms.find_atlas(parent / "nowhere", model_sha="m", sae_sha="s") is None


def test_the_atlas_of_a_model_with_the_same_tower_is_found(saved: Path) -> None:
    parent, sought = saved.parent, {"model_sha": "another", "sae_sha": "s", "tap": "vision.3"}
    assert rooms.find_atlas(parent, **sought, states_sha="t") is None  # it was made before there was such a hash
    written = json.loads((saved / "atlas.json").read_text())
    written["provenance"]["states_sha"] = "t"
    (saved / "atlas.json").write_text(json.dumps(written))
    assert rooms.load_atlas(saved).provenance.states_sha == "t"
    assert rooms.find_atlas(parent, **sought, states_sha="t") == saved
    assert rooms.find_atlas(parent, **sought, states_sha="u") is None and rooms.find_atlas(parent, **sought) is None
    assert rooms.find_atlas(parent, **sought | {"tap": "vision.2"}, states_sha="t") is None
    assert rooms.find_atlas(parent, **sought | {"sae_sha": "r"}, states_sha="t") is None
    # The same model has the same states, also where one of the two was made before.
    assert rooms.find_atlas(parent, **sought | {"model_sha": "m"}) == saved
    # Beside it one that was made with this very model: that goes first, whatever it is called.
    written["provenance"]["model_sha"] = "another"
    shutil.copytree(saved, parent / "zz-own")
    (parent / "zz-own" / "atlas.json").write_text(json.dumps(written))
    assert rooms.find_atlas(parent, **sought, states_sha="t") == parent / "zz-own"
    assert rooms.find_atlas(parent, **sought | {"model_sha": "m"}, states_sha="t") == saved


def test_what_a_run_depends_on_are_the_atlases_of_its_autoencoder(saved: Path) -> None:
    """Which model shares a tower with which is not known before a run: each atlas of the SAE counts."""
    parent = saved.parent
    found = rooms.shelf_sha(parent, sae=("any name", "s"))
    assert found and found == rooms.shelf_sha(parent, sae=(rooms.load_atlas(saved).provenance.sae, ""))
    assert rooms.shelf_sha(parent, sae=("any name", "r")) == rooms.shelf_sha(parent, sae=("", "")) == ""


@pytest.mark.parametrize(
    ("asked", "slug"),
    [
        (("sketchworld", "sketchworld/vision.3", "vision.3"), "sketchworld-vision.3"),
        (("sketchworld", "sketchworld/vision.3-relu", "vision.3"), "sketchworld-vision.3-relu"),
        (("llava-hf/llava-1.5-7b-hf@abc", "models/My SAE/", "vision.18"), "llava-1.5-7b-hf-vision.18-my-sae"),
    ],
)
def test_slugs(asked: tuple[str, str, str], slug: str) -> None:
    assert rooms.slug_of(*asked) == slug


def test_sheets_that_no_atlas_names_are_cleared(saved: Path) -> None:
    """At once where their atlas was replaced; what another command may be about to name, when it has long been idle."""
    parent = saved.parent
    replaced, idle, taken_up, new = (parent / rooms.save_sheets(parent, [name]) for name in (b"r", b"i", b"t", b"n"))
    (parent / "pictures-of-mine").mkdir()
    atlas = rooms.load_atlas(saved)
    for folder in (idle, taken_up, parent / atlas.sheets.folder):
        os.utime(folder, (1, 1))
    assert rooms.save_sheets(parent, [b"t"]) == taken_up.name
    assert rooms.sheets_named([saved, parent / "none"]) == {atlas.sheets.folder}
    assert sorted(rooms.sweep_sheets(parent, {replaced.name, atlas.sheets.folder})) == sorted([replaced, idle])
    assert not replaced.exists() and not idle.exists() and taken_up.is_dir() and new.is_dir()
    assert rooms.load_atlas(saved, verify=True) and (parent / "pictures-of-mine").is_dir()
    (parent / atlas.slug / "atlas.json").write_text("{")
    assert rooms.sweep_sheets(parent, {new.name}) == [] and rooms.sheets_named([saved]) == set()


def test_where_an_atlas_goes(saved: Path) -> None:
    """Its own place, or that of what it is made anew of; never that of another model, SAE or tap with such a name."""
    parent, made = saved.parent, {"model": "sketchworld", "model_sha": "m", "sae": "sketchworld/vision.3",
                                  "sae_sha": "s", "tap": "vision.3"}  # fmt: skip
    place = lambda **other: rooms.place_of(parent, made | other)  # noqa: E731
    assert place() == place(sae="my-sae/vision.3") == (saved.name, "")  # the same latents, whatever they are called
    assert place(sae="mine/vision.2", sae_sha="n", tap="vision.2") == ("sketchworld-vision.2", "")
    anew = place(sae_sha="n")
    assert anew.slug == saved.name and "sketchworld/vision.3 changed since" in anew.note
    others = [place(sae="my-sae/vision.3", sae_sha="n"), place(model="other/sketchworld", model_sha="o"),
              place(sae="my-sae/vision.3", sae_sha="k")]  # fmt: skip
    assert len({one.slug for one in others} - {saved.name}) == 3
    assert all(one.slug.startswith(f"{saved.name}-") and "stays" in one.note for one in others)
    assert others[0] == place(sae="my-sae/vision.3", sae_sha="n")
    (saved / "atlas.json").write_text("{")  # what cannot be read is nobody's
    assert place(sae="my-sae/vision.3", sae_sha="n") == (saved.name, "")
