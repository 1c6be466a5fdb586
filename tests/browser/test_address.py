"""What is seen of a case stands in its address: a link shows what its writer saw, and the way back leads back."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.browser.chromium import Page
from tests.render.recordings import full

CHAIR = "cases/standing-beside-a-chair/index.html"
HEAT = "document.querySelector('[data-figure=heatmap]')"
SEEN = """(() => {
    const text = one => (document.querySelector(one) || {}).textContent;
    const fields = ['opacity', 'colours', 'frequency', 'mean', 'normalize', 'cluster', 'distance', 'whose-heatmap',
        'top'];
    return [text('[data-strip] [aria-checked=true]'), text('#look-caption'),
        document.querySelector('[name=whose]:checked').value, text('[data-latents] [aria-pressed=true] .no'),
        text('[data-latent-card] b'), document.querySelector('#smooth').checked,
        document.querySelector('#weighted').checked,
        ...fields.map(id => document.getElementById(id).value), document.querySelectorAll('[data-latents] li').length]
        .map(String) })()"""
HASH = "location.hash"


def fresh(page: Page, address: str) -> None:
    page.open("about:blank")
    page.open(address)


def chosen(page: Page, control: str, value: str) -> None:
    told = "e.dispatchEvent(new Event('input')), e.dispatchEvent(new Event('change'))"
    page.value(f"(e => (e.value = '{value}', {told}))(document.getElementById('{control}'))")


def word(page: Page, place: int) -> None:
    page.value(f"document.querySelectorAll('[data-strip] [role=radio]')[{place}].click()")


def latent(page: Page, place: int) -> None:
    page.value(f"document.querySelectorAll('[data-latents] button')[{place}].click()")


def back(page: Page, steps: int = -1) -> None:
    before = page.value(HASH)
    page.value(f"history.go({steps})")
    page.wait(f"{HASH} !== {before!r}")
    page.value("new Promise(done => setTimeout(done, 30))")


@pytest.mark.parametrize("way", ["folder", "server"])
def test_a_link_shows_what_its_writer_saw(page: Page, built: Path, served: str, way: str) -> None:
    address = (built / CHAIR).as_uri() if way == "folder" else f"{served}/{CHAIR}"
    fresh(page, address)
    assert page.value(HASH) == ""
    opens = page.value(SEEN)
    word(page, 5)
    page.value("document.querySelector('[value=own]').click()")
    latent(page, 1)
    for control in ("smooth", "weighted"):
        page.value(f"document.getElementById('{control}').click()")
    for control, value in (("opacity", "40"), ("colours", "scale"), ("frequency", "90"), ("normalize", "row"),
                           ("cluster", "k-means"), ("distance", "euclidean"), ("top", "2")):  # fmt: skip
        chosen(page, control, value)
    wanted = page.value(SEEN)
    page.wait(f"{HASH}.includes('top=2')")
    link = page.value("location.href")
    told = {key: one for key, (one,) in parse_qs(link.partition("#")[2]).items()}
    number = wanted[3]
    assert told == {
        "token": "5", "row": "own", "shown": number, "opacity": "40", "colours": "scale", "smooth": "yes",
        "weighted": "no", "frequency": "90", "scale": "row", "clusters": "k-means", "by": "euclidean", "top": "2",
    }  # fmt: skip
    fresh(page, link)
    assert page.value(SEEN) == wanted != opens
    page.value(f"{HEAT}.scrollIntoView()")
    page.wait(f"{HEAT}.dataset.live")
    assert page.value(f"[...{HEAT}.querySelectorAll('[aria-label]')].length") > 0
    fresh(page, address)
    assert page.value(SEEN) == opens
    assert page.logged == []


def test_the_way_back_leads_back(page: Page, built: Path) -> None:
    fresh(page, (built / CHAIR).as_uri())
    seen = [page.value(SEEN)]
    for step in (lambda: word(page, 3), lambda: latent(page, 0), lambda: chosen(page, "normalize", "row"),
                 lambda: page.value("document.querySelector('[value=own]').click()")):  # fmt: skip
        step()
        seen.append(page.value(SEEN))
    assert len({tuple(one) for one in seen}) == 5
    for wanted in seen[-2::-1]:
        back(page)
        assert page.value(SEEN) == wanted
    for wanted in seen[1:]:
        back(page, 1)
        assert page.value(SEEN) == wanted
    assert page.logged == []


def test_a_walk_with_the_keys_is_one_step(page: Page, built: Path) -> None:
    fresh(page, (built / CHAIR).as_uri())
    word(page, 2)
    before, length = page.value(SEEN), page.value("history.length")
    page.value("document.querySelector('[data-strip] [aria-checked=true]').focus()")
    for _ in range(4):
        page.press("ArrowRight")
    page.wait(f"{HASH} === '#token=6'")
    assert page.value("history.length") == length + 1
    back(page)
    assert page.value(SEEN) == before


def test_a_cluster_goes_with_the_link(page: Page, built: Path) -> None:
    fresh(page, (built / CHAIR).as_uri())
    page.value("document.querySelectorAll('[data-clusters] button')[1].click()")
    said = page.value("document.querySelector('[data-heat-said]').textContent")
    rows = "document.querySelectorAll('.vsp-rows > *').length"
    page.wait(f"{HASH}.includes('group=')")
    offered, link = page.value(rows), page.value("location.href")
    fresh(page, link)
    assert page.value("document.querySelector('[data-heat-said]').textContent") == said
    assert said.startswith("Cluster ") and page.value(rows) == offered


def test_what_the_panel_reads_is_left_as_it_stands(page: Page, built: Path) -> None:
    """A latent that a link brings is an edit of the panel's, once, however one goes back and forth after."""
    number = full().latents[2].number
    fresh(page, f"{(built / CHAIR).as_uri()}#latent={number}")
    rows = "document.querySelectorAll('.vsp-rows > *').length"
    page.wait(f"{rows} > 0")
    brought, shown = page.value(rows), "document.querySelector('[data-latent-card] b').textContent"
    assert page.value(shown).startswith(f"Latent {number}")
    word(page, 4)
    assert page.value(HASH) == f"#latent={number}&token=4&shown=none"
    word(page, 5)
    back(page)
    back(page)
    assert page.value(shown).startswith(f"Latent {number}") and page.value(rows) == brought
    back(page, 2)
    assert page.value(rows) == brought and page.value(HASH).endswith("token=5&shown=none")
    # And a copied setting takes along what is seen.
    page.value(
        "[...document.querySelectorAll('#try button')].find(b => b.textContent.startsWith('Copy a link')).click()"
    )
    page.wait(f"{HASH}.startsWith('#try=')")
    link = page.value("location.href")
    assert "&token=5" in link and "latent=" not in link
    fresh(page, link)
    page.wait(f"{rows} === {brought}")
    assert page.value("document.querySelector('[data-strip] [aria-checked=true]').textContent") == (
        page.value("document.querySelectorAll('[data-strip] [role=radio]')[5].textContent")
    )
    assert page.logged == []


@pytest.mark.parametrize(
    "sign",
    ["#token=99999&row=evil&shown=%3Cb%3E", "#opacity=1e9&colours=none&smooth=maybe", "#top=-4&group=77&scale=x&by=y",
     "#shown=123456789&token=-1", "#diagnosis", "#=", "#token="],
)  # fmt: skip
def test_what_no_page_has_is_not_heeded(page: Page, built: Path, sign: str) -> None:
    fresh(page, (built / CHAIR).as_uri())
    opens = page.value(SEEN)
    fresh(page, (built / CHAIR).as_uri() + sign)
    assert page.value(SEEN) == opens and page.logged == []


def test_a_place_on_the_page_takes_nothing_back(page: Page, built: Path) -> None:
    fresh(page, (built / CHAIR).as_uri())
    word(page, 3)
    wanted = page.value(SEEN)
    page.value("location.hash = 'reproduce'")
    page.value("new Promise(done => setTimeout(done, 50))")
    assert page.value(SEEN) == wanted
    back(page)
    assert page.value(SEEN) == wanted and page.value(HASH) == "#token=3"
