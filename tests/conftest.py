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


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]
