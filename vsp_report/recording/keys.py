"""Keys: content hashes. Two keys decide what is stale: one for the run, one for its page.

The run key is made of everything that figures depend on, and of nothing else: a new title, story or expectation
runs no model, nor does a new style. The page key is made of the run's outcome and of everything that is shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import vsp_report
from vsp_report.case import Case
from vsp_report.recording.parts import SCHEMA

COMPUTING = ("atlas", "case", "maths", "model", "recording", "sketchworld", "study")
"""The rooms whose source changes figures."""
SHOWING = ("audit", "case", "recording", "render")
_PACKAGE = Path(vsp_report.__file__).resolve().parent


def sha(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha_of(data: Any) -> str:
    """Of plain data, by its canonical JSON: sorted, without spaces, finite."""
    return sha(json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False))


def file_sha(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha(folder: Path) -> str:
    """Of all files in a folder: their names and their bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sha_of([[p.relative_to(folder).as_posix(), file_sha(p)] for p in files])


def package_sha(rooms: Iterable[str] = COMPUTING) -> str:
    """Of the Python source of these rooms."""
    sources = [p for room in rooms for p in ((_PACKAGE / room).rglob("*.py") if (_PACKAGE / room).is_dir()
                                             else [_PACKAGE / f"{room}.py"]) if p.is_file()]  # fmt: skip
    return sha_of([[p.relative_to(_PACKAGE).as_posix(), file_sha(p)] for p in sorted(sources)])


def notebook_code_sha(notebook: Mapping[str, Any]) -> str:
    """Of a notebook's code cells: neither its prose nor its outputs count."""
    cells = [cell for cell in notebook.get("cells", ()) if cell.get("cell_type") == "code"]
    return sha_of(["".join(cell["source"]) for cell in cells])


def run_key(
    case: Case,
    *,
    image_sha: str,
    model_id: str,
    sae_id: str,
    notebook_sha: str,
    package_sha: str,
    versions: Mapping[str, str],
    device_class: str,
    atlas_sha: str = "",
) -> str:
    """What must run again has another key than its recording's provenance. `atlas_sha`: of what is known of the
    latents, which names them; empty where nothing is."""
    return sha_of(
        ({"atlas": atlas_sha} if atlas_sha else {})
        | {
            "schema": SCHEMA,
            "case": case.computed(),
            "image": image_sha,
            "model": model_id,
            "sae": sae_id,
            "notebook": notebook_sha,
            "package": package_sha,
            "versions": dict(versions),
            "device": device_class,
        }
    )


def page_key(recording_sha: str, *, templates_sha: str, package_sha: str, versions: Mapping[str, str]) -> str:
    """`recording_sha`: of the recording's manifest, which names the hash of each of its files."""
    return sha_of([recording_sha, templates_sha, package_sha, dict(versions)])
