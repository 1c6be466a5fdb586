"""The atlas in a real browser: from a folder with 32,768 latents, by mouse and by keys, and without scripts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from tests.browser.axe import violations
from tests.browser.chromium import Page
from tests.render import atlases
from tests.render.recordings import classification, full, picture, save_all
from vsp_report.atlas import load_atlas
from vsp_report.recording import load_recording, save_recording
from vsp_report.render import preview, site
from vsp_report.render.atlas_data import NEAREST

CHAIR, CLIP = "standing-beside-a-chair", "clip-duck-rabbit"
MAIN = "atlas/sketchworld-vision.3"
PAGES = (f"{MAIN}/index.html", f"{MAIN}/index.html#latent={{living}}", "atlas/index.html")
COUNT = "document.querySelector('[data-latent-filters] [data-count]').textContent.replace(/\\u202f/g, '')"
ROWS = "[...document.querySelectorAll('.rows .tall .row')]"
READY = "document.querySelector('[data-latent-view]').dataset.ready"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("atlases") / "site"
    save_all(out / "recordings", (CHAIR,))
    made = load_recording(out / "recordings" / CHAIR).provenance
    tower = "7" * 64
    atlases.save(out / "atlas", 4096, ("vision.3",), model_sha=made.model_sha, sae_sha=made.sae_sha, states_sha=tower)
    # A classification by another model, which reads pictures with the same tower.
    base, clip = full(), replace(made, model="sketchworld-clip", model_sha="another", states_sha=tower)
    arrays = replace(base.arrays, predicting_TP=None, own_TP=None, heatmap_TL=None)
    recording = replace(classification(), latents=base.latents, arrays=arrays, provenance=clip)
    save_recording(out / "recordings" / CLIP, recording, {"images/input.png": picture("hidden-cue", "duck-cat")})
    atlases.save(out / "atlas", 300, ("vision.1", "vision.2"), model_sha=made.model_sha)
    assert not site.build(out / "recordings", out).faults
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("large") / "site"
    save_all(out / "recordings", ("paper-case",))
    atlases.save(out / "atlas", 32_768, ("vision.3",))
    assert not site.build(out / "recordings", out).faults
    return out


@pytest.fixture(scope="module")
def served(known: Path) -> Iterator[str]:
    (known.parent / "index.html").write_text("<title>above</title>")
    running = preview.server(known.parent)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://{preview.HOST}:{running.server_address[1]}/site"
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(scope="module")
def living(known: Path) -> list[int]:
    return [int(n) for n in load_atlas(known / MAIN).alive_L.nonzero()[0]]


def opened(page: Page, address: str) -> None:
    page.open("about:blank")
    page.open(address)
    if "#latent=" in address:
        page.wait(f"{READY} === '{address.rpartition('=')[2]}'")


def shown(page: Page) -> int:
    return int(page.value(COUNT).split()[0])


YARD = (
    "(() => { const t = performance.now(); let s = 0; for (let i = 0; i < 5e7; i++) s += i % 7;"
    " return performance.now() - t; })()"
)


def test_a_latent_among_32768_opens_at_once(page: Page, large: Path) -> None:
    """In a tenth of a second on a machine that does nothing else. How busy it is says a loop that takes about as long:
    opening a latent mostly takes no longer than one and a half of it."""
    opened(page, (large / MAIN / "index.html").as_uri())
    alive = load_atlas(large / MAIN).alive_L
    ratios = []
    # Each from a file that was not read before.
    for at in range(500, 32_768, 5000):
        latent = at + int(alive[at:].argmax())
        yard = page.value(YARD)
        ratios.append(page.value(
            f"new Promise(done => {{ const start = performance.now(); location.hash = 'latent={latent}';"
            f" const look = () => {READY} === '{latent}' && document.querySelector('.contact canvas')"
            " ? done(performance.now() - start) : setTimeout(look, 2); look(); })"
        ) / yard)  # fmt: skip
    assert median(ratios) < 1.5, ratios
    assert page.logged == []
    assert all(address.startswith(("file:", "about:")) for address in page.asked)


def test_the_list_of_32768_is_searched_sorted_and_scrolled(page: Page, large: Path) -> None:
    opened(page, (large / MAIN / "index.html").as_uri())
    atlas = load_atlas(large / MAIN)
    assert page.value(COUNT) == f"{int(atlas.alive_L.sum())} living latents"
    assert page.value(f"{ROWS}.length") < 60
    page.value("document.querySelector('.c-number button').click()")
    page.value("(body => body.scrollTop = body.scrollHeight)(document.querySelector('.rows .body'))")
    last = int(atlas.alive_L.nonzero()[0][-1])
    page.wait(f"{ROWS}.some(row => row.textContent.startsWith('{last}'))")
    assert page.value(f"{ROWS}.length") < 60
    page.value("(q => (q.value = 'rabbit', q.dispatchEvent(new Event('input', {bubbles: true}))))"
               "(document.querySelector('[name=q]'))")  # fmt: skip
    page.wait(f"{COUNT}.includes(' of ')")
    assert page.value(f"{ROWS}.every(row => row.querySelector('.c-word').textContent === 'rabbit')")
    marked = page.value(
        f"{ROWS}.map(row => [Number(row.querySelector('a').textContent), !!row.querySelector('.poor')])"
    )
    assert {poor for _, poor in marked} == {False, True}
    assert all(poor == (atlas.label(latent).score < 0.5) for latent, poor in marked)
    assert page.value(COUNT) == f"{shown(page)} of 32768 latents"
    remembered = page.value("location.href")
    assert remembered.endswith("#q=rabbit&sort=number")
    before = shown(page)
    opened(page, remembered)
    assert shown(page) == before and page.value("document.querySelector('[aria-sort]').textContent") == "latent"
    # A number finds its latent, dead or not.
    page.value("(q => (q.value = '17', q.dispatchEvent(new Event('input', {bubbles: true}))))"
               "(document.querySelector('[name=q]'))")  # fmt: skip
    page.wait(f"{COUNT}.startsWith('1 ')")
    assert page.logged == []


def test_what_is_brushed_is_what_is_left(page: Page, known: Path) -> None:
    opened(page, (known / MAIN / "index.html").as_uri())
    box = page.value("(r => [r.x, r.y, r.width, r.height])(document.querySelector('[data-plane=scatter] canvas')"
                     ".getBoundingClientRect())")  # fmt: skip
    before = shown(page)
    points = [(box[0] + box[2] * x, box[1] + box[3] * y) for x, y in ((0.3, 0.3), (0.5, 0.4), (0.6, 0.6))]
    for kind, (x, y) in zip(("mousePressed", "mouseMoved", "mouseMoved"), points, strict=True):
        page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    page.send("Input.dispatchMouseEvent", type="mouseReleased", x=points[-1][0], y=points[-1][1], button="left",
              clickCount=1)  # fmt: skip
    page.wait(f"{COUNT}.includes(' of ')")
    left = shown(page)
    assert 0 < left < before
    a = load_atlas(known / MAIN).arrays
    low, high, weak, strong = (float(page.value(f"document.querySelector('[name={name}]').value")) for name in
                               ("frequency-from", "frequency-to", "mean-from", "mean-to"))  # fmt: skip
    inside = (a.frequency_L >= low / 100) & (a.frequency_L <= high / 100) & (a.mean_L >= weak) & (a.mean_L <= strong)
    # Figures of the overview have a thousand levels, so a few on the border may fall to either side.
    assert abs(int(inside.sum()) - left) <= 0.03 * left + 2
    bars = "document.querySelectorAll('[data-histogram] .these').length"
    assert page.value(bars) == 3
    page.value("document.querySelector('[data-latent-filters] [type=reset]').click()")
    page.wait(f"!{COUNT}.includes(' of ')")
    assert shown(page) == before and page.value(bars) == 0 and page.logged == []


def test_the_map_is_hovered_and_walked(page: Page, known: Path) -> None:
    opened(page, (known / MAIN / "index.html").as_uri())
    peek = "document.querySelector('[data-plane=map] .peek')"
    at = "document.querySelector('[data-plane=map] canvas').dataset.latent"
    page.value("document.querySelector('[data-plane=map] canvas').focus()")
    page.press("ArrowRight")
    page.wait(f"!{peek}.hidden && {peek}.querySelectorAll('canvas').length === 4")
    first = page.value(at)
    page.press("ArrowRight")
    page.wait(f"{at} !== '{first}'")
    said = page.value("document.querySelector('[data-plane=map] [aria-live]').textContent")
    assert said.startswith(f"Latent {page.value(at)} ")
    page.press("ArrowLeft")
    page.value("document.activeElement.blur()")
    assert page.value(f"{peek}.hidden")
    # By mouse: over the place of a latent of the map.
    atlas = load_atlas(known / MAIN)
    latent = int(atlas.alive_L.nonzero()[0][0])
    x, y = (float(v) for v in atlas.arrays.map_L2[latent])
    box = page.value("(r => [r.x, r.y, r.width, r.height])(document.querySelector('[data-plane=map] canvas')"
                     ".getBoundingClientRect())")  # fmt: skip
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 8 + x * (box[2] - 16),
              y=box[1] + 8 + y * (box[3] - 16))  # fmt: skip
    page.wait(f"!{peek}.hidden && {peek}.querySelectorAll('canvas').length > 0")
    page.value("document.querySelector('[data-plane=map] canvas').focus()")
    page.press("Enter")
    page.wait(READY)
    assert page.value("document.activeElement.id") == "latent-title" and page.logged == []


def test_masks_answer(page: Page, served: str, living: list[int]) -> None:
    opened(page, f"{served}/{MAIN}/index.html#latent={living[0]}")
    # From a server, so that the browser lets the picture's pixels be read.
    pixels = "document.querySelector('.contact canvas').toDataURL()"
    page.value("document.images.length")
    page.value("new Promise(done => setTimeout(done, 300))")
    veiled = page.value(pixels)
    page.value("(r => (r.value = 90, r.dispatchEvent(new Event('input'))))(document.getElementById('threshold'))")
    higher = page.value(pixels)
    page.value("document.getElementById('masks').click()")
    bare = page.value(pixels)
    assert len({veiled, higher, bare}) == 3
    assert page.value("document.getElementById('threshold').disabled") and page.logged == []


def test_a_latent_says_what_is_known_of_it(page: Page, known: Path, living: list[int]) -> None:
    atlas = load_atlas(known / MAIN)
    poor = next(n for n in living if atlas.label(n).score < 0.5)
    opened(page, f"{(known / MAIN).as_uri()}/index.html#latent={poor}")
    said = page.value("document.querySelector('[data-latent-view]').textContent")
    facts = atlas.facts(poor)
    assert page.value("document.querySelector('.labels .word').className") == "word poor"
    assert f"a poor label: average precision {facts.label.score:.2f}, below 0.5; best concept of the world" in said
    assert page.value("document.querySelectorAll('.contact li').length") == len(facts.references)
    assert page.value("document.querySelectorAll('.near tbody tr').length") == min(NEAREST, len(facts.neighbours))
    order = "[...document.querySelectorAll('.near tbody tr')].map(r => parseFloat(r.cells[{}].textContent))"
    cosines = page.value(order.format(1))
    assert cosines == sorted(cosines, reverse=True)
    page.value("document.querySelectorAll('[name=near]')[1].click()")
    together = page.value(order.format(2))
    assert together == sorted(together, reverse=True)
    assert page.value("document.title").startswith(f"Latent {poor}, {facts.label.word} · ")


def test_latents_that_are_dead_missing_or_of_a_case(page: Page, known: Path, living: list[int]) -> None:
    index = (known / MAIN / "index.html").as_uri()
    dead = next(n for n in range(4096) if n not in set(living))
    text = "document.querySelector('[data-latent-view]').textContent"
    page.open(f"{index}#latent={dead}")
    assert "It is dead" in page.value(text)
    for wrong in ("4096", "-1", "chair"):
        page.value(f"location.hash = 'latent={wrong}'")
        page.wait("document.querySelector('h1#latent-title').textContent === 'No such latent'")
    recording = load_recording(known / "recordings" / CHAIR)
    latent = next(n for one in recording.steered for n in one.edits[0].latents if n in set(living))
    opened(page, f"{index}#latent={latent}")
    link = page.value("document.querySelector('[data-latent-view] .served a').href")
    assert link.endswith(f"/cases/{CHAIR}/index.html#latent={latent}")
    # And back: the case's page has it ready to be steered, and leads to the latent.
    page.open(link)
    page.wait(f"document.querySelector('.vsp-rows .vsp-name')?.textContent === 'latent {latent}'")
    page.wait("document.querySelector('[data-latents] button')")
    page.value("document.querySelector('[data-latents] button').click()")
    page.wait("document.querySelector('[data-latent-card] a[href*=\"#latent=\"]')")
    there = page.value("document.querySelector('[data-latent-card] a[href*=\"#latent=\"]').href")
    assert there.startswith(index) and page.logged == []


ROW = "document.querySelector('.vsp-rows .vsp-name')"
HINTS = "[...document.querySelectorAll('[data-latent-view] .hint a')].map(a => a.href)"


def test_any_latent_is_carried_into_any_case_that_fits(page: Page, known: Path, living: list[int]) -> None:
    opened(page, (known / MAIN / "index.html").as_uri())
    fits, served = (page.value(f"VSP_CASES.{of}") for of in ("cases.map(one => one[0])", "latents"))
    other = next(n for n in living if str(n) not in served)
    opened(page, f"{(known / MAIN).as_uri()}/index.html#latent={other}")
    view = "document.querySelector('[data-latent-view]')"
    assert "Where it can be tried" in page.value(f"{view}.textContent")
    links = page.value(HINTS)
    assert [one.partition("/cases/")[2] for one in links] == [f"{case}/index.html#latent={other}" for case in fits]
    assert page.value(f"{view}.querySelector('code').textContent") == f'vsp-report live "{fits[0]}#latent={other}"'
    assert page.value("document.querySelector('.steer, .with, .plus')") is None  # there is no kernel, and no panel
    page.open(next(one for one in links if CHAIR in one))
    page.wait(f"{ROW}?.textContent === 'latent {other}'")
    page.value("document.querySelector('.vsp-ask').click()")
    page.wait("document.querySelector('.vsp-status').textContent.startsWith('This was not recorded')")
    # Where it matters stands first, and the rest of the cases below.
    here = next(int(n) for n, lines in served.items() if len(lines) == 1 and int(n) in living)
    opened(page, f"{(known / MAIN).as_uri()}/index.html#latent={here}")
    (place,) = {line[0] for line in served[str(here)]}
    assert page.value(f"{view}.querySelector('.served a').href").endswith(f"/{fits[place]}/index.html#latent={here}")
    rest = [case for n, case in enumerate(fits) if n != place]
    assert [one.partition("/cases/")[2].partition("/")[0] for one in page.value(HINTS)] == rest
    assert page.logged == []


def test_a_group_is_carried_into_a_case(page: Page, known: Path) -> None:
    opened(page, f"{(known / MAIN).as_uri()}/index.html")
    group = "document.querySelector('.latent-filters + details')"
    assert page.value(f"{group}.hidden")  # what is not narrowed is no group
    cluster = page.value("VSP_ATLAS.clusters.findIndex(one => one[0] && one[1] > 2 && one[1] < 100)")
    if cluster < 0:
        cluster = page.value("VSP_ATLAS.clusters.findIndex(one => one[1] > 2 && one[1] < 129)")
    assert cluster >= 0
    page.value(f"location.hash = 'cluster={cluster}'")
    page.wait(f"!{group}.hidden")
    size = load_atlas(known / MAIN).clusters[cluster].size
    assert page.value(f"{group}.querySelector('summary').textContent") == f"Steer with these {size} latents"
    link = page.value(f"[...{group}.querySelectorAll('a')].map(a => a.href).find(one => one.includes('{CHAIR}'))")
    carried = [int(n) for n in link.partition("#latents=")[2].partition("&")[0].split(",")]
    assert sorted(carried) == (load_atlas(known / MAIN).arrays.cluster_L == cluster).nonzero()[0].tolist()
    page.value(f"{group}.open = true")
    assert page.value(f"{group}.querySelector('code').textContent").startswith("vsp-report live ")
    for width in (360, 1280):
        page.size(width)
        page.value("new Promise(requestAnimationFrame)")
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(f"{group}.scrollWidth <= {group}.clientWidth")
    page.open(link)
    page.wait(f"{ROW}?.title === '{', '.join(map(str, carried))}'")
    assert page.logged == []


def test_a_part_of_the_map_is_what_is_left(page: Page, known: Path) -> None:
    opened(page, (known / MAIN / "index.html").as_uri())
    box = page.value("(r => [r.x, r.y, r.width, r.height])(document.querySelector('[data-plane=map] canvas')"
                     ".getBoundingClientRect())")  # fmt: skip
    before = shown(page)
    ends = (0.2, 0.3, 0.6, 0.7)
    points = [(box[0] + 8 + (box[2] - 16) * x, box[1] + 8 + (box[3] - 16) * y)
              for x, y in (ends[2:], (0.4, 0.4), ends[:2])]  # fmt: skip
    for kind, (x, y) in zip(("mousePressed", "mouseMoved", "mouseMoved"), points, strict=True):
        page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    page.send("Input.dispatchMouseEvent", type="mouseReleased", x=points[-1][0], y=points[-1][1], button="left",
              clickCount=1)  # fmt: skip
    page.wait(f"{COUNT}.includes(' of ')")
    left = shown(page)
    region = [float(v) for v in page.value("document.querySelector('[name=map]').value").split(",")]
    assert region == pytest.approx(list(ends), abs=0.01) and 0 < left < before
    inside = page.value(f"{ROWS}.map(row => Number(row.querySelector('a').textContent))")
    places = page.value("location.hash")
    assert places.startswith("#map=") and inside
    # The address brings it back; showing all takes it away.
    opened(page, (known / MAIN / "index.html").as_uri() + places)
    assert shown(page) == left
    page.value("document.querySelector('[data-latent-filters] [type=reset]').click()")
    page.wait(f"!{COUNT}.includes(' of ')")
    assert shown(page) == before and page.logged == []
    for wrong in ("map=a,b", "map=0,0,1", "map=,,,x"):
        page.value(f"location.hash = '{wrong}'")
        page.value("new Promise(done => setTimeout(done, 20))")
    assert shown(page) == before and page.logged == []


def test_from_the_list_to_a_latent_and_back_by_keys(page: Page, known: Path) -> None:
    opened(page, (known / MAIN / "index.html").as_uri())
    page.value("document.querySelector('.rows .tall a').focus()")
    page.press("ArrowDown")
    focused = page.value("document.activeElement.textContent")
    assert page.value("document.activeElement.dataset.row") == "1"
    page.press("Enter")
    page.wait(READY)
    assert page.value("document.querySelector('h1#latent-title').textContent") == f"Latent {focused}"
    steps = page.value("[...document.querySelectorAll('.steps a')].map(a => a.textContent)")
    assert steps[0] == "All latents" and steps[1].startswith("Previous: ") and steps[2].startswith("Next: ")
    page.value("history.back()")
    page.wait("document.activeElement.dataset.row === '1'")
    assert page.value("document.activeElement.textContent") == focused and page.logged == []


def test_a_link_to_a_cluster_narrows(page: Page, known: Path) -> None:
    opened(page, f"{(known / MAIN).as_uri()}/index.html#cluster=3")
    assert shown(page) == load_atlas(known / MAIN).clusters[3].size
    assert page.value("document.querySelector('[name=cluster]').value") == "3"


def test_without_scripts_everything_is_there(page: Page, known: Path) -> None:
    page.scripts(False)
    page.open((known / MAIN / "index.html").as_uri())
    page.scripts(True)
    assert page.value("[...document.querySelectorAll('.plane img, .small-plot img')].map(i => i.naturalWidth > 0)") == (
        [True] * 5
    )
    assert (
        page.value("[...document.querySelectorAll('.strongest tbody tr')].filter(r => r.offsetHeight > 0).length") == 24
    )
    assert page.value("document.querySelectorAll('.strongest svg image').length") >= 90
    assert page.value("getComputedStyle(document.querySelector('[data-latent-list]')).display") == "none"
    assert page.value("document.querySelectorAll('.concepts tbody tr').length") == 21


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(page: Page, known: Path, living: list[int], name: str) -> None:
    opened(page, f"{known.as_uri()}/{name.format(living=living[0])}")
    page.value("document.querySelectorAll('details').forEach(d => d.open = true), true")
    assert violations(page) == []
    page.scheme("dark")
    assert violations(page, "color-contrast") == []
    page.scheme("light")
    levels = page.value(
        "[...document.querySelectorAll('h1,h2,h3')].filter(h => h.offsetHeight).map(h => +h.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_screen(page: Page, known: Path, living: list[int], name: str) -> None:
    opened(page, f"{known.as_uri()}/{name.format(living=living[0])}")
    for width in (360, 820, 1440, 2560):
        page.size(width)
        page.value("new Promise(requestAnimationFrame)")
        assert page.value("document.documentElement.scrollWidth") <= width, width
        wide = page.value(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .unseen, .layer-head, svg')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"
        )
        assert wide == [], width
    page.size(1280)
    assert page.logged == []


@pytest.mark.parametrize("width", (360, 390))
@pytest.mark.parametrize("name", (f"{MAIN}/index.html", "atlas/index.html"))
def test_on_a_phone_no_table_is_scrolled_sideways(page: Page, known: Path, name: str, width: int) -> None:
    page.size(width)
    opened(page, (known / name).as_uri())
    page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    wide = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth + 1)"
    assert page.value(f"{wide}.map(one => one.getAttribute('aria-label'))") == []
    # What a column was called stands at each figure.
    cell = "document.querySelector('.stack td[data-label]')"
    assert page.value(f"getComputedStyle({cell}, '::before').content") == f'"{page.value(f"{cell}.dataset.label")}"'


def test_a_case_says_how_good_its_labels_are(page: Page, known: Path) -> None:
    opened(page, (known / "cases" / CHAIR / "index.html").as_uri())
    data = "JSON.parse(document.getElementById('case-data').textContent).latents"
    poor = page.value(f"{data}.filter(one => one[8]).map(one => one[0] + ' ' + one[1] + ' ' + one[7].toFixed(2))")
    good = page.value(f"{data}.filter(one => one[8] === false).map(one => one[0] + ' ' + one[1])")
    assert poor and good and all("? 0." in one for one in poor) and not any(one.endswith("?") for one in good)
    shown = "[...document.querySelectorAll('[data-latents] .name')]"
    listed = page.value(f"{shown}.filter(one => one.querySelector('.poor')).map(one => one.textContent)")
    assert listed and set(listed) <= set(poor)
    page.value("document.querySelector('[data-latents] .poor').closest('button').click()")
    assert "a poor one: average precision 0." in page.value("document.querySelector('[data-latent-card]').textContent")


@pytest.mark.parametrize("case", [CHAIR, CLIP])
def test_a_case_shows_what_activates_a_latent(page: Page, known: Path, case: str) -> None:
    """Of the model that was surveyed, and of one that shares its tower."""
    opened(page, (known / "cases" / case / "index.html").as_uri())
    row = "document.querySelectorAll('[data-latents] button')"
    pictures = "[...document.querySelectorAll('[data-latent-references] canvas')]"
    atlas = load_atlas(known / MAIN)
    numbers = page.value(f"[...{row}].map(one => Number(one.querySelector('.no').textContent))")
    living = [place for place, number in enumerate(numbers) if atlas.alive_L[number]][:2]
    for place in living:
        page.value(f"{row}[{place}].click()")
        wanted = [reference.name for reference in atlas.references(numbers[place])[:6]]
        page.wait(f"{pictures}.length === {len(wanted)} && {pictures}[0].getAttribute('aria-label').includes"
                  f"('activation {atlas.references(numbers[place])[0].strength:.3g}')")  # fmt: skip
        labels = page.value(f"{pictures}.map(one => one.getAttribute('aria-label'))")
        assert all(name in label for name, label in zip(wanted, labels, strict=True))
    # Nothing is chosen: nothing is shown.
    page.value(f"{row}[{living[-1]}].click()")
    page.wait("document.querySelector('[data-latent-references]').hidden")
    assert page.logged == []
    assert all(address.startswith(("file:", "about:", "data:")) for address in page.asked)


def test_a_strangers_names_stay_names(page: Page, known: Path) -> None:
    atlas = load_atlas(known / MAIN)
    latent = next(n for n in range(4096) if 0 in atlas.arrays.references_LR[n])
    for address in (f"{MAIN}/index.html", f"{MAIN}/index.html#latent={latent}", "atlas/index.html"):
        opened(page, f"{known.as_uri()}/{address}")
        assert page.value("document.querySelectorAll('[onerror], img[src=x]').length") == 0
        assert page.value("[...document.scripts].every(s => s.src)")
    assert page.logged == []


def test_below_a_path_it_is_quiet_and_whole(page: Page, served: str, living: list[int]) -> None:
    for name in PAGES:
        opened(page, f"{served}/{name.format(living=living[0])}")
        page.value("new Promise(done => setTimeout(done, 100))")
    assert page.logged == []
    assert all(address.startswith((f"{served}/", "about:", "data:")) for address in page.asked)
