"""Survey: stopped and gone on equals never stopped, several SAEs equal each alone, and figures equal the plain way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.study.surveys import BROKEN, PICTURES, SAES, SHARD, asked, contents
from vsp_report import paths
from vsp_report.atlas import (
    Atlas,
    Labelling,
    load_atlas,
)
from vsp_report.errors import InputError
from vsp_report.maths import projection
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.classify import load_clip
from vsp_report.model.depends import states_sha
from vsp_report.sketchworld import concepts
from vsp_report.study import photographs, survey, survey_plan
from vsp_report.study.survey_atlas import Given, Surveyed, _clusters, make_atlases
from vsp_report.study.survey_files import load_tallies


def test_stopped_and_gone_on_equals_never_stopped(
    whole: tuple[survey.Plan, Path], folder: Path, tmp_path: Path
) -> None:
    plan = survey.plan(asked(folder), tmp_path)
    said: list[survey.Progress] = []

    def stop_in_the_second(progress: survey.Progress) -> None:
        said.append(progress)
        if progress.fresh > SHARD:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey.survey(plan, None, stop_in_the_second)
    assert [(first, last) for first, last, _ in survey.finished(plan)] == [(0, 0)]
    (plan.folder / ".tally-000001-000001.npz.0123").write_bytes(b"what a killed writer leaves")
    again = survey.plan(asked(folder), tmp_path)
    assert again.folder == plan.folder
    merged = survey.survey(again, None, said.append)
    assert said[-1] == (PICTURES + len(BROKEN), PICTURES + len(BROKEN), PICTURES + len(BROKEN) - SHARD)
    assert contents(merged) == contents(whole[1])


def test_merged_files_and_their_parts_count_once(folder: Path, tmp_path: Path, whole: tuple) -> None:
    plan = survey.plan(asked(folder), tmp_path)
    for shard in (2, 0, 1):
        survey.survey_shard(str(plan.folder), shard)
    kept = (plan.folder / "tally-000001-000001.npz").read_bytes()
    survey.merge_files(str(plan.folder), [f"tally-00000{k}-00000{k}.npz" for k in (0, 1)])
    (plan.folder / "tally-000001-000001.npz").write_bytes(kept)  # as if killed before the parts were cleared
    assert [(first, last) for first, last, _ in survey.finished(plan)] == [(0, 1), (2, 2)]
    with ThreadPoolExecutor(1) as executor:
        merged = survey.survey(plan, executor)
    assert contents(merged) == contents(whole[1])


def test_several_saes_in_one_pass_equal_each_alone(whole: tuple, folder: Path, tmp_path: Path) -> None:
    tallies, _, _ = survey.load_tallies(whole[0], whole[1].name)
    for k, name in enumerate(SAES):
        plan = survey.plan(asked(folder, (name,)), tmp_path / str(k))
        alone, _, _ = survey.load_tallies(plan, survey.survey(plan).name)
        for mine, other in zip(alone, (tallies[k], tallies[len(SAES) + k]), strict=True):
            for key, array in mine.arrays().items():
                np.testing.assert_array_equal(array, other.arrays()[key], err_msg=key)


def test_figures_equal_the_plain_way(atlases: list[Atlas], whole: tuple, folder: Path) -> None:
    from vsp_report.model.vlm import load_vlm
    from vsp_report.study.observe import observe

    plan = whole[0]
    names = [n for n in plan.source.names if n not in BROKEN]
    vlm = load_vlm("sketchworld", device="cpu")
    for name, atlas in zip(SAES, atlases, strict=True):
        sae = load_sae(paths.bundled(name))
        seen = [observe(vlm, sae, folder / n, "What is this?", max_new_tokens=1).latents_PL.toarray() for n in names]
        acts, a = np.stack(seen), atlas.arrays
        strength = acts.max(1)
        np.testing.assert_allclose(a.max_L, strength.max(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a.frequency_L, (strength > 0).mean(0), atol=1.5 / len(names))
        assert (np.abs(a.frequency_L - (strength > 0).mean(0)) < 1e-6).mean() > 0.99
        np.testing.assert_allclose(a.mean_overall_L, acts.mean((0, 1)), rtol=1e-3, atol=1e-5)
        for latent in np.flatnonzero(atlas.alive_L)[::7]:
            for r, reference in enumerate(atlas.references(int(latent))):
                here = names.index(reference.name)
                assert reference.strength == pytest.approx(strength[here, latent], rel=1e-3, abs=1e-4)
                rounding = reference.strength / 255 + 1e-3
                np.testing.assert_allclose(atlas.grid(int(latent), r).ravel(), acts[here, :, latent], atol=rounding)
            best = np.sort(strength[:, latent])[::-1][: len(atlas.references(int(latent)))]
            np.testing.assert_allclose([o.strength for o in atlas.references(int(latent))], best, rtol=1e-3, atol=1e-4)


def test_neighbours_are_the_nearest_of_all_that_live(
    folder: Path, tmp_path: Path, drawn_map: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of those that were silent on the pictures that were looked at first, of which there are two here."""
    monkeypatch.setattr(survey_plan, "PROBED", 2)
    plan = survey.plan(asked(folder, SAES[:1], control=False), tmp_path)
    tallies = survey.survey(plan)
    seen = survey.load_tallies(plan, tallies.name)[0][0]
    atlas = load_atlas(make_atlases(plan, tallies, tmp_path, command="")[0])
    directions = load_sae(paths.bundled(SAES[0])).directions.double()
    unit = (directions / directions.norm(dim=1, keepdim=True)).numpy()
    active_NL = np.zeros((len(plan.source), seen.frame.latents), bool)
    surveyor = survey._surveyor(str(plan.folder), plan.facts["key"])
    for number, name in enumerate(plan.source.names):
        if name not in BROKEN:
            image = photographs.read_picture(folder / name)
            fed = surveyor.feeder.see([surveyor.feeder.prompt(image)])
            one = surveyor.dictionaries[0]
            active_NL[number, one.sae.active(fed.states[one.tap]).latent_E.numpy()] = True
    found, late, off = 0, 0, []
    for latent in np.flatnonzero(atlas.alive_L).tolist():
        order = np.argsort(-(unit @ unit[latent]), kind="stable")
        near = [j for j in order[order != latent][: survey_plan.CANDIDATES].tolist() if atlas.alive_L[j]]
        neighbours, nearest = atlas.facts(latent).neighbours, unit[near[: survey_plan.NEIGHBOURS]] @ unit[latent]
        # Two that are as near to the sixth digit may stand in either order.
        assert unit[[one.latent for one in neighbours]] @ unit[latent] == pytest.approx(nearest, abs=1e-6)
        found, late = found + len(neighbours), late + (~active_NL[plan.facts["looked"]].any(0)[near]).sum()
        for one in neighbours:
            assert one.cosine == pytest.approx(unit[one.latent] @ unit[latent], abs=1e-5)
            both, either = (how(active_NL[:, latent], active_NL[:, one.latent]).sum()
                            for how in (np.logical_and, np.logical_or))  # fmt: skip
            off.append(abs(one.coactivation - both / max(either, 1)))
    assert found > 1000 and late > 100 and np.mean(np.array(off) < 1e-6) > 0.99


