"""The panel in a real browser, in its three hosts: a page beside a kernel, a page alone, and a notebook's widget."""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser.chromium import SECONDS, Chromium, Page
from tests.live import serving
from tests.live.relay import Relay
from tests.live.serving import Home, Served, kernel_pids
from vsp_report.case import load_case

STATUS = "document.querySelector('.vsp-status').textContent"
ANSWER = "document.querySelector('.vsp-said').textContent"
ROUNDS = "document.querySelectorAll('.vsp-rounds li').length"
HEARD = """
(place => { window.heard = []; place.model.on('msg:custom', e => heard.push(JSON.parse(JSON.stringify(e)))) })
(document.querySelector('[data-panel]'))"""


def press(page: Page, label: str) -> None:
    """A button of the panel, by its words."""
    found = f"[...document.querySelectorAll('.vsp-panel button')].find(b => b.textContent === {json.dumps(label)})"
    page.value(f"{found}.click()")


def choose(page: Page, text: str) -> None:
    """Of what latents can be added."""
    page.value(f"""(list => {{ list.value = [...list.options].find(o => o.text.startsWith({json.dumps(text)})).value;
        list.dispatchEvent(new Event('change')) }})(document.querySelector('[aria-label="Add latents"]'))""")


def ask(page: Page) -> None:
    before = page.value(ROUNDS)
    press(page, "Ask")
    page.wait(f"{ROUNDS} > {before}")


@pytest.fixture(scope="module")
def home() -> Home:
    return serving.home()


@pytest.fixture(scope="module")
def live() -> Served:
    return serving.served()


@pytest.fixture
def alone(chromium: Chromium, home: Home) -> Page:
    page = chromium.page()
    page.open((home.site / "cases/tried/index.html").as_uri())
    return page


@pytest.fixture
def beside(chromium: Chromium, live: Served) -> Iterator[Page]:
    """A page that its owner has opened by the file that leads to the door."""
    page = entered(chromium, live)
    yield page
    page.open("about:blank")


def entered(chromium: Chromium, live: Served) -> Page:
    page = chromium.page()
    page.open(live.door.as_uri())
    page.wait("document.querySelector('[data-panel][data-host=kernel]')")
    page.wait(f"{STATUS} === 'Ready.'")
    return page


# --- the page alone ----------------------------------------------------------------------------------------------


def test_the_page_alone_plays_back_what_was_recorded(alone: Page) -> None:
    assert alone.value("document.querySelector('[data-panel]').dataset.host") == "recorded"
    press(alone, "five")
    alone.wait(f"{STATUS} === 'As recorded.'")
    press(alone, "as it is")
    alone.wait(f"{ROUNDS} === 2 && {STATUS} === 'As recorded.'")
    assert alone.value("document.querySelector('.vsp-stage canvas').width") > 0
    assert alone.logged == []


def test_what_was_not_recorded_says_so_and_how_to_see_it(alone: Page) -> None:
    before = alone.value(ANSWER)
    alone.value("document.querySelector('[aria-label=\"Latents by number\"]').value = '1, 2'")
    press(alone, "Add")
    press(alone, "Ask")
    alone.wait(f"{STATUS}.startsWith('This was not recorded')")
    assert "vsp-report live tried" in alone.value(STATUS)
    assert alone.value(ROUNDS) == 0 and alone.value(ANSWER) == before


def test_rounds_can_be_stepped_through(alone: Page) -> None:
    press(alone, "five")
    alone.wait(f"{ROUNDS} === 1")
    press(alone, "more")
    alone.wait(f"{ROUNDS} === 2")
    rows = "[...document.querySelectorAll('.vsp-rows .vsp-name')].map(n => n.textContent)"
    assert alone.value(rows) == ["more"]
    press(alone, "←")
    assert alone.value(rows) == ["five"]
    assert alone.value("document.querySelector('.vsp-rounds [aria-current=true]').textContent").startswith(
        "ablate five"
    )
    press(alone, "→")
    assert alone.value(rows) == ["more"]


