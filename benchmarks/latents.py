"""Latents: how long one takes to open on an atlas's page, from the click to its references on the screen.

    cold     its part of the atlas's data, and its sheets of pictures, were not read before
    pointed  nor were they, but the pointer has rested on its number for a quarter of a second, as before a click
    warm     all were

Chromium opens the atlas of the bundled model's main tap as `site/` has it, and a synthetic one of 32,768 latents, over
HTTP from this machine. A latent is open when the first of its references shows its picture and that frame was shown.
By the clock, so that it says something on an idle machine only; beside it stands how long the page's own work kept the
main thread, which depends less on what else runs.

    python benchmarks/latents.py [--rounds 9] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SLUG = "sketchworld-vision.3"
LINK = """(() => {
  const link = document.createElement('a');
  link.href = '#latent=%d'; link.textContent = 'opened'; link.className = 'measured';
  link.style = 'position: fixed; top: 0; left: 0; z-index: 9'; document.body.append(link);
})()"""
OPEN = """
new Promise(done => {
  const start = performance.now(), link = document.querySelector('a.measured');
  link.click(); link.remove();
  const painted = () => document.querySelector('[data-latent-view]').dataset.latent === '%d' &&
    document.querySelector('[data-latent-view] .contact canvas[data-drawn]');
  const look = () => painted() ? requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)))
    : setTimeout(look, 1);
  look();
})"""
BUSY = "TaskDuration"
WAYS = ("cold", "pointed", "warm")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    from vsp_report.render import preview

    running = preview.server(folder)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{preview.HOST}:{running.server_address[1]}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def busy_ms(page: Any) -> float:
    found = page.send("Performance.getMetrics")["metrics"]
    return 1000 * next(one["value"] for one in found if one["name"] == BUSY)


def opened(site: Path, slug: str, rounds: int) -> dict[str, float]:
    """Latents that lie far apart, each cold in a tab of its own, and once more when another has been looked at between:
    that one is the next in the same file, and is not measured."""
    from tests.browser.chromium import Chromium
    from vsp_report.atlas import load_atlas

    living = load_atlas(site / "atlas" / slug).alive_L.nonzero()[0].tolist()
    picked = [int(k) for k in range(0, len(living) - 1, max(1, len(living) // rounds))][:rounds]
    times: dict[str, list[float]] = {f"{way}_{what}": [] for what in ("ms", "busy_ms") for way in WAYS}
    browser = Chromium()
    try:
        with served(site) as address:
            for place, first in ((place, first) for place in picked for first in ("cold", "pointed")):
                page = browser.page()
                page.send("Performance.enable")
                page.open(f"{address}/atlas/{slug}/index.html")
                page.wait("document.querySelectorAll('.rows .row, [role=row]').length > 3")
                time.sleep(0.3)  # what a page does at its opening is over
                for way, latent in ((first, living[place]), ("again", living[place + 1]), ("warm", living[place])):
                    page.value(LINK % latent)
                    if way == "pointed":
                        page.send("Input.dispatchMouseEvent", type="mouseMoved", x=8, y=8)
                        time.sleep(0.25)
                    before = busy_ms(page)
                    taken = page.value(OPEN % latent)
                    if way in (first, "warm"):
                        times[f"{way}_ms"].append(taken)
                        times[f"{way}_busy_ms"].append(busy_ms(page) - before)
                page.send("Page.close")
    finally:
        browser.close()
    return {name: median(values) for name, values in times.items()} | {"latents": len(living)}


def main() -> None:
    from tests.render import atlases
    from tests.render.recordings import save_all
    from vsp_report.atlas import atlases_in
    from vsp_report.render import site as renderer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="latents to open (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures: dict[str, Any] = {"bundled": opened(ROOT / "site", SLUG, args.rounds)}
    with tempfile.TemporaryDirectory(prefix="vsp-latents-") as work:
        out = Path(work) / "site"
        save_all(out / "recordings", ("paper-case",))
        atlases.save(out / "atlas", 32_768, ("vision.3",))
        renderer.build(out / "recordings", out)
        (slug,) = (one.name for one in atlases_in(out / "atlas"))
        figures["wide"] = opened(out, slug, args.rounds)
    heads = [f"{way} {what}" for what in ("ms", "work") for way in WAYS]
    print(f"{'':10}{'living':>8}" + "".join(f"{head:>14}" for head in heads))
    for name, one in figures.items():
        values = [one[f"{way}_{what}"] for what in ("ms", "busy_ms") for way in WAYS]
        print(f"{name:10}{one['latents']:>8}" + "".join(f"{value:>14.0f}" for value in values))
    if args.json:
        figures |= {"date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
