"""Audits: the page of audits and those of data sets, from what audits leave in a site."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.render.recordings import EVIL, not_run
from vsp_report import paths
from vsp_report.audit import datasets, history
from vsp_report.audit.account import SCHEMA, Account, CaseJudged, Comparison, code_of, said
from vsp_report.recording import save_recording
from vsp_report.render import audits
from vsp_report.render.site import build, make_environment, rendered


def account(*verdicts: str, hour: int = 12, **changes: object) -> Account:
    held = Comparison("clean: answer", "is “sitting”", "“standing”", False, "expect.before.answer.is", 9, "")
    cases = tuple(
        CaseJudged(f"case-{n}", f"Case {n}", f"cases/case-{n}.yaml", 7 + n, verdict, f"why {n}",
                   figures={"before.margin": -1.5 * n - hour}, comparisons=(held,), **changes)
        for n, verdict in enumerate(verdicts)
    )  # fmt: skip
    code = code_of(cases)
    return Account(SCHEMA, f"2030-01-31T{hour:02}:00:00Z", "1.0", code, said(code, cases), cases)


def page(site: Path, shown: set[str] = frozenset()) -> dict[str, str]:
    environment = make_environment([paths.templates_dir() / "pages"])
    made = audits.pages(site, set(shown), lambda name, **values: rendered(environment, name, **values))
    return {name: data.decode() for name, data in made.items()}


def test_what_is_wrong_stands_first_with_its_history(tmp_path: Path) -> None:
    history.append(tmp_path, account("confirmed", "confirmed", "new", hour=1))
    history.append(tmp_path, account("confirmed", "not corrected", "new", hour=2))
    html = page(tmp_path, {"case-1"})["audit.html"]
    rows = re.findall(r"<tr>\n<td><b class=\"verdict (\w+)\"[^>]*>([^<]*)</b>", html)
    assert rows == [("bad", "not corrected"), ("plain", "new"), ("good", "confirmed")]
    assert 'aria-label="confirmed, then not corrected"' in html and 'aria-label="confirmed 2 times"' in html
    assert '<a href="cases/case-1/index.html">Case 1</a>' in html and "cases/case-0/index.html" not in html
    assert "cases/case-1.yaml:8" in html and "−3.50" in html and "−1.00" in html
    assert html.count("2030-01-31 02:00:00 UTC") >= 2 and "exit code 1" in html


def test_the_first_audit_has_none_before_it(tmp_path: Path) -> None:
    history.append(tmp_path, account("confirmed"))
    assert "This is the first audit of this site." in page(tmp_path)["audit.html"]


def test_a_strip_leaves_room_for_audits_that_did_not_look(tmp_path: Path) -> None:
    history.append(tmp_path, account("confirmed", "confirmed", hour=1))
    history.append(tmp_path, account("confirmed", hour=2))
    history.append(tmp_path, account("confirmed", "drifted", hour=3))
    found = audits.audit_page(tmp_path, set())
    marks = {row.case.id: [mark.tone for mark in row.marks] for row in found.rows}
    assert marks == {"case-0": ["good"] * 3, "case-1": ["good", "", "bad"]}


def test_nothing_that_is_said_is_markup(tmp_path: Path) -> None:
    one = account("not corrected").cases[0]
    evil = replace(one, title=EVIL, why=EVIL, file=EVIL, overdue=EVIL, was=EVIL,
                   comparisons=(Comparison(EVIL, EVIL, EVIL, None, EVIL, 1, EVIL),))  # fmt: skip
    history.append(tmp_path, replace(account("confirmed"), cases=(evil,), program=EVIL))
    row = datasets.RowJudged("row-1", 2, EVIL, EVIL, EVIL, EVIL, EVIL, "wrong", EVIL, -1.0, "hidden-cue", EVIL, (EVIL,),
                             EVIL)  # fmt: skip
    save_set(tmp_path, [row], [EVIL])
    for html in page(tmp_path).values():
        assert "<script>alert" not in html and "<img src=x" not in html and "{{ 7*7 }}" in html


def save_set(site: Path, rows: list[datasets.RowJudged], broken: list[str] = ()) -> datasets.Dataset:
    known = dict.fromkeys(("program", "name", "file", "model", "sae"), "pairs")
    made = datasets.make_dataset(rows, broken, created="2030-01-31T12:00:00Z", **known)
    folder = site / "datasets" / "pairs"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(datasets.dataset_json(made))
    return made


def rows() -> list[datasets.RowJudged]:
    told = [("1", "right", ""), ("1", "right", ""), ("2", "right", ""), ("2", "wrong", "hidden-cue"),
            ("3", "neither", "undetermined"), ("3", "error", ""), ("", "wrong", "hidden-cue")]  # fmt: skip
    return [
        datasets.RowJudged(f"row-{n}", n + 1, pair, f"What {n}?", "yes", "no", f"{n}.png", says, says, float(n), mode,
                           tags=("odd",) if n % 2 else ())
        for n, (pair, says, mode) in enumerate(told, 1)
    ]  # fmt: skip


def test_a_data_set_has_a_page_with_every_row(tmp_path: Path) -> None:
    made = save_set(tmp_path, rows())
    assert (made.accuracy.count, made.accuracy.of) == (3, 6)
    assert (made.pairs.count, made.pairs.of) == (1, 2)
    assert {name: one.count for name, one in made.modes.items()} == {"hidden-cue": 2, "undetermined": 1}
    found = page(tmp_path)
    assert set(found) == {"audit.html", "datasets/pairs/index.html"}
    html = found["datasets/pairs/index.html"]
    lines = re.findall(r'<tr id="([^"]*)" data-says="(\w+)" data-mode="([^"]*)" data-pair="(\w*)"', html)
    assert [line[1:] for line in lines] == [
        ("right", "", "both"), ("right", "", "both"), ("right", "", "one"), ("wrong", "hidden cue", "one"),
        ("neither", "undetermined", ""), ("error", "", ""), ("wrong", "hidden cue", "")]  # fmt: skip
    # What is right has the hue of right answers, why rows are not has that of wrong ones.
    assert re.findall(r'<svg class="share (\w+)"', html) == ["wrong", "wrong", "right"]
    assert "3 of 6" in html and "1 of 2" in html and '<option value="hidden cue">' in html
    assert 'href="../../static/audit.css"' in html
    assert (
        'href="datasets/pairs/index.html"' in found["audit.html"] and "No case has been audited" in found["audit.html"]
    )


def test_a_site_has_the_page_where_there_was_an_audit(tmp_path: Path) -> None:
    site = tmp_path / "site"
    save_recording(site / "recordings" / "paper-case", replace(not_run(), id="paper-case"))
    build(site / "recordings", site)
    assert not (site / "audit.html").exists() and "audit.html" not in (site / "index.html").read_text()
    history.append(site, account("confirmed"))
    built = build(site / "recordings", site)
    first = (site / "audit.html").read_bytes()
    assert "audit" in built.written and "audit.html" in (site / "index.html").read_text()
    assert build(site / "recordings", site).written == () and (site / "audit.html").read_bytes() == first
    history.append(site, account("drifted", hour=13))
    assert build(site / "recordings", site).written == ("audit",)
    (site / "audit" / "audit.json").write_text("{")
    built = build(site / "recordings", site)
    assert "is not JSON" in str(built.faults[0]) and built.removed == ("audit.html",)
    for name in ("audit.json", "history.jsonl"):
        (site / "audit" / name).unlink()
    assert build(site / "recordings", site).faults == () and "audit.html" not in (site / "index.html").read_text()
    assert (site / "recordings" / "paper-case").is_dir()


@pytest.mark.parametrize("verdict", ["confirmed", "unstable", "error", "drifted"])
def test_the_page_says_what_the_code_says(tmp_path: Path, verdict: str) -> None:
    history.append(tmp_path, account(verdict))
    data = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert f"exit code {data['code']}" in page(tmp_path)["audit.html"]