def test_a_link_restores_the_state(alone: Page, chromium: Chromium) -> None:
    press(alone, "more")
    alone.wait(f"{ROUNDS} === 1")
    press(alone, "Copy a link to this")
    address = alone.value("location.href")
    assert "#try=" in address
    other = chromium.page()
    other.open(address)
    other.wait(f"{STATUS} && document.querySelector('.vsp-rows input[type=number]')?.value === '2'")
    ask(other)
    assert other.value(ANSWER) == alone.value(ANSWER)


@pytest.mark.parametrize(
    "link", ["#try=e30", "#try=!!!", "#try=W10", "#latent=<b>", "#latent=1e9", "#try=eyJwcm9tcHQiOjF9"]
)
def test_a_broken_link_does_no_harm(alone: Page, link: str) -> None:
    alone.value(f"location.hash = {json.dumps(link)}")
    alone.value("new Promise(done => setTimeout(done, 30))")
    assert alone.value("document.querySelectorAll('.vsp-rows input').length") == 0
    assert alone.logged == []


def test_the_atlas_and_the_heatmap_hand_latents_over(alone: Page) -> None:
    names = "[...document.querySelectorAll('.vsp-rows .vsp-name')].map(n => n.textContent)"
    alone.value("location.hash = '#latent=12'")
    alone.wait(f"{names}.length === 1")
    alone.value(
        "document.dispatchEvent(new CustomEvent('vsp:latents', {detail: {latents: [3, 4], name: 'cluster 1'}}))"
    )
    assert alone.value(names) == ["latent 12", "cluster 1"]


# --- beside a kernel ---------------------------------------------------------------------------------------------


def test_both_pages_hear_the_same_events_in_the_same_order(alone: Page, beside: Page) -> None:
    told = {}
    for page in (alone, beside):
        page.value(HEARD)
        choose(page, "five")
        ask(page)
        told[page.session] = page.value("heard")
    kinds = {session: [event["type"] for event in events] for session, events in told.items()}
    recorded, live = kinds[alone.session], kinds[beside.session]
    assert [kind for kind in live if kind != "looked"] == recorded
    assert recorded[:2] == ["queued", "started"] and recorded[-1] == "done" and "token" in recorded
    left_out = ("seq", "source", "ms")
    for mine, theirs in zip(
        (e for e in told[beside.session] if e["type"] != "looked"), told[alone.session], strict=True
    ):
        assert {k: v for k, v in mine.items() if k not in left_out} == {
            k: v for k, v in theirs.items() if k not in left_out
        }
    assert alone.value(ANSWER) == beside.value(ANSWER)
    assert beside.logged == []


def test_a_question_of_ones_own_is_answered(beside: Page) -> None:
    beside.value("document.querySelector('.vsp-panel textarea').value = 'What color is the shirt?'")
    ask(beside)
    assert len(beside.value(ANSWER)) > 2
    # The answer's own attention and latents stand where the old ones stood.
    assert beside.value("[...document.querySelectorAll('.vsp-word')].map(w => w.textContent)")[-1] in beside.value(
        ANSWER
    )
    assert beside.value("document.querySelectorAll('.vsp-bars li').length") > 2


