"""Site: what a build writes, leaves, removes, and never touches."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.render.recordings import EVIL, full, picture, save_all
from vsp_report.errors import InputError
from vsp_report.recording import load_recording, restate, save_recording
from vsp_report.render import drawn, site
from vsp_report.render.ledger import JOURNAL, LEDGER

FEW = ("failed-in-a-cell", "paper-case", "clip-duck-rabbit")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "recordings" not in path.relative_to(folder).parts
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_all(tmp_path_factory.mktemp("evidence") / "recordings", FEW)


@pytest.fixture
def out(tmp_path: Path, recorded: Path) -> Path:
    """A site that was built."""
    out = tmp_path / "site"
    shutil.copytree(recorded, out / "recordings")
    assert site.build(out / "recordings", out).cases == 3
    return out


def test_a_run_that_stopped_before_it_steered_says_what_the_model_says(tmp_path: Path) -> None:
    save_all(tmp_path / "recordings", ("failed-in-a-cell", "standing-beside-a-chair"))
    site.build(tmp_path / "recordings", tmp_path)
    stopped, whole = ((tmp_path / "cases" / name / "index.html").read_text()
                      for name in ("failed-in-a-cell", "standing-beside-a-chair"))  # fmt: skip
    assert ">What the model says<" in stopped and "What changes the answer" not in stopped
    assert ">What changes the answer<" in whole and "What the model says" not in whole


def test_two_builds_are_equal_to_the_byte(tmp_path: Path) -> None:
    recordings = save_all(tmp_path / "recordings")
    for name in ("one", "two"):
        assert site.build(recordings, tmp_path / name).cases == 5
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    # Recordings that lie elsewhere come along.
    assert one["cases/paper-case/recording/recording.json"] == (recordings / "paper-case/recording.json").read_bytes()
    # What names a place has no place here, and what is written stays inside.
    assert not [name for name, data in one.items() if str(tmp_path).encode() in data]
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]
    page = one["cases/hostile/index.html"].decode()
    assert EVIL not in page and "&lt;script&gt;alert(1)" in page and "49" not in page.split("<h1>")[1][:200]
    assert len(one["cases/standing-beside-a-chair/index.html"]) < 150_000


def test_a_second_build_does_nothing(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != LEDGER}
    built = site.build(out / "recordings", out)
    assert (built.written, built.removed) == ((), ())
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_only_what_is_stale_is_made_again(out: Path) -> None:
    folder = out / "recordings" / "clip-duck-rabbit"
    recording = load_recording(folder)
    case = recording.asked()
    restate(folder, type(case)(**{f: getattr(case, f) for f in case.__dataclass_fields__} | {"title": "Another title"}))
    built = site.build(out / "recordings", out)
    assert set(built.written) == {"page/clip-duck-rabbit", "drawn/clip-duck-rabbit", "index"} - (
        set() if "drawn/clip-duck-rabbit" in built.written else {"drawn/clip-duck-rabbit"}
    )
    assert b"Another title" in (out / "index.html").read_bytes()


def test_what_was_changed_by_hand_is_made_again(out: Path) -> None:
    page = out / "cases" / "paper-case" / "index.html"
    right = page.read_bytes()
    page.write_text("half a pa")
    (out / "cases" / "clip-duck-rabbit" / "picture.webp").unlink()
    built = site.build(out / "recordings", out)
    assert set(built.written) == {"page/paper-case", "drawn/clip-duck-rabbit"}
    assert page.read_bytes() == right


def test_only_its_own_files_are_removed(out: Path) -> None:
    shutil.rmtree(out / "recordings" / "paper-case")
    shutil.rmtree(out / "recordings" / "clip-duck-rabbit")
    (out / "cases" / "paper-case" / "notes.txt").write_text("mine")
    (out / "CNAME").write_text("mine too")
    changed = out / "cases" / "clip-duck-rabbit" / "figures" / "classes.csv"
    changed.write_text("edited by a person")
    removed = site.build(out / "recordings", out).removed
    assert "cases/paper-case/index.html" in removed
    left = sorted(path.relative_to(out / "cases").as_posix() for path in (out / "cases").rglob("*") if path.is_file())
    assert [name for name in left if not name.startswith("failed")] == [
        "clip-duck-rabbit/figures/classes.csv", "paper-case/notes.txt"]  # fmt: skip
    assert (out / "CNAME").read_text() == "mine too"
    assert (out / "recordings" / "failed-in-a-cell").is_dir()


def test_a_strangers_file_is_not_overwritten(tmp_path: Path, recorded: Path) -> None:
    (tmp_path / "index.html").write_text("my home page")
    with pytest.raises(InputError, match=r"index.html: is there, and no build of ours made it. Name another"):
        site.build(recorded, tmp_path)
    assert (tmp_path / "index.html").read_text() == "my home page"
    # The killed build's other files are known, and force is force.
    assert (tmp_path / JOURNAL).is_file()
    site.build(recorded, tmp_path, force=True)
    assert b"<h1>" in (tmp_path / "index.html").read_bytes()
    assert not (tmp_path / JOURNAL).exists()


def test_a_ledger_is_not_believed_blindly(out: Path) -> None:
    evidence = out / "recordings" / "paper-case" / "recording.json"
    outside = out.parent / "precious.txt"
    outside.write_text("precious")
    ledger = json.loads((out / LEDGER).read_text())
    for path in ("../precious.txt", "recordings/paper-case/recording.json", str(outside)):
        ledger["parts"][f"evil {path}"] = {"key": "", "files": {path: ""}}
    (out / LEDGER).write_text(json.dumps(ledger))
    (out / JOURNAL).write_text("../precious.txt\nrecordings/paper-case/recording.json\n")
    site.build(out / "recordings", out)
    assert evidence.is_file() and outside.read_text() == "precious"


def test_a_link_out_of_the_site_is_not_followed(out: Path) -> None:
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(out / "cases")
    (out / "cases").symlink_to(elsewhere)
    with pytest.raises(InputError, match="is outside of the site"):
        site.build(out / "recordings", out)
    assert list(elsewhere.iterdir()) == []


def test_a_picture_that_is_a_link_is_not_shown(tmp_path: Path) -> None:
    folder = save_recording(tmp_path / "recordings" / "linked", full(), {"images/input.png": picture()})
    secret = tmp_path / "secret.png"
    secret.write_bytes((folder / "images" / "input.png").read_bytes())
    (folder / "images" / "input.png").unlink()
    (folder / "images" / "input.png").symlink_to(secret)
    site.build(tmp_path / "recordings", tmp_path / "out")
    assert not (tmp_path / "out" / "cases" / "linked" / "picture.webp").exists()


def test_a_recording_that_cannot_be_read_is_named_and_the_rest_is_shown(out: Path) -> None:
    broken = out / "recordings" / "paper-case" / "recording.json"
    broken.write_text(broken.read_text()[:-20])
    built = site.build(out / "recordings", out)
    assert built.cases == 2 and "paper-case/recording.json: is missing or cut off" in str(built.faults[0])
    assert not (out / "cases" / "paper-case").exists()
    assert b"paper-case" not in (out / "index.html").read_bytes()


def test_a_chart_is_drawn_again_only_if_it_shows_something_else(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_of: list[str] = []
    real = drawn.svg_of
    monkeypatch.setattr(drawn, "svg_of", lambda spec: drawn_of.append(str(spec.get("description"))) or real(spec))
    # Another version of what draws makes every drawing stale; what it draws is the same.
    monkeypatch.setattr(site, "_DRAWING", (*site._DRAWING, "prose.py"))
    before = files(out)
    site.build(out / "recordings", out)
    assert drawn_of == []
    monkeypatch.setattr(site, "_DRAWER", (*site._DRAWER, "prose.py"))
    monkeypatch.setattr(site, "_DRAWING", (*site._DRAWING, "pages.py"))
    site.build(out / "recordings", out)
    assert drawn_of
    after = files(out)
    assert {name for name in after if after[name] != before[name]} <= {LEDGER}


def test_where_it_is_published_stands_in_what_is_shared(out: Path) -> None:
    page = out / "cases" / "clip-duck-rabbit" / "index.html"
    assert 'property="og:image" content="../../cases/clip-duck-rabbit/card.jpg"' in page.read_text()
    site.build(out / "recordings", out, base_url="https://lab.example.org/report")
    there = "https://lab.example.org/report/cases/clip-duck-rabbit/card.jpg"
    assert f'property="og:image" content="{there}"' in page.read_text() and there in (out / "index.html").read_text()
    # Nothing else names the place: the site stays movable.
    names = [name for name, data in files(out).items() if b"lab.example.org" in data]
    assert set(names) == {"index.html", *(f"cases/{case}/index.html" for case in FEW if case != "paper-case")}
    with pytest.raises(InputError, match="is 'javascript:alert', which is no address"):
        site.build(out / "recordings", out, base_url="javascript:alert")


def test_a_shared_link_shows_the_whole_picture(out: Path) -> None:
    with Image.open(out / "cases" / "clip-duck-rabbit" / "card.jpg") as card:
        assert (card.format, card.size) == ("JPEG", (1200, 630))
        corner, middle = card.getpixel((5, 5)), card.getpixel((600, 315))
    assert all(abs(a - b) < 6 for a, b in zip(corner, (0xFD, 0xFD, 0xFB), strict=True)) and middle != corner


def test_a_page_weighs_little(out: Path, tmp_path: Path) -> None:
    save_all(tmp_path / "one", ("standing-beside-a-chair",))
    site.build(tmp_path / "one", tmp_path / "chair")
    case = tmp_path / "chair" / "cases" / "standing-beside-a-chair"

    def packed(*places: Path) -> int:
        return sum(len(gzip.compress(place.read_bytes())) for place in places)

    static = [place for place in (tmp_path / "chair" / "static").iterdir() if place.suffix in (".js", ".css")]
    shared = packed(*(place for place in static if place.name != "vega.js"))
    pictures = packed(*case.glob("*.webp"), *case.glob("figures/*.svg"))
    assert packed(case / "index.html", *case.glob("*.js")) + shared + pictures < 300_000
    assert packed(out / "index.html", out / "static" / "index" / "figures.js") + shared < 250_000


def test_templates_of_ones_own(out: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "index.html.jinja").write_text(
        '{% extends "bundled/index.html.jinja" %}{% block headline %}<h1>Our lab</h1>{% endblock %}'
    )
    site.build(out / "recordings", out, templates=own)
    page = (out / "index.html").read_text()
    assert "<h1>Our lab</h1>" in page and "duck-rabbit" in page
    # A block of what every page extends changes every page; the rest of them stays as it is.
    before = (out / "cases" / "clip-duck-rabbit" / "index.html").read_text()
    (own / "base.html.jinja").write_text(
        '{% extends "bundled/base.html.jinja" %}'
        '{% block nav %}{{ super() }}<a href="{{ root }}team.html">Our team</a>{% endblock %}'
        "{% block foot %}<p>A report of our lab.</p>{% endblock %}"
    )
    built = site.build(out / "recordings", out, templates=own)
    assert "drawn/clip-duck-rabbit" not in built.written
    after = (out / "cases" / "clip-duck-rabbit" / "index.html").read_text()
    assert '<a href="../../team.html">Our team</a>' in after and "A report of our lab." in after
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert len(changed) <= 3
    # A block of one's own is held to the same: what it shows is escaped.
    (own / "index.html.jinja").write_text(
        '{% extends "bundled/index.html.jinja" %}{% block headline %}<h1>{{ "<b>" }}</h1>{% endblock %}'
    )
    site.build(out / "recordings", out, templates=own)
    assert "<h1>&lt;b&gt;</h1>" in (out / "index.html").read_text()


def test_the_committed_site_is_what_a_build_makes(root: Path, tmp_path: Path) -> None:
    """If not, `make site` has to be run, and what it changed committed."""
    if not (root / "site" / LEDGER).is_file():
        pytest.fail("there is no site beside these tests")
    assert sum(path.stat().st_size for path in (root / "site").rglob("*") if path.is_file()) <= 20_000_000
    shutil.copytree(root / "site", tmp_path / "site")
    built = site.build(tmp_path / "site" / "recordings", tmp_path / "site")
    assert (built.written, built.removed, built.faults) == ((), (), ())
    # What is not stale by the ledger was compared by hash; some of it is made from nothing, and equal to the byte.
    for part in ("recordings/goat-or-pig", "atlas"):  # labels have their scores from the atlas
        shutil.copytree(root / "site" / part, tmp_path / "site2" / part)
    site.build(tmp_path / "site2" / "recordings", tmp_path / "site2", only="goat-or-pig")
    for place in sorted((tmp_path / "site2" / "cases" / "goat-or-pig").rglob("*")):
        if place.is_file() and place.name != "index.html":
            committed = root / "site" / place.relative_to(tmp_path / "site2")
            assert place.read_bytes() == committed.read_bytes(), committed


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no folder of recordings. `vsp-report run` makes one"):
        site.build(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_builds_without_torch(out: Path, root: Path) -> None:
    shutil.rmtree(out / "cases")
    code = (
        "import sys; from vsp_report.cli import main; code = main(sys.argv[1:]);"
        "print(*[m for m in ('torch', 'transformers', 'papermill') if m in sys.modules], code)"
    )
    command = [sys.executable, "-c", code, "build", "--out", str(out)]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "3 cases, 5 parts written" in ran.stdout and ran.stdout.splitlines()[-1] == "0"
    again = subprocess.run([*command], cwd=root, capture_output=True, text=True, check=True)
    assert "nothing was stale" in again.stdout
