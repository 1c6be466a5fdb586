"""Hosting: what is pushed and what is not, and workflows that a runner can read."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
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


def test_a_branch_that_is_worked_on_is_not_replaced(project: Path, capsys) -> None:
    here = git("symbolic-ref", "--short", "HEAD", cwd=project)
    assert run("publish", "--branch", here) == 2
    assert f"--branch: {here} holds what is worked on" in capsys.readouterr().err


def test_a_domain_of_ones_own_stays(project: Path) -> None:
    assert run("publish") == 0
    other = project.parent / "other"
    git("clone", "-q", "-b", "gh-pages", str(project.parent / "remote.git"), str(other), cwd=project.parent)
    (other / "CNAME").write_text("example.org\n")
    git("add", "CNAME", cwd=other)
    git("commit", "-q", "-m", "A domain", cwd=other)
    git("push", "-q", cwd=other)
    (project / "site" / "index.html").write_text("<p>another")
    assert run("publish") == 0
    assert git("show", "gh-pages:CNAME", cwd=project.parent / "remote.git") == "example.org"


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


SOURCE = "git+https://example.org/lab/vsp-report@v1.2"


def steps(file: Path) -> list[dict]:
    (job,) = yaml.safe_load(file.read_text())["jobs"].values()
    return job["steps"]


def test_init_ci_writes_workflows_that_find_what_they_name(project: Path, capsys) -> None:
    assert run("init-ci", "--from", SOURCE, "--torch-index", "https://example.org/cpu") == 0
    assert f"runners install vsp-report from {SOURCE}" in capsys.readouterr().out
    folder = project / ".github" / "workflows"
    assert sorted(file.name for file in folder.iterdir()) == ["audit.yml", "pages.yml"]
    parser = cli._parser()
    for file in folder.iterdir():
        assert yaml.safe_load(file.read_text())["env"] == {
            "VSP_REPORT": SOURCE, "TORCH_INDEX": "https://example.org/cpu"
        }  # fmt: skip
        (cached,) = [step["with"] for step in steps(file) if "cache" in step.get("with", {})]
        assert (project / cached["cache-dependency-path"]).is_file()  # else setup-python ends the job
        install, *commands = [step["run"] for step in steps(file) if "run" in step]
        assert install.splitlines()[-1].endswith(f'--constraint {cached["cache-dependency-path"]} "$VSP_REPORT"')
        for command in commands:  # each is one that this package has
            parser.parse_args(command.split()[1:])


def test_what_is_pinned_is_what_is_installed_here(project: Path) -> None:
    """Everything that the package imports is pinned as it is, by pip's own list; nothing that only tests need is."""
    assert run("init-ci", "--from", SOURCE) == 0
    lines = (project / hosting.CONSTRAINTS).read_text().splitlines()
    told = subprocess.run([sys.executable, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True)
    frozen = {line.partition("+")[0].lower().replace("_", "-") for line in told.stdout.splitlines()}
    pins = {line.replace("_", "-").replace(".", "-") for line in lines[1:]}
    assert lines[0].startswith("# ") and pins <= {line.replace(".", "-") for line in frozen}
    names = {line.partition("==")[0] for line in lines[1:]}
    assert {"torch", "transformers", "nbclient", "markupsafe", "sympy"} <= names
    assert not names & {"pytest", "ruff", "vsp-report", "dask"}


def test_init_ci_writes_all_or_nothing(project: Path, capsys) -> None:
    assert run("init-ci", "--from", SOURCE) == 0
    folder = project / ".github" / "workflows"
    (folder / "audit.yml").unlink()
    capsys.readouterr()
    assert run("init-ci", "--from", SOURCE) == 2
    assert "pages.yml: is there already" in capsys.readouterr().err
    assert not (folder / "audit.yml").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("vsp-report", "vsp-report is a name without a version, and anybody may register a name"),
        ("vsp-report>=1", "has characters that no source needs"),
        ("git+https://example.org/lab/vsp-report", "names neither a tag nor a commit"),
        ("git+https://ann:secret@example.org/a@v1", "holds a password, which would be committed"),
        ("git+https://token@example.org/a@v1", "holds a password, which would be committed"),
        ("http://example.org/vsp_report-1-py3-none-any.whl", "is neither git over https or ssh, nor a wheel"),
        ("https://example.org/page.html", "is neither git over https or ssh, nor a wheel"),
        ("--index-url=https://example.org", "has characters that no source needs"),
        ("a$(touch x)", "has characters that no source needs"),
        ("${{github.token}}", "has characters that no source needs"),
        ("gone.whl", "gone.whl is no file here"),
        ("../elsewhere.whl", "is outside the repository"),
        ("site", "is neither a wheel nor a folder with a pyproject.toml"),
        ("dist/ignored.whl", "is ignored by git, so that no runner has it"),
    ],
)
def test_sources_that_a_runner_cannot_have_or_trust(project: Path, capsys, source: str, said: str) -> None:
    (project / "dist").mkdir()
    (project / ".gitignore").write_text("dist/\n")
    for file in (project / "dist" / "ignored.whl", project.parent / "elsewhere.whl"):
        file.touch()
    assert run("init-ci", f"--from={source}") == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: --from: ") and "secret" not in err
    assert not (project / ".github").exists()