def test_a_region_drawn_on_the_picture_chooses_latents(beside: Page) -> None:
    press(beside, "Draw a region")
    beside.value("document.querySelector('.vsp-stage').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = beside.value("(b => [b.left, b.top, b.width])(document.querySelector('.vsp-stage').getBoundingClientRect())")
    places = [(box[0] + box[2] * f, box[1] + box[2] * f) for f in (0.25, 0.4, 0.6)]
    for kind, (x, y) in zip(("mousePressed", "mouseMoved", "mouseReleased"), places, strict=True):
        beside.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    region = [
        int(v) for v in beside.value("document.querySelector('[aria-label^=\"Region in pixels\"]').value").split()
    ]
    width = beside.value("document.querySelector('[data-panel]').model.get('spec').picture.width")
    assert region == pytest.approx([width * f for f in (0.25, 0.25, 0.6, 0.6)], abs=2)
    choose(beside, "the ten most active there")
    beside.value(HEARD)
    ask(beside)
    (started,) = [event for event in beside.value("heard") if event["type"] == "started"]
    assert 1 <= len(started["edits"][0]["latents"]) <= 10


def test_a_round_is_cancelled_while_it_runs(beside: Page) -> None:
    choose(beside, "five")
    beside.value("document.querySelector('.vsp-check input').checked = true")
    beside.value("""document.querySelector('[data-panel]').model.on('msg:custom', e => {
        if (e.type === 'looked') document.querySelector('.vsp-cancel').click() })""")
    ask(beside)
    assert beside.value(STATUS) == "Cancelled."
    assert beside.value("document.querySelector('.vsp-compared').textContent") == ""
    assert not beside.value("document.querySelector('.vsp-ask').disabled")


def test_a_round_is_saved_as_a_case(beside: Page, home: Home) -> None:
    choose(beside, "five")
    ask(beside)
    beside.value("window.saved = null, document.addEventListener('vsp:saved', e => window.saved = e.detail)")
    beside.value("document.querySelector('[aria-label=\"Name of the case\"]').value = 'from-the-page'")
    beside.value("document.querySelector('[aria-label=\"Title of the case\"]').value = 'From the page'")
    press(beside, "Download")
    beside.wait("window.saved")
    press(beside, "Into cases/")
    beside.wait(f"{STATUS}.startsWith('Written: ')")
    file = home.cases / "from-the-page.yaml"
    try:
        case = load_case(file)
        assert file.read_text() == beside.value("window.saved.text")
    finally:
        file.unlink(missing_ok=True)
    assert case.title == "From the page" and case.steer[0].name == "tried" and case.expect.before is not None


def test_markup_stays_text(beside: Page) -> None:
    evil = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"
    beside.value(f"document.querySelector('.vsp-panel textarea').value = {json.dumps(evil)}")
    ask(beside)
    state = base64.urlsafe_b64encode(
        json.dumps({"prompt": evil, "edits": [{"latents": {"top": evil, "by": evil}, "set": 0}]}).encode()
    )
    beside.value(f"location.hash = {json.dumps('#try=' + state.decode().rstrip('='))}")
    beside.value("new Promise(done => setTimeout(done, 50))")
    assert beside.value(
        "window.hacked === undefined && document.querySelectorAll('.vsp-panel script, .vsp-do img').length === 0"
    )


def test_ones_own_picture_is_asked_about(beside: Page) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 50), "teal").save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    beside.value(f"""(async () => {{
        const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0)), files = new DataTransfer();
        files.items.add(new File([bytes], 'own.png', {{type: 'image/png'}}));
        const field = document.querySelector('.vsp-panel input[type=file]');
        field.files = files.files; field.dispatchEvent(new Event('change')) }})()""")
    beside.wait(f"{STATUS}.includes('your picture')")
    assert beside.value("document.querySelector('.vsp-stage img').naturalWidth") == 80
    ask(beside)
    assert beside.value("document.querySelector('.vsp-stage canvas').width") > 0
    assert beside.logged == []


def test_two_tabs_share_the_kernel(beside: Page, chromium: Chromium, live: Served) -> None:
    other = entered(chromium, live)
    for page in (beside, other):
        choose(page, "five")
        press(page, "Ask")
    for page in (beside, other):
        page.wait(f"{ROUNDS} === 1")
    assert beside.value(ANSWER) == other.value(ANSWER)
    press(other, "Ask")
    other.open("about:blank")  # a tab that is closed while its round runs
    ask(beside)
    assert beside.value(STATUS).startswith("Answered")


