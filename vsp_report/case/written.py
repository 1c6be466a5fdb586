"""Written: a case's plain data as the text of a case file, which reads back as the same case."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from vsp_report.case.language import Case

_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9 ._/@+-]*(?<! )")
"""Texts that need no quotes, unless they are truth values."""
_BLOCK = re.compile(r"\S[\s\S]*\S\n?")
"""Texts of several lines that can stand as they are."""
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_TRUTH = re.compile(r"(?i)true|false|null|yes|no|on|off|nan|inf")


def case_yaml(data: dict[str, Any]) -> str:
    """`Case.resolved()` with its keys in the order in which a case is written."""
    order = [f.metadata.get("key") or f.name for f in fields(Case)]
    known = sorted(data, key=lambda key: (order.index(key) if key in order else len(order), key))
    return "\n".join(_mapping({key: data[key] for key in known}, 0)) + "\n"


def _mapping(data: dict[str, Any], depth: int) -> Iterator[str]:
    for key, value in data.items():
        yield from _item(f"{'  ' * depth}{_scalar(str(key))}:", value, depth)


def _item(head: str, value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield head
        yield from _mapping(value, depth + 1)
    elif isinstance(value, (list, tuple)) and any(isinstance(one, (dict, list, tuple)) for one in value):
        yield head
        for one in value:
            yield from _dashed(one, depth + 1)
    elif isinstance(value, str) and "\n" in value and _BLOCK.fullmatch(value) and not _CONTROL.search(value):
        yield f"{head} {'|' if value.endswith(chr(10)) else '|-'}"
        lines = value.removesuffix("\n").split("\n")
        yield from (f"{'  ' * (depth + 1)}{line}" if line else "" for line in lines)
    else:
        yield f"{head} {_flow(value)}"


def _dashed(value: Any, depth: int) -> Iterator[str]:
    """Under a dash a mapping begins on its line."""
    dash = f"{'  ' * depth}- "
    if isinstance(value, dict) and value:
        lines = list(_mapping(value, depth + 1))
        yield dash + lines[0].lstrip()
        yield from lines[1:]
    else:
        yield dash + _flow(value)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(str(key))}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _WORDS.fullmatch(value) and not _TRUTH.fullmatch(value):
            return value
        quoted = json.dumps(value, ensure_ascii=False)
        return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)
    return json.dumps(value)
