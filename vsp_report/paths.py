"""Paths: where the bundled templates, cases and models are, installed or in a checkout.

A wheel carries templates/ and cases/ inside the package, under `_bundled`; in a checkout they stand beside
it. Weights are inside the package either way. Which models there are is read from the disk, so a name is
known as soon as its folder is there, and nothing that is not a folder there has a name.
"""

from __future__ import annotations

from pathlib import Path

from vsp_report.errors import VspError

_PACKAGE = Path(__file__).resolve().parent


def templates_dir() -> Path:
    return _shipped("templates")


def cases_dir() -> Path:
    return _shipped("cases")


def weights_dir() -> Path:
    """SketchWorld's weights: `sketchworld/` (a LLaVA), `clip/`, and `saes/` with one folder for each tap.
    It is where they belong; whether they are there is for `bundled` to say."""
    return _PACKAGE / "sketchworld" / "weights"


def bundled(name: str) -> Path | None:
    """The folder of a bundled model or sparse autoencoder; None for a name that is not bundled."""
    return _models().get(name)


def bundled_names() -> list[str]:
    return list(_models())


def _models() -> dict[str, Path]:
    weights = weights_dir()
    named = {"sketchworld": weights / "sketchworld", "sketchworld-clip": weights / "clip"}
    if (saes := weights / "saes").is_dir():
        named |= {f"sketchworld/{folder.name}": folder for folder in sorted(saes.iterdir())}
    # A dot opens what is still being written, or was left behind by a file manager.
    return {name: folder for name, folder in named.items() if folder.is_dir() and folder.name[0] != "."}


def _shipped(folder: str) -> Path:
    installed, checkout = _PACKAGE / "_bundled" / folder, _PACKAGE.parent / folder
    for path in (installed, checkout):
        if path.is_dir():
            return path
    raise VspError(
        f"{folder}/", "this folder ships with vsp-report and is missing", "Install vsp-report again."
    )
