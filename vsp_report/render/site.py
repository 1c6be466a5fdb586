"""Site: the only writer of HTML. Recordings in, a folder of pages out; only what is stale is made again.

    index.html, how-to-read.html      the cases; what the words mean
    cases/ID/index.html               a page
    cases/ID/*.webp, figures/, .js    what was drawn for it: kept as long as the recording and the drawing code are
    atlas/                            the latents, where there are atlases: `atlas_site` says what lies there
    static/                           styles and scripts
    recordings/                       evidence: read, never written

Two builds of the same recordings are equal to the byte: no time, no random name, no order of a folder goes in. Every
address is relative, so that a page works from a folder, from a zip and below any path of a server.
"""

from __future__ import annotations

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
from vsp_report.render import atlas_cases, atlas_site, audits, labels
from vsp_report.render.ledger import Ledger, NotOurs

RECORDINGS = "recordings"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
"""No script but the site's own files, no code made from text, no address outside of the site."""
_DRAWING = (
    "../audit/words.py", "../case/answers.py", "arms.py", "charts.py", "drawn.py", "figures.py", "findings.py",
    "looking.py", "overlays.py", "share.py", "site.py", "theme.py",
)  # fmt: skip
_DRAWER = ("drawn.py", "theme.py")
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[A-Za-z0-9._~%/-]*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DOWNLOADS = {
    RECORDING: ("Recording", "every figure on this page, as JSON"),
    ARRAYS: ("Arrays", "attention and latents, for numpy"),
    NOTEBOOK: ("Notebook", "as it was executed"),
    "case.yaml": ("Case file", "as its author wrote it"),
}


class Place(NamedTuple):
    """A page that the navigation of every page leads to."""

    href: str
    """from the site's root"""
    name: str


class Built(NamedTuple):
    cases: int
    written: tuple[str, ...]
    """the parts that were made again"""
    removed: tuple[str, ...]
    """files"""
    faults: tuple[VspError, ...]
    """recordings that could not be shown"""


def build(recordings: Path, site: Path, *, force: bool = False, templates: Path | None = None, base_url: str = "",
          only: str = "", say: Callable[[str], None] = lambda line: None) -> Built:  # fmt: skip
    """Bring a site up to date with its recordings. `templates`: a folder whose templates stand before the bundled.
    `base_url`: where the site is published, for who shows a link to it with a picture. `only`: one case."""
    # An audit or a data set may be all that a site has: where its own recordings would be, there need be none.
    alone = recordings.resolve() == (site / RECORDINGS).resolve() and not recordings.exists() and audits.sources(site)
    if not recordings.is_dir() and not alone:
        raise InputError(str(recordings), "is no folder of recordings", "`vsp-report run` makes one.")
    if site.exists() and not site.is_dir():
        raise InputError(str(site), "is no folder", "Name another one with --out.")
    if templates is not None and not templates.is_dir():
        raise InputError(str(templates), "is no folder", "Name a folder of templates, or none.")
    if base_url and not _ADDRESS.fullmatch(base_url):
        raise InputError("--base-url", f"is {base_url!r}, which is no address", "Write https://name.org/path/.")
    site.mkdir(parents=True, exist_ok=True)
    return _Builder(recordings, site, force, templates, base_url, only, say).build()