def test_a_kernel_that_dies_in_a_round_is_had_again_by_one_click(beside: Page, live: Served) -> None:
    choose(beside, "five")
    ask(beside)
    beside.value("document.querySelector('.vsp-check input').checked = true")
    press(beside, "Ask")
    (pid,) = kernel_pids(live)
    os.kill(pid, signal.SIGKILL)
    beside.wait(f"{STATUS}.includes('died')")
    assert beside.value("!document.querySelector('.vsp-again').hidden")
    press(beside, "Start again")
    beside.wait(f"{STATUS} === 'Ready.'")
    beside.value("document.querySelector('.vsp-check input').checked = false")
    ask(beside)
    assert beside.value(STATUS).startswith("Answered")
    assert beside.value(f"{ROUNDS}") == 2  # what was found before is still there
    assert pid not in kernel_pids(live) and len(kernel_pids(live)) == 1


# --- when a machine has slept, hangs, or is full -------------------------------------------------------------------

HASTE = "(later => { window.setTimeout = (f, ms, ...more) => later(f, ms > 1000 ? ms / 4 : ms, ...more) })(setTimeout)"
"""A page on which time goes four times as fast, where it is only waited for."""
AGAIN = "!document.querySelector('.vsp-again').hidden"


@pytest.fixture
def relay(live: Served) -> Iterator[Relay]:
    relay = Relay(live.port)
    yield relay
    relay.close()


def hasty(chromium: Chromium, address: str) -> Page:
    page = chromium.page()
    page.send("Page.addScriptToEvaluateOnNewDocument", source=HASTE)
    page.open(address)
    page.wait("document.querySelector('[data-panel][data-host=kernel]')")
    page.wait(f"{STATUS} === 'Ready.'")
    return page


def ask_at_length(page: Page) -> None:
    """A round with controls, which takes its time."""
    choose(page, "five")
    page.value("document.querySelector('.vsp-check input').checked = true")
    page.value("window.began = false")
    page.value("""document.querySelector('[data-panel]').model.on('msg:custom', e => {
        if (e.type === 'answered') window.began = true })""")
    press(page, "Ask")
    page.wait("window.began")


def test_a_laptop_that_slept_goes_on_or_comes_back_by_one_click(chromium: Chromium, live: Served, relay: Relay) -> None:
    to = f"/enter?token={live.token}&to=/report/cases/tried/index.html"
    page = hasty(chromium, f"http://127.0.0.1:{relay.port}{to}")
    pids = kernel_pids(live)
    ask_at_length(page)
    relay.hold()
    page.wait(f"{STATUS}.startsWith('Nothing was heard for 20 s')")
    assert page.value(AGAIN)
    relay.flow()  # it wakes in time: the round is still there
    page.wait(f"{ROUNDS} === 1 && {STATUS}.startsWith('Answered')")
    assert not page.value(AGAIN)
    ask_at_length(page)
    relay.hold()
    relay.drop()  # it wakes too late: the connection is not
    page.wait(f"{STATUS} === 'The connection to the kernel was lost.'")
    relay.flow()
    press(page, "Start again")
    page.wait(f"{STATUS} === 'Ready.'")
    page.value("document.querySelector('.vsp-check input').checked = false")
    ask(page)
    assert page.value(STATUS).startswith("Answered")
    assert page.value(ROUNDS) == 2  # what was found before is still there
    assert kernel_pids(live) == pids
    page.open("about:blank")


@pytest.mark.parametrize("wakes", [True, False], ids=["wakes", "never wakes"])
def test_a_kernel_that_stopped_is_had_again_by_one_click(chromium: Chromium, live: Served, wakes: bool) -> None:
    page = hasty(chromium, live.door.as_uri())
    choose(page, "five")
    (pid,) = kernel_pids(live)
    os.kill(pid, signal.SIGSTOP)
    try:
        press(page, "Ask")
        page.wait(f"{STATUS}.startsWith('Nothing answers.')")
        assert page.value(AGAIN)
        if wakes:
            os.kill(pid, signal.SIGCONT)
        press(page, "Start again")
        page.wait(f"{STATUS} === 'Ready.'")
        ask(page)
        assert page.value(STATUS).startswith("Answered")
        assert (kernel_pids(live) == [pid]) is wakes
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        page.open("about:blank")


