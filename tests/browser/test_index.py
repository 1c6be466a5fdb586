"""The index in a real browser: very many cases, searched, filtered, shown as they are asked for, and as charts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.browser.chromium import Page
from tests.render.test_index_page import many
from vsp_report import paths
from vsp_report.render import drawn, index_page, site, theme

COUNT = 1000
SHOWN = "document.querySelectorAll('[data-cards] > li').length"
SAID = "document.querySelector('[data-count]').textContent"
TITLES = "[...document.querySelectorAll('[data-cards] h2')].map(h => h.textContent)"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of a thousand cases, without their pages."""
    folder = tmp_path_factory.mktemp("many")
    cards = [
        index_page.Card(**(vars(card) | {"mode": mode, "mode_name": mode.replace("-", " ")}))
        for card, mode in zip(many(COUNT), ["misleading-cue", "hidden-cue"] * (COUNT // 2), strict=True)
    ]
    page = index_page.index_page(cards)
    made = drawn.drawn(page.figures, "static/index", "")
    sizes = {name: drawn.measured(made.files[f"static/index/{name}.svg"]) for name in page.figures}
    environment = site.make_environment([paths.templates_dir() / "pages"])
    values = {"root": "", "page": page, "sizes": sizes, "places": [site.Place("index.html", "All cases")]}
    shutil.copytree(paths.templates_dir() / "static", folder / "static")
    for path, data in made.files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "static" / "index" / "figures.js").write_bytes(drawn.figures_script(made.specs))
    (folder / "static" / "colours.css").write_text(theme.stylesheet())
    (folder / "static" / "colours.js").write_text(theme.script())
    place = folder / "index.html"
    place.write_bytes(site.rendered(environment, "index.html.jinja", **values))
    return place


def ask(page: Page, name: str, value: str) -> None:
    page.value(f"(e => (e.value = '{value}', e.dispatchEvent(new Event('input', {{bubbles: true}}))))"
               f"(document.querySelector('[name={name}]'))")  # fmt: skip


def failures(page: Page) -> list[str]:
    """What was logged, but for the pictures that this index does not have."""
    return [line for line in page.logged if "ERR_FILE_NOT_FOUND" not in line]


def test_only_what_is_shown_is_in_the_page(page: Page, index: Path) -> None:
    page.open(index.as_uri())
    assert page.value(SHOWN) == index_page.SHOWN and page.value(SAID) == f"{COUNT} cases"
    assert page.value("document.querySelectorAll('*').length") < 2500
    page.value("document.querySelector('[data-more] button').click()")
    assert page.value(SHOWN) == 2 * index_page.SHOWN
    # Who goes by keys goes on where the new ones begin.
    assert page.value("document.activeElement.closest('li').dataset.id") == f"case-{index_page.SHOWN:05}"
    assert page.value("document.querySelector('[data-more] button').textContent") == "Show 48 more of 904"
    assert failures(page) == []


def test_a_search_finds_what_is_not_shown(page: Page, index: Path) -> None:
    page.open(index.as_uri())
    ask(page, "q", "case 777: CUP")
    assert page.value(TITLES) == []
    assert page.value("!document.querySelector('[data-none]').hidden")
    ask(page, "q", "case 778: CUP")
    assert page.value(TITLES) == ["Case 778: a cup that misleads"] and page.value(SAID) == f"1 of {COUNT} cases"
    ask(page, "q", "owl standing strongest-ten")
    assert page.value(SAID) == f"{len(range(2, COUNT, 3))} of {COUNT} cases"
    assert failures(page) == []


def test_its_state_is_in_the_address(page: Page, index: Path) -> None:
    page.open(index.as_uri())
    ask(page, "mode", "hidden-cue")
    ask(page, "q", "chair")
    assert page.value("location.hash") == "#q=chair&mode=hidden-cue"
    said, address = page.value(SAID), page.value("location.href")
    page.open("about:blank")
    page.open(address)
    assert page.value(SAID) == said
    assert page.value("document.querySelector('[name=mode]').value") == "hidden-cue"
    page.value("document.querySelector('[data-clear]').click()")
    assert page.value("location.hash") == "" and page.value(SAID) == f"{COUNT} cases"
    page.value("location.hash = 'mode=no-such-mode'")
    page.wait(f"{SAID} == '{COUNT} cases'")


def test_nothing_that_fits_says_so_and_leads_back(page: Page, index: Path) -> None:
    page.open(index.as_uri())
    ask(page, "q", "zebra")
    assert page.value(SHOWN) == 0 and page.value("document.querySelector('[data-none]').innerText").startswith(
        "No case"
    )
    page.value("document.querySelector('[data-none] button').click()")
    assert page.value(SHOWN) == index_page.SHOWN
    assert page.value("document.activeElement.name") == "q"


def test_charts_show_what_is_left_and_lead_to_it(page: Page, index: Path) -> None:
    page.open(index.as_uri())
    assert not page.value("Boolean(window.vegaEmbed)")  # the library comes when it is needed
    live = "document.querySelectorAll('[data-summary] [data-live]').length"
    page.size(1280, 6000)
    page.value("document.querySelector('[data-summary]').scrollIntoView(), true")
    page.wait(f"{live} == 2")
    points = "document.querySelectorAll('[data-figure=before-after] .mark-symbol path').length"
    assert page.value(points) == COUNT
    ask(page, "q", "owl")
    page.wait(f"{points} == {len(range(2, COUNT, 3))}")
    ask(page, "q", "")
    page.wait(f"{points} == {COUNT}")
    bar = page.value("(b => [b.x + b.width / 4, b.y + b.height / 2])(document.querySelector("
                     "'[data-figure=outcomes] .mark-rect path').getBoundingClientRect())")  # fmt: skip
    page.click(*bar)
    page.wait("location.hash.startsWith('#mode=misleading-cue&verdict=')")
    assert page.value(SAID) == f"{COUNT // 2} of {COUNT} cases"
    assert failures(page) == []


def test_without_scripts_all_of_them_are_there(page: Page, index: Path) -> None:
    page.scripts(False)
    page.open(index.as_uri())
    page.scripts(True)
    assert page.value("document.querySelectorAll('.card').length") == COUNT
    assert page.value("[...document.querySelectorAll('.card')].every(c => c.offsetHeight > 0)")
    assert not page.value("document.querySelector('[data-filters]').offsetHeight")
