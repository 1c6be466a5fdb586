"""Labels: what an atlas of the site calls the latents of a case. A poor one looks poor wherever it stands."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.render import atlases
from tests.render.recordings import full, save_all
from vsp_report.atlas import ABSENT, load_atlas
from vsp_report.recording import load_recording, save_recording
from vsp_report.render import export, labels, site
from vsp_report.render.labels import Known, Labelled, Made, known_of, labels_of, relabelled, told
from vsp_report.render.pages import case_page

CASE, SLUG = "standing-beside-a-chair", "sketchworld-vision.3"
TRUTH = Made("truth", "the world, 50 concepts", "average precision", 0.5)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case whose model the atlas was made of, and the same case of another model."""
    out = tmp_path_factory.mktemp("labels")
    save_all(out / "recordings", (CASE,))
    recording = load_recording(out / "recordings" / CASE)
    made = recording.provenance
    atlases.save(out / "atlas", 4096, ("vision.3",), model_sha=made.model_sha, sae_sha=made.sae_sha)
    other = replace(recording, id="other-model", provenance=replace(made, model_sha="another"))
    place = out / "recordings" / CASE
    files = {name: place / name for name in (recording.image.file, "notebook.ipynb") if (place / name).is_file()}
    save_recording(out / "recordings" / other.id, other, files)
    return out


@pytest.fixture(scope="module")
def built(evidence: Path) -> Path:
    out = evidence.parent / f"{evidence.name}-site"
    assert not site.build(evidence / "recordings", out).faults
    return out


def data(page: str) -> dict:
    return json.loads(re.search(r'id="case-data">(.*?)</script>', page, re.DOTALL)[1])


def test_an_atlas_says_its_labels_and_their_worth(evidence: Path) -> None:
    atlas = load_atlas(evidence / "atlas" / SLUG)
    kept = json.loads(json.dumps(labels_of(atlas, [*range(400), 10**9, -1])))
    known = known_of(kept, "there")
    for latent in range(400):
        label, shown = atlas.label(latent), known.labels.get(latent)
        if label is None or not atlas.alive_L[latent]:
            assert shown is None
            continue
        assert shown.word == label.word and known.made[shown.made].source == label.labelling.source
        assert shown.score == pytest.approx(label.score, rel=1e-3)
        assert shown.poor == (label.score < label.labelling.least) == shown.text.endswith(labels.DOUBT)
    poor = [one.poor for one in known.labels.values()]
    assert 10 < sum(poor) < len(poor) - 10


def test_a_label_without_a_score_is_not_poor() -> None:
    atlas = atlases.make_atlas(40)
    scores = np.full_like(atlas.arrays.label_score_SL, np.float32(ABSENT))
    given = replace(atlas.labellings[0], source="given", score="", least=None)
    atlas = replace(
        atlas, labellings=(given, *atlas.labellings[1:]), arrays=replace(atlas.arrays, label_score_SL=scores)
    )
    first = [one for one in known_of(labels_of(atlas, range(40)), "").labels.values() if one.made == 0]
    assert first and not any(one.poor or one.said for one in first)


def test_the_atlas_names_latents_and_what_it_has_no_word_for_has_no_name() -> None:
    recording = full()
    first, second = recording.latents[0].number, recording.latents[1].number
    known = Known("there", {first: Labelled("cup", 0.31, True, 0), second: Labelled("hand", 0.97, False, 0)}, (TRUTH,))
    named = relabelled(recording, known)
    assert [one.label for one in named.latents[:3]] == ["cup?", "hand", ""]
    assert relabelled(recording, labels.NOTHING) is recording
    page = case_page(named, known)
    shown = {one.number: (one.label, one.score, one.poor) for one in page.bars}
    assert shown.get(first, ("cup?", "0.31", True)) == ("cup?", "0.31", True)
    assert page.latents.head[1:4] == ("label", "label score", "label is")
    assert page.latents.rows[0][1:4] == ("cup?", 0.31, "by the world's ground truth")
    assert page.data["latents"][0][7:] == [0.31, True, 0] and len(page.data["latents"][2]) == 7


