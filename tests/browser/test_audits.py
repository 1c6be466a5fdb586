"""Audits in a browser: rows are filtered, the address says how, nothing breaks the policy, and axe finds nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.browser.axe import violations
from tests.browser.chromium import Page
from tests.render.recordings import not_run
from tests.render.test_audits import account, rows, save_set
from vsp_report.audit import history
from vsp_report.recording import save_recording
from vsp_report.render.site import build

SHOWN = "[...document.querySelectorAll('[data-rows] > tbody > tr:not([hidden])')].map(row => row.id).join(' ')"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("audited") / "site"
    save_recording(site / "recordings" / "paper-case", replace(not_run(), id="paper-case"))
    save_set(site, rows(), ["pairs.csv:9: image is empty. Name one."])
    for hour, verdict in enumerate(("confirmed", "not corrected", "unstable"), 1):
        history.append(site, account(verdict, "confirmed", hour=hour))
    assert not build(site / "recordings", site).faults
    return site


def choose(page: Page, name: str, value: str) -> None:
    page.value(f"(() => {{ const form = document.querySelector('[data-rows-filters]'); form.elements['{name}'].value = "
               f"'{value}'; form.dispatchEvent(new Event('input', {{bubbles: true}})); return 1; }})()")  # fmt: skip


def test_rows_are_filtered_and_the_address_says_how(page: Page, audited: Path) -> None:
    address = (audited / "datasets" / "pairs" / "index.html").as_uri()
    page.open(address)
    assert page.value(SHOWN).split() == [f"row-{n}" for n in range(1, 8)]
    choose(page, "says", "wrong")
    assert page.value(SHOWN) == "row-4 row-7"
    assert page.value("document.querySelector('[data-rows-count]').textContent") == "2 of 7 rows"
    choose(page, "group", "odd")
    assert page.value(SHOWN) == "row-7" and page.value("location.hash") == "#says=wrong&group=odd"
    page.open("about:blank")
    page.open(address + "#pair=both&q=what+2")
    assert page.value(SHOWN) == "row-2"


@pytest.mark.parametrize("name", ["audit.html", "datasets/pairs/index.html"])
def test_the_pages_fit_a_small_screen_and_link_to_what_is_there(page: Page, audited: Path, name: str) -> None:
    page.size(390)
    page.open((audited / name).as_uri())
    assert page.value("document.documentElement.scrollWidth") <= 390
    links = "[...document.querySelectorAll('a[href], link[href], script[src]')].map(e => e.href || e.src)"
    for link in page.value(links):
        file = Path(link.removeprefix("file://").partition("#")[0])
        assert file.is_file() or "cases/" in link, link
    wide = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth + 1)"
    assert page.value(f"{wide}.map(one => one.getAttribute('aria-label'))") == []
    page.size(1280)
    assert violations(page) == [] and page.logged == []
