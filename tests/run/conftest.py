"""Conftest: a site in a folder of its own, and small notebooks that record without any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

CASE = """\
title: {id}
model: sketchworld
sae: sketchworld/vision.3
image: {{scene: {{family: cups, seed: {seed}}}}}
prompt: Where is the cup?
contrast: {{right: on a table, wrong: on a hand}}
"""
SAVE = """\
import os
from vsp_report.case import load_case
from vsp_report.recording import SCHEMA, Answered, Provenance, Recording, save_recording
case = load_case(case_path)
answered = Answered(text=str(os.getpid()))
save_recording(out_dir, Recording(SCHEMA, case.id, "ok", case.resolved(), clean=answered))
"""


def cell(source: str, *tags: str) -> dict:
    return {"cell_type": "code", "id": "", "metadata": {"tags": list(tags)} if tags else {}, "source": source,
            "outputs": [], "execution_count": None}  # fmt: skip


def prose(source: str) -> dict:
    return {"cell_type": "markdown", "id": "", "metadata": {}, "source": source}


class Site:
    """`cases/` and `site/recordings/` in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recordings = folder, folder / "site" / "recordings"
        (folder / "cases").mkdir()

    def case(self, id: str, seed: int = 0) -> Path:
        file = self.folder / "cases" / f"{id}.yaml"
        file.write_text(CASE.format(id=id, seed=seed))
        return file

    def cases(self, *ids: str) -> list[Path]:
        return [self.case(id, seed) for seed, id in enumerate(ids)]

    def notebook(self, *cells: str, save: bool = True) -> Path:
        """Parameters, then these cells, then one that records."""
        made = [cell("case_path = ''\nout_dir = ''", "parameters"), prose("# A case"), prose("## First step")]
        made += [cell(source) for source in cells]
        made += [prose("## The recording"), cell(SAVE)] if save else []
        for i, one in enumerate(made):
            one["id"] = f"cell-{i}"
        file = self.folder / "case.ipynb"
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        file.write_text(json.dumps({"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
        return file


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path)


@pytest.fixture
def ran(site: Site) -> Callable:
    """Run all cases with a notebook made of these cells; returns the outcomes by case."""
    from vsp_report.case import load_cases
    from vsp_report.run import batch, executors

    def run(*cells: str, jobs: int = 1, save: bool = True, notebook: Path | None = None, **wanted) -> dict:
        want = batch.Wanted(site.recordings, notebook=notebook or site.notebook(*cells, save=save), **wanted)
        steps = batch.plan(load_cases("cases"), want)
        outcomes = batch.run(steps, want, lambda: executors.here(jobs), Silent())
        return {outcome.id: outcome for outcome in outcomes}

    return run


class Silent:
    def begins(self, tasks: int) -> None: ...

    def ended(self, outcome) -> None: ...

    def runs(self, steps) -> None: ...
