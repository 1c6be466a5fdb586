"""Qualities that every kind of page has: for who cannot see, has no mouse, no scripts, a small screen, or paper."""

from __future__ import annotations

import base64
import re
import shutil
import zlib
from pathlib import Path

import pytest

from tests.browser.axe import violations
from tests.browser.chromium import Page
from tests.render.recordings import elsewhere, picture, save_all, second
from vsp_report.recording import save_recording
from vsp_report.render import difference, export

CHAIR = "cases/standing-beside-a-chair/index.html"
KINDS = {
    "index": "index.html",
    "how to read": "how-to-read.html",
    "a case": CHAIR,
    "a classification": "cases/clip-duck-rabbit/index.html",
    "a failed run": "cases/failed-in-a-cell/index.html",
    "a case that was not run": "cases/paper-case/index.html",
    "a difference": "../difference/index.html",
    "an export": "../standing-beside-a-chair.html",
}
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true), true"


@pytest.fixture(scope="session")
def kinds(built: Path) -> dict[str, Path]:
    """A page of each kind."""
    other = built.parent / "other" / "recordings"
    save_all(other, ("failed-in-a-cell", "clip-duck-rabbit"))
    save_recording(other / "standing-beside-a-chair", elsewhere(second()), {"images/input.png": picture()})
    _, files = difference.difference_page(built, other.parent)
    difference.save_difference(built.parent / "difference", files)
    made = export.export_case("standing-beside-a-chair", built / "recordings")
    export.save_alone(built.parent / "standing-beside-a-chair.html", made.html)
    return {kind: built / place for kind, place in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing(page: Page, kinds: dict[str, Path], kind: str) -> None:
    page.open(kinds[kind].as_uri())
    if kind != "an export":  # whose tables are those of the case
        page.value(OPEN_ALL)
    assert violations(page) == []
    page.scheme("dark")
    assert violations(page, "color-contrast") == []
    page.scheme("light")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_says_what_it_is_to_who_links_to_it(page: Page, kinds: dict[str, Path], kind: str) -> None:
    page.open(kinds[kind].as_uri())
    said = page.value("({title: document.title, description: document.querySelector('[name=description]').content,"
                      " lang: document.documentElement.lang, og: Object.fromEntries([...document.querySelectorAll("
                      "'[property^=\"og:\"]')].map(e => [e.getAttribute('property'), e.content]))})")  # fmt: skip
    assert said["title"] and said["description"] and said["lang"] == "en"
    assert said["og"]["og:title"] == said["title"] and said["og"]["og:description"] == said["description"]
    if kind in ("a case", "a classification", "index"):
        assert said["og"]["og:image"].endswith("/card.jpg")


@pytest.mark.parametrize("kind", ["index", "how to read", "a difference", "an export"])
def test_from_a_phone_to_a_wall_nothing_is_cut_off(page: Page, kinds: dict[str, Path], kind: str) -> None:
    page.open(kinds[kind].as_uri())
    for width in (360, 820, 1440, 2560):
        page.size(width)
        assert page.value("document.documentElement.scrollWidth") <= width, width
    page.size(1280)
    assert page.logged == []


@pytest.mark.parametrize("kind", ["index", "how to read", "a case", "a difference"])
def test_it_prints(page: Page, kinds: dict[str, Path], kind: str) -> None:
    page.open(kinds[kind].as_uri())
    page.send("Emulation.setEmulatedMedia", media="print")
    page.size(718)  # A4 with its margins
    assert page.value("document.documentElement.scrollWidth") <= 718
    shown = "[...document.querySelectorAll('.top, .controls, .filters, #try')].filter(e => e.offsetHeight)"
    assert page.value(f"{shown}.map(e => e.outerHTML.slice(0, 200))") == []
    page.send("Emulation.setEmulatedMedia", media="")
    made = page.send("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
    paper = base64.b64decode(made["data"])
    assert paper.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page\b", _unpacked(paper))) <= 12


def _unpacked(paper: bytes) -> bytes:
    streams = re.findall(rb"stream\r?\n(.*?)endstream", paper, re.DOTALL)
    return paper + b"".join(_inflated(one) for one in streams)


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data)
    except zlib.error:
        return b""


@pytest.mark.parametrize("kind", ["index", "how to read", "a difference"])
def test_who_goes_by_keys_sees_where_they_are(page: Page, kinds: dict[str, Path], kind: str) -> None:
    page.open(kinds[kind].as_uri())
    page.send("Page.bringToFront")
    seen = []
    for _ in range(14):
        page.press("Tab")
        seen.append(page.value(
            "(e => [e.tagName, ['', '::after'].some(part => { const s = getComputedStyle(e, part || null);"
            " return s.outlineStyle != 'none' && parseFloat(s.outlineWidth) >= 2; })])(document.activeElement)"
        ))  # fmt: skip
        if seen[-1][0] == "BODY":
            break
    marked = [visible for tag, visible in seen if tag != "BODY"]
    assert len(marked) >= 3 and all(marked), seen


def test_who_wants_no_motion_gets_none(page: Page, kinds: dict[str, Path]) -> None:
    page.open(kinds["index"].as_uri())
    moving = (
        "[getComputedStyle(document.documentElement).scrollBehavior, ...[...document.querySelectorAll('*')]"
        ".map(e => getComputedStyle(e)).filter(s => parseFloat(s.transitionDuration) || s.animationName != 'none')"
        ".map(s => s.animationName)].join()"
    )
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert page.value(moving) == "auto"
    page.send("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("kind", ["index", "how to read", "a difference", "an export"])
def test_without_scripts_it_can_be_read(page: Page, kinds: dict[str, Path], kind: str) -> None:
    page.scripts(False)
    page.open(kinds[kind].as_uri())
    page.scripts(True)
    text = page.value("document.body.innerText")
    for words in {
        "index": ("Standing beside a chair", "no latent has it", "All cases at once"),
        "how to read": ("limited alignment", "p-value", "counted from 0", "undetermined"),
        "a difference": ("regressed", "Standing beside a chair", "standing"),
        "an export": ("Standing beside a chair", "strongest-ten", "Reproduce"),
    }[kind]:
        assert words.casefold() in text.casefold()
    assert page.value("[...document.images].every(i => i.alt != null)")
    assert page.value("[...document.querySelectorAll('[data-filters], .slider label')].every(e => !e.offsetHeight)")
    if kind == "a difference":  # both pictures, side by side
        boxes = page.value("[...document.querySelectorAll('.pane')].slice(0, 2).map(p => p.getBoundingClientRect().x)")
        assert boxes[0] < boxes[1]


def test_from_a_folder_a_server_and_a_zip_it_is_the_same(page: Page, built: Path, served: str, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "site"), "zip", built)
    elsewhere = tmp_path / "Übung # 1 & 100 %"
    shutil.unpack_archive(packed, elsewhere)
    for name in ("index.html", "how-to-read.html", CHAIR):
        seen = []
        for address in ((built / name).as_uri(), f"{served}/{name}", (elsewhere / name).as_uri()):
            page.open(address)
            page.value("""Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); }))""")
            seen.append(page.value("[document.body.innerText, document.styleSheets.length, "
                                   "[...document.images].map(i => i.naturalWidth)].join('\\n')"))  # fmt: skip
        assert seen[0] == seen[1] == seen[2]
    assert page.logged == []


def test_an_export_stands_alone(page: Page, kinds: dict[str, Path], tmp_path: Path) -> None:
    alone = shutil.copy(kinds["an export"], tmp_path / "sent by mail.html")
    page.open(Path(alone).as_uri())
    page.size(1280, 20_000)
    page.value(OPEN_ALL)
    page.wait("window.VSP_FIGURES && [...document.querySelectorAll('[data-figure]')].every(f => f.dataset.live)")
    assert page.logged == []
    assert {address.partition(":")[0] for address in page.asked[1:]} <= {"data"}
    assert page.value("[...document.images].every(i => i.naturalWidth)")
    leads = "[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"
    assert page.value(f"{leads}.filter(href => !/^(#|data:|https:)/.test(href))") == []
    strip = "document.querySelector('[data-strip] [aria-checked=true]')"
    before = page.value(f"{strip}.textContent")
    page.value(f"{strip}.focus()")
    page.press("ArrowLeft")
    assert page.value(f"{strip}.textContent") != before


def test_a_slider_uncovers_one_or_the_other(page: Page, kinds: dict[str, Path]) -> None:
    page.open(kinds["a difference"].as_uri())
    clip = "getComputedStyle(document.querySelectorAll('.live .pane')[1]).clipPath"
    assert page.value(clip) == "inset(0px 0px 0px 50%)"
    page.value("document.querySelector('.slider input').focus()")
    page.press("ArrowRight")
    assert page.value(clip) == "inset(0px 0px 0px 51%)"
    page.press("End")
    assert page.value(clip) == "inset(0px 0px 0px 100%)"
    assert page.value("document.querySelectorAll('.live .tag')[1].hidden")
    assert page.logged == []
