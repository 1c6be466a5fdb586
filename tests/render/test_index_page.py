"""Index page: cards and what they come to together, and the index of very many of them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise

import altair as alt
import pytest

from tests.render.recordings import classification, failed, full, not_run
from vsp_report import paths
from vsp_report.audit.verdicts import VERDICTS
from vsp_report.render import index_page, site, sketches
from vsp_report.render.drawn import specification
from vsp_report.render.findings import MODES

PAGES = [paths.templates_dir() / "pages"]


def cards() -> list[index_page.Card]:
    return [index_page.card(make(), "thumbnail.webp") for make in (full, failed, not_run, classification)]


def many(count: int) -> list[index_page.Card]:
    base = index_page.card(full())
    return [
        replace(base, id=f"case-{i:05}", title=f"Case {i}: a {('chair', 'cup', 'owl')[i % 3]} that misleads",
                margin_before=base.margin_before + i % 17 / 10, thumbnail=f"cases/case-{i:05}/thumbnail.webp")
        for i in range(count)
    ]  # fmt: skip


def html(page: index_page.IndexPage) -> str:
    sizes = dict.fromkeys(page.figures, (440, 200))
    return site.rendered(site.make_environment(PAGES), "index.html.jinja", root="", page=page, sizes=sizes).decode()


def test_a_card_tells_what_its_recording_comes_to() -> None:
    chair, stopped, unrun, duck = cards()
    assert (chair.before, chair.before_tone, chair.after, chair.after_tone) == ("sitting", "wrong", "standing", "right")
    assert chair.after_name == "strongest-ten" and chair.verdict == "confirmed" and chair.mode == "misleading-cue"
    assert (
        stopped.verdict == "error"
        and stopped.stop_step == "steer no-hand"
        and "no latent has it" in stopped.stop_message
    )
    assert unrun.verdict == "not run" and not unrun.before
    assert duck.prompt == "Which class is it?" and "strongest-ten" in chair.words


def test_cards_are_ranked_and_counted() -> None:
    page = index_page.index_page(cards())
    assert [one.status for one in page.cards] == ["ok", "ok", "error", "not-run"]
    assert sum(count for _, _, count in page.counts) == 4
    told = {choice.value: choice.count for choice in page.choices["verdict"]}
    assert told == Counter(one.verdict for one in page.cards) == {name: count for name, _, count in page.counts}
    tags = {choice.value: choice.count for choice in page.choices["tag"]}
    assert tags["people"] == 3 and tags["paper"] == 1
    # A filter with one value filters nothing.
    alone = index_page.index_page(cards()[:1])
    assert "model" not in alone.choices and alone.figures == {}


def test_a_tag_with_a_space_stays_one() -> None:
    card = replace(cards()[0], tags=("two words", "one"))
    page = html(index_page.index_page([card, cards()[3]]))
    assert 'data-tag="[&#34;two words&#34;, &#34;one&#34;]"' in page


def test_outcomes_add_up() -> None:
    page = index_page.index_page(cards())
    outcomes = page.figures["outcomes"]
    assert sum(row[2] for row in outcomes.table.rows) == 4
    spec = specification(outcomes.draw())
    rows = spec["data"]["values"]
    for mode in {row["mode"] for row in rows}:
        parts = sorted((row["from"], row["to"], row["cases"]) for row in rows if row["mode"] == mode)
        assert parts[0][0] == 0
        assert all(one[1] == two[0] for one, two in pairwise(parts))
        assert all(stop - start == count for start, stop, count in parts)


@pytest.mark.parametrize("count", [3, 60])
def test_before_and_after_of_few_and_of_many(count: int) -> None:
    figure = index_page.index_page(many(count)).figures["before-after"]
    assert len(figure.table.rows) == count and f"{count} cases" in figure.alt
    spec = specification(figure.draw())
    named = [layer["data"] for layer in spec["layer"] if layer.get("data", {}).get("name") == "cases"]
    assert "wrong" not in figure.caption + figure.alt and "likelier of the two" in figure.caption
    assert named and all(len(data["values"]) == count and "id" in data["values"][0] for data in named)
    alt.Chart.from_dict(spec)  # against the schema, which a build leaves out


def test_a_thousand_cases_are_a_light_page() -> None:
    page = html(index_page.index_page(many(1000)))
    assert len(gzip.compress(page.encode())) < 250_000
    before, _, rest = page.partition("<noscript>")
    assert (
        before.count('<li class="card') == index_page.SHOWN and rest.count('<li class="card') == 1000 - index_page.SHOWN
    )
    # All of them stand in the page, for who has no scripts, and for who searches.
    assert all(f"cases/case-{i:05}/index.html" in page for i in range(1000))


def test_an_empty_site_says_how_to_begin() -> None:
    page = html(index_page.index_page([]))
    assert "No case has been run yet" in page and "vsp-report new" in page and "<title>0 cases" in page


def test_the_way_leads_to_every_mode_once() -> None:
    assert sorted(step.yes for step in sketches.WAY) == sorted(set(MODES) - {"undetermined"})
    values = {"modes": MODES, "verdicts": VERDICTS, "sketches": sketches.figures(), "hues": sketches.HUES,
              "way": sketches.WAY}  # fmt: skip
    page = site.rendered(site.make_environment(PAGES), "how-to-read.html.jinja", root="", **values).decode()
    for mode, (name, means) in MODES.items():
        assert f'id="mode-{mode}"' in page and f'href="#mode-{mode}"' in page and name in page
        assert means.replace("'", "&#39;") in page
    assert page.count("<svg") == len(sketches.figures())
    # What pages say in brief, this one explains.
    for words in ("not compared with controls", "A control <em>flips</em>", "1 in 201", "are ranked once"):
        assert words in page
    assert "might be out" not in page and "the answer turns" not in page


def test_kept_cards_are_plain() -> None:
    """They are written into the ledger and come back as they were."""
    card = cards()[0]
    assert index_page.Card(**json.loads(json.dumps(asdict(card)))) == replace(card, tags=list(card.tags))
