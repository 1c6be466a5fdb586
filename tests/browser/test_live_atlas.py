"""Steering from the atlas in a real browser: no kernel before it is asked for, latents picked from everywhere, the same
panel and the same figures as on a case's page, another case on the same kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.browser.axe import violations
from tests.browser.chromium import Chromium, Page
from tests.browser.test_live import ANSWER, HEARD, ROUNDS, STATUS, ask, choose, press
from tests.live import serving
from tests.live.serving import Home, Served, kernel_pids
from vsp_report.atlas import load_atlas
from vsp_report.recording import load_recording

ATLAS = "atlas/sketchworld-vision.3/index.html"
SPEC = "document.querySelector('[data-panel]').model.get('spec')"
NAMES = "[...document.querySelectorAll('.vsp-rows .vsp-name')].map(n => n.textContent)"
NOTES = "[...document.querySelectorAll('.vsp-rows .vsp-note')].map(n => n.textContent)"
SAID = "document.querySelector('.steer-said').textContent"
COUNT = "document.querySelector('[data-latent-filters] [data-count]').textContent"
READY = f"document.querySelector('.vsp-status')?.textContent === 'Ready.' && {SPEC}"


@pytest.fixture(scope="module")
def home() -> Home:
    return serving.home()


@pytest.fixture(scope="module")
def live() -> Served:
    return serving.served()


@pytest.fixture
def atlas(chromium: Chromium, live: Served) -> Iterator[Page]:
    page = chromium.page()
    page.open(live.door.as_uri())
    page.wait("document.querySelector('[data-panel]')")
    page.asked.clear()
    opened(page, live)
    yield page
    page.open("about:blank")


def opened(page: Page, live: Served, more: str = "") -> None:
    page.open("about:blank")
    page.open(f"{live.base}/report/{ATLAS}{more}")
    page.wait("document.querySelector('.steer')")


def latent(page: Page, number: int) -> None:
    page.value(f"location.hash = 'latent={number}'")
    page.wait(f"document.querySelector('[data-latent-view]').dataset.ready === '{number}'")


def started(page: Page) -> None:
    page.value("[...document.querySelectorAll('.steer-line button')].find(b => !b.hidden).click()")
    page.wait(READY)


def to(page: Page, case: str) -> None:
    page.value(f"(s => {{ s.value = '{case}'; s.dispatchEvent(new Event('change')) }})"
               "(document.querySelector('.steer-line select'))")  # fmt: skip
    page.wait(f"{READY} && {SPEC}.case.id === '{case}'")


def numbers(page: Page, *, active: bool) -> list[int]:
    """Latents that live in the atlas, and are active in this picture or are not."""
    return page.value(f"""(spec => {{
        const bytes = Uint8Array.from(atob(spec.active_bits), c => c.charCodeAt(0));
        const is = k => (bytes[k >> 3] >> (k & 7)) & 1;
        return [...Array(spec.d_sae).keys()].filter(k => is(k) === {int(active)}) }})({SPEC})""")


def does(page: Page, row: int, op: str, value: float) -> None:
    page.value(f"""(() => {{
        const field = name => document.querySelectorAll(`.vsp-rows [aria-label^="${{name}}"]`)[{row}];
        field('What is done').value = '{op}'; field('What is done').dispatchEvent(new Event('change'));
        field('Value for').value = '{value}'; field('Value for').dispatchEvent(new Event('input')) }})()""")


def test_no_kernel_starts_before_it_is_asked_for_and_then_the_answer_is_watched(
    atlas: Page, home: Home, live: Served
) -> None:
    recording = load_recording(home.recording, verify=False)
    alive_L = load_atlas(home.site / "atlas" / "sketchworld-vision.3").alive_L
    mattering = next(k for k in recording.steering("five").edits[0].latents if alive_L[k])
    latent(atlas, mattering)
    atlas.value("new Promise(done => setTimeout(done, 100))")
    assert not [one for one in atlas.asked if "/live/" in one or one.endswith(("/panel.js", "/live.js"))]
    assert atlas.value("document.querySelector('.with').textContent") == "Steer with it"
    atlas.value("document.querySelector('.with').click()")
    atlas.wait(READY)
    assert atlas.value(f"{SPEC}.case.id") == "tried" and "case=tried" in atlas.value("location.search")
    (name,) = atlas.value(NAMES)
    assert name.startswith(f"latent {mattering}")
    assert atlas.value("document.querySelector('.with').textContent") == "Among the edits"
    # The steering that was recorded, asked for here: the answer, the margin and the overlay are those of the case.
    choose(atlas, "five")
    atlas.value(HEARD)
    ask(atlas)
    five = recording.steering("five")
    (answered,) = [event for event in atlas.value("heard") if event["type"] == "answered"]
    assert (answered["text"], answered["margin"]) == (five.after.text, five.after.margin)
    assert any(event["type"] == "token" for event in atlas.value("heard"))
    assert atlas.value(ANSWER).startswith(five.after.text)
    assert atlas.value("document.querySelector('.vsp-stage canvas').width") > 0
    # Folded, one line goes on saying it; and the atlas below is as it was.
    atlas.value("document.querySelector('.steer-line button[aria-controls]').click()")
    assert atlas.value(SAID).startswith(f"“{five.after.text}”, log-odds ") and atlas.value(
        "document.querySelector('.steer-panel').hidden"
    )
    assert atlas.value("document.querySelector('h1#latent-title').textContent") == f"Latent {mattering}"
    # The address of the latent is the atlas's: looking at another one edits nothing.
    rows = atlas.value(NAMES)
    atlas.value("location.hash = 'latent=1'")
    atlas.value("new Promise(done => setTimeout(done, 50))")
    assert atlas.value(NAMES) == rows and atlas.logged == []


def test_latents_are_picked_from_the_map_the_list_and_a_cluster(atlas: Page) -> None:
    atlas.value("document.querySelector('.rows .tall .plus').click()")
    atlas.wait(f"{READY} && {NAMES}.length === 1")
    assert atlas.value("document.querySelector('.rows .tall .plus').textContent") == "✓"
    atlas.value("document.querySelector('.rows .tall .plus').click()")  # again: nothing more
    # With the mark set, what is chosen in a figure is picked and not opened.
    atlas.value("document.querySelector('.steer-pick input').click()")
    atlas.value("document.querySelector('[data-plane=map] canvas').focus()")
    atlas.press("ArrowRight")
    atlas.press("ArrowRight")
    atlas.press("Enter")
    atlas.wait(f"{NAMES}.length === 2")
    there = atlas.value("document.querySelector('[data-plane=map] canvas').dataset.latent")
    assert atlas.value(NAMES)[1].startswith(f"latent {there}") and atlas.value("location.hash") == ""
    # A cluster, and whatever else the list is narrowed to, comes as one group.
    atlas.value("location.hash = 'cluster=3'")
    atlas.wait(f"{COUNT}.includes(' of ')")
    button = "[...document.querySelectorAll('.count button')].find(b => b.textContent.startsWith('Steer with'))"
    size = int(atlas.value(COUNT).split()[0])
    assert atlas.value(f"{button}.textContent") == f"Steer with these {size}"
    atlas.value(f"{button}.click()")
    atlas.wait(f"{NAMES}.length === 3")
    assert atlas.value(NAMES)[2].endswith(f"{size} latents")
    atlas.value(f"{button}.click()")
    assert atlas.value(STATUS).startswith("Among the edits already") and len(atlas.value(NAMES)) == 3
    ask(atlas)
    # Too many are no group.
    atlas.value("location.hash = 'frequency-from=0.1'")
    atlas.wait(f"!{COUNT}.startsWith('{size} ')")
    atlas.value(f"{button}.click()")
    assert "too many to steer at once" in atlas.value(SAID) and len(atlas.value(NAMES)) == 3
    assert atlas.value("!document.querySelector('.steer-said').hidden") and atlas.logged == []


def test_a_silent_latent_says_what_does_nothing_and_setting_it_does_something(atlas: Page) -> None:
    started(atlas)
    living = set(atlas.value("[...document.querySelectorAll('.rows .tall a')].map(a => Number(a.textContent))"))
    quiet = next(k for k in numbers(atlas, active=False) if k in living)
    atlas.value(f"document.querySelector('.plus[aria-label=\"Steer with latent {quiet}\"]').click()")
    atlas.wait(f"{NAMES}.length === 1")
    assert atlas.value(NOTES) == ["not active in this picture."]  # it is set to its largest at once
    largest = float(atlas.value("document.querySelector('.vsp-rows input[type=number]').value"))
    assert largest > 0
    atlas.value(HEARD)
    for op, value in (("scale", 4), ("set", 0), ("set", 40), ("add", 40)):
        does(atlas, 0, op, value)
        said = atlas.value(NOTES)[0]
        assert ("does nothing" in said) == (op == "scale" or value == 0), said
        ask(atlas)
    changes = [event["change"] for event in atlas.value("heard") if event["type"] == "answered"]
    assert changes[0] == changes[1] == 0 and changes[2] and changes[3]
    does(atlas, 0, "scale", 2)
    assert atlas.value(NOTES) == ["not active in this picture: scaling does nothing, set or add."]
    # Among others that are active it is counted.
    loud = numbers(atlas, active=True)[0]
    atlas.value(f"document.dispatchEvent(new CustomEvent('vsp:latents', {{detail: {{latents: [{quiet}, {loud}]}}}}))")
    assert atlas.value(NOTES)[1] == "1 of 2 are not active in this picture: ablating those does nothing."


def test_another_case_is_opened_on_the_same_kernel(atlas: Page, live: Served) -> None:
    started(atlas)
    pids = kernel_pids(live)
    choose(atlas, "five")
    atlas.value("document.querySelector('[aria-label^=\"Region in pixels\"]').value = '0 0 90 90'")
    atlas.value("document.querySelector('[aria-label^=\"Region in pixels\"]').dispatchEvent(new Event('change'))")
    choose(atlas, "all latents, there only")
    ask(atlas)
    before = atlas.value(f"{SPEC}.picture.src")
    # Its round is given up, whoever comes late is not listened to, and the last choice holds.
    atlas.value("document.querySelector('.vsp-check input').checked = true")
    press(atlas, "Ask")
    choice = ("(s => id => { s.value = id; s.dispatchEvent(new Event('change')) })"
              "(document.querySelector('.steer-line select'))")  # fmt: skip
    atlas.value(f"(to => {{ to('tried-too'); to('tried'); to('tried-too') }})({choice})")
    assert atlas.value("document.querySelector('.vsp-ask').disabled")
    atlas.wait(f"{SPEC}?.case.id === 'tried-too' && {STATUS}.startsWith('Ready.')")
    assert "belonged to the picture before" in atlas.value(STATUS)
    assert atlas.value(NAMES) == ["five"] and atlas.value(ROUNDS) == 0
    assert atlas.value(f"{SPEC}.picture.src") != before
    assert atlas.value("document.querySelector('.vsp-panel textarea').value") == "Is the person standing or sitting?"
    atlas.value("document.querySelector('.vsp-check input').checked = false")
    ask(atlas)
    assert kernel_pids(live) == pids and "case=tried-too" in atlas.value("location.search")
    # The choice is kept in the address; the kernel waits again until it is asked for.
    atlas.asked.clear()
    opened(atlas, live, "?case=tried-too#latent=1")
    assert atlas.value("document.querySelector('.steer-line select').value") == "tried-too"
    assert not [one for one in atlas.asked if "/live/" in one] and atlas.logged == []


def test_a_case_that_is_gone_says_so_and_another_can_be_chosen(atlas: Page, home: Home) -> None:
    started(atlas)
    file = home.cases / "tried-too.yaml"
    aside = file.rename(file.with_suffix(".aside"))
    try:
        atlas.value("(s => { s.value = 'tried-too'; s.dispatchEvent(new Event('change')) })"
                    "(document.querySelector('.steer-line select'))")  # fmt: skip
        atlas.wait("document.querySelector('.vsp-status.vsp-bad') && !document.querySelector('.vsp-again').hidden")
        assert "tried-too" in atlas.value(STATUS) and atlas.value("document.querySelector('.vsp-ask').disabled")
    finally:
        aside.rename(file)
    to(atlas, "tried")
    ask(atlas)
    assert atlas.value(STATUS).startswith("Answered") and atlas.logged == []


def test_a_link_brings_the_state_and_waits_to_be_started(atlas: Page, live: Served) -> None:
    latent(atlas, 1)
    started(atlas)
    choose(atlas, "more")
    press(atlas, "Copy a link to this")
    address = atlas.value("location.href")
    assert "case=tried&try=" in address and address.endswith("#latent=1")
    atlas.asked.clear()
    opened(atlas, live, address.partition(ATLAS)[2])
    assert not [one for one in atlas.asked if "/live/" in one]
    started(atlas)
    assert len(atlas.value(NAMES)) == 1
    assert atlas.value("document.querySelector('.vsp-rows input[type=number]').value") == "2"


def test_it_is_accessible_and_fits_by_day_by_night_and_on_a_phone(atlas: Page) -> None:
    started(atlas)
    atlas.value("document.querySelector('.rows .tall .plus').click()")
    atlas.wait(f"{NAMES}.length === 1")
    ask(atlas)
    assert violations(atlas) == []
    atlas.scheme("dark")
    assert violations(atlas, "color-contrast") == []
    atlas.scheme("light")
    for width in (360, 820, 1440):
        atlas.size(width)
        atlas.value("new Promise(requestAnimationFrame)")
        assert atlas.value("document.documentElement.scrollWidth") <= width, width
        wide = ("[...document.querySelectorAll('.steer *')].filter(e => e.offsetWidth && !e.closest('select')"
                " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)")  # fmt: skip
        assert atlas.value(wide) == [], width
        # The answer comes into view, and there is room to read above.
        ask(atlas)
        atlas.wait("document.querySelector('.vsp-margin').getBoundingClientRect().bottom <= innerHeight")
        assert atlas.value("document.querySelector('.steer').getBoundingClientRect().height < 0.85 * innerHeight")
    atlas.size(1280)
    assert atlas.value("document.querySelectorAll('[onerror], img[src=x]').length") == 0
    assert atlas.logged == []


def test_a_kernel_that_dies_is_told_in_the_folded_line_and_had_again(atlas: Page, live: Served) -> None:
    started(atlas)
    choose(atlas, "five")
    atlas.value("document.querySelector('.steer-line button[aria-controls]').click()")
    (pid,) = kernel_pids(live)
    os.kill(pid, signal.SIGKILL)
    atlas.wait(f"{SAID}.includes('died') && !document.querySelector('.steer-said').hidden")
    atlas.value("document.querySelector('.steer-line button[aria-controls]').click()")
    press(atlas, "Start again")
    atlas.wait(READY)
    assert atlas.value(NAMES) == ["five"] and atlas.value(SAID) == "Ready."
    ask(atlas)
    assert atlas.value(STATUS).startswith("Answered") and pid not in kernel_pids(live)
