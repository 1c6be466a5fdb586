"""Site: the only writer of HTML. Recordings in, a folder of pages out; only what is stale is made again.

    index.html, how-to-read.html      the cases; what the words mean
    cases/ID/index.html               a page
    cases/ID/*.webp, figures/, .js    what was drawn for it: kept as long as the recording and the drawing code are
    static/                           styles and scripts
    recordings/                       evidence: read, never written

Two builds of the same recordings are equal to the byte: no time, no random name, no order of a folder goes in. Every
address is relative, so that a page works from a folder, from a zip and below any path of a server.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from vsp_report import __version__, paths
from vsp_report.errors import InputError, VspError
from vsp_report.recording import (
    ARRAYS,
    NOTEBOOK,
    RECORDING,
    Recording,
    file_sha,
    folder_sha,
    is_recorded,
    load_recording,
    package_sha,
    page_key,
    recording_sha,
    recordings_in,
    sha,
    sha_of,
)
from vsp_report.render.ledger import Ledger, NotOurs

RECORDINGS = "recordings"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
"""No script but the site's own files, no code made from text, no address outside of the site."""
_DRAWING = (
    "../audit/words.py", "charts.py", "figures.py", "findings.py", "ledger.py", "overlays.py", "site.py", "theme.py",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DOWNLOADS = {
    RECORDING: ("Recording", "every figure on this page, as JSON"),
    ARRAYS: ("Arrays", "attention and latents, for numpy"),
    NOTEBOOK: ("Notebook", "as it was executed"),
    "case.yaml": ("Case", "what was asked, as YAML"),
}
_VIEW_BOX = re.compile(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"')


class Built(NamedTuple):
    cases: int
    written: tuple[str, ...]
    """the parts that were made again"""
    removed: tuple[str, ...]
    """files"""
    faults: tuple[VspError, ...]
    """recordings that could not be shown"""


def build(recordings: Path, site: Path, *, force: bool = False, templates: Path | None = None,
          say: Callable[[str], None] = lambda line: None) -> Built:  # fmt: skip
    """Bring a site up to date with its recordings. `templates`: a folder whose templates stand before the bundled."""
    if not recordings.is_dir():
        raise InputError(str(recordings), "is no folder of recordings", "`vsp-report run` makes one.")
    if site.exists() and not site.is_dir():
        raise InputError(str(site), "is no folder", "Name another one with --out.")
    if templates is not None and not templates.is_dir():
        raise InputError(str(templates), "is no folder", "Name a folder of templates, or none.")
    site.mkdir(parents=True, exist_ok=True)
    return _Builder(recordings, site, force, templates, say).build()


class _Builder:
    def __init__(self, recordings: Path, site: Path, force: bool, templates: Path | None, say: Any) -> None:
        self.recordings, self.site, self.force, self.say = recordings, site, force, say
        self.inside = recordings.resolve() == (site / RECORDINGS).resolve()
        self.ledger = Ledger(site)
        self.written: list[str] = []
        bundled = paths.templates_dir()
        self.folders = [folder for folder in (templates, bundled / "pages") if folder is not None]
        self.static = bundled / "static"
        self.templates_sha = sha_of([folder_sha(folder) for folder in self.folders])
        self.package_sha = package_sha(("audit", "case", "recording", "render"))
        room = Path(__file__).parent
        self.drawing_sha = sha_of([[name, file_sha(room / name)] for name in _DRAWING])
        self.versions = {name: version(name) for name in ("altair", "jinja2", "numpy", "pillow", "vl-convert-python")}
        self._environment: Any = None

    def build(self) -> Built:
        faults, cards = [], []
        for folder in recordings_in(self.recordings):
            try:
                cards.append(self._case(folder))
            except NotOurs:
                raise
            except VspError as fault:
                faults.append(fault)
        self._static()
        self._index(cards)
        self._part("how-to-read", self._page_key("how-to-read"), self._how_to_read)
        removed = self.ledger.close()
        return Built(len(cards), tuple(self.written), tuple(removed), tuple(faults))

    def _part(self, name: str, key: str, make: Callable[[], dict[str, bytes]], kept: Any = None) -> None:
        if not self.force and self.ledger.fresh(name, key):
            self.ledger.keep(name)
        elif self.ledger.write(name, key, make(), kept() if kept else None, self.force) or self.force:
            self.written.append(name)

    def _page_key(self, *of: Any) -> str:
        return page_key(sha_of(list(of)), templates_sha=self.templates_sha, package_sha=self.package_sha,
                        versions=self.versions)  # fmt: skip

    # --- a case --------------------------------------------------------------------------------------------------

    def _case(self, folder: Path) -> dict[str, Any]:
        """Its card."""
        name = folder.name
        if not _NAME.fullmatch(name):
            raise InputError(str(folder), "has a name that is no address", "Use letters, digits, hyphens and dots.")
        evidence = recording_sha(folder)
        drawing = sha_of([evidence, self.drawing_sha, self.versions])
        page = self._page_key(evidence, self.inside, name)
        drawn, shown = f"drawn/{name}", f"page/{name}"
        # A recording that was cut off since has its old manifest: it is loaded, which says what is wrong.
        fresh = not self.force and is_recorded(folder)
        if fresh and self.ledger.fresh(drawn, drawing) and self.ledger.fresh(shown, page):
            self.ledger.keep(drawn)
            return dict(self.ledger.keep(shown).kept)
        self.say(f"{name}")
        from vsp_report.render import pages

        recording = replace(load_recording(folder), id=name)
        case = pages.case_page(recording)
        self._part(drawn, drawing, lambda: self._drawn(recording, case, folder))
        files = set(self.ledger.new[drawn].files)
        thumbnail = f"cases/{name}/thumbnail.webp"
        card = asdict(pages.card(recording, thumbnail if thumbnail in files else ""))
        self._part(shown, page, lambda: self._shown(case, folder, files), lambda: card)
        return card

    def _drawn(self, recording: Recording, case: Any, folder: Path) -> dict[str, bytes]:
        from vsp_report.render import charts

        at = f"cases/{recording.id}"
        files = self._images(recording, folder)
        specs = {}
        for name, figure in case.figures.items():
            chart = figure.draw()
            files[f"{at}/figures/{name}.svg"] = charts.svg(chart).encode()
            files[f"{at}/figures/{name}.csv"] = _csv(figure.table)
            specs[name] = {key: value for key, value in charts.spec(chart).items() if key != "$schema"}
        if specs:
            files[f"{at}/figures.js"] = f"window.VSP_FIGURES={_script_json(specs)};\n".encode()
        return files

    def _images(self, recording: Recording, folder: Path) -> dict[str, bytes]:
        from vsp_report.render import overlays, pages

        if recording.image is None:
            return {}
        place = folder / recording.image.file
        image = None if place.is_symlink() or not _inside(place, folder) else overlays.opened(place)
        if image is None:
            return {}
        at, arrays = f"cases/{recording.id}", recording.arrays
        files = {f"{at}/picture.webp": overlays.encoded(overlays.fitted(image, 960), 90)}
        files[f"{at}/thumbnail.webp"] = overlays.encoded(overlays.fitted(image, 360), 84)
        opens = pages.start(recording)
        if opens is not None and arrays.boxes_P4 is not None:
            field = overlays.spread(opens.attention(recording), arrays.boxes_P4, image.width, image.height)
            files[f"{at}/look.webp"] = overlays.encoded(overlays.overlay(image, field))
        return files

    def _shown(self, case: Any, folder: Path, drawn: set[str]) -> dict[str, bytes]:
        at = f"cases/{case.id}"
        downloads, copies = self._evidence(folder, at)
        sizes = {name: _size(self.site / f"{at}/figures/{name}.svg") for name in case.figures}
        html = self._render(
            "case.html.jinja",
            root="../../",
            case=case,
            sizes=sizes,
            downloads=downloads,
            has={name: f"{at}/{name}.webp" in drawn for name in ("picture", "look")},
        )
        return {f"{at}/index.html": html, **copies}

    def _evidence(self, folder: Path, at: str) -> tuple[list[Any], dict[str, bytes]]:
        """Where a page's downloads are. Recordings that lie elsewhere are copied, so that the site is whole."""
        from vsp_report.render.pages import Download

        downloads, copies = [], {}
        for name, (title, what) in _DOWNLOADS.items():
            place = folder / name
            if not place.is_file() or place.is_symlink():
                continue
            href = f"../../{RECORDINGS}/{folder.name}/{name}" if self.inside else f"recording/{name}"
            if not self.inside:
                copies[f"{at}/{href}"] = place.read_bytes()
            downloads.append(Download(title, href, what))
        return downloads, copies

    # --- the rest ------------------------------------------------------------------------------------------------

    def _index(self, cards: list[dict[str, Any]]) -> None:
        def make() -> dict[str, bytes]:
            from vsp_report.render import charts, pages

            page = pages.index_page([pages.Card(**card) for card in cards])
            files: dict[str, bytes] = {}
            size = None
            if page.summary is not None:
                drawn = charts.svg(page.summary.draw()).encode()
                files = {"static/before-after.svg": drawn, "static/before-after.csv": _csv(page.summary.table)}
                size = _measure(drawn)
            return {"index.html": self._render("index.html.jinja", root="", page=page, size=size), **files}

        self._part("index", self._page_key(cards), make)

    def _how_to_read(self) -> dict[str, bytes]:
        from vsp_report.render.findings import MODES, VERDICTS

        return {"how-to-read.html": self._render("how-to-read.html.jinja", root="", modes=MODES, verdicts=VERDICTS)}

    def _static(self) -> None:
        from vsp_report.render.theme import script, stylesheet

        files = {f"static/{p.name}": p.read_bytes() for p in sorted(self.static.iterdir()) if p.is_file()}
        files["static/colours.css"] = stylesheet().encode()
        files["static/colours.js"] = script().encode()
        files[".nojekyll"] = b""
        self._part("static", sha_of({name: sha(data) for name, data in files.items()}), lambda: files)

    def _render(self, template: str, **values: Any) -> bytes:
        if self._environment is None:
            self._environment = _environment(self.folders)
        html = self._environment.get_template(template).render(policy=POLICY, program=__version__, **values)
        return ("\n".join(line.rstrip() for line in html.splitlines() if line.strip()) + "\n").encode()


def _environment(folders: list[Path]) -> Any:
    import jinja2

    loaders: list[Any] = [jinja2.FileSystemLoader(folder) for folder in folders]
    # A template of the user's own can extend the one that it stands before, as bundled/case.html.jinja.
    loaders.append(jinja2.PrefixLoader({"bundled": loaders[-1]}))
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _inside(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def _script_json(data: Any) -> str:
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _csv(table: Any) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows([[_harmless(value) for value in row] for row in table.rows])
    return buffer.getvalue().encode()


def _harmless(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula stays a text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _size(place: Path) -> tuple[int, int]:
    with open(place, "rb") as file:
        return _measure(file.read(400))


def _measure(svg: bytes) -> tuple[int, int]:
    match = _VIEW_BOX.search(svg)
    return (round(float(match[1])), round(float(match[2]))) if match else (0, 0)
