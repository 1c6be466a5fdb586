"""Wheel: what an installation holds, and the workflows of a repository that installs it. Nothing is downloaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from vsp_report import __version__, cli

CASE = "standing-beside-a-chair"
HASHED = re.compile(r"hashFiles\('([^']+)'\) != ''")


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(words, cwd=root, check=True, capture_output=True)
    (file,) = folder.iterdir()
    return file


def visible(folder: Path) -> dict[str, Path]:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: file for name, file in files.items() if not re.search(r"(^|/)(\.|__pycache__/)", name)}


# --- what is inside ----------------------------------------------------------------------------------------------


def test_a_wheel_holds_the_package_its_templates_and_its_cases(wheel: Path, root: Path) -> None:
    """Every file of the three folders with its bytes, and nothing else."""
    wanted = {f"vsp_report/{name}": file for name, file in visible(root / "vsp_report").items()}
    for folder in ("templates", "cases"):
        wanted |= {f"vsp_report/_bundled/{folder}/{name}": file for name, file in visible(root / folder).items()}
    with zipfile.ZipFile(wheel) as opened:
        told = {name for name in opened.namelist() if not re.match(r"vsp_report-[^/]+\.dist-info/", name)}
        assert told == wanted.keys()
        differing = [name for name, file in wanted.items() if opened.read(name) != file.read_bytes()]
    assert differing == []
    bundled, weights = "vsp_report/_bundled", "vsp_report/sketchworld/weights"
    for name in (
        f"{bundled}/cases/{CASE}.yaml",
        f"{bundled}/cases/baselines/{CASE}.json",
        f"{bundled}/templates/cases/question.yaml",
        f"{bundled}/templates/ci/audit.yml",
        f"{bundled}/templates/notebooks/case.ipynb",
        f"{bundled}/templates/notebooks/row.ipynb",
        f"{bundled}/templates/pages/case.html.jinja",
        f"{bundled}/templates/static/panel.js",
        f"{bundled}/templates/static/vega.js",
        f"{weights}/README.md",
        f"{weights}/sketchworld/model.safetensors",
        f"{weights}/clip/model.safetensors",
        f"{weights}/saes/vision.3/sae_weights.safetensors",
    ):
        assert name in told
    assert wheel.stat().st_size < 25e6


def test_a_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (info,) = {name.partition("/")[0] for name in opened.namelist() if ".dist-info/" in name}
        told = message_from_bytes(opened.read(f"{info}/METADATA"))
        assert (told["Name"], told["Version"]) == ("vsp-report", __version__)
        assert opened.read(f"{info}/entry_points.txt").decode().split() == [
            "[console_scripts]", "vsp-report", "=", "vsp_report.cli:main"
        ]  # fmt: skip
        assert f"{info}/licenses/LICENSE" in opened.namelist()


# --- the workflows of a repository that installs it --------------------------------------------------------------


class Step(NamedTuple):
    run: str
    code: int
    out: str
    may_fail: bool


class Runner:
    """Does what a runner of GitHub does with the shell steps of a workflow, without a network; pip installs the wheel
    that the workflow names into a folder of its own, and this machine's packages stand for what it would bring."""

    def __init__(self, repository: Path) -> None:
        self.repository, self.installed = repository, repository.parent / "installed"
        programs = repository.parent / "bin"
        programs.mkdir()
        for name, words in (("python", ""), ("vsp-report", "-m vsp_report")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (programs / name).chmod(0o755)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "PIP_"))} | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(self.installed), "CI": "true",
            "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(repository.parent / "summary.md"),
            "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1", "PIP_TARGET": str(self.installed), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_COMPILE": "1",
        }  # fmt: skip

    def runs(self, name: str) -> tuple[bool, list[Step]]:
        """Whether the job is green, and its shell steps; what is installed once is not installed again."""
        workflow = yaml.safe_load((self.repository / ".github" / "workflows" / f"{name}.yml").read_text())
        (job,) = workflow["jobs"].values()
        green, done = True, []
        for step in job["steps"]:
            wanted = step.get("if", "success()").strip("${} ")
            if hashed := HASHED.search(wanted):
                wanted = wanted.replace(hashed[0], str(any(self.repository.glob(hashed[1]))))
            said = {"success()": green, "always()": True, "!cancelled() && True": True, "!cancelled() && False": False}
            if "run" not in step or not said[wanted] or ("pip install" in step["run"] and self.installed.is_dir()):
                continue
            words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            env = self.env | workflow["env"]
            run = subprocess.run(words, cwd=self.repository, env=env, capture_output=True, text=True, check=False)
            may_fail = step.get("continue-on-error", False)
            done.append(Step(step["run"].splitlines()[-1], run.returncode, run.stdout + run.stderr, may_fail))
            green = green and (may_fail or run.returncode == 0)
        return green, done


