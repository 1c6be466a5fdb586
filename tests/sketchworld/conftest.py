"""Conftest: a weights folder from a few seconds of the real recipe, and the one that ships."""

from pathlib import Path

import pytest

from vsp_report import paths
from vsp_report.sketchworld import train


@pytest.fixture(scope="session")
def quick_weights(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("quick") / "weights"
    train.train(out, device="cpu", quick=True)
    return out


@pytest.fixture(scope="session")
def shipped_weights() -> Path:
    folder = paths.weights_dir()
    assert (folder / "sketchworld" / "config.json").is_file(), f"{folder}: the weights are not in the checkout"
    return folder
