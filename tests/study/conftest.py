"""Pictures and surveys of them that several files of tests look at; nobody changes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study.surveys import PICTURES, SHARD, asked, bomb, command, drawn
from vsp_report.atlas import (
    Atlas,
    load_atlas,
)
from vsp_report.cli import main
from vsp_report.maths import projection
from vsp_report.sketchworld import rules
from vsp_report.study import survey, survey_plan
from vsp_report.study.survey_atlas import make_atlases


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[survey.Plan, Path]:
    """A survey that nothing disturbed."""
    plan = survey.plan(asked(folder), tmp_path_factory.mktemp("site") / "atlas")
    return plan, survey.survey(plan)


@pytest.fixture
def drawn_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map in no time; the true one has its own test."""
    monkeypatch.setattr(projection, "map_of", drawn)


@pytest.fixture
def atlases(whole: tuple[survey.Plan, Path], tmp_path: Path, drawn_map: None) -> list[Atlas]:
    plan, tallies = whole
    return [load_atlas(one, verify=True) for one in make_atlases(plan, tallies, tmp_path, command="here")]


@pytest.fixture(scope="session")
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
