"""Reopened: the executed notebook of a recording, run again by hand. Where its case is, and where it writes.

Such a notebook names its case and its folder as they are seen from the project, and Jupyter runs it in the folder that
it lies in; so both are looked for above that, too. And what a hand has run is no evidence: a recording that was
published with its notebook stays as it is until `vsp-report run` makes another.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from vsp_report.recording import NOTEBOOK

CLIMBED = 6
"""So many folders up a case is looked for."""


def places(case: str | Path, folder: str | Path) -> tuple[Path, Path]:
    """Where the case is, and where to record it."""
    case, folder = Path(case), Path(folder)
    root = _root(case)
    if (root / folder / NOTEBOOK).is_file():
        instead = Path(tempfile.mkdtemp(prefix="vsp-notebook-")) / folder.name
        print(f"{folder} is published and stays as it is; what this notebook records goes to {instead}.")
        return root / case, instead
    return root / case, root / folder


def _root(case: Path) -> Path:
    """The nearest folder from which the case is there; this one, if there is none."""
    here = Path()
    if case.is_absolute() or case.exists():
        return here
    return next((above for above in list(Path.cwd().parents)[:CLIMBED] if (above / case).is_file()), here)
