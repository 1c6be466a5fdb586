"""Export: a page and all that it shows as one HTML file, to send by mail or to keep with a paper.

The page is built as always and then drawn together: styles and scripts stand in it, pictures and downloads are data in
their own addresses. Its policy names each script by its hash, so the file runs nothing else, and asks nobody for
anything. Links to other pages of the site are links where the site's address is known, and plain words where it is not.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import re
import tempfile
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from vsp_report.errors import InputError
from vsp_report.recording import recordings_in

HEAVY_BYTES = 10_000_000
"""Above this, mail programs and reviewers' systems begin to refuse."""
_KINDS = {
    ".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".csv": "text/csv",
    ".json": "application/json", ".ipynb": "application/x-ipynb+json", ".npz": "application/zip",
    ".yaml": "application/yaml", ".bib": "text/plain", ".txt": "text/plain",
}  # fmt: skip
_OUTWARD = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE)
_POLICY = "@policy@"


class Exported(NamedTuple):
    html: bytes
    heaviest: tuple[tuple[str, int], ...]
    """the files in it, the largest first: name and bytes"""


def export_case(case: str, recordings: Path, *, templates: Path | None = None, base_url: str = "") -> Exported:
    """The page of one case, from its recording."""
    from vsp_report.render.site import build

    if not recordings.is_dir():
        raise InputError(str(recordings), "is no folder of recordings", "`vsp-report run` makes one.")
    known = [folder.name for folder in recordings_in(recordings)]
    if case not in known:
        near = difflib.get_close_matches(case, known, 1)
        remedy = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known[:12]) or 'none'}."
        raise InputError(str(recordings), f"has no recording of {case!r}", remedy)
    with tempfile.TemporaryDirectory(prefix="vsp-export-") as scratch:
        site = Path(scratch) / "site"
        faults = build(recordings, site, templates=templates, base_url=base_url, only=case).faults
        if faults:
            raise faults[0]
        return together(site / "cases" / case / "index.html", site, base_url)


def together(page: Path, site: Path, base_url: str = "") -> Exported:
    """A page with everything that it needs of its site."""
    drawn = _Together(page, site, base_url and base_url.rstrip("/") + "/")
    drawn.feed(page.read_text(encoding="utf-8"))
    drawn.close()
    return drawn.result()


def save_alone(place: Path, html: bytes, *, force: bool = False) -> None:
    """Write a page that stands alone, over nothing but another one."""
    from vsp_report.render.ledger import write_whole

    if place.is_dir():
        raise InputError(str(place), "is a folder", "Name a file with --out.")
    if place.exists() and not force and b'name="generator" content="vsp-report' not in place.read_bytes()[:4000]:
        raise InputError(
            str(place), "is there, and is no page of ours", "Name another file with --out, or add --force."
        )
    write_whole(place, html)