def test_an_atlas_has_labels_control_and_pictures(atlases: list[Atlas]) -> None:
    for atlas, name in zip(atlases, SAES, strict=True):
        made = atlas.provenance
        assert (made.sae, made.tap, made.n_images, made.n_broken) == (name, "vision.3", PICTURES, len(BROKEN))
        assert made.states_sha == states_sha(load_clip("sketchworld-clip"), "vision.3", "")
        assert [line.partition(":")[0] for line in made.broken] == list(BROKEN)
        assert "decompression bomb" in made.broken[0]
        assert atlas.labellings[0].source == "images" and set(atlas.labellings[0].words) == {"a", "b"}
        assert all(measure.untrained is not None for measure in atlas.quality)
        assert {one.name for k in np.flatnonzero(atlas.alive_L)[:9] for one in atlas.references(int(k))} <= set(
            atlas.pictures
        )
        assert not set(atlas.pictures) & set(BROKEN)
    assert atlases[0].sheets == atlases[1].sheets and atlases[0].slug != atlases[1].slug
    explained = atlases[0].quality[0]
    assert explained.value > 0.5 > explained.untrained


def test_the_same_survey_gives_the_same_bytes(whole: tuple, tmp_path: Path, drawn_map: None) -> None:
    folders = [make_atlases(*whole, tmp_path / place, command="here")[0] for place in ("one", "other")]
    written = [{f.name: f.read_bytes() for f in one.iterdir()} for one in folders]
    assert written[0] == written[1]


