"""The house: a folder is a dependency licence. What each room may import, and what no file may contain.

The licence is `ROOMS`, below; to give a room one more package, add it there and say in the room why. Imports
are read from the syntax tree, wherever they stand in a file: what a function imports, its room touches. What
only a type checker imports is no exception, because a type says as much of what a file is about.
"""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vsp_report"


class Licence(NamedTuple):
    third_party: frozenset[str]
    ours: frozenset[str]


def _may(third_party: str = "", *, ours: str = "") -> Licence:
    return Licence(frozenset(third_party.split()), frozenset(ours.split()))


# A module is held to the first pattern that fits its path inside the package; its own room is open to it.
ROOMS: dict[str, Licence] = {
    # Rooms are looked up when a name is first asked for; `test_importing_the_package_loads_no_room` says so.
    "__init__.py": _may(ours="errors maths model study"),
    "__main__.py": _may(ours="cli"),
    "errors.py": _may(),
    "paths.py": _may(ours="errors"),
    # Rooms are imported inside the commands; `test_cli_opens_rooms_late` says when.
    "cli/*": _may(ours="atlas audit case errors hosting live model paths recording render run sketchworld study"),
    "case/*": _may("yaml", ours="errors paths"),
    "recording/*": _may("numpy", ours="case errors paths"),
    "atlas/*": _may("numpy", ours="errors recording"),
    # Clusters by density on the map; scikit-learn, and what it counts threads with, is there wherever umap is.
    "maths/projection.py": _may("numpy sklearn threadpoolctl umap", ours="errors"),
    "maths/*": _may("numpy scipy umap", ours="errors"),
    "model/memory.py": _may("psutil torch", ours="model"),
    "model/*": _may(
        "PIL accelerate huggingface_hub numpy safetensors tokenizers torch transformers",
        ours="case errors maths paths",
    ),
    # A case's picture is read, drawn by SketchWorld, or drawn from a Vega-Lite chart.
    "study/pictures.py": _may(
        "PIL numpy vega_datasets vl_convert", ours="case errors maths model recording sketchworld"
    ),
    "study/image_sets.py": _may(ours="errors model recording sketchworld"),
    "study/glance.py": _may("PIL numpy", ours="errors maths recording"),
    # A survey's pictures are read from a folder, or drawn by SketchWorld; their small copies are made here.
    "study/photographs.py": _may("PIL numpy", ours="errors recording sketchworld"),
    "study/sheets.py": _may("PIL numpy", ours="errors"),
    "study/survey_words.py": _may("numpy scipy", ours="errors maths model"),
    "study/*": _may("numpy", ours="atlas case errors maths model paths recording"),
    "run/*": _may(
        "dask distributed jupyter_client nbclient nbformat papermill", ours="atlas case errors paths recording"
    ),
    "hosting.py": _may(ours="errors paths"),
    "audit/*": _may(ours="atlas case errors paths recording"),
    # markupsafe is what jinja2 escapes with: a story's Markdown becomes markup by the same rules.
    "render/*": _may("PIL altair jinja2 markupsafe numpy", ours="atlas audit case errors paths recording"),
    # These two run inside the kernel, which is where the model is.
    "live/panel.py": _may("IPython anywidget traitlets", ours="case errors paths study"),
    "live/rounds.py": _may("numpy", ours="case errors maths model recording render study"),
    "live/*": _may("jupyter_client jupyter_server tornado traitlets", ours="case errors paths recording render"),
    # The world itself is drawn, asked and checked without torch; only what trains or measures models uses it.
    **dict.fromkeys(
        (
            f"sketchworld/{name}.py"
            for name in "train recipe autoencoders models packing language evaluate probe".split()
        ),
        _may(
            "PIL altair numpy pandas tokenizers torch transformers vega_datasets vl_convert",
            ours="errors maths model paths",
        ),
    ),
    "sketchworld/*": _may("PIL altair numpy pandas vega_datasets vl_convert", ours="errors maths model paths"),
}

# Where the name that is imported is not the name that is installed.
DISTRIBUTIONS = {"PIL": "pillow", "umap": "umap-learn", "vl_convert": "vl-convert-python", "yaml": "pyyaml"}
# Installed by what is named here, and used with it.
COMES_WITH = {
    "sklearn": "umap-learn", "threadpoolctl": "umap-learn", "psutil": "ipykernel",
    "nbclient": "papermill", "nbformat": "papermill", "jupyter_client": "papermill", "markupsafe": "jinja2",
    "IPython": "ipykernel", "tornado": "jupyter_server", "traitlets": "jupyter_server",
}  # fmt: skip

