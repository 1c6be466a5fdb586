"""Site: how long a site of very many cases takes to build, and to open.

    first      everything is drawn: charts, overlays, pages; of a few cases, as each costs the same
    pages      a template has changed, nothing heavy has: every page is made again of what was drawn
    nothing    nothing has changed
    one        one recording has changed: its page, and the index

The recordings are one synthetic case, under a thousand names and titles, with a few words and figures varied. Chromium
opens the index from the folder, as a double-click does, and searches in it. Times are CPU seconds of one process where
they are the build's, and milliseconds since the address was entered where they are the browser's.

    python benchmarks/site.py [--cases 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MODES = ("misleading-cue", "hidden-cue", "limited-alignment", "none")
TOPICS = "chair bench stool cup kite owl goat mitten puppet bar rabbit duck".split()
_BUILD = """
import json, resource, sys
from pathlib import Path
from vsp_report.render import site
recordings, out, templates = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
if len(sys.argv) > 4:  # the same charts for every case
    from vsp_report.render import drawn
    made = {}
    def drawn_once(figures, at, *of):
        for name, figure in figures.items():
            made[name] = made.get(name) or drawn.svg_of(drawn.specification(figure.draw()))
        files = {f"{at}/{name}.svg": made[name] for name in figures}
        return drawn.Drawing(files | {f"{at}/{name}.csv": b"" for name in figures}, {}, {})
    drawn.drawn = drawn_once
built = site.build(recordings, out, templates=templates)
used = resource.getrusage(resource.RUSAGE_SELF)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"seconds": used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime,
                  "written": len(built.written), "faults": len(built.faults), "mib": used.ru_maxrss / 1024}))
"""


def record(folder: Path, cases: int) -> None:
    """A case under many names."""
    from tests.render.recordings import full, picture
    from vsp_report.recording import save_recording

    base = full()
    kinds = [picture("misleading-cue", "chair", seed) for seed in range(4)]
    for i in range(cases):
        topic = TOPICS[i % len(TOPICS)]
        case = base.case | {
            "title": f"Case {i + 1}: a {topic} that misleads", "failure": MODES[i % len(MODES)],
            "tags": [topic, f"round-{i % 7}"], "expect": {"before": {"answer": "sitting" if i % 9 else "standing"}},
        }  # fmt: skip
        shift = (i % 41 - 20) / 10
        clean = replace(base.clean, margin=base.clean.margin + shift)
        one = replace(base, id=f"case-{i + 1:05}", case=case, clean=clean)
        save_recording(folder / one.id, one, {"images/input.png": kinds[i % 4], "notebook.ipynb": b"{}"})


def built(recordings: Path, site: Path, templates: Path, *, drawn_once: bool = False) -> dict[str, float]:
    """`drawn_once`: with one case's charts in all of them. It fills a site that is then built again as it should be."""
    words = [sys.executable, "-c", _BUILD, str(recordings), str(site), str(templates), *(["once"] * drawn_once)]
    ran = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def opened(index: Path, rounds: int) -> dict[str, float]:
    """Medians over fresh tabs: until the index can be used, and until a search has been answered."""
    from tests.browser.chromium import Chromium

    browser = Chromium()
    usable, searched, cards, nodes = [], [], 0, 0
    try:
        for _ in range(rounds):
            page = browser.page()
            page.open(index.as_uri())
            page.wait("performance.getEntriesByName('vsp-usable').length")
            usable.append(page.value("performance.getEntriesByName('vsp-usable')[0].startTime"))
            nodes = page.value("document.querySelectorAll('*').length")
            found = page.value(
                "new Promise(done => { const q = document.querySelector('[name=q]'), from = performance.now();"
                "q.value = 'mitten'; q.dispatchEvent(new Event('input', {bubbles: true}));"
                "requestAnimationFrame(() => setTimeout(() => done([performance.now() - from,"
                "document.querySelector('[data-count]').textContent]))); })"
            )
            searched.append(found[0])
            cards = int(found[1].split(" of ")[1].split()[0])
    finally:
        browser.close()
    return {"usable_ms": median(usable), "search_ms": median(searched), "cases": cards, "nodes": nodes}


def weight(place: Path) -> dict[str, int]:
    data = place.read_bytes()
    return {"bytes": len(data), "gzipped": len(gzip.compress(data, 6, mtime=0))}


def measure(cases: int, heavy: int, rounds: int, work: Path) -> dict[str, Any]:
    from vsp_report.recording import load_recording, restate

    recordings, few, site, templates = work / "recordings", work / "few", work / "site", work / "templates"
    record(recordings, cases)
    templates.mkdir()
    figures: dict[str, Any] = {}
    record(few, heavy)
    figures["first"] = built(few, work / "few-site", templates) | {"cases": heavy}
    built(recordings, site, templates, drawn_once=True)
    changed = '{% extends "bundled/base.html.jinja" %}{% block foot %}<p>Another foot.</p>{% endblock %}'
    (templates / "base.html.jinja").write_text(changed)
    figures["pages"] = built(recordings, site, templates) | {"cases": cases}
    figures["nothing"] = built(recordings, site, templates) | {"cases": cases}
    asked = load_recording(recordings / "case-00001").asked()
    restate(recordings / "case-00001", replace(asked, title="Another title"))
    figures["one"] = built(recordings, site, templates) | {"cases": cases}
    figures["open"] = opened(site / "index.html", rounds)
    figures["weight"] = {name: weight(site / place) for name, place in {
        "index": "index.html", "case": "cases/case-00001/index.html", "case figures": "cases/case-00001/figures.js",
        "index figures": "static/index/figures.js", "charts, shared": "static/vega.js"}.items()}  # fmt: skip
    figures["weight"]["site"] = {"bytes": sum(p.stat().st_size for p in site.rglob("*") if p.is_file())}
    return figures


def told(figures: dict[str, Any]) -> None:
    print(f"{'':12}{'CPU s':>9}{'cases/s':>10}{'MiB':>8}{'written':>9}")
    for way in ("first", "pages", "nothing", "one"):
        one = figures[way]
        rate = one["cases"] / one["seconds"] if one["seconds"] else float("inf")
        print(f"{way:12}{one['seconds']:>9.2f}{rate:>10.1f}{one['mib']:>8.0f}{one['written']:>9}")
    seen = figures["open"]
    print(f"index of {seen['cases']} cases: usable after {seen['usable_ms']:.0f} ms, a search answered in "
          f"{seen['search_ms']:.0f} ms, {seen['nodes']} elements")  # fmt: skip
    for name, size in figures["weight"].items():
        packed = f", {size['gzipped'] / 1000:.0f} kB gzipped" if "gzipped" in size else ""
        print(f"{name}: {size['bytes'] / 1000:.0f} kB{packed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--heavy", type=int, default=20, help="cases to draw from nothing (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times to open the index (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vsp-site-") as work:
        figures = measure(args.cases, args.heavy, args.rounds, Path(work))
    told(figures)
    if args.json:
        figures |= {"where": platform.machine(), "date": time.strftime("%Y-%m-%d"),
                    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