def test_a_map_is_kept_while_its_latents_stay(whole: tuple, tmp_path: Path, drawn_map: None,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    first = [load_atlas(one).arrays.map_L2 for one in make_atlases(*whole, tmp_path, command="here")]
    monkeypatch.setattr(projection, "map_of", None)
    again = [load_atlas(one).arrays.map_L2 for one in make_atlases(*whole, tmp_path, command="here")]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_a_user_says_of_latents_comes_first(folder: Path, tmp_path: Path, drawn_map: None) -> None:
    plan = survey.plan(asked(folder, SAES[:1]), tmp_path)
    tallies = survey.survey(plan)
    atlas = load_atlas(make_atlases(plan, tallies, tmp_path, command="", given=Given("mine.csv", {5: "nose"}))[0])
    assert atlas.label(5).word == "nose" and atlas.label(5).labelling.made == "mine.csv"
    with pytest.raises(InputError, match=r"mine.csv: labels latent 9999, and the SAE has 3584"):
        make_atlases(plan, tallies, tmp_path, command="", given=Given("mine.csv", {9999: "nose"}))


def test_a_cluster_bears_what_its_latents_share_and_no_more() -> None:
    """Of 12 clusters the first shares a good label, the second what its references show, the third one good label."""
    cluster_L = np.repeat(np.arange(12), 20)
    label_SL, score_SL = np.zeros((1, 240), int), np.full((1, 240), 0.1)
    label_SL[0, :8], score_SL[0, :8] = 1, 0.8
    label_SL[0, 45], score_SL[0, 45] = 2, 0.9
    references_LR = np.random.default_rng(0).integers(0, 90, (240, 4))
    references_LR[20:29] = np.arange(90, 94)
    tally = SimpleNamespace(pictures_L=np.ones(240, int))
    label_N = np.append(np.arange(90) % 30, [30] * 4)
    one = Surveyed(tally, references_LR, references_LR * 0.0, label_N, (*map(str, range(30)), "boat"))
    labelling = Labelling("truth", "", "average precision", ("red", "cup", "hat"), 0.5)
    found = _clusters(cluster_L, [labelling], label_SL, score_SL, one)
    assert [(c, cluster.name, cluster.by) for c, cluster in enumerate(found) if cluster.name] == [
        (0, "cup", "labels"), (1, "boat", "pictures"),
    ]  # fmt: skip
    assert (found[0].size, found[0].share) == (20, 0.4) and found[0].everywhere == pytest.approx(8 / 240)
    assert found[2].share is None and found[2].everywhere is None
    # What a user says first of a latent is what it is shown with: another labelling's word counts for nothing then.
    given = Labelling("given", "mine.csv", "", ("seat",))
    both_SL = np.stack([np.where(np.arange(240) < 8, 0, -1), label_SL[0]])
    found = _clusters(cluster_L, [given, labelling], both_SL, np.stack([score_SL[0] * 0, score_SL[0]]), one)
    assert found[0].name == "seat"


def test_scenes_have_a_truth(tmp_path: Path, drawn_map: None) -> None:
    """Few of them: what is looked at here is that truth, labels and control arrive, not how good they are."""
    found = survey.Asked("sketchworld", SAES[:1], photographs.Scenes(96), device="cpu", shard=64)
    plan = survey.plan(found, tmp_path)
    atlas = load_atlas(make_atlases(plan, survey.survey(plan), tmp_path, command="")[0])
    assert [one.name for one in atlas.concepts] == list(concepts.CONCEPTS)
    person = next(one for one in atlas.concepts if one.name == "person")
    assert person.images > 0 and person.share < person.average_precision <= 1
    assert person.untrained_average_precision is not None
    assert {m.name for m in atlas.quality} >= {"overlap with concepts", "average precision of concepts"}
    assert atlas.labellings[0].source == "truth" and atlas.by_label


def test_words_by_a_clip(whole: tuple, tmp_path: Path, drawn_map: None) -> None:
    from functools import partial

    from vsp_report.study.survey_words import name_by_words

    plan, tallies = whole
    named = partial(
        name_by_words, plan.source, ("person", "cup", "ball"), "sketchworld-clip", "words.txt", device="cpu"
    )
    atlas = load_atlas(make_atlases(plan, tallies, tmp_path, command="", words=named)[0])
    said = atlas.labellings[-1]
    assert said.source == "words" and said.words == ("person", "cup", "ball") and "words.txt" in said.made
    words_L, scores_L = atlas.arrays.label_SL[-1], atlas.arrays.label_score_SL[-1]
    assert (words_L[~atlas.alive_L] == -1).all() and (scores_L[words_L >= 0] > 0).all()
    # latents whose pictures are all of one folder are named after what that folder shows
    folder_of = {0: "person", 1: "cup"}
    sure = [k for k in np.flatnonzero(atlas.alive_L) if atlas.arrays.label_score_SL[0, k] > 0.99 and words_L[k] >= 0
            and len(atlas.references(int(k))) > 4]  # fmt: skip
    right = [folder_of[int(atlas.arrays.label_SL[0, k])] == said.words[words_L[k]] for k in sure]
    assert len(sure) > 10 and np.mean(right) > 0.8


def test_explained_variance_is_of_every_patch(whole: tuple, folder: Path) -> None:
    """As the plain way has it, which holds all states; for the SAEs and for the untrained ones beside them."""
    import torch

    from vsp_report.model.sae import quality

    plan = whole[0]
    surveyor = survey._surveyor(str(plan.folder), plan.facts["key"])
    images = [photographs.read_picture(folder / name) for name in plan.source.names if name not in BROKEN]
    states = [surveyor.feeder.see([surveyor.feeder.prompt(image)]).states for image in images]
    for tally, one in zip(load_tallies(plan, whole[1].name)[0], surveyor.dictionaries, strict=True):
        dense = quality(one.sae, torch.cat([state[one.tap] for state in states]))
        assert tally.explained == pytest.approx(1 - dense.unexplained_variance, abs=1e-5)