FORBIDDEN_NAMES = ("utils", "util", "helpers", "helper", "core", "common", "misc")
PICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
# The second writes hostile files for the first to refuse.
MAY_UNPICKLE = ("vsp_report/model/pickles.py", "tests/model/test_checkpoints.py")

# What no text file of the project contains, and why. None of the patterns matches itself.
FORBIDDEN_TEXT = {
    r"trust_remote_code['\"]?\s*[=:]\s*[Tt]rue": "runs code that came with the weights",
    r"weights_only['\"]?\s*[=:]\s*[Ff]alse": "runs code that came inside a file",
    r"(?<![\w.])/(?:home|Users|root)/\w": "names a person's machine",
    r"(?<![\w.])/work\b/": "names a machine's folder",
}
TEXT = {
    ".cfg",
    ".css",
    ".html",
    ".ipynb",
    ".j2",
    ".jinja",
    ".js",
    ".json",
    ".jsonl",
    ".md",
    ".py",
    ".svg",
    ".toml",
}
TEXT |= {".txt", ".xml", ".yaml", ".yml", ""}


class Import(NamedTuple):
    target: str
    line: int


def imports(source: str, module: str) -> Iterator[Import]:
    """Every module that `source` imports, by its dotted name; relative ones are resolved against `module`.

    `from a import b` is told as `a.b`: whether b is a module or a name in one does not matter to a room.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(node.args[0].value, node.lineno)


def breaches(source: str, path: str) -> list[str]:
    """What the module at `path` (inside the package) imports and may not."""
    pattern = next((p for p in ROOMS if fnmatch.fnmatch(path, p)), None)
    if pattern is None:
        return [f"{path}: belongs to no room. Add it to ROOMS in tests/test_house.py."]
    licence, room = ROOMS[pattern], _room(path)
    module = "vsp_report." + path.removesuffix(".py").replace("/", ".")
    found = []
    for target, line in imports(source, module):
        top, _, rest = target.partition(".")
        if top == "vsp_report":
            other = rest.partition(".")[0]
            is_room = (PACKAGE / other).is_dir() or (PACKAGE / f"{other}.py").exists() or f"{other}/*" in ROOMS
            if is_room and other and other != room and other not in licence.ours:
                found.append(f"{path}:{line}: imports vsp_report.{other}. {room} may not ({_listed(licence.ours)}).")
        elif top not in sys.stdlib_module_names and top != "__future__" and top not in licence.third_party:
            found.append(f"{path}:{line}: imports {top}. {pattern} may not ({_listed(licence.third_party)}).")
    return found


def _room(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def inside(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def files() -> Iterator[Path]:
    """The project's own files: not environments, caches, or what a build left behind."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if not _is_made(Path(folder, f)))
        yield from (Path(folder, name) for name in sorted(names))


def _is_made(folder: Path) -> bool:
    hidden = folder.name[0] == "." and folder.name not in (".ci", ".github")
    built = folder.name in ("__pycache__", "build", "dist", "node_modules") or folder.suffix == ".egg-info"
    return hidden or built or (folder / "pyvenv.cfg").exists()


def tree_path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- the licence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", modules(), ids=inside)
def test_a_module_keeps_to_its_rooms_licence(path: Path) -> None:
    assert breaches(path.read_text(), inside(path)) == []


