"""Atlas pages: what is shown is what was measured, in few bytes; and what a build writes, leaves and says without."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.render import atlases
from tests.render.recordings import save_all
from vsp_report.atlas import ABSENT, Atlas, load_atlas, save_atlas
from vsp_report.recording import load_recording
from vsp_report.render import atlas_data, atlas_drawings, atlas_layers, atlas_pages, site
from vsp_report.render.atlas_cases import Shelf, matters, tap_names
from vsp_report.render.findings import p_value, turns
from vsp_report.render.labels import labels_of

CHAIR = "standing-beside-a-chair"
MAIN = "sketchworld-vision.3"
INDEX_BYTES = 300_000


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of recordings and atlases: that of vision.3 is of the model and SAE of a recording."""
    out = tmp_path_factory.mktemp("evidence")
    save_all(out / "recordings", (CHAIR, "failed-in-a-cell"))
    made = load_recording(out / "recordings" / CHAIR).provenance
    atlases.save(out / "atlas", 4096, ("vision.3",), model_sha=made.model_sha, sae_sha=made.sae_sha)
    atlases.save(out / "atlas", 300, ("vision.1", "vision.2"), model_sha=made.model_sha)
    return out


@pytest.fixture
def out(tmp_path: Path, evidence: Path) -> Path:
    shutil.copytree(evidence, tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture(scope="module")
def built(evidence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "site"
    shutil.copytree(evidence, out)
    assert not site.build(out / "recordings", out).faults
    return out


def made(folder: Path) -> dict[str, bytes]:
    """What a build made."""
    own = {path for part in json.loads((folder / "build.json").read_text())["parts"].values() for path in part["files"]}
    return {path: (folder / path).read_bytes() for path in own}


def script(data: bytes) -> object:
    """The JSON that a script assigns."""
    return json.loads(data.decode().partition("=")[2].strip().rstrip(";"))


# --- what the page gets -----------------------------------------------------------------------------------------------


def columns(atlas: Atlas) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    data = script(atlas_data.overview(atlas, 1, 1, "../"))
    return {name: atlas_data.unpacked(atlas_data.Column(**one)) for name, one in data["columns"].items()}


@pytest.mark.parametrize("seed", range(3))
def test_the_overview_is_what_was_measured(seed: int) -> None:
    atlas = atlases.make_atlas(700, seed=seed)
    a, found = atlas.arrays, columns(atlas)
    for name, values in (("frequency", a.frequency_L), ("mean", a.mean_L)):
        there = found[name][1]
        np.testing.assert_array_equal(there, atlas.alive_L)
        span = np.log(values[there].max() / values[there].min())
        np.testing.assert_allclose(np.log(found[name][0][there] / values[there]), 0, atol=span / 1022 / 2 * 1.001)
    known = a.entropy_L != np.float32(ABSENT)
    np.testing.assert_array_equal(found["entropy"][1], known & atlas.alive_L)
    np.testing.assert_allclose(found["x"][0][atlas.alive_L], a.map_L2[atlas.alive_L, 0], atol=1 / 1022)
    cluster = np.where(found["cluster"][1], found["cluster"][0], -1)
    np.testing.assert_array_equal(cluster, a.cluster_L)
    words = script(atlas_data.overview(atlas, 1, 1, "../"))["words"]
    shown = [words[int(w)][0] if there else None for w, there in zip(*found["word"], strict=True)]
    assert shown == [label.word if (label := atlas.label(n)) and atlas.alive_L[n] else None for n in range(700)]


def test_the_first_labelling_that_has_a_word_is_shown() -> None:
    atlas = atlases.make_atlas(60)
    a, given = atlas.arrays, replace(atlas.labellings[0], source="given", words=("mine",), least=None)
    word_L = np.where(np.arange(60) % 2, 0, -1)
    arrays = replace(a, label_SL=np.stack([word_L, a.label_SL[0]]),
                     label_score_SL=np.stack([np.full(60, np.float32(ABSENT)), a.label_score_SL[0]]))  # fmt: skip
    atlas = replace(atlas, labellings=(given, atlas.labellings[0]), arrays=arrays)
    shown = atlas_data.shown_labels(atlas)
    for n in np.flatnonzero(atlas.alive_L).tolist():
        label, (word, labelling) = atlas.label(n), shown.words[shown.word_L[n]]
        assert (label.word, label.labelling) == (word, atlas.labellings[labelling])
        assert shown.score_L[n] == (ABSENT if label.score is None else np.float32(label.score))


def test_what_is_poor_is_judged_by_what_was_measured() -> None:
    """On the list, the map, a latent's own page and a case's: however near a score is to the border."""
    atlas = atlases.make_atlas(61)
    near = np.resize(np.array([0.5, 0.49999, 0.499, 0.501, 0.4999, 0.9, 0.05], np.float32), 61)
    there = atlas.arrays.label_SL[0] >= 0
    scores = np.where(there, near, np.float32(ABSENT))
    atlas = replace(atlas, arrays=replace(atlas.arrays, label_score_SL=scores[None]))
    packed = script(atlas_data.overview(atlas, 1, 1, "../"))["poor"]
    bits = [atlas_data.LETTERS.tobytes().index(packed[n // 6].encode()) >> n % 6 & 1 for n in range(61)]
    assert len(packed) == 11 and bits == [int(there[n] and near[n] < 0.5) for n in range(61)]
    known = labels_of(atlas, range(61))["labels"]
    named = {n for latents in atlas.by_label.values() for n in latents}
    for n in np.flatnonzero(atlas.alive_L).tolist():
        assert atlas_pages.label_shown(atlas, n).poor == known[str(n)][2] == (n not in named) == bool(bits[n])


@pytest.mark.parametrize("large", [False, True])
def test_a_latents_file_has_all_of_it(large: bool) -> None:
    atlas = atlases.make_atlas(200)
    if large:  # a picture of more patches than a byte counts
        sizes_I2 = atlas.arrays.picture_grids_I2.copy()
        sizes_I2[-1] = 20
        atlas = replace(atlas, arrays=replace(atlas.arrays, picture_grids_I2=sizes_I2))
    wide, prefix = (2 if atlas_data.grids_are_short(atlas) else 3), atlas_data.prefix_of(atlas)
    assert wide == (3 if large else 2) and all(name.startswith(prefix) for name in atlas.pictures)
    files, per = atlas_data.latent_files(atlas)
    rows = []
    for name in sorted(files):
        _, found, kinds = json.loads(
            f"[{files[name].decode().removeprefix('VSP_LATENTS(').removesuffix(');' + chr(10))}]"
        )
        assert len({*map(tuple, kinds)}) == len(kinds)
        rows += [row and [*row[:-1], [[*one[:3], *kinds[one[3]], one[4]] for one in row[-1]]] for row in found]
    assert len(rows) == 200 and all(len(rows[at : at + per]) for at in range(0, 200, per))
    for n, row in enumerate(rows):
        facts = atlas.facts(n)
        if not atlas.alive_L[n]:
            assert row == 0
            continue
        wanted = (facts.frequency, facts.patch_frequency, facts.mean, facts.mean_overall, facts.max)
        assert row[:5] == pytest.approx(wanted, rel=5e-3)
        assert row[5:8] == pytest.approx((facts.entropy, facts.monosemanticity, facts.uniqueness), rel=5e-3)
        assert [[one[0], pytest.approx(one[1])] for one in row[8]] == [[facts.label.word, facts.label.score]] or (
            row[8][0][1] == pytest.approx(facts.label.score, rel=1e-3)
        )
        (first, *counts), bins = row[9], atlas.arrays.histogram_LB.shape[1]
        assert [0] * first + counts + [0] * (bins - first - len(counts)) == atlas.arrays.histogram_LB[n].tolist()
        assert [one[0] for one in row[10]] == [one.latent for one in facts.neighbours[: atlas_data.NEAREST]]
        assert [prefix + one[2] for one in row[11]] == [one.name for one in facts.references]
        for r, reference in enumerate(row[11]):
            grid = np.zeros(reference[4] * reference[5])
            packed = np.frombuffer(base64.b64decode(reference[6]), np.uint8).reshape(-1, wide).astype(int)
            grid[packed[:, 0] if wide == 2 else packed[:, 0] * 256 + packed[:, 1]] = packed[:, -1] / 255
            # A reference's patch that comes twice is one patch; the page and the atlas both keep the last.
            np.testing.assert_allclose(grid * reference[1], atlas.grid(n, r).ravel(), rtol=6e-3)


def test_32768_latents_are_light(tmp_path: Path) -> None:
    atlas = atlases.make_atlas(32_768, dead=0.0)
    files, per = atlas_data.latent_files(atlas)
    (tmp_path / "recordings").mkdir()
    page = atlas_pages.atlas_page(atlas, {})
    environment = site.make_environment([Path(__file__).parents[2] / "templates" / "pages"])
    html = site.rendered(environment, "atlas.html.jinja", root="../../", page=page, cases=[], downloads=[], others=[],
                         sheets_at="../")  # fmt: skip
    static = Path(__file__).parents[2] / "templates" / "static"
    around = [html, (static / "atlas.js").read_bytes(), (static / "report.css").read_bytes()]
    weight = [len(gzip.compress(data, 9)) for data in (atlas_data.overview(atlas, len(files), per, "../"), *around)]
    assert sum(weight) < INDEX_BYTES, weight
    assert len(files) * per == 32_768 and max(map(len, files.values())) < 2 * atlas_data.SHARD_BYTES
    assert len(page.drawings["scatter"]) < 400_000 and len(page.drawings["map"]) < 400_000


def test_a_veil_leaves_what_is_active_clear() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        grid = rng.random((rng.integers(1, 7), rng.integers(1, 7))) ** 3
        covered = np.zeros(grid.shape, bool)
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1", atlas_drawings.veil(grid)):
            covered[int(y), int(x) : int(x) + int(width)] = True
        np.testing.assert_array_equal(covered, grid < atlas_drawings.VEILED * grid.max())


def test_layers_are_in_the_models_order_and_concepts_at_their_first() -> None:
    found = {"vision.10": 0.95, "vision.9": 0.897, "text.2": 0.99}
    group = []
    for tap, precision in found.items():
        atlas = atlases.make_atlas(100, tap=tap)
        concept = replace(atlas.concepts[0], average_precision=precision)
        never = replace(atlas.concepts[1], average_precision=0.3)
        group.append(replace(atlas, slug=f"s-{tap}", concepts=(concept, never)))
    (survey,) = atlas_layers.layers_page(group, {})
    assert [one.tap for one in survey.taps] == ["vision.9", "vision.10", "text.2"]
    assert [one.depth for one in survey.taps] == ["early", "middle", "late"]
    assert [(stage.title, [row.name for row in stage.rows]) for stage in survey.stages] == [
        ("First found at vision.10", ["chair"]), ("Found at none of these taps", ["cup"])]  # fmt: skip
    assert [cell.precision for cell in survey.stages[0].rows[0].cells] == ["0.897", "0.95", "0.99"]


def test_taps_that_occur_twice_are_told_apart_by_their_saes() -> None:
    assert tap_names([("vision.3", "a/x"), ("vision.2", "a/x")]) == ["vision.3", "vision.2"]
    made = [("vision.3", "me/mine"), ("vision.3", "you/vision.3-relu"), ("vision.0", "me/vision.0")]
    assert tap_names(made) == ["vision.3, mine", "vision.3-relu", "vision.0"]
    assert tap_names([("vision.3", "a/vision.3"), ("vision.3", "b/vision.3@1")]) == ["a/vision.3", "b/vision.3"]
    group = []
    for (tap, sae), precision in zip(made, (0.3, 0.95, 0.2), strict=True):
        atlas = atlases.make_atlas(100, tap=tap)
        concept = replace(atlas.concepts[0], average_precision=precision)
        group.append(replace(atlas, slug=sae, concepts=(concept,), provenance=replace(atlas.provenance, sae=sae)))
    (survey,) = atlas_layers.layers_page(group, {})
    assert [(one.tap, one.depth) for one in survey.taps] == [
        ("vision.0", ""), ("vision.3, mine", ""), ("vision.3-relu", "")]  # fmt: skip
    assert [stage.title for stage in survey.stages] == ["First found at vision.3-relu"]
    assert [cell.tap for cell in survey.stages[0].rows[0].cells] == ["vision.0", "vision.3, mine", "vision.3-relu"]


def test_why_a_latent_matters(evidence: Path) -> None:
    recording = load_recording(evidence / "recordings" / CHAIR)
    told = {one[0]: one for one in matters(recording)["latents"]}
    edited = {n for one in recording.steered for edit in one.edits if edit.latents != "all" for n in edit.latents}
    assert edited and all(told[n][1] <= 1 for n in edited)
    turning = [one for one in recording.steered if turns(recording, one) and one.p is not None]
    assert turning and any(f"turns the answer (p\u00a0=\u00a0{p_value(one.p)})" in told[n][2]
                           for one in turning for edit in one.edits for n in edit.latents)  # fmt: skip
    assert {one.number for one in recording.latents} <= told.keys()


# --- what a build writes ---------------------------------------------------------------------------------------------


def test_the_page_says_what_it_shows(built: Path) -> None:
    page = (built / "atlas" / MAIN / "index.html").read_text()
    atlas = load_atlas(built / "atlas" / MAIN)
    assert f"{atlas.dead} latents are dead" in page.replace("\u202f", "")
    assert "With an untrained one, 0 of 20." in page
    assert re.search(r'class="headline">[^<]* show it, an untrained one for 0\.<', page)
    assert page.count('<tr><th scope="row"><a href="#latent=') >= atlas_pages.STRONGEST
    poor = [one for one in atlas_pages.strongest(atlas, {}) if one.label.poor]
    assert page.count('class="word poor"') == len(poor) > 0 and f"{poor[0].label.score}, poor" in page
    assert (
        atlases.HOSTILE not in page
        and "&lt;img src=x onerror=alert(1)&gt;" in page
        and "49" not in page.split("<h1")[0]
    )
    for name in ("scatter", "map", "frequency", "mean", "entropy"):
        assert f'<img src="{name}.svg" alt="' in page and (built / "atlas" / MAIN / f"{name}.svg").is_file()
    rows = (built / "atlas" / MAIN / "latents.csv").read_text().splitlines()
    assert len(rows) == 4097 and rows[0].startswith("latent,label,label score")


def test_cases_and_latents_lead_to_each_other(built: Path) -> None:
    case = (built / "cases" / CHAIR / "index.html").read_text()
    assert f'"atlas": "../../atlas/{MAIN}/index.html"' in case
    page = (built / "atlas" / MAIN / "index.html").read_text()
    assert f'href="../../cases/{CHAIR}/index.html"' in page
    told = script((built / "atlas" / MAIN / "cases.js").read_bytes())
    assert [one[0] for one in told["cases"]] == [CHAIR] and len(told["latents"]) > 5
    # Another SAE of the same model has other latents.
    other = (built / "atlas" / "sketchworld-vision.1" / "index.html").read_text()
    assert f"cases/{CHAIR}/" not in other
    assert '"atlas": ""' in (built / "cases" / CHAIR / "index.html").read_text().replace(
        f"../../atlas/{MAIN}/index.html", ""
    )


def test_the_navigation_leads_to_the_layers(built: Path) -> None:
    assert '<a href="atlas/index.html">Atlas</a>' in (built / "index.html").read_text()
    page = (built / "atlas" / "index.html").read_text()
    for tap in atlases.TAPS:
        assert f'<a href="sketchworld-{tap}/index.html">{tap}</a>' in page
    assert 'aria-current="page">Atlas</a>' in page and page.count('class="veil"') > 60


def test_two_builds_are_equal_to_the_byte_and_a_third_does_nothing(built: Path, evidence: Path, tmp_path: Path) -> None:
    shutil.copytree(evidence, tmp_path / "site")
    site.build(tmp_path / "site" / "recordings", tmp_path / "site")
    again = made(tmp_path / "site")
    assert again == made(built)
    assert not [
        path for path in again if path.endswith(("atlas.json", "arrays.npz", ".webp")) and "/atlas" in f"/{path}"
    ]
    third = site.build(tmp_path / "site" / "recordings", tmp_path / "site")
    assert (third.written, third.removed) == ((), ())


def test_a_site_elsewhere_is_whole(evidence: Path, tmp_path: Path) -> None:
    site.build(evidence / "recordings", tmp_path)
    assert not (evidence / "atlas" / MAIN / "index.html").exists()
    page = (tmp_path / "atlas" / MAIN / "index.html").read_text()
    sheets = set(re.findall(r'<image href="([^"]+)"', page))
    assert sheets and all((tmp_path / "atlas" / MAIN / sheet).is_file() for sheet in sheets)
    data = script((tmp_path / "atlas" / MAIN / "overview.js").read_bytes())
    assert (tmp_path / "atlas" / MAIN / data["sheets"]["folder"] / data["sheets"]["files"][0]).is_file()
    for name in ("evidence/atlas.json", "evidence/arrays.npz", "latents.csv"):
        assert f'href="{name}"' in page and (tmp_path / "atlas" / MAIN / name).is_file()
    # Copies never lie where an atlas would be written.
    assert not (tmp_path / "atlas" / MAIN / "atlas.json").exists() and not list(tmp_path.glob("atlas/pictures-*"))


def test_without_an_atlas_nothing_speaks_of_one(out: Path) -> None:
    site.build(out / "recordings", out)
    shutil.rmtree(out / "atlas" / MAIN)
    for tap in atlases.TAPS[:2]:
        (out / "atlas" / f"sketchworld-{tap}" / "atlas.json").unlink()
    removed = site.build(out / "recordings", out).removed
    assert "atlas/index.html" in removed and "atlas/sketchworld-vision.1/overview.js" in removed
    assert "Atlas" not in (out / "index.html").read_text()
    assert '"atlas": ""' in (out / "cases" / CHAIR / "index.html").read_text()
    # The evidence stays, even what is no whole atlas.
    assert (out / "atlas" / "sketchworld-vision.1" / "arrays.npz").is_file() and list(
        out.glob("atlas/pictures-*/*.webp")
    )


def test_a_broken_atlas_is_a_fault_and_the_rest_is_shown(out: Path) -> None:
    place = out / "atlas" / MAIN / "atlas.json"
    place.write_text(place.read_text()[:5000])
    built = site.build(out / "recordings", out)
    assert [str(fault) for fault in built.faults if "is not JSON" in str(fault)]
    assert not (out / "atlas" / MAIN / "index.html").exists()
    assert '"atlas": ""' in (out / "cases" / CHAIR / "index.html").read_text()
    page = (out / "atlas" / "index.html").read_text()
    assert "sketchworld-vision.1/index.html" in page and MAIN not in page


def test_only_what_is_stale_is_made_again(out: Path) -> None:
    site.build(out / "recordings", out)
    before = made(out)
    atlas = load_atlas(out / "atlas" / "sketchworld-vision.2")
    save_atlas(out / "atlas", replace(atlas, mapped="another way"))
    built = site.build(out / "recordings", out)
    assert set(built.written) == {
        "atlas-data/sketchworld-vision.2",
        "atlas-page/sketchworld-vision.2",
        "atlas-index",
    } - ({"atlas-index"} if "atlas-index" not in built.written else set())
    after = made(out)
    assert [path for path in before if before[path] != after.get(path)] == ["atlas/sketchworld-vision.2/index.html"]


@pytest.mark.parametrize("lacking", ["labels", "pictures", "life"])
def test_pages_of_what_an_atlas_lacks(lacking: str, tmp_path: Path) -> None:
    save_all(tmp_path / "recordings", ("failed-in-a-cell",))
    of = {"labels": {"labels": False}, "pictures": {}, "life": {"dead": 1.0}}[lacking]
    atlases.save(tmp_path / "atlas", 100, ("vision.3",), **of)
    if lacking == "pictures":
        for sheet in tmp_path.glob("atlas/pictures-*/*.webp"):
            sheet.unlink()
    assert not site.build(tmp_path / "recordings", tmp_path).faults
    page = (tmp_path / "atlas" / MAIN / "index.html").read_text()
    if lacking == "labels":
        assert "How well concepts are found" not in page and "label entropy" not in page.lower().split("strongest")[0]
        assert "no label" in page and 'placeholder="a number"' in page
        assert not (tmp_path / "atlas" / MAIN / "entropy.svg").exists()
    elif lacking == "pictures":
        assert "<image " not in page and "References" not in page and "The latents that are active most" in page
    else:
        assert "Every latent is dead" in page and "100 latents are dead" in page and "data-plane" not in page
    (survey,) = [(tmp_path / "atlas" / "index.html").read_text()]
    assert "layer by layer" not in survey and f"{MAIN}/index.html" in survey


def test_a_shelf_knows_atlases_by_their_hashes(evidence: Path) -> None:
    shelf = Shelf.of(evidence / "atlas")
    recording = load_recording(evidence / "recordings" / CHAIR).provenance
    model, sae = recording.model_sha, recording.sae_sha
    assert shelf.place(model, sae, "vision.3").slug == shelf.place(model, sae).slug == MAIN
    assert shelf.place(model, "another", "vision.3") is None and shelf.place(model, sae, "vision.2") is None
    assert shelf.place("", "") is None and shelf.place("another", sae, "vision.3") is None
    assert shelf.place("another", sae, "vision.3", "states") is None
    knowing = Shelf(tuple(one._replace(states_sha="states") for one in shelf.places))
    assert knowing.place("another", sae, "vision.3", "states").slug == MAIN
    assert knowing.place(model, sae, "vision.3").slug == MAIN and knowing.place("another", sae, "vision.3", "") is None
    # Of the same autoencoder, whatever the model.
    assert shelf.alike(sae, "vision.3").slug == MAIN and shelf.alike(sae, "vision.2") is None
    assert shelf.alike("") is None and Shelf.of(evidence / "nowhere").places == ()
