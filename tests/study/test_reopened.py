"""Reopened notebooks: the case is found from the folders below the project, and what is published stays as it is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from vsp_report.study.reopened import places

CASE, OUT = "cases/mine.yaml", "site/recordings/mine"


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
    for file in (CASE, f"{OUT}/notebook.ipynb", f"{OUT}/recording.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    return tmp_path


@pytest.mark.parametrize("here", [".", OUT, "site"])
def test_a_case_is_found_from_below_the_project(
    project: Path, here: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(project / here)
    case, folder = places(CASE, OUT)
    assert case.resolve() == project / CASE
    assert project not in folder.parents and not folder.exists() and folder.name == "mine"
    assert f"{OUT} is published and stays as it is" in capsys.readouterr().out


def test_what_was_not_published_is_written_where_it_is_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(project)
    (project / OUT / "notebook.ipynb").unlink()
    assert places(CASE, OUT) == (Path(CASE), Path(OUT))
    assert places(project / CASE, project / OUT) == (project / CASE, project / OUT)
    assert capsys.readouterr().out == ""


def test_a_case_that_is_nowhere_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places("cases/none.yaml", "out") == (Path("cases/none.yaml"), Path("out"))