@pytest.mark.parametrize(
    ("path", "source", "what"),
    [
        ("maths/grids.py", "import torch", "torch"),
        ("maths/grids.py", "def f():\n    from torch.nn import functional", "torch"),
        ("maths/grids.py", "from ..model import sae", "vsp_report.model"),
        ("maths/grids.py", "from .. import paths", "vsp_report.paths"),
        ("maths/grids.py", "import importlib\nimportlib.import_module('altair')", "altair"),
        ("model/vlm.py", "import altair as alt", "altair"),
        ("model/vlm.py", "from vsp_report import study", "vsp_report.study"),
        ("render/pages.py", "from vsp_report.model.sae import Sae", "vsp_report.model"),
        ("sketchworld/scene.py", "import torch", "torch"),
        ("live/extension.py", "import vsp_report.study.steer", "vsp_report.study"),
        ("run/plan.py", "import torch.nn", "torch"),
        ("stray.py", "", "no room"),
    ],
)
def test_a_breach_is_seen(path: str, source: str, what: str) -> None:
    assert [line for line in breaches(source, path) if what in line]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "maths/grids.py",
            "import numpy as np, scipy.stats\nfrom . import tallies\nfrom ..errors import InputError",
        ),
        (
            "model/vlm.py",
            "import torch\nfrom vsp_report import __version__, paths\nfrom vsp_report.maths import grids",
        ),
        ("sketchworld/train.py", "import torch, transformers\nfrom vsp_report.model.sae import Sae"),
        ("live/panel.py", "from vsp_report.study import steer"),
    ],
)
def test_what_is_allowed_is_no_breach(path: str, source: str) -> None:
    assert breaches(source, path) == []


def test_cli_opens_rooms_late() -> None:
    for file in (PACKAGE / "cli").glob("*.py"):
        top_level = ast.Module([n for n in ast.parse(file.read_text()).body if _is_import(n)], [])
        targets = (one.target for one in imports(ast.unparse(top_level), "vsp_report.cli"))
        rooms = {target.split(".")[1] for target in targets if target.startswith("vsp_report")}
        assert rooms <= {"__version__", "cli", "errors", "paths"}, file.name


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def test_importing_the_package_loads_no_room() -> None:
    heavy = "torch transformers altair numpy pandas PIL".split()
    code = f"import sys, vsp_report; print(*[m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


# --- what is installed --------------------------------------------------------------------------------------


def _declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        *project["dependencies"],
        *(t for extra in project["optional-dependencies"].values() for t in extra),
    ]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def test_what_is_imported_is_declared() -> None:
    declared = _declared()
    for path in modules():
        for target, line in imports(
            path.read_text(), "vsp_report." + inside(path).removesuffix(".py").replace("/", ".")
        ):
            top = target.partition(".")[0]
            if top == "vsp_report" or top in sys.stdlib_module_names:
                continue
            name = canonicalize_name(DISTRIBUTIONS.get(top, COMES_WITH.get(top, top)))
            assert name in declared, f"{inside(path)}:{line}: imports {top}, which pyproject.toml does not name."


def test_constraints_pin_what_is_declared() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"constraints.txt: {line!r} is not NAME==VERSION."
        pins[canonicalize_name(match[1])] = match[2]
    for name, requirement in _declared().items():
        assert name in pins, f"constraints.txt: {name} has no pin."
        assert requirement.specifier.contains(pins[name]), f"constraints.txt: {name} {pins[name]} is not {requirement}."


# --- names and words ----------------------------------------------------------------------------------------


def test_no_file_has_a_name_that_says_nothing() -> None:
    nameless = [tree_path(f) for f in files() if f.name.partition(".")[0] in FORBIDDEN_NAMES]
    nameless += [tree_path(d) for d in PACKAGE.rglob("*") if d.is_dir() and d.name in FORBIDDEN_NAMES]
    assert nameless == []


def test_a_module_opens_with_what_it_is() -> None:
    written = [path for path in files() if path.suffix == ".py" and path.read_text().strip()]
    silent = [tree_path(path) for path in written if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_nothing_unpickles() -> None:
    for path in files():
        if path.suffix != ".py" or tree_path(path) in MAY_UNPICKLE:
            continue
        for target, line in imports(path.read_text(), ""):
            assert target.partition(".")[0] not in PICKLERS, f"{tree_path(path)}:{line}: unpickling runs code."


def test_no_file_runs_strangers_code_or_names_a_machine() -> None:
    found = []
    for path in files():
        if path.suffix in TEXT:
            text = path.read_text(encoding="utf-8", errors="replace")
            for pattern, why in FORBIDDEN_TEXT.items():
                if match := re.search(pattern, text):
                    line = text.count("\n", 0, match.start()) + 1
                    found.append(f"{tree_path(path)}:{line}: {match[0]!r} {why}.")
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "trust_remote_code" + "=True",
        '"trust_remote_code"' + ": True",
        '"trust_remote_code"' + ": true",
        "weights_only" + " = False",
        "open('/" + "home/ann/cup.png')",
        "/" + "Users/ann",
        "cd /" + "work/x",
    ],
)
def test_forbidden_words_are_seen(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in FORBIDDEN_TEXT)
