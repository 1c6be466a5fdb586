"""Prose: a case's story, from Markdown. Paragraphs, lists, emphasis, code and links; everything else is text.

A story may come from a stranger. What is written here is escaped first and marked up afterwards, so no tag of the
story survives; a link leads to http, https or mail, or is text.
"""

from __future__ import annotations

import re

from markupsafe import Markup, escape

_BULLET = re.compile(r"\s*[-*+]\s+|\s*\d{1,3}[.)]\s+")
_CODE = re.compile(r"(`[^`\n]+`)")
_LINK = re.compile(r"\[([^\[\]\n]{1,300})\]\(((?:https?://|mailto:)[^\s()<>]{1,600})\)")
_STRONG = re.compile(r"\*\*(?=\S)([^*\n]+?)(?<=\S)\*\*")
_EMPHASIS = re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])|(?<!\w)_(?=\S)([^_\n]+?)(?<=\S)_(?!\w)")


def story(markdown: str | None) -> Markup:
    blocks = re.split(r"\n\s*\n", (markdown or "").strip())
    return Markup("\n").join(_block(block) for block in blocks if block.strip())


def _block(block: str) -> Markup:
    lines = block.splitlines()
    if all(_BULLET.match(line) for line in lines[:1]):
        tag = "ol" if lines[0].lstrip()[0].isdigit() else "ul"
        items: list[str] = []
        for line in lines:
            if match := _BULLET.match(line):
                items.append(line[match.end() :])
            else:
                items[-1] += f" {line.strip()}"
        inner = Markup("").join(Markup("<li>{}</li>").format(_inline(item)) for item in items)
        return Markup("<{0}>{1}</{0}>").format(Markup(tag), inner)
    text = " ".join(line.strip().lstrip("#").strip() for line in lines)
    return Markup("<p>{}</p>").format(_inline(text))


def _inline(text: str) -> Markup:
    parts = _CODE.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part[1:-1]) if i % 2 else _marked(part) for i, part in enumerate(parts)
    )


def _marked(text: str) -> Markup:
    """Links are cut out first, so that nothing is marked up inside an address."""
    html, last = Markup(""), 0
    for link in _LINK.finditer(text):
        html += _stressed(text[last : link.start()])
        html += Markup('<a href="{}" rel="noreferrer">{}</a>').format(link[2], _stressed(link[1]))
        last = link.end()
    return html + _stressed(text[last:])


def _stressed(text: str) -> Markup:
    html = _STRONG.sub(r"<strong>\1</strong>", str(escape(text)))
    return Markup(_EMPHASIS.sub(lambda m: f"<em>{m[1] or m[2]}</em>", html))
