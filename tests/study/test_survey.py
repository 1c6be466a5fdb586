"""Survey: stopped and gone on equals never stopped, several SAEs equal each alone, and figures equal the plain way."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vsp_report import paths
from vsp_report.atlas import (
    SCHEMA,
    Arrays,
    Atlas,
    Labelling,
    Provenance,
    Sheets,
    load_atlas,
    save_atlas,
    save_sheets,
)
from vsp_report.case import load_case
from vsp_report.cli import _parser, main
from vsp_report.cli.atlas import _command, _step
from vsp_report.cli.words import Bar
from vsp_report.errors import CheckpointError, ImageError, InputError, SteeringError, VspError
from vsp_report.maths import projection
from vsp_report.maths.tallies import Tally
from vsp_report.model.checkpoints import load_sae
from vsp_report.model.classify import load_clip
from vsp_report.model.depends import states_sha
from vsp_report.run import executors
from vsp_report.run.plan import foresee, look_around
from vsp_report.sketchworld import concepts, rules
from vsp_report.sketchworld.scene import COVERED
from vsp_report.study import photographs, survey, survey_atlas, survey_leftovers, survey_plan
from vsp_report.study.evidence import cluster, look, open_case, steer_all
from vsp_report.study.inquiry import Inquiry
from vsp_report.study.shelved import noisy_in
from vsp_report.study.survey_atlas import Given, Surveyed, _clusters, make_atlases
from vsp_report.study.survey_files import load_tallies, save_tallies

SAES = ("sketchworld/vision.3", "sketchworld/vision.3-relu")
PICTURES, SHARD = 22, 6
BROKEN = ("a/bomb.png", "b/cut.png", "b/words.jpg")


def bomb() -> bytes:
    """A PNG whose head claims 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two families in two folders, three of which cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    for k in range(PICTURES):
        family, place = (("people", "a"), ("cups", "b"))[k % 2]
        (root / place).mkdir(exist_ok=True)
        rules.sample_scene(1_700_000_000 + k, family).draw(96 if k % 3 else 120).save(root / place / f"{k:02}.png")
    (root / "a" / "bomb.png").write_bytes(bomb())
    (root / "b" / "cut.png").write_bytes((root / "b" / "01.png").read_bytes()[:400])
    (root / "b" / "words.jpg").write_text("no picture")
    return root


def asked(folder: Path, saes: tuple[str, ...] = SAES, **more: object) -> survey.Asked:
    return survey.Asked("sketchworld", saes, photographs.open_source(str(folder)), device="cpu", shard=SHARD, **more)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[survey.Plan, Path]:
    """A survey that nothing disturbed."""
    plan = survey.plan(asked(folder), tmp_path_factory.mktemp("site") / "atlas")
    return plan, survey.survey(plan)


