"""Axe: the rules of axe-core for accessible pages. Its script is put in from outside: the page's policy stays."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tests.browser.chromium import Page


@cache
def _script() -> str:
    return (Path(find_spec("axe_core_python").origin).parent / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Page, rules: str = "") -> list[str]:
    """What breaks a rule, with where. `rules`: only one of them."""
    page.value(f"{_script()}; true")
    only = f"runOnly: {{type: 'rule', values: ['{rules}']}}, " if rules else ""
    # It is begun and then asked for, as a long page takes a slow machine longer than an answer may.
    page.value(f"window.said = null, axe.run(document, {{{only}resultTypes: ['violations']}}).then("
               "r => said = r.violations.map(v => v.id + ': ' + v.nodes.slice(0, 4).map(n => n.target.join(' '))),"
               " e => said = [String(e)]), true")  # fmt: skip
    page.wait("window.said")
    return list(page.value("said"))
