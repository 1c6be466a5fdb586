"""What a survey leaves on the disk: merged as it arrives, mended where it is damaged, cleared when it is done with."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.study.surveys import SAES, SHARD, asked, command, contents
from vsp_report.atlas import load_atlas, save_sheets, sweep_sheets
from vsp_report.cli import main
from vsp_report.study import photographs, survey, survey_leftovers, survey_plan
from vsp_report.study.survey_atlas import make_atlases


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


def test_small_pictures_are_kept_while_they_may_become_references(whole: tuple) -> None:
    plan, tallies = whole
    found, small, _ = survey.load_tallies(plan, tallies.name)
    trained = found[: len(SAES)]
    assert set(small) == {int(i) for one in trained for i in one.references.best(survey_plan.KEPT).picture_A}
    assert all(one.references.best(survey_plan.KEPT + 1).picture_A.size > 100 for one in trained)


def test_two_commands_into_one_place_leave_each_others_pictures(
    whole: tuple, folder: Path, tmp_path: Path, drawn_map: None
) -> None:
    """And the pictures of what is made anew go at once."""
    parent = tmp_path / "atlas"
    make_atlases(*whole, tmp_path, command="here")
    (before,) = parent.glob("pictures-*")
    theirs = parent / save_sheets(parent, [b"of another command, which writes its atlas next"])
    source = photographs.open_source(str(folder), 12)
    fewer = survey.plan(replace(asked(folder), source=source), tmp_path / "work")

    def swept_meanwhile(step: str, seconds: float) -> None:
        """Another command ends, at any moment, and clears whatever no atlas names."""
        sweep_sheets(parent, {one.name for one in parent.glob("pictures-*")} - {theirs.name})

    folders = make_atlases(fewer, survey.survey(fewer), tmp_path, command="here", on_step=swept_meanwhile)
    sheets = {load_atlas(one, verify=True).sheets.folder for one in folders}
    assert len(folders) == 2 and len(sheets) == 1 and before.name not in sheets
    assert {one.name for one in parent.glob("pictures-*")} == sheets | {theirs.name}


def test_what_a_survey_takes_on_disk_at_most(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's arithmetic, against the tree that merges."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import atlas as benchmark

    for shards, size in ((1, float), (13, float), (64, float), (313, lambda n: 5 + min(n, 40)), (313, lambda n: 7)):
        held, most = {}, 0.0
        for shard in range(shards):
            held[shard, shard] = ""
            while group := survey._complete(held, shard, shards):
                whole = size(group[-1][1] - group[0][0] + 1)
                most = max(most, whole + sum(size(last - first + 1) for first, last in held))
                survey._take(held, group, "")
            most = max(most, sum(size(last - first + 1) for first, last in held))
        assert most <= benchmark.most_on_disk(shards, size) <= 1.5 * most