class _Builder:
    def __init__(self, recordings: Path, site: Path, force: bool, templates: Path | None, base_url: str, only: str,
                 say: Any) -> None:  # fmt: skip
        self.recordings, self.site, self.force, self.say = recordings, site, force, say
        self.base_url, self.only = base_url and base_url.rstrip("/") + "/", only
        self.inside = recordings.resolve() == (site / RECORDINGS).resolve()
        self.ledger = Ledger(site)
        self.written: list[str] = []
        bundled = paths.templates_dir()
        self.folders = [folder for folder in (templates, bundled / "pages") if folder is not None]
        self.static = bundled / "static"
        self.templates_sha = sha_of([folder_sha(folder) for folder in self.folders])
        self.package_sha = package_sha(("atlas", "audit", "case", "recording", "render"))
        room = Path(__file__).parent
        self.versions = {name: version(name) for name in ("altair", "jinja2", "numpy", "pillow", "vl-convert-python")}
        self.drawing_sha = sha_of([[name, file_sha(room / name)] for name in _DRAWING])
        self.drawer_sha = sha_of([self.versions, *(file_sha(room / name) for name in _DRAWER)])
        # Parts of the site that are not always there are named here where they are.
        self.places = [Place("index.html", "All cases"), Place("how-to-read.html", "How to read this")]
        self.audited = audits.sources(site)
        if self.audited:
            self.places.insert(1, Place(audits.PAGE, "Audit"))
        self.atlases = atlas_site.AtlasSite(recordings, site, self.inside)
        if self.atlases and not only:
            self.places.insert(1, Place(atlas_site.INDEX, "Atlas"))
        self._environment: Any = None

    def build(self) -> Built:
        faults, cards = [], []
        self._atlases(faults)
        for folder in recordings_in(self.recordings):
            if self.only and folder.name != self.only:
                continue
            try:
                cards.append(self._case(folder))
            except NotOurs:
                raise
            except VspError as fault:
                faults.append(fault)
        self._static()
        self._index(cards)
        self._part("how-to-read", self._page_key("how-to-read"), self._how_to_read)
        try:
            self._audits({card["id"] for card in cards})
        except NotOurs:
            raise
        except VspError as fault:
            faults.append(fault)
        removed = self.ledger.close()
        return Built(len(cards), tuple(self.written), tuple(removed), tuple(faults))

    def _part(self, name: str, key: str, make: Callable[[], dict[str, bytes]], kept: Any = None) -> None:
        if not self.force and self.ledger.fresh(name, key):
            self.ledger.keep(name)
        elif self.ledger.write(name, key, make(), kept() if kept else None, self.force) or self.force:
            self.written.append(name)

    def _page_key(self, *of: Any) -> str:
        around = [self.places, self.base_url]
        return page_key(sha_of([around, *of]), templates_sha=self.templates_sha, package_sha=self.package_sha,
                        versions=self.versions)  # fmt: skip

    # --- a case --------------------------------------------------------------------------------------------------

    def _case(self, folder: Path) -> dict[str, Any]:
        """Its card."""
        name = folder.name
        if not _NAME.fullmatch(name):
            raise InputError(str(folder), "has a name that is no address", "Use letters, digits, hyphens and dots.")
        evidence, known = recording_sha(folder), self.known_of.get(name, labels.NOTHING)
        words = [[latent, *one] for latent, one in known.labels.items()]
        drawing = sha_of([evidence, self.drawing_sha, self.versions, words])
        page = self._page_key(evidence, self.inside, name, known.address, known.other, words, known.made)
        drawn, shown = f"drawn/{name}", f"page/{name}"
        # A recording that was cut off since has its old manifest: it is loaded, which says what is wrong.
        fresh = not self.force and is_recorded(folder)
        if fresh and self.ledger.fresh(drawn, drawing) and self.ledger.fresh(shown, page):
            self.ledger.keep(drawn)
            return dict(self.ledger.keep(shown).kept)
        self.say(f"{name}")
        from vsp_report.render import index_page, pages

        recording = labels.relabelled(replace(load_recording(folder), id=name), known)
        case = pages.case_page(recording, known)
        made_from: dict[str, str] = {}
        self._part(drawn, drawing, lambda: self._drawn(recording, case, folder, made_from), lambda: {"from": made_from})
        files = set(self.ledger.new[drawn].files)
        thumbnail = f"cases/{name}/thumbnail.webp"
        card = asdict(index_page.card(recording, thumbnail if thumbnail in files else ""))
        self._part(shown, page, lambda: self._shown(case, folder, files), lambda: card)
        return card

    def _drawn(self, recording: Recording, case: Any, folder: Path, made_from: dict[str, str]) -> dict[str, bytes]:
        from vsp_report.render.drawn import drawn, figures_script

        at = f"cases/{recording.id}"
        files = self._images(recording, folder)
        drawing = drawn(case.figures, f"{at}/figures", self.drawer_sha, self._reused(f"drawn/{recording.id}"))
        made_from.update(drawing.made_from)
        if drawing.specs:
            files[f"{at}/figures.js"] = figures_script(drawing.specs)
        return files | drawing.files

    def _reused(self, part: str) -> Callable[[str, str], bytes | None]:
        """What an earlier build drew for this part, as long as it is what it was."""
        old = self.ledger.old.get(part)
        known = old.kept.get("from", {}) if old and not self.force else {}
        return lambda path, made: self.ledger.held(part, path) if known.get(path) == made else None

    def _images(self, recording: Recording, folder: Path) -> dict[str, bytes]:
        from vsp_report.render import looking, overlays, share

        if recording.image is None:
            return {}
        place = folder / recording.image.file
        image = None if place.is_symlink() or not _inside(place, folder) else overlays.opened(place)
        if image is None:
            return {}
        at, arrays = f"cases/{recording.id}", recording.arrays
        files = {f"{at}/picture.webp": overlays.encoded(overlays.fitted(image, 960), 90)}
        files[f"{at}/thumbnail.webp"] = overlays.encoded(overlays.fitted(image, 360), 84)
        opens = looking.start(recording)
        if opens is not None and arrays.boxes_P4 is not None:
            field = overlays.spread(opens.attention(recording), arrays.boxes_P4, image.width, image.height)
            looked = overlays.overlay(image, field)
            files[f"{at}/look.webp"] = overlays.encoded(looked)
            image = looked
        files[f"{at}/card.jpg"] = share.card(image)
        return files

    def _shown(self, case: Any, folder: Path, drawn: set[str]) -> dict[str, bytes]:
        from vsp_report.render.drawn import comma_separated, measured

        at = f"cases/{case.id}"
        downloads, copies = self._evidence(folder, at)
        beside = {f"{at}/{name}": data.encode() if isinstance(data, str) else comma_separated(data)
                  for name, data in case.beside.items()}  # fmt: skip
        sizes = {name: measured((self.site / f"{at}/figures/{name}.svg").read_bytes()) for name in case.figures}
        html = self._render(
            "case.html.jinja",
            root="../../",
            case=case,
            sizes=sizes,
            downloads=[*case.downloads, *downloads],
            has={name: f"{at}/{name}.webp" in drawn for name in ("picture", "look")},
            shared=f"{at}/card.jpg" if f"{at}/card.jpg" in drawn else "",
        )
        return {f"{at}/index.html": html, **beside, **copies}

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

    # --- atlases -------------------------------------------------------------------------------------------------

    def _atlases(self, faults: list[VspError]) -> None:
        """Before the cases, which lead into them; `known_of` says what is known of the latents of each."""
        self.known_of: dict[str, labels.Known] = {}
        if not self.atlases:
            return
        told, shown = self._told(), []
        for place in () if self.only else self.atlases.shelf.places:
            try:
                self.atlases.make(place, told, self._part, self._page_key, self._render)
                shown.append(place)
            except NotOurs:
                raise
            except VspError as fault:
                faults.append(fault)
        # A page that is built alone has the labels, and no pages of an atlas beside it.
        if self.only:
            shelf = self.atlases.shelf
        else:
            self.atlases.index(shown, self._part, self._page_key, self._render)
            shelf = atlas_cases.Shelf(tuple(shown))
        for one in told:
            try:
                self.known_of[one["id"]] = self._known(one, shelf)
            except VspError as fault:
                faults.append(fault)
        self.atlases.forget()

    def _known(self, one: dict[str, Any], shelf: atlas_cases.Shelf) -> labels.Known:
        """What the atlases know of the latents of a case."""
        place, at = shelf.place(one["model_sha"], one["sae_sha"], one["tap"], one["states_sha"]), atlas_cases.address
        if place is None:
            other = shelf.alike(one["sae_sha"], one["tap"])
            return labels.Known(other="" if other is None or self.only else at(other),
                                other_model=other.model if other else "",
                                other_states=bool(other and other.states_sha and one["states_sha"]))  # fmt: skip
        latents = [latent for latent, *_ in one["latents"]]
        part, key = f"labels/{one['id']}", sha_of([place.sha, latents, self.package_sha])
        if self.force or not self.ledger.fresh(part, key):
            self.ledger.write(part, key, {}, self.atlases.labels(place, latents))
        else:
            self.ledger.keep(part)
        shared = "" if place.model_sha == one["model_sha"] else place.model
        return labels.known_of(self.ledger.new[part].kept, "" if self.only else at(place), shared)

    def _told(self) -> list[dict[str, Any]]:
        """What the atlases are told of each case. A recording that cannot be read says so where it is shown."""
        told = []
        for folder in recordings_in(self.recordings):
            if self.only and folder.name != self.only:
                continue
            part = f"told/{folder.name}"
            try:
                key = sha_of([recording_sha(folder), self.package_sha])
                if self.force or not self.ledger.fresh(part, key):
                    recording = replace(load_recording(folder), id=folder.name)
                    self.ledger.write(part, key, {}, atlas_cases.matters(recording))
                else:
                    self.ledger.keep(part)
                told.append(dict(self.ledger.new[part].kept))
            except (VspError, OSError):
                continue
        return told

    # --- the rest ------------------------------------------------------------------------------------------------

    def _index(self, cards: list[dict[str, Any]]) -> None:
        made_from: dict[str, str] = {}

        def make() -> dict[str, bytes]:
            from vsp_report.render import index_page
            from vsp_report.render.drawn import drawn, figures_script, measured

            page = index_page.index_page([index_page.Card(**card) for card in cards])
            drawing = drawn(page.figures, "static/index", self.drawer_sha, self._reused("index"))
            made_from.update(drawing.made_from)
            files = dict(drawing.files)
            if drawing.specs:
                files["static/index/figures.js"] = figures_script(drawing.specs)
            sizes = {name: measured(files[f"static/index/{name}.svg"]) for name in page.figures}
            html = self._render("index.html.jinja", root="", here="index.html", page=page, sizes=sizes,
                                shared=page.shared)  # fmt: skip
            return {"index.html": html, **files}

        self._part("index", self._page_key(cards), make, lambda: {"from": made_from})

    def _audits(self, shown: set[str]) -> None:
        """What `vsp-report audit` left in the site: read, never written."""
        if self.audited:
            key = self._page_key(self.audited, sorted(shown))
            self._part("audit", key, lambda: audits.pages(self.site, shown, self._render))

    def _how_to_read(self) -> dict[str, bytes]:
        from vsp_report.render import sketches
        from vsp_report.render.findings import MODES, VERDICTS

        html = self._render("how-to-read.html.jinja", root="", here="how-to-read.html", modes=MODES, verdicts=VERDICTS,
                            sketches=sketches.figures(), hues=sketches.HUES, way=sketches.WAY)  # fmt: skip
        return {"how-to-read.html": html}

    def _static(self) -> None:
        from vsp_report.render.theme import script, stylesheet

        files = {f"static/{p.name}": p.read_bytes() for p in sorted(self.static.iterdir()) if p.is_file()}
        files["static/colours.css"] = stylesheet().encode()
        files["static/colours.js"] = script().encode()
        files[".nojekyll"] = b""
        self._part("static", sha_of({name: sha(data) for name, data in files.items()}), lambda: files)

    def _render(self, template: str, **values: Any) -> bytes:
        if self._environment is None:
            self._environment = make_environment(self.folders)
        return rendered(self._environment, template, places=self.places, base_url=self.base_url, **values)


def rendered(environment: Any, template: str, **values: Any) -> bytes:
    """A page as it is written. What every page has and a caller does not give is empty."""
    values = {"shared": "", "places": (), "base_url": "", **values}
    html = environment.get_template(template).render(policy=POLICY, program=__version__, **values)
    return ("\n".join(line.rstrip() for line in html.splitlines() if line.strip()) + "\n").encode()


def make_environment(folders: list[Path]) -> Any:
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