def drawn(directions_LD: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.asarray(directions_LD[:, :2] * 0.4 + 0.5, np.float32).clip(0, 1)


@pytest.fixture
def drawn_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map in no time; the true one has its own test."""
    monkeypatch.setattr(projection, "map_of", drawn)


@pytest.fixture
def atlases(whole: tuple[survey.Plan, Path], tmp_path: Path, drawn_map: None) -> list[Atlas]:
    plan, tallies = whole
    return [load_atlas(one, verify=True) for one in make_atlases(plan, tallies, tmp_path, command="here")]


def contents(tallies: Path) -> dict[str, tuple]:
    """To the last bit; only the hour at which a file was written may differ."""
    with np.load(tallies) as archive:
        return {name: (archive[name].dtype, archive[name].shape, archive[name].tobytes()) for name in archive.files}


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
    cup = next(one for one in atlas.concepts if one.name == "cup")
    assert cup.images > 0 and cup.share < cup.average_precision <= 1 and cup.untrained_average_precision is not None
    assert {m.name for m in atlas.quality} >= {"overlap with concepts", "average precision of concepts"}
    assert atlas.labellings[0].source == "truth" and atlas.by_label


def test_words_by_a_clip(whole: tuple, tmp_path: Path, drawn_map: None) -> None:
    from functools import partial

    from vsp_report.study.survey_words import name_by_words

    plan, tallies = whole
    named = partial(
        name_by_words, plan.source, ("person", "cup", "chart"), "sketchworld-clip", "words.txt", device="cpu"
    )
    atlas = load_atlas(make_atlases(plan, tallies, tmp_path, command="", words=named)[0])
    said = atlas.labellings[-1]
    assert said.source == "words" and said.words == ("person", "cup", "chart") and "words.txt" in said.made
    words_L, scores_L = atlas.arrays.label_SL[-1], atlas.arrays.label_score_SL[-1]
    assert (words_L[~atlas.alive_L] == -1).all() and (scores_L[words_L >= 0] > 0).all()
    # latents whose pictures are all of one folder are named after what that folder shows
    folder_of = {0: "person", 1: "cup"}
    sure = [k for k in np.flatnonzero(atlas.alive_L) if atlas.arrays.label_score_SL[0, k] > 0.99 and words_L[k] >= 0
            and len(atlas.references(int(k))) > 4]  # fmt: skip
    right = [folder_of[int(atlas.arrays.label_SL[0, k])] == said.words[words_L[k]] for k in sure]
    assert len(sure) > 10 and np.mean(right) > 0.8


# --- pictures ----------------------------------------------------------------------------------------------------


def test_a_picture_is_read_as_it_is_read_for_a_case(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    from vsp_report.model.vlm import load_image

    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "a" / "00.png").resize((90, 60)).save(turned, exif=exif)
    for path in (folder / "a" / "02.png", turned):
        mine, theirs = photographs.read_picture(path), load_image(path)
        assert mine.size == theirs.size and np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_batches_come_in_order_and_name_what_is_broken(folder: Path) -> None:
    source = photographs.open_source(str(folder))
    parts = list(photographs.batches(source, range(len(source)), 4))
    assert [len(part) for part in parts] == [4] * 6 + [1]
    read = [one for part in parts for one in part]
    assert [one.number for one in read] == list(range(len(source)))
    assert tuple(source.name(one.number) for one in read if one.image is None) == BROKEN


def test_a_source_is_plain_data(folder: Path) -> None:
    for source in (photographs.open_source(str(folder)), photographs.Scenes(9, 5)):
        again = photographs.source_of(source.plain())
        assert again == source and again.identity == source.identity
    fewer = photographs.open_source(str(folder), 5)
    assert len(fewer) == 5 and fewer.identity != photographs.open_source(str(folder)).identity


def test_both_halves_of_the_scenes_have_portraits_of_every_kind() -> None:
    source = photographs.Scenes(5000)
    portraits = [(source.half(n), n // 3 % len(rules.PORTRAITS)) for n in range(2, 5000, 3)]
    assert len(set(portraits)) == 2 * len(rules.PORTRAITS)
    share = np.mean([source.half(n) for n in range(5000)])
    assert abs(share - 0.5) < 0.03


def test_concepts_lie_where_the_scene_has_them() -> None:
    for seed, family in enumerate(rules.FAMILIES):
        scene = rules.sample_scene(1_700_000_000 + seed, family)
        found = concepts.shown(scene, 12, 12, concepts.masks_of(scene, 192))
        assert {concepts.CONCEPTS[c] for c in np.flatnonzero(found.concepts_C)} <= concepts.concepts_in(scene)
        coverage = scene.coverage(12, 12) if scene.parts else np.zeros((0, 12, 12))
        shown = np.zeros((144, len(concepts.CONCEPTS)), bool)
        shown[found.patch_X, found.concept_X] = True
        assert not shown[:, ~found.concepts_C].any()
        if scene.chart:
            assert shown[:, concepts.CONCEPTS.index("chart")].all()
            continue
        covered = (coverage >= COVERED + 0.06).any(0).ravel()
        assert shown[covered].any(1).all(), family


# --- a user's mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "its header is empty"),
        ("name,label\na,b\n", "its header is name,label"),
        ("image,label\n", "labels nothing"),
        ("latent,label\nfive,chair\n", ":2: latent is 'five'"),
        ("latent,label\n5,\n", ":2: is '5,'"),
        ("latent,label\n\n\n5,chair\n\nsix,chair\n", ":6: latent is 'six'"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, fault: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=fault):
        photographs.read_labels(table)


def test_tables(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "labels.csv").write_text("﻿Image,Label\na/00.png,old man\n\na/02.png,boy\n", encoding="utf-8")
    table = photographs.read_labels(tmp_path / "labels.csv")
    source = photographs.open_source(str(folder), None, table.labels, "labels.csv")
    assert (
        source.label(source.names.index("a/00.png")) == "old man" and source.label(source.names.index("b/01.png")) == ""
    )
    with pytest.raises(InputError, match="labels none of the pictures"):
        photographs.open_source(str(folder), None, {"elsewhere.png": "x"}, "labels.csv")


def test_places_and_faults(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no picture"):
        photographs.open_source(str(tmp_path))
    with pytest.raises(InputError, match="is given twice"):
        survey.plan(asked(folder, (SAES[0], SAES[0])), tmp_path)
    with pytest.raises(CheckpointError, match=r"128 wide; vision.3 of sketchworld gives 112"):
        survey.plan(asked(folder, ("sketchworld/text.2",), taps=("vision.3",)), tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_text("no picture")
    with pytest.raises(ImageError, match="none of 1 pictures can be read"):
        survey.plan(asked(tmp_path / "broken", SAES[:1]), tmp_path)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--demo", "--model", "x"], "--model: goes against --demo"),
        (["--model", "sketchworld"], "--sae: is not given"),
        (["--jobs", "2", "--cluster", "tcp://localhost:1"], "--jobs: goes against --cluster"),
        (["--clip", "x"], "--clip: compares words, and there are none"),
        (["--model", "m", "--sae", "s", "--images", "i", "--words", "w"], "--clip: is not given"),
        (["--model", "sketchworld", "--sae", SAES[0], "--images", "nowhere"], "nowhere: is no folder"),
    ],
)
def test_a_command_that_cannot_be(words: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atlas", *words]) == 2
    assert fault in capsys.readouterr().err


def test_the_command(folder: Path, tmp_path: Path, drawn_map: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "sketchworld", "--sae", SAES[0], "--images", str(folder), "--out", str(tmp_path), "--jobs", "1"]
    assert main(["atlas", *words]) == 0
    told = capsys.readouterr().out
    assert "explained variance" in told and "3 pictures could not be read" in told and "b/words.jpg: " in told
    atlas = load_atlas(tmp_path / "atlas" / "sketchworld-vision.3", verify=True)
    assert str(tmp_path) not in (tmp_path / "atlas" / atlas.slug / "atlas.json").read_text()
    assert sorted(p.name for p in (tmp_path / "atlas").iterdir()) == [atlas.sheets.folder, atlas.slug]


def test_the_command_makes_the_atlas_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that changes what an atlas says stands in it, in quotes where it must, and no folder of this machine
    does."""
    said = ["--model", "sketchworld", "--sae", "/somewhere/my sae", "--images", ".", "--tap", "vision.3", "--n", "9",
            "--words", "lists/words.txt", "--dtype", "bfloat16", "--no-control", "--jobs", "2"]  # fmt: skip
    monkeypatch.chdir(folder)
    command = _command(_parser().parse_args(["atlas", *said]))
    again = shlex.split(command)[1:]
    assert str(folder) not in command and folder.name in again and "my sae" in again
    found, made = (vars(_parser().parse_args(words)) for words in (["atlas", *said], again))
    assert (made["dtype"], made["n"], made["clip"]) == ("bfloat16", 9, "sketchworld-clip")
    differ = {name for name in found if found[name] != made[name]}
    assert differ == {"sae", "images", "words", "clip", "jobs"}


# --- where it runs -----------------------------------------------------------------------------------------------


def command(folder: str | Path, out: Path, *more: str) -> list[str]:
    return ["atlas", "--model", "sketchworld", "--sae", SAES[0], "--images", str(folder), "--out", str(out), *more]


def written(out: Path) -> dict[str, bytes]:
    """Every file of the atlases below, but the command that made them."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: re.sub(rb'"command": "[^"]*"', b"", data) for name, data in files.items()}


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes, in this process; cut in several shards, as a large folder would be."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey_plan, "_shard_size", lambda n: SHARD)
        patch.setattr(projection, "map_of", drawn)
        assert main(command(folder, out, "--jobs", "1")) == 0
    return out


@pytest.fixture
def in_shards(monkeypatch: pytest.MonkeyPatch, drawn_map: None) -> None:
    monkeypatch.setattr(survey_plan, "_shard_size", lambda n: SHARD)


def test_two_processes_make_the_same_atlas(alone: Path, folder: Path, tmp_path: Path, in_shards: None) -> None:
    assert main(command(folder, tmp_path, "--jobs", "2")) == 0
    assert written(tmp_path) == written(alone)


def test_a_cluster_makes_the_same_atlas_of_a_folder_with_a_relative_name(
    alone: Path, folder: Path, tmp_path: Path, in_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers work elsewhere, where no such folder is."""
    import distributed

    quiet = {"silence_logs": 50, "dashboard_address": None}
    monkeypatch.chdir(tmp_path)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **quiet) as cluster:
        monkeypatch.chdir(folder)
        assert main(command(".", tmp_path / "out", "--cluster", cluster.scheduler_address)) == 0
    assert written(tmp_path / "out") == written(alone)


