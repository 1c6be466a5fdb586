"""Case page: the values of a case's page, from what was recorded. The page in a browser is in tests/browser."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from tests.render.recordings import (
    EVIL,
    answered,
    asked,
    classification,
    failed,
    full,
    hostile,
    not_run,
    reconstructing,
)
from vsp_report.case import case_yaml, load_cases, make_case
from vsp_report.case.files import _read_node
from vsp_report.case.source import Faults, read_source
from vsp_report.recording import Answered, ControlDraws, Diagnosis, MinimalSet, Token
from vsp_report.render import arms, charts, figures, index_page, looking, replay
from vsp_report.render.case_data import script_data
from vsp_report.render.figures import Table
from vsp_report.render.labels import Known
from vsp_report.render.pages import bibtex, case_page


def tokens(text: str, *log_probs: float | None) -> Answered:
    words = text.split()
    return Answered(text, tuple(Token(f" {word}", "answer", i, p) for i, (word, p) in
                                enumerate(zip(words, log_probs or [None] * len(words), strict=True))))  # fmt: skip


# --- what it said ----------------------------------------------------------------------------------------------------


def test_both_answers_are_told_token_by_token() -> None:
    clean, steered = tokens("a fish and a star", 0.0, -0.1, -0.2, None, -3.0), tokens("a star", -0.5, 0.0)
    before, after = arms.differing(clean, steered)
    left = [("a", "gone", "100"), ("fish", "gone", "90"), ("and", "gone", "82")]
    kept = [("a", "same", ""), ("star", "same", "5.0")]
    assert [(one.text, one.tone, one.probability) for one in before] == left + kept
    assert [(one.text, one.tone, one.probability) for one in after] == [("a", "same", "61"), ("star", "same", "100")]


def test_what_is_the_same_before_and_after_makes_up_both_answers() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        texts = [" ".join(rng.choice(["a", "b", "c", "d"], rng.integers(1, 9))) for _ in range(2)]
        before, after = arms.differing(*map(tokens, texts))
        assert [" ".join(one.text for one in said) for said in (before, after)] == texts
        assert [one.text for one in before if one.tone == "same"] == [one.text for one in after if one.tone == "same"]
        assert {one.tone for one in before} <= {"same", "gone"} and {one.tone for one in after} <= {"same", "new"}


def test_the_headlines_steering_comes_first_and_a_class_is_no_text() -> None:
    turns = arms.turns_of(full())
    assert [turn.name for turn in turns] == ["strongest-ten", "no-chair", "second-round"]
    assert (turns[0].before_tone, turns[0].after_tone, turns[1].same) == ("wrong", "right", True)
    assert arms.turns_of(classification()) == () and arms.turns_of(not_run()) == ()


def test_rounds_are_the_steerings_that_stand_on_one_another() -> None:
    assert [[one.name for one in chain] for chain in arms.rounds_of(full())] == [["no-chair", "second-round"]]
    base = full().steered
    third = replace(base[2], name="third", onto="second-round", after=answered("standing", 1.0))
    recording = full(steered=(*base, third))
    assert [[one.name for one in chain] for chain in arms.rounds_of(recording)] == [
        ["no-chair", "second-round", "third"]
    ]
    drawn = next(one for name, one in figures.figures_of(recording).items() if name.startswith("rounds-"))
    assert "turns in round 3" in drawn.caption and len(drawn.table.rows) == 4
    assert drawn.table.rows[3][4] == pytest.approx(1.2)
    # What names nothing or itself ends the sequence.
    assert arms.rounds_of(full(steered=(replace(base[2], onto="absent"),))) == []
    assert len(arms.rounds_of(full(steered=(base[0], replace(base[2], onto=base[2].name))))) == 0


def test_a_round_that_leads_to_a_third_answer_has_not_turned_it() -> None:
    base = full().steered
    last = replace(base[2], mode="delta", beyond_reconstruction=None, after=answered("a ball", 1.7))
    recording = full(steered=(base[0], last))
    drawn = next(one for name, one in figures.figures_of(recording).items() if name.startswith("rounds-"))
    assert "No round turns the answer to “standing”." in drawn.caption
    told = json.dumps(charts.spec(drawn.draw()))
    assert '"side": "right", "says": "neither"' in told and told.count('"says": "wrong"') >= 2


# --- what the sign of the log-odds says, and what not ----------------------------------------------------------------


def test_the_side_of_the_log_odds_is_not_written_as_what_is_said() -> None:
    ball = MinimalSet((207, 203), answered("a ball", 1.7), 9)
    told = case_page(full(minimal=ball)).minimal
    assert told.startswith("The smallest set found that takes the log-odds to the other side of zero has two latents")
    assert "the model says “a ball”, which is neither of the two answers (not compared with controls)." in told
    assert "neither" not in case_page(full()).minimal
    found = figures.figures_of(full())
    dose = next(one for name, one in found.items() if name.startswith("dose-"))
    assert "(not compared with controls). The log-odds cross zero at about 0.25 times their strength." in dose.caption
    stays = figures.figures_of(full(swept=(replace(full().swept[0], flip_factor=None),)))
    assert next(one for name, one in stays.items() if name.startswith("dose-")).caption.endswith("one side of zero.")
    drawn = json.dumps(charts.spec(dose.draw()), ensure_ascii=False)
    assert "“standing” is likelier" in drawn and "“sitting” is likelier" in drawn and "says “" not in drawn
    controls = [one.caption for name, one in found.items() if name.startswith("controls-")]
    assert controls and all("the log-odds" in one and "answer" not in one for one in controls)


def test_the_table_says_of_which_kind_the_controls_are_that_flip() -> None:
    base = full().steered[1]
    drawn = tuple(replace(draws, flips=of) for draws, of in zip(base.controls, (0.0, 0.025, 0.875), strict=True))
    (arm,) = (arm for arm in arms.arms_of(full(steered=(replace(base, controls=drawn),))) if arm.name == base.name)
    assert (arm.flips, arm.flips_beside) == ("0 %", ("random directions 2.5 %", "untrained SAE 88 %"))
    (arm,) = (arm for arm in arms.arms_of(full(steered=(replace(base, controls=drawn[2:]),))) if arm.name == base.name)
    assert (arm.flips, arm.flips_beside) == ("–", ("untrained SAE 88 %",))


@pytest.mark.parametrize(
    ("flips", "said"),
    [
        ((0.0, 0.0, 0.0), "None of them takes the log-odds to the other side of zero."),
        ((0.2, 0.2, 0.2), "Of each kind, 20 % take the log-odds to the other side of zero."),
        ((0.0, 0.1, 0.0), "The log-odds go to the other side of zero with 10 % (random directions) of them."),
        ((None, None, None), "untrained SAE"),
    ],
)
def test_controls_are_told_by_what_was_measured_of_them(flips: tuple, said: str) -> None:
    base = full().steered[1]
    drawn = tuple(replace(draws, flips=of) for draws, of in zip(base.controls, flips, strict=True))
    found = figures.figures_of(full(steered=(replace(base, controls=drawn),)))
    caption = next(one.caption for name, one in found.items() if name.startswith("controls-"))
    assert said in caption and ("side of zero" in caption) == (flips[0] is not None)


def test_how_active_the_other_latents_are_is_told_where_it_is_known() -> None:
    base = full().steered[1]
    drawn = (replace(base.controls[0], mass_ratio=0.6), *base.controls[1:])
    found = figures.figures_of(full(steered=(replace(base, controls=drawn),)))
    caption = next(one.caption for name, one in found.items() if name.startswith("controls-"))
    assert "(200 draws of other latents, 0.6 times as active, p = " in caption and caption.count("as active") == 1
    assert "as active" not in "".join(one.caption for one in figures.figures_of(full()).values())


def test_rankings_without_a_sign_are_held_against_sizes() -> None:
    table = case_page(full()).agreements
    assert [row[:3] for row in table.rows] == [
        ("attribution", "the effects", 0.94), ("attention", "the size of effects", 0.35)]  # fmt: skip


def test_a_line_says_what_it_was_not_compared_with() -> None:
    lines = {one.name: one.does for one in case_page(full()).arms}
    assert lines["second-round"].endswith("(not compared with controls)")
    assert "compared" not in lines["no-chair"] + lines["strongest-ten"] + lines["clean"]
    everything = replace(full().steered[1], controls=full().steered[1].controls[1:], p=None, interval=None)
    assert case_page(full(steered=(everything,))).arms[-1].does.endswith("(not compared with matched latents)")
    worded = replace(everything, change=None, controls=(ControlDraws("latents", (), 0.05),))
    assert "compared" not in case_page(full(steered=(worded,))).arms[-1].does


# --- what the SAE's own error does -----------------------------------------------------------------------------------


def test_edits_on_a_reconstruction_are_held_against_it() -> None:
    made = reconstructing(alone=1.0, with_edits=1.4)
    page = case_page(made)
    line = page.arms[-1]
    assert (line.change, line.interval) == ("+0.40", "−0.60 to +1.40")
    assert line.does.endswith("; change from what it says reconstructed")
    # The interval lies around where the steering came to: 1.4 give or take 1, of the longest bar and some room.
    scale = 3.11 * 1.08
    assert [line.bar.low, line.bar.high] == pytest.approx([100 * 0.4 / scale, 100 * 2.4 / scale], abs=0.02)
    (turn,) = page.turns
    assert (turn.from_name, turn.before_margin, turn.before_tone, turn.same) == (
        "Through the SAE", "+1.00", "right", True)  # fmt: skip
    figure = next(one for name, one in page.figures.items() if name.startswith("controls-"))
    draws = [row[2] for row in figure.table.rows]
    assert draws[0] == pytest.approx(0.4) and abs(np.mean(draws[1:])) < 0.1
    assert "the log-odds (line, +0.4)" in figure.caption and "through the SAE with nothing edited" in figure.caption
    # Of class tokens that are reconstructed too, only the figures are recorded of what it is held against.
    case = asked(steer={"rebuilt": {"mode": "reconstruct", "cls": True, "edits": [{"latents": [200, 201], "set": 0}]}},
                 sweep=None, rephrase=None, expect={})  # fmt: skip
    whole = case_page(replace(made, case=case, swept=()))
    assert whole.turns == () and whole.arms[-1].change == "+0.40" and whole.arms[-1].bar == line.bar
    card = index_page.card(made)
    assert (card.before, card.after, card.margin_before, card.margin_after) == ("sitting", "", 1.0, 1.4)


def test_a_panel_plays_a_reconstruction_back_against_itself() -> None:
    rounds = replay.replay(reconstructing(), "picture.webp")["rounds"]
    said = {one["label"]: {event["type"]: event for event in one["events"]} for one in rounds}
    assert said["rebuilt"]["answered"]["change"] == pytest.approx(0.4)
    assert abs(np.mean(said["rebuilt"]["controls"]["changes"])) < 0.1
    assert said["rebuilt × 0"]["answered"]["change"] == pytest.approx(0.4)
    assert said["rebuilt × 2"]["answered"]["change"] == pytest.approx(0.2)


def test_from_the_model_to_its_reconstruction_is_no_round() -> None:
    base = full().steered
    found = figures.figures_of(full(steered=(base[0], base[2])))
    rows = next(one for name, one in found.items() if name.startswith("rounds-")).table.rows
    assert [row[4] for row in rows] == [None, pytest.approx(2.31), None]
    first = replace(reconstructing().steered[0], name="first")
    then = replace(first, name="then", onto="first", after=answered("standing", 1.9))
    rows = next(one for name, one in figures.figures_of(replace(reconstructing(), steered=(first, then))).items()
                if name.startswith("rounds-")).table.rows  # fmt: skip
    assert rows[0][1] == "through the SAE, nothing edited"
    assert [row[4] for row in rows] == [None, pytest.approx(0.4), pytest.approx(0.5)]


# --- where it looks --------------------------------------------------------------------------------------------------


def test_the_strip_has_a_line_for_each_part_and_every_token_once() -> None:
    recording = full()
    lines = looking.strip(recording, looking.start(recording))
    assert [line.name for line in lines] == ["Prompt", "Answer"]
    assert [spot.place for line in lines for spot in line.tokens] == list(range(len(recording.tokens)))
    system = tuple(replace(token, kind="system") if 1 <= i <= 3 else token for i, token in enumerate(recording.tokens))
    told = replace(recording, tokens=system)
    assert [line.name for line in looking.strip(told, looking.start(told))] == ["System prompt", "Prompt", "Answer"]


def test_the_table_of_words_says_where_the_picture_is_darkest() -> None:
    recording = full()
    rows = looking.words_table(recording, looking.start(recording)).rows
    assert len(rows) == len(recording.tokens) and rows[0][3] is None
    weights = recording.arrays.predicting_TP[9].astype(float)
    row, column = divmod(int(weights.argmax()), 12)
    assert rows[9][4] == f"row {row + 1}, column {column + 1}" and rows[9][3] == pytest.approx(weights.sum())


def test_a_caption_opens_with_a_word_that_names_something() -> None:
    recording = full(case=asked(contrast=None, expect={}, steer=None, sweep=None))
    texts = ["a", "star"]
    told = replace(recording, tokens=(*recording.tokens[:9], *(Token(f" {t}", "answer", 1) for t in texts)))
    assert told.tokens[looking.start(told).token].text == " star"


def test_a_picture_without_tokens_has_latents_too() -> None:
    recording = replace(classification(), latents=full().latents, arrays=replace(full().arrays, predicting_TP=None,
                                                                                 own_TP=None))  # fmt: skip
    page = case_page(recording)
    assert page.bars and not page.lines and page.data["start"] is None and page.data["attention"] == {}
    strongest = recording.arrays.maps_LP.astype(float).sum(1)
    assert page.bars[0].place == int(np.argmax(np.where([one.noisy for one in recording.latents], 0, strongest)))
    assert script_data(classification(), None) is None


# --- the rest of the page --------------------------------------------------------------------------------------------


def test_the_diagnosis_stands_with_its_tests() -> None:
    page = case_page(full())
    assert page.mode_found and page.mode == "misleading-cue" and page.mode_believed == ""
    assert [(one.change, one.p, one.holds) for one in page.evidence] == [
        ("", "", True), ("+5.14", "0.005", True), ("", "", None)]  # fmt: skip
    assert "three latents (207, 203, 201)" in page.minimal and ("diagnosis", "Which failure it is") in page.contents
    other = case_page(full(diagnosis=Diagnosis("hidden-cue")))
    assert (other.mode_name, other.mode_believed, other.evidence) == ("hidden cue", "misleading cue", ())
    assert case_page(full(diagnosis=None)).mode_found is False


def test_every_setting_that_was_run_can_be_read() -> None:
    rows = case_page(full()).settings.rows
    assert [row[0] for row in rows] == ["clean", "no-chair", "strongest-ten", "second-round", *["strongest-ten"] * 5,
                                        "smallest set"]  # fmt: skip
    assert [row[2] for row in rows if row[2] is not None] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert case_page(not_run()).settings.rows == () and case_page(failed()).settings.rows == ()


def test_numbers_of_a_column_have_the_same_digits() -> None:
    table = Table(("name", "a", "b", "c"), (("x", 0.5, -12.345, 3), ("y", 2.0, 0.00004, None), ("z", None, 7.0, 10)))
    assert [name for name, numeric in table.columns() if numeric] == ["a", "b", "c"]
    assert [[text for text, _ in row] for row in table.cells()] == [
        ["x", "0.5", "−12.3", "3"], ["y", "2", "4e−05", "–"], ["z", "–", "7.0", "10"]]  # fmt: skip


@pytest.mark.parametrize(
    "recording", [full(), failed(), not_run(), classification(), hostile()], ids=lambda one: one.id
)
def test_a_case_written_is_the_case_read(recording) -> None:
    read_back(recording.case, recording.id)


def test_every_bundled_case_written_is_the_case_read(root) -> None:
    for case in load_cases([root / "cases"]):
        read_back(case.resolved(), case.id)


TEXTS = [
    *"yes No null 1e5 0x10 # ' ~ {x} [ &a *b !c %d @e `f --- ... 1_0 0o7".split(), "- a", "a: b", "a #b", "ends ",
    '"\\', "tab\there", "ä 中 \U0001f986", "a\n\n  b\n", "a\nb", "a\n b\n\n", " a\nb",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_written_is_the_text_read(text: str) -> None:
    read_back(
        asked(title=text.strip().replace("\n", " ").replace("\t", " "), story=f"{text}x", prompt=f"x{text}"), "case"
    )


def read_back(data: dict, id: str) -> None:
    faults = Faults("case.yaml")
    node = read_source(case_yaml(data).encode(), faults)
    case = _read_node(node, id, None, faults) if node is not None else None
    assert case is not None, faults.found
    assert case.resolved() == make_case(data, id).resolved()


def test_a_citation_says_which_recording_it_is() -> None:
    assert bibtex(full()) == (
        "@misc{standing-beside-a-chair,\n  title = {Standing beside a chair},\n"
        "  howpublished = {Recorded with vsp\\_report 1.0},\n"
        "  note = {model sketchworld@1.0; sparse autoencoder sketchworld/vision.3; run aaaaaaaaaaaaaaaa},\n"
        "  year = {2030},\n}\n"
    )
    evil = bibtex(hostile())
    assert EVIL not in evil and evil.count("@") == 2 and r"\{\{ 7*7 \}\}" in evil


def test_tiles_of_a_large_model_stay_light() -> None:
    """Five tiles of 24 × 24 and 80 tokens, with attention that is spread as widely as it gets."""
    rng = np.random.default_rng(0)
    base, tokens = full(), 80
    weights = np.exp(rng.normal(0, 1.5, (tokens, 2880)))
    rows = (weights / weights.sum(1, keepdims=True)).astype(np.float16)
    maps = np.maximum(0, rng.normal(-1.8, 1, (30, 2880))).astype(np.float16)
    boxes = np.tile(base.arrays.boxes_P4, (20, 1))
    arrays = replace(base.arrays, predicting_TP=rows, own_TP=rows[::-1], maps_LP=maps, boxes_P4=boxes, heatmap_TL=None)
    recording = replace(base, tokens=(base.tokens * 8)[:tokens], arrays=arrays, heatmap=None)
    data = script_data(recording, looking.start(recording))
    assert len(gzip.compress(json.dumps(data).encode(), 9)) < 200_000
    packed = data["attention"]["predicting"]
    steps = np.frombuffer(base64.b64decode(packed["bytes"]), np.uint8).reshape(rows.shape)
    back = steps / packed["steps"] * np.array(packed["top"])[:, None]
    assert np.abs(back - rows.astype(float)).max() <= 0.51 / packed["steps"] * rows.astype(float).max()


def test_what_the_script_gets_is_json_and_small() -> None:
    data = case_page(full(), Known("../../atlas/sketchworld/index.html")).data
    assert data["atlas"] == "../../atlas/sketchworld/index.html" and data["start"] == 9
    assert len(json.dumps(data, allow_nan=False)) < 40_000
