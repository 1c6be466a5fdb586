"""Atlas site: the atlases' part of a build. Which pages there are, what each is made from, where its files lie.

    atlas/SLUG/atlas.json, arrays.npz      evidence: read, never written
    atlas/pictures-HASH/                   the same
    atlas/index.html                       the atlases, and their layers side by side
    atlas/SLUG/index.html, *.svg           a page, and what it shows without scripts
    atlas/SLUG/overview.js, latents/*.js   what the page's script shows
    atlas/SLUG/cases.js                    in which cases a latent matters

Atlases lie beside the recordings, in the same site. Where the site is built elsewhere, what its pages need is copied
to places that no atlas is ever written to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from vsp_report.atlas import ARRAYS, ATLAS, ATLASES, Atlas, load_atlas
from vsp_report.recording import file_sha, sha_of
from vsp_report.render.atlas_cases import Place, Shelf, by_latent, cases_of, tap_names
from vsp_report.render.drawn import comma_separated, script_json
from vsp_report.render.labels import labels_of

INDEX = f"{ATLASES}/index.html"
COPIES = "sheets"
_PACKING = ("atlas_data.py", "atlas_map.py", "atlas_pages.py", "case_data.py", "drawn.py")
Files = dict[str, bytes]
Part = Callable[[str, str, Callable[[], Files]], None]


class AtlasSite:
    """The atlases beside a folder of recordings. `inside`: the site is built where they are."""

    def __init__(self, recordings: Path, site: Path, inside: bool) -> None:
        self.parent, self.site, self.inside = recordings.parent / ATLASES, site, inside
        self.shelf = Shelf.of(self.parent)
        self.sheets_at = "../" if inside else f"../{COPIES}/"
        self._loaded: dict[str, Atlas] = {}

    def __bool__(self) -> bool:
        return bool(self.shelf.places)

    def make(self, place: Place, told: list[dict[str, Any]], part: Part, page_key: Callable[..., str],
             render: Callable[..., bytes]) -> None:  # fmt: skip
        """One atlas: its page and its data."""
        if not place.sha:
            self._atlas(place)  # says what is wrong with it
        cases, sizes = cases_of(place, told), self._sizes
        alike = [one for one in self.shelf.places if one.model_sha == place.model_sha]
        named = tap_names([(one.tap, one.sae) for one in alike])
        others = [[one.slug, name] for one, name in zip(alike, named, strict=True)]
        packing = sha_of([place.sha, self.sheets_at, *(file_sha(Path(__file__).parent / name) for name in _PACKING)])
        part(f"atlas-data/{place.slug}", packing, lambda: self._data(place))
        key = page_key(place.sha, cases, sorted(sizes.items()), others, self.inside)
        part(f"atlas-page/{place.slug}", key, lambda: self._page(place, cases, sizes, others, render))

    def index(self, shown: list[Place], part: Part, page_key: Callable[..., str], render: Callable[..., bytes]) -> None:
        """The page of all atlases that could be shown."""
        sizes = self._sizes
        key = page_key([[place.slug, place.sha] for place in shown], sorted(sizes.items()), self.inside)

        def make() -> Files:
            from vsp_report.render import atlas_layers

            compared = atlas_layers.layers_page([self._atlas(place) for place in shown], sizes)
            html = render("layers.html.jinja", root="../", here=INDEX, surveys=compared,
                          sheets_at=self.sheets_at.removeprefix("../"))  # fmt: skip
            return {INDEX: html, **self._copies(sizes)}

        part("atlas-index", key, make)

    def labels(self, place: Place, latents: list[int]) -> dict[str, Any]:
        """Of some latents, as plain values."""
        return labels_of(self._atlas(place), latents)

    def forget(self) -> None:
        """Atlases are large."""
        self._loaded.clear()

    def _atlas(self, place: Place) -> Atlas:
        if place.slug not in self._loaded:
            self._loaded[place.slug] = load_atlas(place.folder)
        return self._loaded[place.slug]

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Of the sheets that are there, by their path inside of the folder of atlases."""
        from PIL import Image

        found = {}
        for path in sorted(self.parent.glob("pictures-*/*.webp")):
            try:
                with Image.open(path) as image:
                    found[path.relative_to(self.parent).as_posix()] = image.size
            except (OSError, ValueError):
                continue
        return found

    def _copies(self, sizes: dict[str, Any]) -> Files:
        wanted = () if self.inside else sizes
        return {f"{ATLASES}/{COPIES}/{file}": (self.parent / file).read_bytes() for file in wanted}

    def _data(self, place: Place) -> Files:
        from vsp_report.render import atlas_data, atlas_pages

        atlas = self._atlas(place)
        shards, per_shard = atlas_data.latent_files(atlas)
        at = f"{ATLASES}/{place.slug}"
        return {
            f"{at}/overview.js": atlas_data.overview(atlas, len(shards), per_shard, self.sheets_at),
            f"{at}/latents.csv": comma_separated(atlas_pages.latents_table(atlas)),
            **{f"{at}/{name}": data for name, data in shards.items()},
        }

    def _page(self, place: Place, cases: list[dict[str, Any]], sizes: dict[str, tuple[int, int]],
              others: list[list[str]], render: Callable[..., bytes]) -> Files:  # fmt: skip
        from vsp_report.render import atlas_pages

        at, page = f"{ATLASES}/{place.slug}", atlas_pages.atlas_page(self._atlas(place), sizes)
        beside = "" if self.inside else "evidence/"
        files = {} if self.inside else {f"{at}/evidence/{name}": (place.folder / name).read_bytes()
                                        for name in (ATLAS, ARRAYS)}  # fmt: skip
        downloads = (
            atlas_pages.Offered("Latents", "latents.csv", "every latent with its figures, as CSV"),
            atlas_pages.Offered("Atlas", f"{beside}{ATLAS}", "the atlas, as JSON"),
            atlas_pages.Offered("Arrays", f"{beside}{ARRAYS}", "its figures and references, for numpy"),
        )
        html = render("atlas.html.jinja", root="../../", page=page, cases=_served(cases), downloads=downloads,
                      others=others, sheets_at=self.sheets_at)  # fmt: skip
        files |= {f"{at}/{name}.svg": svg.encode() for name, svg in page.drawings.items()}
        return files | {f"{at}/index.html": html,
                        f"{at}/cases.js": f"window.VSP_CASES={script_json(by_latent(cases))};\n".encode()}  # fmt: skip


def _served(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases, each with the latents that its steerings edit, or else those that matter most."""
    return [{"id": one["id"], "title": one["title"], "latents": [latent for latent, rank, _ in one["latents"]
             if rank <= one["latents"][0][1]][:12] if one["latents"] else []} for one in cases]  # fmt: skip
