"""Words: the small kinds that several parts of the language share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from vsp_report.case.kinds import Text, Whole

TITLE = Text("a title", 200)
WORDS = Text("text", 4000, lines=True)
MARKDOWN = Text("Markdown", 20_000, lines=True)
ANSWER = Text("an answer", 400)
SLUG = Text("small letters, digits and hyphens", 60, r"[a-z0-9]+(-[a-z0-9]+)*")
SEED = Whole(0, 2**31 - 1)

Wrong: TypeAlias = Iterator[tuple[tuple[str | int, ...], str, str]]
"""What is wrong inside a value: path, fault, remedy."""
