"""Pages in a real browser: from a folder and from a server, by mouse and by keys, and with a stranger's texts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.browser.chromium import Page

PAGES = [
    "index.html",
    "how-to-read.html",
    *(f"cases/{name}/index.html" for name in
      ("standing-beside-a-chair", "clip-duck-rabbit", "failed-in-a-cell", "paper-case", "hostile")),
]  # fmt: skip
CHAIR = "cases/standing-beside-a-chair/index.html"
LIVE = "[...document.querySelectorAll('[data-figure]')]"
SHOW_ALL = (
    "document.querySelectorAll('details').forEach(d => d.open = true),"
    "document.querySelectorAll('[data-figure]').forEach(f => f.scrollIntoView()), true"
)


def opened(page: Page, address: str) -> None:
    """With every chart alive, so that whatever it does has been done."""
    page.open(address)
    page.size(1280, 20_000)
    page.value(SHOW_ALL)
    page.wait(f"!window.VSP_FIGURES || {LIVE}.every(f => f.dataset.live)")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_from_a_folder_is_quiet(page: Page, built: Path, name: str) -> None:
    opened(page, (built / name).as_uri())
    assert page.logged == []
    assert [address for address in page.asked if not address.startswith(("file:", "data:", "about:"))] == []


def test_pages_below_a_path_are_quiet_and_whole(page: Page, served: str) -> None:
    for name in ("index.html", CHAIR):
        opened(page, f"{served}/{name}")
    broken = "[...document.images].filter(i => i.loading != 'lazy' && !i.naturalWidth).length"
    assert page.value(broken) == 0
    assert page.logged == []
    assert all(address.startswith((f"{served}/", "data:")) for address in page.asked)


def test_every_link_leads_somewhere(page: Page, built: Path) -> None:
    for name in PAGES:
        page.open((built / name).as_uri())
        links = page.value("[...document.querySelectorAll('[href], [src]')].map(e => e.getAttribute('href')"
                           " || e.getAttribute('src'))")  # fmt: skip
        for link in links:
            if link.startswith(("https://example.org", "data:")):
                continue
            target, _, part = link.partition("#")
            place = ((built / name).parent / target).resolve() if target else built / name
            assert not link.startswith(("/", "http", "file")) and place.is_file(), f"{name}: {link}"
            if part and "=" not in part and not target:  # what the index filters by is no place
                assert page.value(f"Boolean(document.getElementById('{part}'))"), f"{name}: {link}"


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_screen(page: Page, built: Path, name: str) -> None:
    page.size(360)
    page.open((built / name).as_uri())
    page.value(SHOW_ALL)
    page.wait("!window.VSP_FIGURES || document.querySelector('[data-live]')")
    for width in (360, 768, 1440):
        page.size(width)
        assert page.value("document.documentElement.scrollWidth") <= width
        wide = page.value(
            "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .chart, .unseen, .skip')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"
        )
        assert wide == [], width
    assert page.logged == []


def test_a_strangers_texts_stay_texts(page: Page, built: Path) -> None:
    for name in ("index.html", "cases/hostile/index.html"):
        opened(page, (built / name).as_uri())
        assert page.value("document.querySelectorAll('[onerror], img[src=x]').length") == 0
        assert page.value("[...document.scripts].every(s => s.type == 'application/json' || s.src)")
        assert page.value("[...document.querySelectorAll('a')].every(a => !a.href.startsWith('javascript'))")
        assert "<script>alert(1)</script>" in page.value("document.body.textContent")
        assert "{{ 7*7 }}" in page.value("document.body.textContent")
    assert page.logged == []
    assert not (built.parent / "escaped").exists()
    assert not (built.parent.parent / "escaped").exists()


def test_the_index_is_searched_and_remembers(page: Page, built: Path) -> None:
    page.open((built / "index.html").as_uri())
    shown = "document.querySelectorAll('[data-cards] > li:not([hidden])').length"
    assert page.value(shown) == 5
    page.value("(q => (q.value = 'chair STANDING', q.dispatchEvent(new Event('input', {bubbles: true}))))"
               "(document.querySelector('[name=q]'))")  # fmt: skip
    assert page.value(shown) == 1
    assert page.value("document.querySelector('[data-count]').textContent") == "1 of 5 cases"
    remembered = page.value("location.href")
    assert remembered.endswith("#q=chair+STANDING")
    page.open("about:blank")
    page.open(remembered)
    assert page.value(shown) == 1
    page.value("location.hash = 'verdict=not+run'")
    page.wait(f"{shown} === 1")
    assert page.value("document.querySelector('[data-cards] > li:not([hidden])').dataset.verdict") == "not run"


def test_landmarks_headings_and_names(page: Page, built: Path) -> None:
    for name in PAGES:
        page.open((built / name).as_uri())
        assert page.value("document.querySelectorAll('main').length") == 1
        assert page.value("document.querySelectorAll('h1').length") == 1
        levels = page.value("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
        assert all(after - before <= 1 for before, after in pairwise(levels)), (name, levels)
        unnamed = page.value(
            "[...document.querySelectorAll('input, select, button, a, [role=region]')]"
            ".filter(e => !e.closest('[hidden]') && !(e.textContent.trim() || e.labels?.length || e.ariaLabel))"
            ".map(e => e.outerHTML)"
        )
        assert unnamed == [], name
        twice = page.value("(ids => ids.filter((id, i) => ids.indexOf(id) != i))"
                           "([...document.querySelectorAll('[id]')].map(e => e.id))")  # fmt: skip
        assert twice == [], name