def test_what_has_a_relative_name_is_found_from_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, SAE and pictures; and an atlas says of them what was typed, which names no machine."""
    shutil.copytree(paths.bundled("sketchworld"), tmp_path / "mine" / "model")
    shutil.copytree(paths.bundled(SAES[0]), tmp_path / "mine" / "vision.3")
    shutil.copytree(folder / "a", tmp_path / "pictures")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    source = photographs.open_source("pictures", 5)
    plan = survey.plan(survey.Asked("mine/model", ("mine/vision.3",), source, device="cpu"), "site/atlas")
    monkeypatch.chdir("elsewhere")
    survey_plan.kept_vlm.cache_clear()
    assert survey.load_tallies(plan, survey.survey(plan).name)[0][0].n_pictures == 5
    assert (plan.facts["model"], plan.facts["saes"][0]["name"]) == ("mine/model", "mine/vision.3")


def test_threads_of_one_worker_take_turns(whole: tuple, folder: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """As on a cluster whose workers have several: there is one model, and memory for one batch."""
    at_work, most = [], []

    def watched(surveyor: survey.Surveyor, shard: int, *more: object) -> int:
        at_work.append(shard)
        most.append(len(at_work))
        found = once(surveyor, shard, *more)
        at_work.remove(shard)
        return found

    once = survey._survey_shard
    monkeypatch.setattr(survey, "_survey_shard", watched)
    plan = survey.plan(asked(folder), tmp_path)
    with ThreadPoolExecutor(4) as executor:
        assert contents(survey.survey(plan, executor)) == contents(whole[1])
    assert max(most) == 1 and len(most) == plan.shards


def killed() -> None:
    os._exit(9)


def test_a_worker_that_dies_is_said_in_a_line(whole: tuple, folder: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    plan = survey.plan(asked(folder), tmp_path)
    with executors.processes(1) as executor, pytest.raises(VspError, match=r"a worker died.*--memory.*goes on"):
        executor.submit(killed)
        survey.survey(plan, executor)

    class KilledWorker(Exception):
        """As a Dask cluster raises it."""

    class Cluster(ThreadPoolExecutor):
        def submit(self, *asked: object) -> Future:
            task: Future = Future()
            task.set_exception(KilledWorker("survey_shard", "tcp://10.0.0.1:1", 3))
            return task

    with Cluster() as executor, pytest.raises(VspError, match="a worker died"):
        survey.survey(plan, executor)
    # Less memory is the same survey: it goes on.
    assert survey.plan(asked(folder, memory_bytes=1 << 20), tmp_path).folder == plan.folder


def test_workers_end_with_what_started_them() -> None:
    """Also where that was killed and could tell them nothing."""
    program = """
