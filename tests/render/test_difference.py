"""Difference: what became of cases between two sites, by a verdict that got worse, better, or a figure that moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.render.recordings import answered, elsewhere, failed, full, picture, save_all, second
from vsp_report.errors import InputError
from vsp_report.recording import Recording, save_recording
from vsp_report.render import difference

CHAIR = "standing-beside-a-chair"


def sites(folder: Path, *pair: dict[str, Recording]) -> tuple[Path, Path]:
    for name, recordings in zip(("one", "two"), pair, strict=True):
        for case, recording in recordings.items():
            save_recording(folder / name / "recordings" / case, recording, {"images/input.png": picture()})
    return folder / "one", folder / "two"


def test_every_kind_is_told_of(tmp_path: Path) -> None:
    drifted = replace(full(), clean=answered("sitting", -2.0))
    one, two = sites(
        tmp_path,
        {"worse": full(), "better": second(), "moved": full(), "same": full(), "gone": full(), "stops": full()},
        {"worse": second(), "better": full(), "moved": drifted, "same": full(), "new": full(), "stops": failed()},
    )
    found = difference.compare(one, two)
    assert {kind: [change.id for change in changes] for kind, changes in found.changes.items()} == {
        "regressed": ["stops", "worse"], "fixed": ["better"], "drifted": ["moved"], "new": ["new"], "gone": ["gone"],
    }  # fmt: skip
    assert len(found.same) == 1 and found.count == 6 and found.names == ("one", "two")
    worse = found.changes["regressed"][1]
    told = {moved.what: (moved.before, moved.after, moved.by) for moved in worse.moved}
    assert told["strongest-ten: answer"] == ("“standing”", "“sitting”", "")
    assert told["strongest-ten: log-odds"] == ("+2.03", "−1.40", "−3.43")
    assert told["strongest-ten: p among controls"] == ("0.005", "0.2", "")
    assert worse.made_with == ("package",)
    moved = {one.what: one.by for one in found.changes["drifted"][0].moved}
    assert moved["as it is: log-odds"] == "+1.11"


def test_the_last_digits_are_no_news(tmp_path: Path) -> None:
    near = replace(full(), clean=replace(full().clean, margin=full().clean.margin + 0.09))
    far = replace(full(), clean=replace(full().clean, margin=full().clean.margin + 0.11))
    one, two = sites(tmp_path, {"near": full(), "far": full()}, {"near": near, "far": far})
    assert [change.id for change in difference.compare(one, two).changes["drifted"]] == ["far"]


def test_the_other_way_round_is_the_opposite(tmp_path: Path) -> None:
    one, two = sites(tmp_path, {"a": full(), "b": full()}, {"a": second(), "c": full()})
    there, back = difference.compare(one, two), difference.compare(two, one)
    opposite = {"regressed": "fixed", "fixed": "regressed", "new": "gone", "gone": "new", "drifted": "drifted"}
    for kind, changes in there.changes.items():
        assert [change.id for change in changes] == [change.id for change in back.changes[opposite[kind]]]
    assert difference.compare(one, one).count == 0


def test_a_case_that_asks_something_else_is_not_measured_against_itself(tmp_path: Path) -> None:
    other = full(case=full().case | {"prompt": "What does the person do?"})
    one, two = sites(tmp_path, {"a": full()}, {"a": other})
    (change,) = difference.compare(one, two).changes["drifted"]
    assert change.asked_otherwise and change.moved == ()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    one, two = sites(tmp_path, {"a": full(), "b": full()}, {"a": full(), "b": full()})
    broken = two / "recordings" / "b" / "recording.json"
    broken.write_text(broken.read_text()[:-30])
    found = difference.compare(one, two)
    assert "b/recording.json" in found.faults[0] and [change.id for change in found.changes["gone"]] == ["b"]


def test_it_is_a_folder_or_one_file(tmp_path: Path) -> None:
    save_all(tmp_path / "one" / "recordings", (CHAIR, "hostile"))
    save_recording(tmp_path / "two" / "recordings" / CHAIR, elsewhere(second()), {"images/input.png": picture()})
    _, files = difference.difference_page(tmp_path / "one", tmp_path / "two")
    page = difference.save_difference(tmp_path / "out", files)
    html = page.read_text()
    assert page.name == "index.html" and 'src="pictures/standing-beside-a-chair-a.webp"' in html
    assert (tmp_path / "out" / "pictures" / "standing-beside-a-chair-b.webp").is_file()
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)" in html
    alone = difference.save_difference(tmp_path / "alone.html", files).read_text()
    assert 'src="data:image/webp;base64,' in alone and "static/" not in alone
    # Again over its own, and over nothing else.
    difference.save_difference(tmp_path / "out", files)
    difference.save_difference(tmp_path / "alone.html", files)
    (tmp_path / "mine.html").write_text("my own page")
    with pytest.raises(InputError, match="is no page of ours"):
        difference.save_difference(tmp_path / "mine.html", files)
    assert files == difference.difference_page(tmp_path / "one", tmp_path / "two")[1]


def test_pictures_that_are_the_same_are_shown_once(tmp_path: Path) -> None:
    one, two = sites(tmp_path, {"a": full()}, {"a": second()})
    found, files = difference.difference_page(one, two)
    html = files["index.html"].decode()
    (change,) = found.changes["regressed"]
    assert change.looks_alike and "pictures/a-a.webp" in files and "pictures/a-b.webp" not in files
    assert html.count("<img ") == 1 and ">in both</span>" in html and 'type="range"' not in html
    assert "in one and two" in html


def test_answers_are_told_and_figures_stand_in_columns(tmp_path: Path) -> None:
    one, two = sites(tmp_path, {"a": full()}, {"a": second()})
    found, files = difference.difference_page(one, two)
    html = files["index.html"].decode()
    (change,) = found.changes["regressed"]
    said = {moved.what for moved in change.moved if moved.said}
    assert said == {"strongest-ten: answer"}
    table = html.partition("<tbody>")[2].partition("</tbody>")[0]
    assert table.count("<tr>") == len(change.moved) - 1 and "standing" not in table
    assert table.count('<td class="num">') == 3 * table.count("<tr>")
    assert "“standing”" in html and "“sitting”" in html


def test_what_holds_no_recordings_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, fault in (("none", "is no folder"), ("empty", "holds no recordings")):
        with pytest.raises(InputError, match=fault):
            difference.compare(tmp_path / place, tmp_path)