@pytest.mark.parametrize(
    ("source", "written"),
    [
        (SOURCE, SOURCE),
        ("git+ssh://git@example.org/lab/vsp-report@0123abc", "git+ssh://git@example.org/lab/vsp-report@0123abc"),
        ("https://example.org/vsp_report-1-py3-none-any.whl", "https://example.org/vsp_report-1-py3-none-any.whl"),
        ("our-vsp-report==1.2.0", "our-vsp-report==1.2.0"),
        ("tools/vsp_report-1-py3-none-any.whl", "./tools/vsp_report-1-py3-none-any.whl"),
        ("tools", "./tools"),
    ],
)
def test_sources_that_a_runner_can_have(project: Path, source: str, written: str) -> None:
    (project / "tools").mkdir()
    (project / "tools" / "vsp_report-1-py3-none-any.whl").touch()
    (project / "tools" / "pyproject.toml").touch()
    assert hosting.source_of(source, project) == written


@pytest.mark.parametrize(
    ("told", "source"),
    [
        ({"url": "https://ann:secret@example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
         f"git+https://example.org/a.git@{'0' * 40}"),
        ({"url": "ssh://git@example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
         f"git+ssh://git@example.org/a.git@{'0' * 40}"),
        ({"url": "file:///a.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}, None),
        ({"url": "file:///a", "dir_info": {"editable": True}}, None),
        (None, None),
    ],
)  # fmt: skip
def test_without_a_source_it_is_where_this_one_came_from(project: Path, monkeypatch, capsys, told, source) -> None:
    class Installed:
        requires, version = (), "1"

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return json.dumps(told) if told else None

    monkeypatch.setattr(hosting.metadata, "distribution", lambda name: Installed())
    assert run("init-ci") == (0 if source else 2)
    out, err = capsys.readouterr()
    assert f"from {source}\n" in out if source else "--from: is not given" in err


@pytest.mark.parametrize("index", ["example.org/cpu", "http://example.org/cpu", "https://example.org/$(x)"])
def test_an_index_is_an_address(project: Path, capsys, index: str) -> None:
    assert run("init-ci", "--from", SOURCE, "--torch-index", index) == 2
    assert "--torch-index: " in capsys.readouterr().err


def test_init_ci_is_for_repositories(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init-ci") == 2
    assert "is not the root of a git repository" in capsys.readouterr().err


def test_in_a_checkout_of_this_package_workflows_install_that(project: Path) -> None:
    (project / "vsp_report").mkdir()
    (project / "vsp_report" / "__init__.py").touch()
    assert hosting.write_workflows(project).source == "."
    assert not (project / hosting.CONSTRAINTS).exists()
    text = (project / ".github/workflows/pages.yml").read_text()
    assert 'pip install --constraint constraints.txt "$VSP_REPORT"' in text and 'VSP_REPORT: "."' in text


def test_the_action_installs_as_the_workflows_do(root: Path) -> None:
    """And does what the workflow `audit` does, step by step."""
    action = yaml.safe_load((root / "action.yml").read_text())["runs"]["steps"]
    workflow = steps(root / "templates/ci/audit.yml")
    install = [next(s["run"] for s in of if "pip install" in s.get("run", "")) for of in (action, workflow)]
    for there, here in (('"$ACTION/constraints.txt"', "{constraints}"), ('"$ACTION"', '"$VSP_REPORT"')):
        install[0] = install[0].replace(there, here)
    assert install[0].split() == install[1].split()
    kept = [[s["uses"] for s in of if "artifact" in s.get("uses", "")] for of in (action, workflow)]
    assert kept[0] == kept[1] == ["actions/upload-artifact@v4"]
    for command in ("vsp-report check", "vsp-report audit", "vsp-report build"):
        assert all(any(command in step.get("run", "") for step in of) for of in (action, workflow))


def test_a_survey_that_has_not_ended_is_not_published(project: Path, capsys) -> None:
    (project / "site" / "atlas" / ".survey-0123456789abcdef").mkdir(parents=True)
    assert run("publish", "--dry-run") == 2
    said = capsys.readouterr().err
    assert "atlas/.survey-0123456789abcdef: is of a survey that has not ended" in said and "remove the folder" in said
