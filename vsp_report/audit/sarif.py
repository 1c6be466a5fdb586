"""SARIF: an account as results at lines of case files, which code hosts show beside the code (SARIF 2.1.0).

A rule is a verdict. What is confirmed, new by intent, or not run makes no result. At most 5,000 are written, which is
how many GitHub shows; the most urgent come first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from vsp_report.audit.account import COULD_NOT_RUN, Account, CaseJudged, by_urgency
from vsp_report.audit.verdicts import VERDICTS
from vsp_report.audit.words import one_line
from vsp_report.recording import sha

MOST = 5000
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"unstable": "warning", "new": "note", "baseline": "error", "review": "note"}
_MEANS = {
    **{name: means for name, (tone, means) in VERDICTS.items() if tone == "bad"},
    "baseline": "The baseline that the case is held to is missing or stale.",
    "review": "The day by which the case was to be reviewed has passed.",
}
_RULES = tuple(_MEANS)


def sarif(account: Account) -> str:
    results = [result for one in by_urgency(account.cases) for result in _results(one)][:MOST]
    driver = {"name": "vsp-report", "version": account.program, "rules": [_rule(name) for name in _RULES]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "utf16CodeUnits",
        "invocations": [{
            "executionSuccessful": account.code != COULD_NOT_RUN,
            "exitCode": account.code,
            "endTimeUtc": account.created,
        }],
        "results": results,
    }  # fmt: skip
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _rule(name: str) -> dict[str, Any]:
    return {
        "id": _id(name),
        "shortDescription": {"text": name.capitalize()},
        "fullDescription": {"text": _MEANS[name]},
        "defaultConfiguration": {"level": _LEVELS.get(name, "error")},
    }


def _id(name: str) -> str:
    return "vsp/" + name.replace(" ", "-")


def _results(one: CaseJudged) -> Iterator[dict[str, Any]]:
    if one.verdict in _MEANS:
        unmet = [c for c in one.comparisons if not c.holds]
        for c in unmet:
            yield _result(one, one.verdict, c.line, f"{c.what} {c.expected}, observed {c.observed}", c.path)
        if not unmet:
            yield _result(one, one.verdict, one.line, one.why, "")
    if one.baseline:
        yield _result(one, "baseline", one.line, f"its baseline is {one.baseline}", "baseline")
    if one.overdue:
        yield _result(one, "review", one.review_line, f"it was to be reviewed by {one.overdue}", "review")


def _result(one: CaseJudged, rule: str, line: int, text: str, path: str) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": quote(one.file), "uriBaseId": "%SRCROOT%"}, "region": {"startLine": line}}
    return {
        "ruleId": _id(rule),
        "ruleIndex": _RULES.index(rule),
        "level": _LEVELS.get(rule, "error"),
        "message": {"text": one_line(f"{one.id}: {text}")},
        "locations": [{"physicalLocation": place}],
        # The same finding in a later audit, wherever its line has moved to.
        "partialFingerprints": {"vspReport/v1": sha(f"{one.id}\n{rule}\n{path}")[:32]},
        "properties": {"verdict": one.verdict, "was": one.was},
    }