import os, time
from vsp_report.run import executors
with executors.processes(1) as executor:
    print(executor.submit(os.getpid).result(), flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be counted as dead is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_parts_of_different_machines_are_not_mixed(folder: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    plan = survey.plan(asked(folder), tmp_path)
    survey.survey_shard(str(plan.folder), 0)
    surveyor = survey._surveyor(str(plan.folder), plan.facts["key"])
    monkeypatch.setattr(surveyor, "made", surveyor.made | {"device_class": "cuda sm_90"})
    survey.survey_shard(str(plan.folder), 1)
    with pytest.raises(VspError, match="do not fit together: cpu in float32 and cuda sm_90 in float32"):
        survey.merge_files(str(plan.folder), [f"tally-00000{k}-00000{k}.npz" for k in (0, 1)])
    # What an atlas says of it is the workers' device, not this process'.
    monkeypatch.setattr(survey_atlas, "made_on", lambda tallies: surveyor.made)
    one = SimpleNamespace(n_pictures=1, n_patches=1)
    provenance = survey_atlas._provenance(plan, 0, one, load_sae(paths.bundled(SAES[0])), [], "", surveyor.made)
    assert provenance.device_class == "cuda sm_90"


def test_a_folder_that_is_gone_is_no_broken_picture(folder: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    here = tmp_path / "pictures"
    shutil.copytree(folder, here)
    plan = survey.plan(asked(here), tmp_path)
    here.rename(tmp_path / "moved")
    with pytest.raises(VspError, match="is not there"):
        survey.survey(plan)
    # The folder is there again, and empty, as a share that is not mounted is.
    here.mkdir()
    with pytest.raises(VspError, match=r"could be read before and now cannot.*goes on"):
        survey.survey(plan)
    assert plan.folder.is_dir() and not survey.finished(plan)
    shutil.rmtree(here)
    (tmp_path / "moved").rename(here)
    assert survey.load_tallies(plan, survey.survey(plan).name)[0][0].n_pictures == PICTURES


def test_pictures_that_failed_for_a_while_are_no_atlas(whole: tuple, tmp_path: Path, drawn_map: None) -> None:
    """Workers that cannot read what can be read here; and tallies of nothing at all."""
    plan, tallies = whole
    held = load_tallies(plan, tallies.name)
    copy = replace(plan, folder=tmp_path)
    broken = [[number, plan.source.name(number), "no such file"] for number in range(10)]
    save_tallies(copy, 0, plan.shards - 1, *held[:2], broken, {"device_class": "cpu"})
    with pytest.raises(VspError, match=r"10 of 25 pictures could not be read.*but now .* can.*remove"):
        survey.survey(copy)
    nothing = [Tally(plan.frame(k)) for k in range(len(plan.facts["dictionaries"]))]
    every = [[number, plan.source.name(number), "no such file"] for number in range(len(plan.source))]
    save_tallies(copy, 0, plan.shards - 1, nothing, {}, every, {"device_class": "cpu"})
    with pytest.raises(VspError, match="25 of 25 pictures could not be read"):
        survey.survey(copy)
    with pytest.raises(InputError, match="no picture of it could be read"):
        make_atlases(copy, tmp_path / tallies.name, tmp_path, command="")
    assert not (tmp_path / "atlas").exists()


# --- what is on the disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [0, 1])
def test_tallies_are_merged_as_they_arrive(jobs: int, whole: tuple, folder: Path, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Of 13 shards no more than a few lie there at once; and what others survey is not merged at the end only."""
    plan = survey.plan(replace(asked(folder), shard=2), tmp_path)
    once, there, surveyed = survey.merge_files, [], []

    def merge(*words: object) -> str:
        surveyed.append(sum(last - first + 1 for first, last, _ in survey.finished(plan)))
        return once(*words)

    monkeypatch.setattr(survey, "merge_files", merge)
    with ThreadPoolExecutor(1) as executor:
        merged = survey.survey(plan, executor if jobs else None, lambda _: there.append(len(survey.finished(plan))))
    assert contents(merged) == contents(whole[1])
    assert [path.name for path in plan.folder.glob("tally-*")] == [merged.name]
    assert surveyed[0] < plan.shards == surveyed[-1] and len(surveyed) == 4
    assert jobs or max(there) <= 7


@pytest.mark.parametrize("arriving", range(3))
def test_any_order_of_arrival_ends_in_one_file(arriving: int) -> None:
    """The tree alone, of a thousand shards: few files at any time, where few are out of turn."""
    chance, shards, held, most = np.random.default_rng(arriving), 1000, {}, 0
    order = np.argsort(np.arange(shards) + chance.uniform(0, 8, shards))
    for shard in map(int, order):
        held[shard, shard] = "one"
        while group := survey._complete(held, shard, shards):
            survey._take(held, group, "more")
        most = max(most, len(held))
    assert list(held) == [(0, shards - 1)] and most < 30


@pytest.mark.parametrize("fault", ["cut", "changed", "empty"])
def test_a_damaged_tally_is_surveyed_again(fault: str, whole: tuple, folder: Path, tmp_path: Path) -> None:
    plan = survey.plan(asked(folder), tmp_path)
    for shard in (0, 1):
        survey.survey_shard(str(plan.folder), shard)
    damaged = plan.folder / "tally-000001-000001.npz"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 255
    damaged.write_bytes({"cut": data[: len(data) // 2], "changed": data, "empty": b""}[fault])
    said: list[survey.Progress] = []
    assert contents(survey.survey(plan, None, said.append)) == contents(whole[1])
    assert said[0].done == SHARD


def test_a_shard_does_not_read_the_whole_plan_again(whole: tuple, folder: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    plan, read = survey.plan(asked(folder), tmp_path), []
    monkeypatch.setattr(
        survey.Plan, "read", lambda place, read_plan=survey.Plan.read: read.append(1) or read_plan(place)
    )
    survey.survey(plan)
    assert len(read) <= 2 < plan.shards


def test_what_nobody_goes_on_with_is_told_and_what_cannot_go_on_is_cleared(
    whole: tuple, folder: Path, tmp_path: Path, in_shards: None, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = tmp_path / "atlas"
    waiting, ended, other, fresh = (survey.plan(asked(folder, seed=seed), parent).folder for seed in (1, 2, 3, 4))
    (ended / survey_leftovers.DONE).touch()
    for one in (other, fresh):
        told = json.loads((one / "key.json").read_text()) | {"package_sha": "another"}
        (one / "key.json").write_text(json.dumps(told))
    for path in (*other.iterdir(), other):
        os.utime(path, (1, 1))
    assert main(command(folder, tmp_path, "--jobs", "1")) == 0
    said = capsys.readouterr().err
    assert "2 surveys have not ended" in said and waiting.name in said and fresh.name in said and "MiB" in said
    assert sorted(path.name for path in parent.glob(".*")) == sorted([waiting.name, fresh.name])


def test_memory_is_for_pictures_of_any_size(tmp_path: Path) -> None:
    """Pictures of 5 megapixels: what is open at once follows --memory, and not the batch, which would hold them all."""
    from PIL import Image

    large = Image.linear_gradient("L").resize((2592, 1944)).convert("RGB")
    for k in range(16):
        large.save(tmp_path / f"{k:02}.jpg", quality=60 + k)
    program = """
import re, sys
from vsp_report.study import photographs, survey, survey_plan
survey_plan.PROBED = 2
most = lambda: int(re.search("VmHWM:.*?([0-9]+)", open("/proc/self/status").read())[1]) / 1024
asked = lambda n: survey.Asked("sketchworld", ("sketchworld/vision.3",), photographs.open_source(sys.argv[1], n),
                               device="cpu", shard=64, memory_bytes=64 << 20)
for n in (1, 16):
    plan = survey.plan(asked(n), sys.argv[1])
    survey.survey_shard(str(plan.folder), 0, 64 << 20)
    print(most())
"""
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    one, many = map(float, ran.stdout.split())
    assert many - one < 160, f"{many - one:.0f} MiB more; held whole they would take 320"


def test_pictures_are_read_ahead_no_further_than_fits(tmp_path: Path) -> None:
    from PIL import Image

    for k in range(12):
        Image.new("RGB", (100, 100 + k)).save(tmp_path / f"{k:02}.png")
    (tmp_path / "05.png").write_text("no picture")
    source, entered = photographs.open_source(str(tmp_path)), []
    room = lambda n: n * photographs.PIXEL_BYTES * 100 * 115  # noqa: E731

    def at_most(bytes_open: int) -> int:
        """How many are decoded when the first one is looked at."""
        entered.clear()
        with pytest.MonkeyPatch.context() as patch:
            enter = photographs._Room.enter
            patch.setattr(photographs._Room, "enter", lambda self, *w: (enter(self, *w), entered.append(w)))
            stream = photographs.stream(source, range(12), 12, bytes_open)
            first = next(stream)
            time.sleep(0.2)
            found = len(entered)
            assert [first.number, *(one.number for one in stream)] == list(range(12))
        return found

    assert at_most(0) == 1 and at_most(room(3)) == 3 and at_most(room(100)) == 12
    # Who has seen enough leaves no thread behind that waits.
    stream = photographs.stream(source, range(12), 12, 0)
    next(stream)
    stream.close()


def test_pixels_are_what_the_whole_picture_gives(folder: Path) -> None:
    """Made ready one by one as in a batch, to the last bit."""
    import torch

    from vsp_report.model.feeding import Feeder
    from vsp_report.model.taps import Tap
    from vsp_report.study.survey_reading import ready

    vlm = survey_plan.kept_vlm("sketchworld", "cpu", None)
    source, feeder = photographs.open_source(str(folder)), Feeder(vlm, [Tap.parse("vision.3")])
    found = [one for batch in ready(source, feeder, range(len(source)), 4, 1 << 20, 32) for one in batch]
    assert tuple(source.name(one.photograph.number) for one in found if one.prompt is None) == BROKEN
    for one in found:
        if one.prompt is not None:
            image = photographs.read_picture(folder / source.name(one.photograph.number))
            torch.testing.assert_close(
                one.prompt.inputs["pixel_values"], vlm.prepare(image, "").inputs["pixel_values"], rtol=0, atol=0
            )
            assert one.photograph.image is None and one.grid == (12, 12) and one.small


# --- one folder for each atlas -----------------------------------------------------------------------------------


def test_an_sae_of_the_same_name_has_another_folder(
    folder: Path, tmp_path: Path, in_shards: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for place, name in (("mine", SAES[0]), ("yours", SAES[1])):
        shutil.copytree(paths.bundled(name), tmp_path / place / "vision.3")
    words = ["atlas", "--model", "sketchworld", "--images", str(folder), "--out", "site", "--jobs", "1"]
    assert main([*words, "--sae", "mine/vision.3", "--sae", "yours/vision.3"]) == 2
    said = capsys.readouterr().err
    assert "mine/vision.3 and yours/vision.3 would have one folder, sketchworld-vision.3" in said
    assert not (tmp_path / "site").exists()
    assert main([*words, "--sae", "mine/vision.3"]) == 0
    first = written(tmp_path / "site" / "atlas" / "sketchworld-vision.3")
    capsys.readouterr()
    assert main([*words, "--sae", "yours/vision.3"]) == 0
    assert "sketchworld-vision.3 is the atlas of mine/vision.3 of sketchworld, and stays" in capsys.readouterr().err
    slugs = sorted(path.parent.name for path in (tmp_path / "site" / "atlas").glob("*/atlas.json"))
    assert len(slugs) == 2 and slugs[0] == "sketchworld-vision.3" and slugs[1].startswith("sketchworld-vision.3-")
    assert written(tmp_path / "site" / "atlas" / "sketchworld-vision.3") == first
    assert load_atlas(tmp_path / "site" / "atlas" / slugs[1], verify=True).provenance.sae == "yours/vision.3"


# --- mistakes that are said first ----------------------------------------------------------------------------------


def test_mistakes_are_said_before_the_pass(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(survey_plan, "_look", None)
    (tmp_path / "mine.csv").write_text("latent,label\n3,cup\n9999,nose\n")
    assert main(command(folder, tmp_path, "--labels", str(tmp_path / "mine.csv"))) == 2
    assert "mine.csv: labels latent 9999, and the SAE has 3584" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("cup\nperson\n")
    words = ("--words", str(tmp_path / "words.txt"))
    assert main(command(folder, tmp_path, *words, "--clip", str(tmp_path))) == 2
    assert f"{tmp_path}: has no config.json" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("cup\nxylophone\n")
    assert main(command(folder, tmp_path, *words)) == 2
    assert "does not know 'xylophone'" in capsys.readouterr().err


def test_labels_that_name_no_picture_are_told(folder: Path) -> None:
    said: list[str] = []
    labels = {"a/00.png": "x", "a/elsewhere.png": "y", "b/99.png": "z"}
    photographs.open_source(str(folder), 1, labels, "labels.csv", said.append)
    assert said == ["labels.csv: 2 of 3 lines name no picture, such as a/elsewhere.png."]


def test_a_map_that_takes_long_says_so_in_a_pipe_too_and_once(
    whole: tuple, tmp_path: Path, drawn_map: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert projection.seconds_for(3) == 0 < projection.seconds_for(900) < projection.seconds_for(9000)
    monkeypatch.setattr(projection, "seconds_for", lambda latents: 60.0 + latents)
    for said in (2, 0):  # the second time the maps are there
        with Bar() as pace:
            make_atlases(*whole, tmp_path, command="here", on_step=partial(_step, pace))
        assert capsys.readouterr().err.count("map of sketchworld/vision.3") == said


# --- cases -------------------------------------------------------------------------------------------------------


CASE = """
title: Standing beside a chair
failure: misleading-cue
model: sketchworld
sae: sketchworld/vision.3
image: {scene: {mode: misleading-cue, variation: chair, seed: 1}}
prompt: Is the person sitting or standing?
contrast: {right: standing, wrong: sitting}
device: cpu
steer:
  no-seat: [{latents: {label: seat, top: 4}, set: 0}]
controls: {draws: 0, kinds: []}
"""


def shelve(site: Path, seats: list[int], common: list[int], inquiry: Inquiry) -> None:
    """An atlas, made by hand, in which some latents are seats and others are on in every picture."""
    L = inquiry.looked.latents_PL.shape[1]
    frequency_L = np.zeros(L)
    frequency_L[seats], frequency_L[common] = 0.25, 1.0
    alive_L, one = frequency_L > 0, np.zeros((L, 1))
    references_LR = np.where(alive_L[:, None], 0, -1)
    arrays = Arrays(
        frequency_L, frequency_L / 9, 2.0 * alive_L, frequency_L * 2, 3.0 * alive_L, one.astype(int), one[:, 0],
        one[:, 0], one[:, 0], references_LR, 1.5 * (references_LR >= 0), np.append(0, alive_L.cumsum()),
        np.zeros(alive_L.sum(), int), np.full(alive_L.sum(), 255), np.array([[12, 12]]), one.astype(int) - 1, one, one,
        np.zeros((L, 2)), one[:, 0] - 1, np.where(np.isin(np.arange(L), seats), 0, -1)[None], one.T,
    )  # fmt: skip
    made = Provenance("sketchworld", inquiry.model.sha, "sketchworld/vision.3", inquiry.sae.sha, "vision.3", "topk",
                      "sketchworld", "", 4, 576, 0, "", {}, "cpu", "float32", "by hand")  # fmt: skip
    sheets = Sheets(save_sheets(site / "atlas", [b"a sheet"]), ("000.webp",), 8, 1, 1)
    save_atlas(site / "atlas", Atlas(SCHEMA, "sketchworld-vision.3", made, (0.0, 1.0), "by hand", (), (),
                                     (Labelling("given", "by hand", "", ("seat",)),), (), ("scene 1",), ("",), sheets,
                                     arrays))  # fmt: skip


def test_a_case_names_latents_by_label_and_its_recording_knows_them(tmp_path: Path) -> None:
    """With an atlas beside the recordings; without one, and for a word that it has not, an error that says where."""
    case, recording = tmp_path / "cases" / "seat.yaml", tmp_path / "site" / "recordings" / "seat"
    case.parent.mkdir()
    case.write_text(CASE)
    inquiry = open_case(case, recording)
    look(inquiry)
    with pytest.raises(
        SteeringError, match=r"seat.yaml:\d+: steer.*names latents by the label 'seat'.*vsp-report atlas"
    ):
        steer_all(inquiry)
    strongest = np.argsort(-inquiry.ranks.mass_L, kind="stable")[:160].tolist()
    seats, common = strongest[:6], strongest[6:]
    shelve(tmp_path / "site", seats, common, inquiry)
    inquiry = open_case(case, recording)
    look(inquiry)
    heat = cluster(inquiry)
    # of 160 latents that live, the two per cent that are on most often tie with all others that always are
    assert heat is not None and not set(seats) & heat.noisy
    (steered,) = steer_all(inquiry)
    assert steered.edits[0].latents == tuple(seats[:4])
    known = {one.number: one for one in inquiry.recording().latents}
    assert (known[seats[0]].label, known[seats[0]].frequency, known[seats[0]].mean_activation) == ("seat", 0.25, 2.0)
    assert [(one.id, one.activation) for one in known[seats[0]].references] == [("scene 1", 1.5)]
    assert known[common[0]].label == "" and known[common[0]].frequency == 1.0
    case.write_text(CASE.replace("label: seat", "label: seet"))
    inquiry = open_case(case, recording)
    look(inquiry)
    with pytest.raises(SteeringError, match=r"'seet'.*Did you mean seat\?"):
        steer_all(inquiry)


def test_the_atlas_is_part_of_what_a_recording_hangs_on(tmp_path: Path, whole: tuple, drawn_map: None) -> None:
    (tmp_path / "seat.yaml").write_text(CASE)
    case, around = load_case(tmp_path / "seat.yaml"), look_around()
    key = lambda: foresee(case, around, notebook_sha="", site=tmp_path).run_key  # noqa: E731
    before = key()
    make_atlases(*whole, tmp_path, command="here")
    assert key() != before
    assert foresee(case, around, notebook_sha="").run_key == before


def test_the_papers_noise_filter() -> None:
    """The top share of the living by frequency or by mean, wherever a picture has them."""
    frequency_L, mean_L = (
        np.r_[np.zeros(100), np.linspace(0.01, 0.5, 100)],
        np.r_[np.zeros(100), np.linspace(3, 1, 100)],
    )
    stub = SimpleNamespace(
        d_sae=200, alive_L=frequency_L > 0, arrays=SimpleNamespace(frequency_L=frequency_L, mean_L=mean_L)
    )
    assert np.flatnonzero(noisy_in(stub, 0.02)).tolist() == [100, 101, 198, 199]


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
