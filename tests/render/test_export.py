"""Export: a page with everything in it, which names nothing outside of itself and runs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.render.recordings import save_all
from vsp_report.cli import main
from vsp_report.errors import InputError
from vsp_report.render import export

CHAIR = "standing-beside-a-chair"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_all(tmp_path_factory.mktemp("evidence") / "recordings", (CHAIR, "paper-case", "hostile"))


@pytest.fixture(scope="module")
def chair(recordings: Path) -> str:
    return export.export_case(CHAIR, recordings).html.decode()


class _Named(HTMLParser):
    """Every address that a page names, and what runs in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.within = ""
        self.policy = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data-picture") and value]
        self.policy = given.get("content", "") if given.get("http-equiv") else self.policy
        self.within = tag if tag == "style" or (tag == "script" and "type" not in given) else ""

    def handle_data(self, data: str) -> None:
        if self.within:
            self.inline[self.within].append(data)

    def handle_endtag(self, tag: str) -> None:
        self.within = ""


def test_it_names_nothing_outside_of_itself(chair: str) -> None:
    page = _Named(chair)
    outward = [address for address in page.addresses if not address.startswith(("#", "data:", "https://example.org"))]
    assert outward == [] and len(page.addresses) > 10
    assert "static/" not in re.sub(r"data:[^\"']*", "", chair) and '<link rel="stylesheet"' not in chair


def test_its_policy_lets_in_its_own_scripts_and_no_other(chair: str) -> None:
    page = _Named(chair)
    for kind, directive in (("script", "script-src"), ("style", "style-src")):
        allowed = re.findall(r"'sha256-([^']+)'", page.policy.partition(directive)[2].partition(";")[0])
        made = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.inline[kind]]
        assert made and set(made) == set(allowed)
    assert "unsafe" not in page.policy and "default-src 'none'" in page.policy


def test_its_downloads_are_the_recording(chair: str, recordings: Path) -> None:
    found = dict(re.findall(r'<a href="data:[a-z/+-]+;base64,([^"]*)" download="([^"]+)"', chair))
    by_name = {name: base64.b64decode(data) for data, name in found.items()}
    assert by_name["recording.json"] == (recordings / CHAIR / "recording.json").read_bytes()
    assert json.loads(by_name["notebook.ipynb"]) == {}
    assert any(name.endswith(".csv") for name in by_name)


def test_links_to_the_site_are_links_where_its_address_is_known(recordings: Path, chair: str) -> None:
    there = export.export_case(CHAIR, recordings, base_url="https://example.org/report").html.decode()
    assert 'href="https://example.org/report/index.html"' in there
    assert 'property="og:image" content="https://example.org/report/cases/standing-beside-a-chair/card.jpg"' in there
    assert "index.html" not in "".join(_Named(chair).addresses) and "og:image" not in chair


def test_a_strangers_texts_stay_texts(recordings: Path) -> None:
    html = export.export_case("hostile", recordings).html.decode()
    assert "<script>alert(1)" not in html and "&lt;script&gt;alert(1)" in html


def test_the_same_recording_is_the_same_file(recordings: Path, chair: str) -> None:
    assert export.export_case(CHAIR, recordings).html.decode() == chair


def test_the_command(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["export", "paper-case", "--recordings", str(recordings)]
    assert main(words) == 0 and "written: paper-case.html" in capsys.readouterr().out
    assert main(words) == 0  # over its own
    (tmp_path / "paper-case.html").write_text("somebody's own")
    assert main(words) == 2 and "is no page of ours" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    monkeypatch.setattr(export, "HEAVY_BYTES", 1000)
    assert main(words) == 0 and "warning: paper-case.html: larger than" in capsys.readouterr().err
    assert main(["export", "paper-cas", "--recordings", str(recordings)]) == 2
    assert "Did you mean paper-case?" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["a = '</script>'", "b = '<!-- x'", "c = '</SCRIPT >'"])
def test_no_script_ends_its_own_element(script: str) -> None:
    written = export._harmless(script)
    assert "</script" not in written.lower() and "<!--" not in written


def test_a_page_that_names_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<img src="gone.png">')
    with pytest.raises(InputError, match=r"gone.png: is named by the page and is not there"):
        export.together(tmp_path / "index.html", tmp_path)
    (tmp_path / "index.html").write_text('<img src="../secret.png">')
    with pytest.raises(InputError, match="is outside of the site"):
        export.together(tmp_path / "index.html", tmp_path)