class _Together(HTMLParser):
    """Copies a page word for word, and puts files where the page names them."""

    def __init__(self, page: Path, site: Path, base_url: str) -> None:
        super().__init__(convert_charrefs=False)
        self.folder, self.site, self.base_url = page.parent.resolve(), site.resolve(), base_url
        self.out: list[str] = []
        self.scripts: list[str] = []
        self.hashes: dict[str, list[str]] = {"script": [], "style": []}
        self.used: dict[str, int] = {}
        self.opened: list[str] = []
        """what each open link became: a or span"""
        self.dropping = ""
        """the element that is left out until it ends"""

    def result(self) -> Exported:
        html = "".join(self.out)
        allowed = {
            kind: " ".join(f"'sha256-{one}'" for one in found) or "'none'" for kind, found in self.hashes.items()
        }
        policy = (f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src data:; "
                  "base-uri 'none'; form-action 'none'")  # fmt: skip
        heaviest = sorted(self.used.items(), key=lambda one: -one[1])
        return Exported(html.replace(_POLICY, policy).encode(), tuple(heaviest))

    # --- what is copied ----------------------------------------------------------------------------------------------

    def handle_decl(self, decl: str) -> None:
        self._put(f"<!{decl}>")

    def handle_data(self, data: str) -> None:
        self._put(data)

    def handle_entityref(self, name: str) -> None:
        self._put(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._put(f"&#{name};")

    def _put(self, text: str) -> None:
        if not self.dropping:
            self.out.append(text)

    # --- what is put in ----------------------------------------------------------------------------------------------

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if self.dropping:
            return
        if tag == "header" and given.get("class") == "top" and not self.base_url:
            self.dropping = tag  # a navigation that leads nowhere
        elif tag == "meta" and given.get("http-equiv", "").lower() == "content-security-policy":
            self._put(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">')
        elif tag == "meta" and given.get("property", "").startswith("og:image") and not self.base_url:
            return
        elif tag == "link" and given.get("rel") == "stylesheet":
            self._put(f"<style>{self._hashed('style', self._style(given['href']))}</style>")
        elif tag == "script" and "src" in given:
            self.scripts.append(_harmless(self._bytes(given["src"]).decode()))
            self.dropping = tag
        elif tag == "a":
            self._link(given)
        else:
            self._element(tag, given)

    def handle_endtag(self, tag: str) -> None:
        if self.dropping:
            self.dropping = "" if tag == self.dropping else self.dropping
            return
        if tag == "a" and self.opened:
            tag = self.opened.pop()
        if tag == "body":
            # Scripts that waited for the page to be there wait at its end.
            self._put("".join(f"<script>{self._hashed('script', text)}</script>\n" for text in self.scripts))
        self._put(f"</{tag}>")

    def _link(self, given: dict[str, str]) -> None:
        href = given.get("href", "")
        if "download" in given and not _OUTWARD.match(href):
            given |= {"href": self._data(href), "download": given["download"] or Path(unquote(href)).name}
        elif href and not _OUTWARD.match(href):
            if not self.base_url:
                kept = {name: value for name, value in given.items() if name in ("class", "id", "title")}
                self.opened.append("span")
                return self._element("span", kept)
            given["href"] = self.base_url + self._address(href)
        self.opened.append("a")
        return self._element("a", given)

    def _element(self, tag: str, given: dict[str, str]) -> None:
        for name, value in given.items():
            named = name in ("src", "href", "data-picture") or name.startswith("data-src")
            if named and tag != "a" and value and not _OUTWARD.match(value):
                given[name] = self._data(value)
        written = "".join(f' {name}="{escape(value)}"' if value else f" {name}" for name, value in given.items())
        self._put(f"<{tag}{written}>")

    # --- files -------------------------------------------------------------------------------------------------------

    def _place(self, href: str) -> Path:
        place = (self.folder / unquote(href.partition("#")[0].partition("?")[0])).resolve()
        if not place.is_relative_to(self.site):
            raise InputError(
                href, "is outside of the site", "A page that is exported names files of its own site only."
            )
        return place

    def _address(self, href: str) -> str:
        _, mark, part = href.partition("#")
        return self._place(href).relative_to(self.site).as_posix() + mark + part

    def _bytes(self, href: str) -> bytes:
        place = self._place(href)
        if not place.is_file():
            raise InputError(href, "is named by the page and is not there", "Build the site again.")
        data = place.read_bytes()
        self.used[place.relative_to(self.site).as_posix()] = len(data)
        return data

    def _data(self, href: str) -> str:
        kind = _KINDS.get(Path(href).suffix.lower(), "application/octet-stream")
        return f"data:{kind};base64,{base64.b64encode(self._bytes(href)).decode()}"

    def _style(self, href: str) -> str:
        text = self._bytes(href).decode()
        if re.search(r"url\(\s*['\"]?(?!data:)|@import", text):
            raise InputError(href, "names another file", "A style sheet that is exported stands alone: use data: URLs.")
        return text.replace("</", "<\\/")

    def _hashed(self, kind: str, text: str) -> str:
        made = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        if made not in self.hashes[kind]:
            self.hashes[kind].append(made)
        return text


def _harmless(script: str) -> str:
    """A script that no HTML parser takes for its own end, and that means the same."""
    return re.sub(r"</(script)", r"<\\/\1", script, flags=re.IGNORECASE).replace("<!--", "<\\!--")
