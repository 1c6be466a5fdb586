"""Hosting: what is pushed and what is not, and workflows that a runner can read."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
import yaml

from vsp_report import cli, hosting
from vsp_report.errors import MissingExtra


def git(*words: str, cwd: Path) -> str:
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a site, and a bare one that it pushes to."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.org")
    git("init", "--bare", "-q", "remote.git", cwd=tmp_path)
    here = tmp_path / "project"
    (here / "site" / "recordings" / "one").mkdir(parents=True)
    (here / "site" / "index.html").write_text("<p>site")
    (here / "site" / "recordings" / "one" / "recording.json").write_text("{}")
    git("init", "-q", cwd=here)
    git("remote", "add", "origin", str(tmp_path / "remote.git"), cwd=here)
    monkeypatch.chdir(here)
    return here


def run(*words: str) -> int:
    return cli.main(list(words))


def test_publish_pushes_the_site_and_touches_nothing_else(project: Path, capsys) -> None:
    assert run("publish", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("would publish 2 files, 0.0 MiB, to gh-pages of ")
    assert git("branch", "--list", "--all", cwd=project) == ""
    assert run("publish") == 0
    pushed = git("ls-tree", "-r", "--name-only", "gh-pages", cwd=project.parent / "remote.git").splitlines()
    assert sorted(pushed) == [".nojekyll", "index.html", "recordings/one/recording.json"]
    assert git("status", "--porcelain", cwd=project) == "?? site/"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "nowhere"], "nowhere: holds no site. `vsp-report build` makes one."),
        (["--remote", "upstream"], "--remote: upstream is no remote of a git repository here. Known: origin."),
        (["--branch", "a..b"], "--branch: 'a..b' is no name of a branch."),
    ],
)
def test_what_cannot_be_published(project: Path, capsys, words: list[str], said: str) -> None:
    assert run("publish", *words) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_not_published(project: Path, capsys) -> None:
    (project / "site" / "recordings" / ".run.0123.partial").mkdir()
    assert run("publish", "--dry-run") == 2
    assert "is of a run that has not ended" in capsys.readouterr().err


def test_a_push_that_fails_says_why(project: Path, capsys) -> None:
    git("remote", "set-url", "origin", str(project.parent / "gone.git"), cwd=project)
    assert run("publish") == 3
    assert "could not be pushed to" in capsys.readouterr().err


def test_a_password_in_the_remote_is_not_told(project: Path, capsys) -> None:
    git("remote", "set-url", "origin", "https://ann:secret@example.org/a.git", cwd=project)
    assert run("publish", "--dry-run") == 0
    assert capsys.readouterr().out.endswith("to gh-pages of https://example.org/a.git\n")


def test_without_ghp_import_the_error_names_the_command(project: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'vsp-report\[publish\]'"):
        hosting.parcel(Path("site"))


def test_init_ci_writes_two_workflows_once(project: Path, capsys) -> None:
    assert run("init-ci") == 0
    folder = project / ".github" / "workflows"
    assert sorted(file.name for file in folder.iterdir()) == ["audit.yml", "pages.yml"]
    for file in folder.iterdir():
        (job,) = yaml.safe_load(file.read_text())["jobs"].values()
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands[0] == "python -m pip install vsp-report"
        parser = cli._parser()
        for command in commands[1:]:  # each is one that this package has
            parser.parse_args(command.split()[1:])
    (folder / "audit.yml").unlink()
    capsys.readouterr()
    assert run("init-ci") == 2
    assert "pages.yml: is there already" in capsys.readouterr().err
    assert not (folder / "audit.yml").exists()


def test_init_ci_is_for_repositories(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init-ci") == 2
    assert "is not the root of a git repository" in capsys.readouterr().err


def test_in_a_checkout_of_this_package_workflows_install_that(project: Path) -> None:
    (project / "vsp_report").mkdir()
    (project / "vsp_report" / "__init__.py").touch()
    hosting.write_workflows(project)
    assert "pip install --constraint constraints.txt ." in (project / ".github/workflows/pages.yml").read_text()
