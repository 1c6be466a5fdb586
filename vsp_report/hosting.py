"""Hosting: the site on GitHub Pages, pushed from here or made there by a workflow. Git does the pushing."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from vsp_report import paths
from vsp_report.errors import InputError, MissingExtra, VspError

PUBLISH_EXTRA = "python -m pip install 'vsp-report[publish]'"
NAME = "vsp-report"
WORKFLOWS = ("pages.yml", "audit.yml")
CONSTRAINTS = Path(".github") / "vsp-report-constraints.txt"
PINS_HEAD = "# What the workflows install: the versions that were here when `vsp-report init-ci` wrote this."
ARCHIVES = (".whl", ".tar.gz", ".zip")
SOURCES = (
    "Write --from git+https://HOST/OWNER/REPOSITORY@TAG, the path of a wheel in this repository, or NAME==VERSION of "
    "an index that you trust."
)
_PLAIN = r"[\w.~+:/@%=#&?,\[\]!-]"
"""What stands in a workflow as it is: neither a quote nor a space, neither $ nor a brace."""
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
    if writing := [entry.name for entry in site.glob("atlas/.*") if entry.is_dir()]:
        remedy = "The `vsp-report atlas` that began it goes on; or remove the folder."
        raise InputError(str(site / "atlas" / min(writing)), "is of a survey that has not ended", remedy)
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
    theirs = _git("symbolic-ref", "--short", f"refs/remotes/{remote}/HEAD").stdout.strip().removeprefix(f"{remote}/")
    if branch in (_git("symbolic-ref", "--short", "HEAD").stdout.strip(), theirs):
        raise InputError("--branch", f"{branch} holds what is worked on, and would be replaced", "Write gh-pages.")
    return Parcel(site, len(files), size, remote, _without_password(found.stdout.strip()), branch)


def push(sent: Parcel) -> None:
    """One commit more on the branch of pages, and nothing else: neither the working tree nor the index is touched."""
    words = ["-n", "-p", "-r", sent.remote, "-b", sent.branch, "-m", "Publish the site"]
    _git("fetch", "--quiet", sent.remote, sent.branch)  # which is not there yet the first time
    domain = _git("show", f"{sent.remote}/{sent.branch}:CNAME")
    if domain.returncode == 0 and not (sent.site / "CNAME").exists():  # of one's own: each push replaces all files
        words += ["-c", domain.stdout.strip()]
    words.append(str(sent.site))
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


# --- workflows ---------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """What `write_workflows` wrote, and what runners will install."""

    files: list[Path]
    source: str
    torch_index: str


def write_workflows(root: Path, source: str | None = None, torch_index: str = "") -> Written:
    """The two workflows of GitHub and the versions they install, below this folder; all or none, and never over what
    is there. `source`: where vsp-report comes from, see `source_of`; `torch_index`: where torch is without CUDA."""
    if not (root / ".git").exists():
        raise InputError(str(root), "is not the root of a git repository", "Go there, or `git init` one.")
    # In a checkout of vsp-report itself, that is what is to be tested.
    here = source is None and (root / "vsp_report" / "__init__.py").is_file()
    named = "." if here else source_of(source, root)
    pins = Path("constraints.txt") if here else CONSTRAINTS
    if torch_index and not re.fullmatch(rf"https://{_PLAIN}+", torch_index):
        raise InputError("--torch-index", f"{torch_index!r} is no address", "Write https://HOST/PATH.")
    folder = root / ".github" / "workflows"
    words = {"{source}": json.dumps(named), "{torch_index}": json.dumps(torch_index), "{constraints}": pins.as_posix(),
             "{python}": ".".join(platform.python_version_tuple()[:2])}  # fmt: skip
    texts = {}
    for name in WORKFLOWS:
        text = (paths.templates_dir() / "ci" / name).read_text(encoding="utf-8")
        for word, meant in words.items():
            text = text.replace(word, meant)
        texts[folder / name] = text
    if not here:
        texts[root / pins] = "\n".join([PINS_HEAD, *installed()]) + "\n"
    for file in texts:
        if os.path.lexists(file):
            raise InputError(str(file), "is there already", "Remove it first, if it is to be written anew.")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    return Written(list(texts), named, torch_index)


def source_of(text: str | None, root: Path) -> str:
    """Where a runner gets vsp-report from, as pip reads it: a git address with a tag or commit, the address of a wheel,
    a wheel or a folder inside the repository, or a name with its version. Not a name alone: this project owns none on
    any index, and whoever registers it would run in the repository. None: from where this installation came, if that
    was git."""
    said = text if text is not None else _installed_from()
    if said is None:
        raise InputError("--from", "is not given, and a runner has to get vsp-report from somewhere", SOURCES)
    if not re.fullmatch(rf"(?!-){_PLAIN}+", said):
        raise InputError("--from", f"{said!r} has characters that no source needs", SOURCES)
    if "://" in said:
        return _checked_address(said)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])?===?[\w.!+]+", said):
        return said
    place = root / said
    if not place.exists():
        named = re.fullmatch(r"[\w.-]+", said) and not said.endswith(ARCHIVES)
        fault = "is a name without a version, and anybody may register a name" if named else "is no file here"
        raise InputError("--from", f"{said} {fault}", SOURCES)
    if not place.resolve().is_relative_to(root.resolve()):
        raise InputError("--from", f"{said} is outside the repository, where no runner finds it", SOURCES)
    if not (place / "pyproject.toml").is_file() and not place.name.endswith(ARCHIVES):
        raise InputError("--from", f"{said} is neither a wheel nor a folder with a pyproject.toml", SOURCES)
    if _git("-C", str(root), "check-ignore", "-q", "--", said).returncode == 0:
        raise InputError("--from", f"{said} is ignored by git, so that no runner has it", "Commit it elsewhere.")
    return f"./{Path(said).as_posix()}"


def _checked_address(said: str) -> str:
    address = urlsplit(said)
    if address.password or (address.username and address.scheme != "git+ssh"):
        raise InputError("--from", "holds a password, which would be committed", "Leave it away.")
    if address.scheme in ("git+https", "git+ssh"):
        if not re.search(r"[^/]@[^@/]", address.path):
            fault = f"{said} names neither a tag nor a commit, so that it may be another program tomorrow"
            raise InputError("--from", fault, "Write git+https://HOST/OWNER/REPOSITORY@TAG.")
    elif address.scheme != "https" or not address.path.endswith(ARCHIVES):
        raise InputError("--from", f"{said} is neither git over https or ssh, nor a wheel over https", SOURCES)
    return said


def _installed_from() -> str | None:
    """The git address and commit that this installation was made from (PEP 610); None for any other."""
    try:
        told = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
        address, commit = urlsplit(told["url"]), told["vcs_info"]["commit_id"]
    except (metadata.PackageNotFoundError, ValueError, LookupError, TypeError):
        return None
    if address.scheme not in ("https", "ssh"):
        return None
    return f"git+{_without_password(told['url']) if address.scheme == 'https' else told['url']}@{commit}"


def installed() -> list[str]:
    """What this package needs, and what that needs in turn, as pins of the versions that are here."""
    found: dict[str, str] = {}
    waiting = [NAME]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            one = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system, or for an extra
            continue
        found[name] = one.version.partition("+")[0]  # 2.13.0+cpu is a build of 2.13.0
        needs = [need for need in one.requires or [] if not re.search(r"\bextra\b", need.partition(";")[2])]
        waiting += [re.split(r"[^\w.-]", need.strip(), maxsplit=1)[0] for need in needs]
    found.pop(NAME, None)
    return [f"{name}=={version}" for name, version in sorted(found.items())]
