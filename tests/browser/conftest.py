"""Conftest: one browser and one site for all browser tests. A missing browser is a failure, not a skip."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium, Page
from tests.render.recordings import save_all
from vsp_report.render import preview, site


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site below a folder of another name, as a project's pages are below their address."""
    out = tmp_path_factory.mktemp("pages") / "project" / "site"
    save_all(out / "recordings")
    assert not site.build(out / "recordings", out).faults
    return out


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    browser = Chromium()
    yield browser
    browser.close()


@pytest.fixture
def page(chromium: Chromium) -> Page:
    return chromium.page()


@pytest.fixture(scope="session")
def served(built: Path) -> Iterator[str]:
    """The address of the site's folder, one level below the root of a server."""
    (built.parent / "index.html").write_text("<title>above</title>")
    running = preview.server(built.parent)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://{preview.HOST}:{running.server_address[1]}/site"
    running.shutdown()
    running.server_close()
    thread.join()
