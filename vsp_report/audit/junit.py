"""JUnit: an account as the XML that continuous integration reads.

    failure        what the case expects was measured otherwise
    error          it could not be looked at: the run stopped, or its baseline is missing
    flakyFailure   unstable; as Surefire writes it, which readers show without failing. Where unstable is asked to
                   fail, it is a failure like others
    skipped        needs something that is not here; nothing else is ever skipped

A review that is due is told in the case's output, and fails nothing.

A known failure that is confirmed is a plain pass: that the model fails is what the case claims. Written as skipped, as
others write an expected failure, it would be read as a test that nobody ran.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from vsp_report.audit.account import Account, CaseJudged
from vsp_report.audit.verdicts import UNMET

_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(account: Account) -> str:
    kinds = [_kind(one, account) for one in account.cases]
    totals = {
        "tests": len(kinds),
        "failures": kinds.count("failure"),
        "errors": kinds.count("error"),
        "skipped": kinds.count("skipped"),
    }
    sums = {name: str(total) for name, total in totals.items()}
    sums["time"] = f"{sum(one.seconds for one in account.cases):.3f}"
    root = ET.Element("testsuites", {"name": "vsp-report", **sums})
    suite = ET.SubElement(root, "testsuite", {"name": "cases", **sums, "timestamp": account.created.rstrip("Z")})
    for one, kind in zip(account.cases, kinds, strict=True):
        suite.append(_case(one, kind))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _kind(one: CaseJudged, account: Account) -> str:
    if one.verdict in UNMET:
        return "failure"
    if one.verdict == "error" or one.baseline:
        return "error"
    if one.verdict == "unstable":
        return "failure" if account.fail_on_unstable else "flakyFailure"
    return "skipped" if one.verdict == "not run" else ""


def _case(one: CaseJudged, kind: str) -> ET.Element:
    case = ET.Element("testcase", {"classname": f"cases.{one.failure or 'case'}", "name": one.id, "file": one.file,
                                   "line": str(one.line), "time": f"{one.seconds:.3f}"})  # fmt: skip
    properties = ET.SubElement(case, "properties")
    for name, value in [("verdict", one.verdict), *sorted((one.figures or {}).items())]:
        ET.SubElement(properties, "property", {"name": _text(name), "value": _text(str(value))})
    if one.runs > 1:
        rate = {"name": "runs that met everything", "value": f"{one.met}/{one.runs}"}
        ET.SubElement(properties, "property", rate)
    if kind:
        found = ET.SubElement(case, kind, {"message": _text(one.why)})
        if kind != "skipped":
            found.set("type", one.verdict if not one.baseline or one.verdict != "new" else "baseline")
            found.text = _text("\n".join(_lines(one)))
    if one.overdue:
        ET.SubElement(properties, "property", {"name": "to be reviewed by", "value": _text(one.overdue)})
        told = ET.SubElement(case, "system-out")
        told.text = _text(f"{one.file}:{one.review_line}: to be reviewed by {one.overdue}")
    return case


def _lines(one: CaseJudged) -> list[str]:
    """What did not hold, with the line in the case file."""
    found = [
        f"{one.file}:{c.line}: {c.what} {c.expected}, observed {c.observed}" for c in one.comparisons if not c.holds
    ]
    return found or [f"{one.file}:{one.line}: {one.why}"]


def _text(text: str) -> str:
    """Without what XML cannot hold at all."""
    return _NO_XML.sub("�", text)
