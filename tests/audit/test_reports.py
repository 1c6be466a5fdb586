"""Reports: JUnit, SARIF, GitHub's summary and annotations, JSON and history, of audits that were truly made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from junitparser import xunit2

from tests.audit.conftest import Project
from tests.audit.test_verdicts import expectation, held, holds, line_of, move, varying
from vsp_report import cli
from vsp_report.audit import github, history, junit, sarif, terminal
from vsp_report.audit.account import SAID, Account, account_schema, code_of, said
from vsp_report.errors import InputError
from vsp_report.recording.plain import from_plain

PART = json.loads((Path(__file__).parent / "sarif-part.schema.json").read_text())


@pytest.fixture
def everything(project: Project) -> Account:
    """One case for every verdict."""
    name, found = varying(project)
    project.case("confirmed", holds(project))
    for verdict in ("not reproduced", "not corrected", "side effect"):
        project.case(verdict.replace(" ", "-"), expectation(project, verdict))
    project.case("drifted", held(project))
    project.case("without-baseline", held(project))
    project.case("unstable", {"after": {name: {"p": {"le": found[0]}}}}, of="seeds")
    project.case("beyond", {"review_by": "2020-01-01"}, of="beyond")
    project.case("new")
    project.case("not-run", of="nothing", needs="weights", model="nobody/has-this")
    project.check("drifted", "--update", "--no-history")
    move(project, "before.margin", 9, "drifted")
    project.audit("not-run", "--no-history")
    run = project.check("--json", "audit.json", "--junit", "junit.xml", "--sarif", "audit.sarif")
    assert run.code == 3
    return from_plain(Account, json.loads(Path("audit.json").read_text()), "audit.json")


def test_one_of_everything(everything: Account) -> None:
    told = {one.id: one.verdict for one in everything.cases}
    assert told == {
        "beyond": "error", "confirmed": "confirmed", "drifted": "drifted", "new": "new",
        "not-corrected": "not corrected", "not-reproduced": "not reproduced", "not-run": "not run",
        "side-effect": "side effect", "unstable": "unstable", "without-baseline": "new",
    }  # fmt: skip
    jsonschema.validate(json.loads(Path("audit.json").read_text()), account_schema())
    _junit_keeps_kinds_apart(everything)
    _sarif_is_valid_and_points_at_lines(everything)
    _annotations_point_at_lines(everything)
    _the_code_is_the_worst_that_is_true(everything)
    _pages_are_within_limits(everything)
    _history_has_it()


def _junit_keeps_kinds_apart(account: Account) -> None:
    root = ET.parse("junit.xml").getroot()
    suite = root.find("testsuite")
    assert root.tag == "testsuites" and suite is not None
    kinds = ("failure", "error", "skipped", "flakyFailure")
    found = {case.get("name"): [one.tag for one in case if one.tag in kinds] for case in suite.iter("testcase")}
    assert found == {
        "beyond": ["error"], "confirmed": [], "drifted": ["failure"], "new": [], "not-corrected": ["failure"],
        "not-reproduced": ["failure"], "not-run": ["skipped"], "side-effect": ["failure"],
        "unstable": ["flakyFailure"], "without-baseline": ["error"],
    }  # fmt: skip
    for counted in (root, suite):
        assert {k: counted.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
            "tests": "10", "failures": "4", "errors": "2", "skipped": "1"}  # fmt: skip
    # What a reader that others wrote makes of it.
    (read,) = xunit2.JUnitXml.fromfile("junit.xml")
    assert (read.tests, read.failures, read.errors, read.skipped) == (10, 4, 2, 1)
    kinds = {one.name: "error" if one.is_error else "failure" if one.is_failure else "skipped" if one.is_skipped else
             "flaky" if one.flaky_failures() else "passed" if one.is_passed else "" for one in read}  # fmt: skip
    named = {"error": "error", "failure": "failure", "skipped": "skipped", "flakyFailure": "flaky"}
    assert kinds == {name: named[tags[0]] if tags else "passed" for name, tags in found.items()}
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    values = {one.get("name"): one.get("value") for one in cases["confirmed"].iter("property")}
    assert values["before.answer"] and float(values["before.margin"]) and values["verdict"] == "confirmed"
    rate = {one.get("name"): one.get("value") for one in cases["unstable"].iter("property")}["runs that met everything"]
    assert re.fullmatch("[12]/3", rate)
    failure = cases["not-corrected"].find("failure")
    assert failure.get("type") == "not corrected" and failure.text.startswith("cases/not-corrected.yaml:")
    asked = ET.fromstring(junit.junit(replace(account, fail_on_unstable=True)))  # though the code is 3
    assert asked.find(".//testcase[@name='unstable']/failure") is not None and asked.get("failures") == "5"
    # A review that is due is told where its day stands, and fails nothing.
    (late,) = [case for case in suite.iter("testcase") if case.find("system-out") is not None]
    at = line_of(Path("cases/beyond.yaml"), "review_by")
    assert late.find("system-out").text == f"cases/beyond.yaml:{at}: to be reviewed by 2020-01-01"
    due = {one.get("name"): one.get("value") for one in cases["beyond"].iter("property")}
    assert due["to be reviewed by"] == "2020-01-01" and "to be reviewed by" not in values


def _sarif_is_valid_and_points_at_lines(account: Account) -> None:
    data = json.loads(Path("audit.sarif").read_text())
    jsonschema.validate(data, PART)
    run = data["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        lines = Path(place["artifactLocation"]["uri"]).read_text().splitlines()
        assert 1 <= place["region"]["startLine"] <= len(lines)
    found = {(one["message"]["text"].partition(":")[0], one["ruleId"].removeprefix("vsp/")) for one in run["results"]}
    assert found == {
        ("beyond", "error"), ("beyond", "review"), ("drifted", "drifted"), ("not-corrected", "not-corrected"),
        ("not-reproduced", "not-reproduced"), ("side-effect", "side-effect"), ("unstable", "unstable"),
        ("without-baseline", "baseline"),
    }  # fmt: skip
    file = Path("cases/not-corrected.yaml")
    at = {one["ruleId"]: one["locations"][0]["physicalLocation"]["region"]["startLine"] for one in run["results"]}
    assert at["vsp/not-corrected"] == line_of(file, "gt:")
    assert at["vsp/review"] == line_of(Path("cases/beyond.yaml"), "review_by:")
    # The same finding is the same one wherever its line moves to.
    moved = replace(account, cases=tuple(replace(one, line=one.line + 7) for one in account.cases))
    prints = [one["partialFingerprints"] for one in json.loads(sarif.sarif(moved))["runs"][0]["results"]]
    assert prints == [one["partialFingerprints"] for one in run["results"]]
    assert len({one["vspReport/v1"] for one in prints}) == len(prints)
    many = replace(account, cases=account.cases * 1000)
    assert len(json.loads(sarif.sarif(many))["runs"][0]["results"]) == sarif.MOST


def _annotations_point_at_lines(account: Account) -> None:
    lines = github.annotations(account)
    assert all(re.fullmatch(r"::(error|warning) file=cases/[a-z-]+\.yaml,line=\d+,title=[a-z-]+::.+", x) for x in lines)
    assert sum(line.startswith("::error") for line in lines) == 6
    late = next(line for line in lines if line.startswith("::warning"))
    at = line_of(Path("cases/beyond.yaml"), "review_by:")
    assert late.endswith("to be reviewed by 2020-01-01") and f"file=cases/beyond.yaml,line={at}," in late
    asked = github.annotations(replace(account, fail_on_unstable=True))
    assert sum(line.startswith("::error") for line in asked) == 7  # and unstable


def _the_code_is_the_worst_that_is_true(account: Account) -> None:
    cases = {one.id: one for one in account.cases}
    order = [("beyond", 3), ("drifted", 1), ("without-baseline", 6), ("unstable", 4), ("confirmed", 0)]
    for n, (_, code) in enumerate(order):
        left = [cases[id] for id, _ in order[n:]]
        assert code_of(left, fail_on_unstable=True) == code
        assert said(code, left).startswith(f"audit: {SAID[code]} ({code})")
    assert code_of([cases["unstable"]]) == 0 and code_of([]) == 5 and code_of([cases["not-run"]]) == 3


def _pages_are_within_limits(account: Account) -> None:
    bad = next(one for one in account.cases if one.verdict == "not corrected")
    worst = replace(bad, id="regressed", was="confirmed", why="x" * 600)
    many = replace(account, cases=(*[replace(bad, why="|`<b>@all" * 60)] * 3000, worst))
    text = github.summary(many)
    assert len(text.encode()) < github.SUMMARY_BYTES and text.endswith("more cases are not shown here.\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert "regressed" in rows[0] and "(was confirmed)" in rows[0]
    assert all(row.count("|") == 5 and "<b>" not in row and "@all" not in row for row in rows[1:5])
    lines = github.annotations(many)
    assert len(lines) == github.ANNOTATIONS and "title=regressed" in lines[0]
    assert lines[-1] == "::error::2992 more; the summary and the report have them all"
    assert github.summary(account).count("\n| ") == 11


def _history_has_it() -> None:
    lines = history.load_history(Path("site"))
    assert len(lines) == 1 and lines[0].cases["drifted"][0] == "drifted" and lines[0].code == 3
    assert lines[0].cases["confirmed"][1] is not None and len((Path("site/audit/history.jsonl")).read_text()) < 1000


def test_github_gets_a_summary_and_what_regressed_first(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.case("a-first", expectation(project, "not corrected"))
    project.case("b-second", holds(project))
    project.check()
    project.case("b-second", expectation(project, "side effect"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    run = project.check()
    commands = [line for line in run.out.splitlines() if line.startswith("::")]
    assert "title=b-second" in commands[0] and "title=a-first" in commands[1]
    assert run.last == "audit: not met (1): 1 not corrected, 1 side effect"
    assert "**side effect** (was confirmed)" in Path("summary.md").read_text().splitlines()[4]
    run = project.check("--no-github")
    assert "::" not in run.out and Path("summary.md").read_text().count("###") == 1


def test_answers_are_text_in_every_report(project: Project) -> None:
    """Whatever a model or a case says, nothing of it is a command, markup, or more than one line."""
    project.case("chair", holds(project) | {"after": {"ten": {"answer": {"contains": "]]></failure>&\"'|%0A`@all"}}}})
    project.check("--json", "audit.json")
    account = from_plain(Account, json.loads(Path("audit.json").read_text()), "audit.json")
    evil = "\x1b[31m::error::no\n::warning::no\r\x00\u2028 \ud800 <script>"
    one = replace(account.cases[0], why=evil, title=evil, figures={"before.answer": evil})
    account = replace(account, cases=(one,))
    assert ET.fromstring(junit.junit(account)).find(".//failure") is not None
    assert len(github.annotations(account)) == 1 and "\n" not in github.annotations(account)[0]
    assert "\x1b" not in "".join(terminal.table(account)) and "<script>" not in github.summary(account)
    jsonschema.validate(json.loads(sarif.sarif(account)), PART)


@pytest.mark.parametrize("ways", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_who_stops_reading_changes_no_exit_code(project: Project, ways: dict[str, str]) -> None:
    """As in `vsp-report audit | head -0`: the reports are whole, and the code is the audit's own."""
    project.case("chair", expectation(project, "not corrected"))
    words = ["audit", "--from-recordings", "--junit", "j.xml", "--json", "a.json", "--github"]
    env = os.environ | ways | {"GITHUB_STEP_SUMMARY": "summary.md"}
    run = subprocess.Popen([sys.executable, "-m", "vsp_report", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           env=env)  # fmt: skip
    run.stdout.close()
    assert (run.wait(60), run.stderr.read()) == (1, b"")
    run.stderr.close()
    assert ET.parse("j.xml").getroot().get("failures") == "1" and json.loads(Path("a.json").read_text())["code"] == 1
    assert "not corrected" in Path("summary.md").read_text()


def test_unstable_is_asked_to_fail_in_the_audit_itself(project: Project) -> None:
    """Another case that is not met hides it in the exit code, and nowhere else."""
    name, found = varying(project)
    project.case("unstable", {"after": {name: {"p": {"le": found[0]}}}}, of="seeds")
    project.case("unmet", expectation(project, "not corrected"))
    for words, failures in (([], "1"), (["--fail-on", "unstable"], "2")):
        run = project.check("--junit", "j.xml", "--json", "a.json", "--github", *words)
        assert run.code == 1 and ET.parse("j.xml").getroot().get("failures") == failures
        assert run.out.count("::error ") == int(failures)
        assert json.loads(Path("a.json").read_text())["fail_on_unstable"] == bool(words)


def test_history_grows_by_a_line_and_refuses_what_is_none(project: Project) -> None:
    project.case("chair", holds(project))
    for _ in range(3):
        assert project.check().code == 0
    file = project.folder / "site" / "audit" / "history.jsonl"
    assert len(file.read_text().splitlines()) == 3
    project.check("--no-history")
    assert len(file.read_text().splitlines()) == 3
    project.case("other", holds(project))
    project.check("other")
    assert history.last_verdicts(history.load_history(Path("site"))) == {"chair": "confirmed", "other": "confirmed"}
    file.write_text(file.read_text() + '{"when": "x"}\n')
    with pytest.raises(InputError, match=r"history\.jsonl:5"):
        history.load_history(Path("site"))
    assert project.check().code == 2


def test_the_schemas_are_printed(capsys: pytest.CaptureFixture) -> None:
    for name, title, parts in (("--audit", "vsp-report audit", {"code", "said", "cases"}),
                               ("--dataset", "vsp-report data set", {"accuracy", "pairs", "rows"})):  # fmt: skip
        assert cli.main(["schema", name]) == 0
        schema = json.loads(capsys.readouterr().out)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["title"] == title and set(schema["required"]) >= parts