@pytest.fixture
def runner(wheel: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A repository with nothing but one case, which needs a GPU; its recording, made on one; and the wheel."""
    here = tmp_path / "repository"
    for folder in ("cases/baselines", "site/recordings", "tools"):
        (here / folder).mkdir(parents=True)
    text = (root / "cases" / f"{CASE}.yaml").read_text()
    (here / "cases" / f"{CASE}.yaml").write_text(f"{text}needs: [gpu]\n")
    shutil.copy(root / "cases" / "baselines" / f"{CASE}.json", here / "cases" / "baselines")
    shutil.copytree(root / "site" / "recordings" / CASE, here / "site" / "recordings" / CASE)
    shutil.copy(wheel, here / "tools")
    subprocess.run(["git", "init", "-q"], cwd=here, check=True)
    monkeypatch.chdir(here)
    assert cli.main(["audit", "--from-recordings", "--no-github"]) == 0
    assert cli.main(["init-ci", "--from", f"tools/{wheel.name}"]) == 0
    return Runner(here)


def test_the_audit_of_a_repository_that_needs_a_gpu(runner: Runner) -> None:
    """What cannot run there is checked by what is committed, and what was confirmed before is known."""
    green, steps = runner.runs("audit")
    assert green, steps
    assert [step.code for step in steps] == [0, 0, 0, 0]
    assert (runner.installed / "vsp_report" / "_bundled" / "cases").is_dir()
    assert steps[2].out.splitlines()[-1] == "audit: met (0): 1 confirmed"
    (one,) = json.loads(Path("audit.json").read_text())["cases"]
    assert (one["verdict"], one["was"]) == ("confirmed", "confirmed")
    assert (runner.repository.parent / "summary.md").read_text()
    # Another claim of the same question: the audit is red, and its page is built all the same.
    file = Path("cases") / f"{CASE}.yaml"
    file.write_text(file.read_text().replace("before: {answer: sitting", "before: {answer: standing"))
    green, steps = runner.runs("audit")
    assert not green and [step.code for step in steps] == [0, 1, 0]
    (one,) = json.loads(Path("audit.json").read_text())["cases"]
    assert (one["verdict"], one["was"]) == ("not reproduced", "confirmed")


def test_the_pages_are_published_although_a_case_fails(runner: Runner) -> None:
    file = Path("cases") / f"{CASE}.yaml"
    lost = file.read_text().replace("model: sketchworld", "model: lost").replace("needs: [gpu]\n", "")
    Path("cases/lost.yaml").write_text(re.sub(r"(?ms)^  baseline:.*?(?=^\S|\Z)", "", lost))
    Path("lost").mkdir()
    green, steps = runner.runs("pages")
    assert green, steps
    assert [(step.code, step.may_fail) for step in steps[1:]] == [(0, False), (3, True), (3, True), (0, False)]
    for id in (CASE, "lost"):
        assert (Path("site/cases") / id / "index.html").is_file()
