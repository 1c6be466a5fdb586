"""A case's page in a real browser: what answers to the hand and to keys, what is there without scripts, its weight."""

from __future__ import annotations

import gzip
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.browser.chromium import Page
from tests.render.recordings import asked, classification, full, picture
from vsp_report.recording import ControlDraws, save_recording
from vsp_report.render import site

CHAIR = "cases/standing-beside-a-chair/index.html"
CARD = "document.querySelector('[data-latent-card]')"
PIXELS = "document.querySelector('.stage canvas').toDataURL()"
DATA = ("(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        "(document.querySelector('.stage canvas'))")  # fmt: skip
CELLS = "document.querySelectorAll('[data-figure=heatmap] .mark-rect.layer_0_marks path').length"
HEAT = "document.querySelector('[data-figure=heatmap]')"
SAID = "document.querySelector('[data-heat-said]').textContent"
OFFERED = "window.offered = [], document.addEventListener('vsp:latents', e => offered.push(e.detail)), true"


def chosen(page: Page, control: str, value: str) -> None:
    said = "e.dispatchEvent(new Event('input')), e.dispatchEvent(new Event('change'))"
    page.value(f"(e => (e.value = '{value}', {said}))(document.getElementById('{control}'))")


def with_heatmap(page: Page, built: Path) -> None:
    page.open((built / CHAIR).as_uri())
    page.value(f"{HEAT}.scrollIntoView()")
    page.wait(f"{HEAT}.dataset.live")


# --- the picture and the words ---------------------------------------------------------------------------------------


def test_keys_move_through_the_words(page: Page, built: Path) -> None:
    page.open((built / CHAIR).as_uri())
    chosen = "document.querySelector('[data-strip] [aria-checked=true]').textContent"
    caption = "document.querySelector('#look-caption').textContent"
    assert page.value(chosen) == "sitting"
    page.value("document.querySelector('[data-strip] [aria-checked=true]').focus()")
    page.press("ArrowLeft")
    assert page.value(chosen) == "ASSISTANT:"
    assert "says “ASSISTANT:”" in page.value(caption)
    assert page.value("document.activeElement.textContent") == "ASSISTANT:"
    page.press("Home")
    assert page.value(chosen) == "USER:"
    assert "Nothing was recorded" in page.value(caption)
    page.press("ArrowLeft")
    assert page.value(chosen) == "</s>"
    assert page.value("document.querySelectorAll('[data-strip] [tabindex=\"0\"]').length") == 1
    page.value("document.querySelector('[value=own]').click()")
    assert "reads “</s>”" in page.value(caption)


def test_the_overlay_has_two_maps_and_two_grains_and_can_be_taken_off(page: Page, built: Path) -> None:
    page.open((built / CHAIR).as_uri())
    seen = [page.value(PIXELS)]
    for control, value in (("colours", "scale"), ("opacity", "40")):
        chosen(page, control, value)
        seen.append(page.value(PIXELS))
    page.value("document.querySelector('#smooth').click()")
    seen.append(page.value(PIXELS))
    assert len(set(seen)) == 4
    assert page.value("document.querySelector('[data-ramp]').className") == "ramp scale"
    chosen(page, "opacity", "0")
    alpha = f"Math.max(...{DATA}.filter((_, i) => i % 4 == 3))"
    assert page.value(alpha) == 0 and page.value("document.querySelector('.stage.off') != null")
    assert page.logged == []


def test_smoothing_keeps_the_place_of_the_most(page: Page, built: Path) -> None:
    page.open((built / CHAIR).as_uri())
    chosen(page, "opacity", "100")
    top = f"(d => d.reduce((m, v, i) => i % 4 == 3 && v > d[m] ? i : m, 3))({DATA})"
    rough = divmod(page.value(top) // 4, 192)
    page.value("document.querySelector('#smooth').click()")
    smooth = divmod(page.value(top) // 4, 192)
    assert max(abs(a - b) for a, b in zip(rough, smooth, strict=True)) <= 16 + 16, (rough, smooth)


# --- latents ---------------------------------------------------------------------------------------------------------


def test_a_latent_shows_where_it_is_active(page: Page, built: Path) -> None:
    page.open((built / CHAIR).as_uri())
    pixels = "document.querySelector('.stage canvas').toDataURL()"
    before = page.value(pixels)
    page.value("document.querySelector('[data-latents] button').focus()")
    page.press("Enter")
    assert page.value("document.querySelector('[data-latents] button').getAttribute('aria-pressed')") == "true"
    assert page.value("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.value(pixels) != before
    assert "Latent" in page.value("document.querySelector('[data-latent-card]').textContent")
    page.press("Enter")
    assert page.value(pixels) == before
    page.value("document.querySelector('#weighted').click()")
    assert page.value("document.querySelectorAll('[data-latents] button').length") == 12


def test_noise_is_filtered_from_the_list_and_from_the_heatmap(page: Page, built: Path) -> None:
    with_heatmap(page, built)
    listed = "[...document.querySelectorAll('[data-latents] button')].map(b => +b.dataset.place)"
    assert page.value(CELLS) == 11 * 29
    chosen(page, "frequency", "50")
    often = {i for i, one in enumerate(full().latents) if one.frequency > 0.08 + 1e-9}
    assert often and not often & set(page.value(listed))
    assert page.value("document.querySelector('#frequency-out').textContent") == "8 % of pictures"
    page.wait(f"{CELLS} == {11 * (29 - len(often - {29}))}")
    chosen(page, "frequency", "100")
    page.wait(f"{CELLS} == {11 * 29}")
    chosen(page, "mean", "50")
    assert page.value(listed) == []
    assert "No latent" in page.value("document.querySelector('[data-latents]').textContent")
    assert page.logged == []


def test_a_classification_has_masks_and_classes(page: Page, tmp_path: Path) -> None:
    base = full()
    arrays = replace(base.arrays, predicting_TP=None, own_TP=None, heatmap_TL=None)
    # No survey counted these: this picture's patches stand in.
    latents = tuple(replace(one, frequency=None, mean_activation=None) for one in base.latents)
    recording = replace(classification(), latents=latents, arrays=arrays)
    save_recording(
        tmp_path / "recordings" / "duck", recording, {"images/input.png": picture("hidden-cue", "duck-cat")}
    )
    site.build(tmp_path / "recordings", tmp_path)
    page.open((tmp_path / "cases/duck/index.html").as_uri())
    page.wait("document.querySelector('[data-figure=classes]').dataset.live")
    before = page.value(PIXELS)
    assert page.value("document.querySelector('.stage.off') != null")
    page.value("document.querySelector('[data-latents] button').click()")
    assert page.value(PIXELS) != before and page.value("document.querySelector('.stage.off') == null")
    assert "of the patches here" in page.value(f"{CARD}.textContent")
    assert page.value("document.querySelectorAll('[data-strip], #weighted, [name=whose]').length") == 0
    assert page.logged == []


# --- the heatmap -----------------------------------------------------------------------------------------------------


def test_the_heatmap_answers(page: Page, built: Path) -> None:
    with_heatmap(page, built)
    assert page.value(CELLS) == 11 * 29
    changed = f"window.seen !== {HEAT}.querySelector('svg')"
    for control, value in (("normalize", "row"), ("cluster", "k-means"), ("distance", "euclidean"),
                           ("whose-heatmap", "own"), ("top", "3")):  # fmt: skip
        page.value(f"window.seen = {HEAT}.querySelector('svg'), true")
        chosen(page, control, value)
        page.wait(changed)
    assert 0 < page.value(CELLS) < 11 * 29
    one = f"{HEAT}.querySelectorAll('.mark-rect.layer_0_marks path')[40].getBoundingClientRect()"
    # Figures above that come to life meanwhile move it: where it stays for a while, it is.
    page.value(f"""new Promise(done => {{
        const look = before => setTimeout(() => ({one}).y === before ? done() : look(({one}).y), 300); look() }})""")
    box = page.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({one})")
    page.click(*box)
    page.wait(f"!{CARD}.hidden")
    assert page.value("document.querySelector('[data-strip] [aria-checked=true]') != null")
    page.wait(f"{SAID}.includes('reads latent')")
    assert page.logged == []


def test_the_heatmap_by_keys(page: Page, built: Path) -> None:
    with_heatmap(page, built)
    page.value(f"{HEAT}.focus()")
    page.press("ArrowRight")
    page.wait(f"{SAID} != ''")
    first = page.value(SAID)
    assert first.startswith("“sitting” reads latent 100 chair") and "cluster 0 furniture" in first
    page.press("ArrowRight")
    assert page.value(SAID).startswith("“sitting” reads latent 137 seat")
    page.press("ArrowUp")
    assert page.value(SAID).startswith("“ASSISTANT:” reads latent 137 seat")
    assert page.value("document.querySelector('[data-strip] [aria-checked=true]').textContent") == "ASSISTANT:"
    assert page.value(f"document.activeElement === {HEAT}")
    page.wait(f"{HEAT}.querySelectorAll('.mark-rect.layer_5_marks path').length == 1")


def test_a_cluster_is_offered_to_be_steered(page: Page, built: Path) -> None:
    with_heatmap(page, built)
    page.value(OFFERED)
    page.value("document.querySelectorAll('[data-clusters] button')[1].click()")
    wanted = [one.number for one, c in zip(full().latents[:29], full().heatmap.clusterings[0].clusters, strict=True)
              if c == 1]  # fmt: skip
    assert page.value("offered") == [{"latents": wanted, "name": "cluster 1 person"}]
    title = f"[...{HEAT}.querySelectorAll('.mark-text text')].find(t => t.textContent == '0 furniture')"
    middle = f"(b => [b.x + b.width / 2, b.y + b.height / 2])({title}.getBoundingClientRect())"
    page.value("window.was = ''")
    page.wait(f"was == (was = String({middle}))")  # what is still being laid out is not clicked
    page.click(*page.value(middle))
    page.wait("offered.length == 2")
    assert page.value("offered[1].name") == "cluster 0 furniture" and "Try it" in page.value(SAID)
    page.value("document.querySelector('[data-latents] button').click()")
    page.value(f"[...{CARD}.querySelectorAll('button')].at(-1).click()")
    assert page.value("offered[2].latents.length") == 1


def test_charts_are_dark_by_night(page: Page, built: Path) -> None:
    page.open((built / CHAIR).as_uri())
    page.value("document.querySelector('[data-figure=heatmap]').scrollIntoView()")
    cell = "document.querySelector('[data-figure=heatmap] .mark-rect path')?.getAttribute('fill')"
    page.wait(f"{cell} == VSP_COLOURS.light.heat")
    page.scheme("dark")
    page.wait(f"{cell} == VSP_COLOURS.dark.heat")
    page.scheme("light")


def test_a_chart_becomes_a_picture_to_take_away(page: Page, built: Path) -> None:
    page.open((built / CHAIR).as_uri())
    buttons = page.value("[...document.querySelectorAll('[data-png]:not([hidden])')].map(b => b.dataset.png)")
    assert len(buttons) == page.value("document.querySelectorAll('[data-figure]').length") >= 6
    page.value("document.querySelector('[data-png=heatmap]').click()")
    page.wait("+document.querySelector('[data-png=heatmap]').dataset.made > 10000")
    assert page.logged == []


def test_what_controls_were_worded_otherwise_is_played_back(page: Page, tmp_path: Path) -> None:
    """Without a contrast there are no changes to draw, and it was measured nonetheless."""
    steered = replace(full().steered[1], change=None, interval=None, p=None,
                      controls=(ControlDraws("latents", (), 0.05),))  # fmt: skip
    recording = full(case=asked(contrast=None, steer=None, sweep=None, rephrase=None, expect={}, diagnose=False),
                     steered=(steered,), swept=(), rephrased=(), minimal=None, diagnosis=None)  # fmt: skip
    save_recording(tmp_path / "recordings" / "told", recording, {"images/input.png": picture()})
    assert not site.build(tmp_path / "recordings", tmp_path / "site").faults
    page.open((tmp_path / "site" / "cases" / "told" / "index.html").as_uri())
    page.wait("document.querySelector('.vsp-recorded button')")
    page.value("document.querySelector('.vsp-check input').checked = true")
    page.value("[...document.querySelectorAll('.vsp-recorded button')].at(-1).click()")
    compared = "document.querySelector('.vsp-compared').textContent"
    page.wait(f"{compared} != ''")
    assert page.value(compared) == "Of matched sets of other latents, 5.0 % change the answer."
    assert page.logged == []


# --- without, and how much -------------------------------------------------------------------------------------------


def test_without_scripts_everything_is_there(page: Page, built: Path) -> None:
    page.scripts(False)
    page.open((built / CHAIR).as_uri())
    page.send("DOM.enable")
    root = page.send("DOM.getDocument")["root"]["nodeId"]
    html = page.send("DOM.getOuterHTML", nodeId=root)["outerHTML"]
    page.scripts(True)
    assert html.count('<img src="figures/') == html.count('class="plot"') == 6
    assert "look.webp" in html and "Ablating ten latents" in html and "<del>sitting</del>" in html
    assert 'data-controls="look" hidden' in html
    assert html.count("<summary>Data of figure") == 7
    assert "<ins>standing</ins>" in html and "Recorded settings" in html and "@misc{" in html
    assert page.value("[...document.images].every(i => i.alt && i.naturalWidth)")


@pytest.mark.parametrize("name", ["standing-beside-a-chair", "clip-duck-rabbit", "failed-in-a-cell", "paper-case"])
def test_from_a_phone_to_a_wall_nothing_is_cut_off(page: Page, built: Path, name: str) -> None:
    page.open((built / f"cases/{name}/index.html").as_uri())
    page.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    for width in (360, 800, 1280, 1720, 2560):
        page.size(width)
        assert page.value("document.documentElement.scrollWidth") <= width
        if width == 2560:
            way = "document.querySelector('.contents').getBoundingClientRect()"
            main = "document.querySelector('h1').getBoundingClientRect()"
            assert 0 < page.value(f"{way}.left") and page.value(f"{way}.right") < page.value(f"{main}.left")
    assert page.logged == []


def test_who_goes_by_keys_sees_where_they_are(page: Page, built: Path) -> None:
    page.open((built / CHAIR).as_uri())
    page.wait("document.querySelector('[data-latents] button')")
    seen = set()
    for _ in range(40):
        page.press("Tab")
        ring = page.value("(e => [e.tagName, e.id || e.textContent.slice(0, 20), getComputedStyle(e).outlineStyle])"
                          "(document.activeElement)")  # fmt: skip
        assert ring[2] != "none", ring
        seen.add(tuple(ring[:2]))
    assert len(seen) >= 30 and ("INPUT", "opacity") in seen and ("INPUT", "frequency") in seen


def weight(page_of: Path) -> int:
    """What the page asks for, as a server sends it, without the chart bundle that all pages share."""
    html = (page_of / "index.html").read_text()
    asked = set(re.findall(r'(?:src|data-picture|rel="(?:icon|stylesheet)" href)="([^"]+)"', html))
    needed = [page_of / "index.html", *(page_of / name for name in sorted(asked) if not name.endswith("vega.js"))]
    assert len(needed) >= 14
    return sum(len(gzip.compress(p.read_bytes(), 9, mtime=0)) for p in needed)


def test_a_page_is_light(built: Path) -> None:
    assert weight(built / "cases/standing-beside-a-chair") < 300_000
