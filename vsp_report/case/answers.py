"""Answers: which of a contrast's two answers a text is. The one reader, of diagnoses, data sets and pages.

An answer is read by its words: it is one of the two, or has one of them in it and not the other; of two of which one is
part of the other, the longer. Where both are in it, the margin says which is meant, if there is one.

Two options, as "(a) Open" and "(b) Closed", may be said by their letter too: "(b)", "b", "B.", "b) closed", "the answer
is b". A lone letter within a sentence is none: "a" is a word. Who says the letter of one and the words of the other has
said both.
"""

from __future__ import annotations

import re
from typing import Literal

Side = Literal["right", "wrong", ""]

_OPTION = re.compile(r"(?:\((?P<round>[a-z])\)\s*|(?P<plain>[a-z])[).:]\s+)(?P<words>\S.*)")
_LETTER = re.compile(r"\(?([a-z])[).:]?")
_NAMED = (
    re.compile(r"\(([a-z])\)"),
    re.compile(r"^([a-z])[).:](?=\s)"),
    re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s+([a-z])\b(?=[).:,;]|$)"),
)


def side(text: str, right: str, wrong: str, margin: float | None = None) -> Side:
    """right, wrong, or "" for neither. `margin`: the log-odds of the right answer against the wrong one."""
    text, right, wrong = plain(text), plain(right), plain(wrong)
    if text in (right, wrong):
        return "right" if text == right else "wrong"
    options = _option(right), _option(wrong)
    if None in options or options[0][0] == options[1][0]:
        return _told(_by_words(text, right, wrong), margin)
    (a, right), (b, wrong) = options
    letters = _letters(text)
    by_letter = (a in letters, b in letters)
    by_words = _by_words(text, right, wrong) if right and wrong else (False, False)
    if by_letter[0] != by_letter[1]:
        says_other = by_words == (by_letter[1], by_letter[0])
        return _told((True, True) if says_other else by_letter, margin)
    return _told(by_words if any(by_words) else by_letter, margin)


def plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!")


def _told(has: tuple[bool, bool], margin: float | None) -> Side:
    if has[0] != has[1]:
        return "right" if has[0] else "wrong"
    return "" if not has[0] or margin is None else "right" if margin > 0 else "wrong"


def _by_words(text: str, right: str, wrong: str) -> tuple[bool, bool]:
    """Whether the text has the one, and the other."""
    if text in (right, wrong):
        return text == right, text == wrong
    has = _has(text, right), _has(text, wrong)
    if all(has) and (_has(right, wrong) or _has(wrong, right)):
        return len(right) > len(wrong), len(wrong) > len(right)
    return has


def _has(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _option(answer: str) -> tuple[str, str] | None:
    """The letter and the words of an option, which may be a letter alone."""
    if (letter := _LETTER.fullmatch(answer)) is not None:
        return letter[1], ""
    found = _OPTION.fullmatch(answer)
    return found and (found["round"] or found["plain"], plain(found["words"]))


def _letters(text: str) -> set[str]:
    """Those that the text names."""
    if (letter := _LETTER.fullmatch(text)) is not None:
        return {letter[1]}
    return {found for one in _NAMED for found in one.findall(text)}
