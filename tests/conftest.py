"""Conftest: what every test is given. No test reaches the network, and no test depends on who runs it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before the first import of transformers, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A shell that starts the tests in the background has them ignore Ctrl-C, and whatever they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: run what needs a GPU as well")


LONGEST = ("test_weights.py", "test_qualities.py", "test_fresh.py")
"""They are begun first, so that no process is left with one of them when the other is done."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --device cuda such tests are left out, and counted as that; with it, a missing GPU fails them."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if config.getoption("--device") == "cpu":
        on_gpu = [item for item in items if item.get_closest_marker("cuda")]
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]