def test_want_of_memory_is_said_and_mended_by_one_click(beside: Page, live: Served) -> None:
    """A real one: the kernel's process is given no more than it has."""
    choose(beside, "five")
    ask(beside)
    (pid,) = kernel_pids(live)
    status = (Path("/proc") / str(pid) / "status").read_text()
    held = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmSize")).split()[1])
    beside.value("document.querySelector('.vsp-panel textarea').value = 'What color is the shirt, then, again?'")
    beside.value("document.querySelector('.vsp-check input').checked = true")
    resource.prlimit(pid, resource.RLIMIT_AS, (held, resource.RLIM_INFINITY))
    try:
        press(beside, "Ask")
        beside.wait(f"{STATUS}.startsWith('There is not enough memory')")
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert beside.value(ROUNDS) == 1 and beside.value(ANSWER)
    press(beside, "Start again")
    beside.wait(f"{STATUS} === 'Ready.'")
    beside.value("document.querySelector('.vsp-check input').checked = false")
    ask(beside)
    assert beside.value(STATUS).startswith("Answered") and beside.value(ROUNDS) == 2
    assert pid not in kernel_pids(live)


# --- in a notebook -----------------------------------------------------------------------------------------------

HOST = """
(async () => {
  const address = URL.createObjectURL(new Blob([SOURCE], {type: 'text/javascript'}));
  const widget = (await import(address)).default;
  const heard = new Map(), state = {spec: SPEC};
  window.outbox = [];
  window.host = {
    get: key => state[key],
    set: (key, value) => { state[key] = value; (heard.get('change:' + key) || []).forEach(f => f()) },
    save_changes: () => {},
    on: (event, f) => heard.set(event, [...(heard.get(event) || []), f]),
    off: (event, f) => heard.set(event, (heard.get(event) || []).filter(g => g !== f)),
    send: content => window.outbox.push(content),
    fire: (event, content) => (heard.get(event) || []).forEach(f => f(content, [])),
  };
  const el = document.createElement('div');
  document.body.append(el);
  window.leave = widget.render({model: window.host, el});
})()"""


def test_the_notebooks_widget_is_the_same_panel(chromium: Chromium, home: Home, tmp_path: Path) -> None:
    """The widget of the last cell, its script loaded as anywidget loads it; messages are carried by this test."""
    from vsp_report.live import panel
    from vsp_report.study import evidence

    inquiry = evidence.open_case(home.cases / "tried.yaml", tmp_path / "nothing", "cpu")
    shown = panel.widget(inquiry)
    told: list[dict[str, Any]] = []
    shown.send = lambda content, buffers=None: told.append(content)
    page = chromium.page()
    page.open("about:blank")
    page.value(HOST.replace("SOURCE", json.dumps(shown._esm)).replace("SPEC", json.dumps(shown.spec)))
    choose(page, "five")
    press(page, "Ask")
    end = time.monotonic() + SECONDS
    while not page.value(ROUNDS) and time.monotonic() < end:
        for content in page.value("window.outbox.splice(0)"):
            shown._handle_custom_msg(content, [])
        while told:
            page.value(f"host.fire('msg:custom', {json.dumps(told.pop(0))})")
        time.sleep(0.02)
    recorded = json.loads((home.recording / "recording.json").read_text())
    assert page.value(ANSWER).startswith(next(o for o in recorded["steered"] if o["name"] == "five")["after"]["text"])
    page.value("leave()")
    shown.close()
    assert page.logged == []
