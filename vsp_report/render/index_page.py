"""Index page: cards of all cases in, the values of the page that lists them out. No HTML, no files.

A card is plain data, kept from build to build, so that a site of a thousand cases is listed again without a look at
a thousand recordings. The first `SHOWN` cards are in the page; the others too, but where only a reader without scripts
meets them at once: with scripts they are shown as they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vsp_report.recording import Recording
from vsp_report.render import index_charts
from vsp_report.render.figures import Figure, Table
from vsp_report.render.findings import (
    MODES,
    VERDICTS,
    contrast_of,
    headline,
    headline_steering,
    margin_before,
    mode_of,
    number,
    plain,
    rebuilt,
    tone,
    turns,
    verdict,
)

SHOWN = 48
"""cards at a time"""
FILTERS = {"mode": "failure mode", "verdict": "verdict", "model": "model", "tap": "tap", "tag": "tag"}
NO_MODE = "none named"


@dataclass(frozen=True)
class Card:
    """A case on the index. Plain data: it is kept from build to build."""

    id: str
    title: str
    status: str
    verdict: str
    tone: str
    mode: str
    mode_name: str
    model: str
    tap: str
    tags: tuple[str, ...]
    headline: str
    prompt: str
    before: str
    before_tone: str
    after: str
    after_tone: str
    after_name: str
    margin_before: float | None
    margin_after: float | None
    stop_step: str = ""
    stop_message: str = ""
    thumbnail: str = ""
    """relative to the site; empty where there is no picture"""

    @property
    def words(self) -> str:
        """What is searched beside what can be read on the card."""
        return " ".join(filter(None, (self.id, self.after_name, self.headline))).casefold()


@dataclass(frozen=True)
class Choice:
    value: str
    name: str
    count: int


@dataclass(frozen=True)
class IndexPage:
    cards: tuple[Card, ...]
    counts: tuple[tuple[str, str, int], ...]
    """verdict, tone, how many"""
    choices: dict[str, tuple[Choice, ...]]
    """for each filter, its values; filters with one value are left out"""
    filters: dict[str, str]
    """name: what it is called"""
    figures: dict[str, Figure]
    shown: int
    usual_model: str
    """the one that most cases are about: it is not repeated on their cards"""
    shared: str
    """the picture that goes with a link to the page"""


def card(recording: Recording, thumbnail: str = "") -> Card:
    contrast, case = contrast_of(recording), recording.case
    named, (mode, _) = verdict(recording), mode_of(recording)
    best, clean, stop = headline_steering(recording), recording.clean, recording.stop
    # An answer that the SAE's reconstruction alone brings is not the steering's.
    after = best.after if best and (not rebuilt(best) or turns(recording, best)) else None
    return Card(
        id=recording.id,
        title=case["title"],
        status=recording.status,
        verdict=named,
        tone=VERDICTS[named][0],
        mode=mode,
        mode_name=MODES[mode][0] if mode else "",
        model=case["model"],
        tap=recording.provenance.tap or case.get("tap") or "",
        tags=tuple(case.get("tags") or ()),
        headline=plain(headline(recording)),
        prompt=(case.get("prompt") or "").strip() or "Which class is it?",
        before=clean.text.strip() if clean else "",
        before_tone=tone(clean, contrast),
        after=after.text.strip() if after else "",
        after_tone=tone(after, contrast),
        after_name=best.name if best else "",
        margin_before=margin_before(recording, best) if best else clean.margin if clean else None,
        margin_after=best.after.margin if best else None,
        stop_step=stop.step if stop else "",
        stop_message=stop.message if stop else "",
        thumbnail=thumbnail,
    )


def index_page(cards: Sequence[Card]) -> IndexPage:
    ranked = tuple(sorted(cards, key=lambda one: (("ok", "error", "not-run").index(one.status), one.id)))
    counts = tuple((name, VERDICTS[name][0], sum(one.verdict == name for one in ranked)) for name in VERDICTS)
    found = (_outcomes(ranked), _turned(ranked))
    pictured = next((one for one in ranked if one.thumbnail), None)
    return IndexPage(
        ranked,
        tuple(one for one in counts if one[2]),
        _choices(ranked),
        FILTERS,
        {figure.id: figure for figure in found if figure is not None},
        SHOWN,
        next((model for model, _ in Counter(one.model for one in ranked).most_common(1)), ""),
        pictured.thumbnail.replace("thumbnail.webp", "card.jpg") if pictured else "",
    )


def _choices(cards: Sequence[Card]) -> dict[str, tuple[Choice, ...]]:
    values = {
        "mode": [(one.mode, one.mode_name) for one in cards if one.mode],
        "verdict": [(one.verdict, one.verdict) for one in cards],
        "model": [(one.model, one.model) for one in cards],
        "tap": [(one.tap, one.tap) for one in cards if one.tap],
        "tag": [(tag, tag) for one in cards for tag in dict.fromkeys(one.tags)],
    }
    counted = {name: sorted(Counter(found).items()) for name, found in values.items()}
    return {
        name: tuple(Choice(value, words, count) for (value, words), count in found)
        for name, found in counted.items()
        if len(found) > 1
    }


# --- all cases at once -----------------------------------------------------------------------------------------------


def _outcomes(cards: Sequence[Card]) -> Figure | None:
    """How many cases of each failure mode came to which verdict."""
    if len(cards) < 2:
        return None
    tally = Counter((one.mode, one.mode_name or NO_MODE, one.verdict) for one in cards)
    modes = sorted({(mode, name) for mode, name, _ in tally}, key=lambda one: [*MODES, ""].index(one[0]))
    rows, order = [], sorted(VERDICTS, key=lambda verdict: ("good", "bad", "plain").index(VERDICTS[verdict][0]))
    for mode, name in modes:
        start = 0
        for named in order:
            count = tally[mode, name, named]
            if count:
                rows.append({"mode": name, "filter": mode, "verdict": named, "tone": VERDICTS[named][0],
                             "cases": count, "from": start, "to": start + count})  # fmt: skip
            start += count
    listed = ", ".join(f"{count} {name}" for name, count in Counter(one.verdict for one in cards).most_common())
    description = f"Bars of what {len(cards)} cases came to, by failure mode: {listed}."
    return Figure(
        "outcomes",
        description,
        "What the cases came to, by failure mode: as expected, otherwise than expected, or without a verdict. A click "
        "on a part shows its cases.",
        Table(("failure mode", "verdict", "cases"), tuple((r["mode"], r["verdict"], r["cases"]) for r in rows)),
        lambda: index_charts.outcomes(rows, [name for _, name in modes], description),
    )


def _turned(cards: Sequence[Card]) -> Figure | None:
    """Every case's log-odds, before and after."""
    rows = [
        {
            "id": one.id,
            "title": one.title,
            "before": round(one.margin_before, 3),
            "after": round(one.margin_after, 3),
            "steering": one.after_name,
        }
        for one in cards
        if one.margin_before is not None and one.margin_after is not None
    ]
    if len(rows) < 2:
        return None
    crossed = sum(row["before"] < 0 < row["after"] for row in rows)
    furthest = max(rows, key=lambda row: abs(row["after"] - row["before"]))
    moved = number(furthest["after"] - furthest["before"], 1, True)
    description = (
        f"Log-odds of the right answer in {len(rows)} cases, before and after steering; {crossed} of them go from "
        f"below zero to above. “{furthest['title']}” moves furthest, by {moved}."
    )
    few = len(rows) <= index_charts.MOST_ROWS
    how = (
        "before (grey), and with the steering that the case's page opens with (colour). Right of the dotted line, the "
        f"right answer is the likelier of the two: {crossed} of {len(rows)} cross over to it."
        if few
        else "before, from left to right, and with the steering that the case's page opens with, from bottom to top. "
        "On the slanted line nothing has changed; in the upper left corner, the right answer has become the likelier "
        f"of the two: {crossed} of {len(rows)}."
    )
    return Figure(
        "before-after",
        description,
        f"The log-odds of the right answer in every case, {how}",
        Table(("case", "before", "after", "steering"),
              tuple((row["title"], row["before"], row["after"], row["steering"]) for row in rows)),
        lambda: index_charts.turned(rows, description) if few else index_charts.scattered(rows, description),
    )  # fmt: skip