def test_the_reader_is_told_what_the_figure_is() -> None:
    recording = full()
    first, second = recording.latents[0].number, recording.latents[1].number
    known = Known("there", {first: Labelled("cup", 0.31, True, 0), second: Labelled("hand", 0.97, False, 0)}, (TRUTH,))
    said = " ".join(told(relabelled(recording, known), known))
    assert "the world, 50 concepts" in said and "average precision" in said
    assert "Below 0.5 a label is poor" in said and "Of the 2 here, 1 is." in said
    assert "how good they are is unknown" in " ".join(told(recording, labels.NOTHING))
    unnamed = replace(recording, latents=tuple(replace(one, label="") for one in recording.latents))
    assert told(unnamed, labels.NOTHING) == ()


def test_a_case_shows_its_atlases_labels(evidence: Path, built: Path) -> None:
    page = (built / "cases" / CASE / "index.html").read_text()
    atlas = load_atlas(evidence / "atlas" / SLUG)
    for (
        number,
        label,
        *_,
    ) in data(page)["latents"]:
        known = atlas.label(number) if atlas.alive_L[number] else None
        assert label.removesuffix("?") == (known.word if known else "")
    assert f'href="../../atlas/{SLUG}/index.html">All latents, in the atlas' in page
    assert "average precision" in page and 'class="score"' in page


def test_the_atlas_of_another_model_names_nothing_and_the_page_says_why(built: Path) -> None:
    page = (built / "cases" / "other-model" / "index.html").read_text()
    assert f'<a href="../../atlas/{SLUG}/index.html">an atlas of the same autoencoder</a>' in page
    assert data(page)["atlas"] == "" and data(page)["labellings"] == [] and 'class="score"' not in page
    assert "how good they are is unknown" in page and "was not recorded whether the layers below" in page


def test_a_model_that_shares_the_tower_has_the_atlases_labels(evidence: Path, tmp_path: Path) -> None:
    shutil.copytree(evidence, tmp_path / "site")
    here = tmp_path / "site"
    written = json.loads((here / "atlas" / SLUG / "atlas.json").read_text())
    written["provenance"]["states_sha"] = "5" * 64
    (here / "atlas" / SLUG / "atlas.json").write_text(json.dumps(written))
    place = here / "recordings" / "other-model"
    recording = load_recording(place)
    files = {name: (place / name).read_bytes() for name in (recording.image.file, "notebook.ipynb")
             if (place / name).is_file()}  # fmt: skip
    for states, shares in (("5" * 64, True), ("6" * 64, False)):
        save_recording(place, replace(recording, provenance=replace(recording.provenance, states_sha=states)), files)
        assert not site.build(here / "recordings", here).faults
        page = (here / "cases" / "other-model" / "index.html").read_text()
        assert ("All latents, in the atlas" in page) is shares is ("surveyed with sketchworld, which reads" in page)
        assert (data(page)["atlas"] != "") is shares is ('class="score"' in page)
        assert ("the two models are not the same" in page) is not shares
        # And the atlas tells in which cases its latents matter.
        told = (here / "atlas" / SLUG / "index.html").read_text() + "".join(
            file.read_text() for file in (here / "atlas" / SLUG).glob("*.js"))  # fmt: skip
        assert ('"other-model"' in told) is shares
        if shares:
            alone = export.export_case("other-model", here / "recordings").html.decode()
            assert "The atlas of its labels was surveyed with sketchworld" in alone


def test_what_stands_alone_has_its_labels(evidence: Path, built: Path) -> None:
    alone = export.export_case(CASE, evidence / "recordings").html.decode()
    whole = (built / "cases" / CASE / "index.html").read_text()
    assert data(alone)["latents"] == data(whole)["latents"] and data(alone)["atlas"] == ""
    assert "All latents, in the atlas" not in alone and "average precision" in alone


def test_another_atlas_makes_the_pages_of_its_cases_again(evidence: Path, tmp_path: Path) -> None:
    shutil.copytree(evidence, tmp_path / "site")
    here = tmp_path / "site"
    site.build(here / "recordings", here)
    assert site.build(here / "recordings", here).written == ()
    made = load_recording(here / "recordings" / CASE).provenance
    shutil.rmtree(here / "atlas" / SLUG)
    before = (here / "cases" / CASE / "index.html").read_text()
    atlases.save(here / "atlas", 4096, ("vision.3",), model_sha=made.model_sha, sae_sha=made.sae_sha, dead=0.3)
    written = site.build(here / "recordings", here).written
    assert f"page/{CASE}" in written and "page/other-model" not in written
    assert data((here / "cases" / CASE / "index.html").read_text())["latents"] != data(before)["latents"]
