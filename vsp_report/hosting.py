"""Hosting: the site on GitHub Pages, pushed from here or made there by a workflow. Git does the pushing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from vsp_report import paths
from vsp_report.errors import InputError, MissingExtra, VspError

PUBLISH_EXTRA = "python -m pip install 'vsp-report[publish]'"
WORKFLOWS = ("pages.yml", "audit.yml")
MAX_SITE_BYTES = 2**30
"""GitHub's limit of a published site."""


class Parcel(NamedTuple):
    """What would be pushed, and where to."""

    site: Path
    files: int
    size_bytes: int
    remote: str
    address: str
    """of the remote, without a password that may stand in it"""
    branch: str


def parcel(site: Path, remote: str = "origin", branch: str = "gh-pages") -> Parcel:
    """Look at a site and at where it is to go; raises for what would go wrong. Changes nothing."""
    if not (site / "index.html").is_file():
        raise InputError(str(site), "holds no site", "`vsp-report build` makes one.")
    if writing := [entry.name for entry in site.glob("recordings/.*") if entry.is_dir()]:
        remedy = "Wait for it to end; after one that was killed, `vsp-report run` clears up."
        raise InputError(str(site / "recordings" / min(writing)), "is of a run that has not ended", remedy)
    if importlib.util.find_spec("ghp_import") is None:
        raise MissingExtra("publish", "needs ghp-import, which is not installed", f"Run: {PUBLISH_EXTRA}")
    files = [path for path in site.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if size > MAX_SITE_BYTES:
        raise InputError(str(site), f"is {size / 2**30:.1f} GiB; GitHub Pages takes 1", "Publish fewer recordings.")
    found = _git("remote", "get-url", remote)
    if found.returncode:
        known = ", ".join(_git("remote").stdout.split()) or "none; `git remote add origin ADDRESS` makes one"
        raise InputError("--remote", f"{remote} is no remote of a git repository here", f"Known: {known}.")
    if _git("check-ref-format", "--branch", branch).returncode:
        raise InputError("--branch", f"{branch!r} is no name of a branch", "Write gh-pages, for example.")
    return Parcel(site, len(files), size, remote, _without_password(found.stdout.strip()), branch)


def push(sent: Parcel) -> None:
    """One commit more on the branch of pages, and nothing else: neither the working tree nor the index is touched."""
    words = ["-n", "-p", "-r", sent.remote, "-b", sent.branch, "-m", "Publish the site", str(sent.site)]
    done = subprocess.run([sys.executable, "-m", "ghp_import", *words], capture_output=True, text=True, env=_calm())
    if done.returncode:
        said = _without_password(" ".join((done.stderr.strip() or done.stdout.strip()).split())[-300:])
        raise VspError(sent.address, f"could not be pushed to ({said})", "Look at the remote and your rights there.")


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, env=_calm(), check=False)
    except FileNotFoundError as error:
        raise VspError("git", "is not installed", "Install git: https://git-scm.com.") from error


def _calm() -> dict[str, str]:
    """Git fails where it would ask: there may be nobody to answer."""
    return {**os.environ, "GIT_TERMINAL_PROMPT": "0"}


def _without_password(text: str) -> str:
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)


def write_workflows(root: Path) -> list[Path]:
    """The two workflows of GitHub, below this folder; both or none, and never over what is there."""
    if not (root / ".git").exists():
        raise InputError(str(root), "is not the root of a git repository", "Go there, or `git init` one.")
    folder = root / ".github" / "workflows"
    for name in WORKFLOWS:
        if os.path.lexists(folder / name):
            raise InputError(str(folder / name), "is there already", "Remove it first, if it is to be written anew.")
    # In a checkout of vsp-report itself, that is what is to be tested.
    here = (root / "vsp_report" / "__init__.py").is_file()
    install = "--constraint constraints.txt ." if here else "vsp-report"
    texts = {
        name: (paths.templates_dir() / "ci" / name).read_text(encoding="utf-8").replace("{install}", install)
        for name in WORKFLOWS
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in WORKFLOWS]
