"""Diagnose: the rule, line by line; searches and their controls by their laws; the whole on planted failures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from vsp_report.case import CaseFaults, make_case
from vsp_report.maths.edits import ALL, Contrast, Edit, Steering
from vsp_report.recording import Answered, Rephrased, load_recording
from vsp_report.sketchworld.planted import plant
from vsp_report.study import evidence
from vsp_report.study.description import Carried, _by_word, about, carried, words_of
from vsp_report.study.diagnose import FEW, Trial, diagnose, minimal_set, rule, verdict
from vsp_report.study.pictures import load_picture
from vsp_report.study.resolve import Rankings
from vsp_report.study.search import DEFAULT, DRAWS, Apart, Edits, Outcome, Reach, Search, _cosine, strongest
from vsp_report.study.subjects import load_subject

POSE = "Is the person sitting or standing?"
STANDING = Contrast("standing", "sitting")


def _asked(mode: str, variation: str, seed: int, **changes):
    planted = plant(mode, variation, seed)
    data = {
        "title": "x", "model": "sketchworld", "sae": "sketchworld/vision.3", "prompt": planted.question,
        "image": {"scene": {"mode": mode, "variation": variation, "seed": seed}, "size": 192},
        "contrast": {"right": planted.right, "wrong": planted.wrong}, "decoding": {"max_new_tokens": 16},
    } | changes  # fmt: skip
    case = make_case(data, "planted")
    return load_subject(case, load_picture(case).image)[0]


def _ranks(subject) -> Rankings:
    patches = np.flatnonzero(~subject.bench.sites.class_S)
    return Rankings(subject.bench.latents()[patches], (), np.zeros((0, len(patches))))


@pytest.fixture(scope="module")
def chair():
    return _asked("misleading-cue", "chair", 1)


@pytest.fixture(scope="module")
def search(chair) -> Search:
    return Search(chair, _ranks(chair))


# --- what an answer is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "margin", "said"),
    [
        ("standing", None, "right"), (" Sitting. ", None, "wrong"), ("The person is standing.", None, "right"),
        ("a dog", 3.0, ""), ("sitting, not standing", -1.0, "wrong"), ("sitting, not standing", None, ""),
        ("understanding", None, ""), ("", None, ""),
    ],
)  # fmt: skip
def test_an_answer_is_read_by_its_words(text: str, margin: float | None, said: str) -> None:
    assert verdict(text, STANDING, margin) == said


def test_of_two_answers_of_which_one_is_part_of_the_other_the_longer_counts() -> None:
    contrast = Contrast("on a hand with a mitten", "on a hand")
    assert verdict("it is on a hand with a mitten", contrast) == "right"
    assert verdict("it is on a hand", contrast) == "wrong"


# --- the rule ----------------------------------------------------------------------------------------------------

OUTCOME = Outcome(Edits((1,)), "standing", 9.0)
YES, NO = Trial(OUTCOME, True, 0.05, 0.05), Trial(OUTCOME, False)
BY_CHANCE, UNCOMPARED = Trial(OUTCOME, True, 0.2, 0.05), Trial(OUTCOME, True, None, 0.05)
AS_EASILY = Trial(OUTCOME, True, 0.05, 0.15)
ITSELF, ELSE, NONE = (
    Carried("a person", words, others)
    for words, others in ((("sitting",), ()), (("sitting", "chair"), ("chair",)), ((), ()))
)
OTHERS = tuple((f"word {n}", -5.0 - n) for n in range(19))
AHEAD, LEVEL = Reach(3.0, OTHERS), Reach(-6.5, OTHERS)
SOME, MANY = Reach(-12.5, OTHERS), Reach(-14.5, OTHERS)


NEARLY = Reach(-5.5, OTHERS)
FIRST_OF_NONE = Reach(-4.5, OTHERS)
ELSEWHERE, BESIDE, TOGETHER = (Apart(overlap, (0.1, 0.3, 0.4)) for overlap in (0.2, 0.35, 0.5))
SURELY = Apart(0.05, (0.1,) * 19)


@pytest.mark.parametrize(
    ("ablation", "both", "words", "reach", "apart", "mode"),
    [
        (YES, None, ELSE, AHEAD, TOGETHER, "misleading-cue"),
        (YES, None, NONE, AHEAD, None, "misleading-cue"),
        (YES, None, ELSE, None, None, "misleading-cue"),
        (YES, None, ELSE, LEVEL, ELSEWHERE, "undetermined"),
        (YES, None, ITSELF, AHEAD, ELSEWHERE, "hidden-cue"),
        (NO, YES, ITSELF, AHEAD, ELSEWHERE, "hidden-cue"),
        (NO, YES, NONE, AHEAD, ELSEWHERE, "hidden-cue"),
        (YES, None, ITSELF, AHEAD, TOGETHER, "undetermined"),
        (YES, None, ITSELF, AHEAD, None, "undetermined"),
        (YES, None, ITSELF, AHEAD, BESIDE, "hidden-cue"),
        (YES, None, ITSELF, NEARLY, BESIDE, "undetermined"),
        (YES, None, ITSELF, NEARLY, ELSEWHERE, "hidden-cue"),
        (NO, YES, ITSELF, AHEAD, BESIDE, "undetermined"),
        (NO, YES, NONE, AHEAD, TOGETHER, "undetermined"),
        (NO, YES, ELSE, AHEAD, ELSEWHERE, "undetermined"),
        (YES, None, ITSELF, LEVEL, ELSEWHERE, "undetermined"),
        (YES, None, ITSELF, LEVEL, SURELY, "hidden-cue"),
        (NO, YES, ITSELF, SOME, SURELY, "hidden-cue"),
        (NO, YES, ITSELF, MANY, SURELY, "undetermined"),
        (NO, NO, ITSELF, LEVEL, SURELY, "undetermined"),
        (NO, YES, ELSE, LEVEL, SURELY, "undetermined"),
        (YES, None, ELSE, LEVEL, SURELY, "undetermined"),
        (NO, NO, ITSELF, FIRST_OF_NONE, TOGETHER, "perception-missing"),
        (NO, NO, ITSELF, FIRST_OF_NONE, ELSEWHERE, "undetermined"),
        (NO, NO, ITSELF, AHEAD, TOGETHER, "undetermined"),
        (YES, None, ITSELF, FIRST_OF_NONE, ELSEWHERE, "hidden-cue"),
        (YES, None, ELSE, MANY, TOGETHER, "perception-missing"),
        (YES, None, ITSELF, SOME, TOGETHER, "undetermined"),
        (YES, None, ITSELF, MANY, ELSEWHERE, "undetermined"),
        (NO, NO, ITSELF, LEVEL, TOGETHER, "perception-missing"),
        (NO, NO, ITSELF, LEVEL, ELSEWHERE, "undetermined"),
        (None, NO, None, LEVEL, None, "perception-missing"),
        (None, None, None, None, None, "undetermined"),
        (NO, NO, ITSELF, AHEAD, ELSEWHERE, "undetermined"),
        (BY_CHANCE, NO, ELSE, AHEAD, ELSEWHERE, "undetermined"),
        (AS_EASILY, NO, ELSE, AHEAD, ELSEWHERE, "undetermined"),
        (UNCOMPARED, NO, ELSE, AHEAD, ELSEWHERE, "undetermined"),
        (YES, None, None, AHEAD, ELSEWHERE, "undetermined"),
    ],
)
def test_the_rule_line_by_line(ablation, both, words, reach, apart, mode: str) -> None:
    assert rule(ablation, both, words, reach, apart) == mode


def test_where_other_words_are_answered_rightly_nobody_says_that_nothing_is_seen() -> None:
    assert rule(NO, NO, None, LEVEL, TOGETHER) == "perception-missing"
    assert rule(NO, NO, None, LEVEL, TOGETHER, otherwise=True) == "undetermined"
    assert rule(YES, None, ELSE, MANY, TOGETHER, otherwise=True) == "undetermined"
    assert rule(YES, None, ELSE, AHEAD, TOGETHER, otherwise=True) == "misleading-cue"


@pytest.mark.parametrize(
    ("description", "asked", "is_about"),
    [
        ("a person sitting beside a chair", "Is the person sitting or standing? standing sitting", True),
        ("a goat", "Is the person sitting or standing? standing sitting", False),
        ("a chart with four bars", "Which bar is the tallest? the red bar", True),
        ("a chart", "What is in the picture? a bar", False),
        ("a cupboard", "Is there a cup? yes no", False),
        ("the two of them", "What is the answer? the first", False),
        ("A RABBIT.", "What animal is this? duck rabbit", True),
        ("", "What animal is this?", False),
    ],
)
def test_a_description_is_about_what_is_asked(description: str, asked: str, is_about: bool) -> None:
    assert about(description, asked) is is_about


def test_without_a_description_amplification_has_to_be_needed() -> None:
    assert rule(None, YES, None, AHEAD, ELSEWHERE, described=False) == "hidden-cue"
    assert rule(None, YES, None, AHEAD, TOGETHER, described=False) == "undetermined"
    assert rule(YES, None, None, AHEAD, ELSEWHERE, described=False) == "undetermined"


def test_rivals_that_are_had_as_easily_count() -> None:
    assert AHEAD.p == 1 / 20 and LEVEL.easier == 2 and LEVEL.p == 3 / 20
    assert SOME.p == 9 / 20 and MANY.p == 11 / 20


# --- the searches ------------------------------------------------------------------------------------------------


def test_the_smallest_set_truly_changes_the_answer_and_costs_a_tenth(chair, search: Search) -> None:
    found = minimal_set(chair, _ranks(chair))
    assert found is not None and 1 <= len(found.latents) <= 64
    assert found.runs <= search.active / 10
    # Another way to the same: the steering itself, and not the bench.
    after = chair.answers([Edits(found.latents).steering("again")]).after[0]
    assert (after.margin > 0) != (search.margin > 0)
    assert after.text == found.after.text and after.margin == pytest.approx(found.after.margin, abs=1e-4)


def test_a_set_that_costs_too_much_or_is_too_large_is_not_found(chair, search: Search) -> None:
    latents_PL = search.ranks.latents_PL.copy()
    few = np.unique(latents_PL.indices)[:30]
    latents_PL.data = np.where(np.isin(latents_PL.indices, few), latents_PL.data, 0)
    latents_PL.eliminate_zeros()
    poor = Search(chair, replace(search.ranks, latents_PL=latents_PL))
    assert poor.active == 30 and poor.minimal(64) is None and poor.runs <= 3
    assert search.minimal(0) is None


def test_controls_are_as_many_and_never_the_same(search: Search) -> None:
    active = np.flatnonzero(search.ranks.mass_L > 0)
    edits = Edits(tuple(map(int, active[:3])), tuple(map(int, active[3:5])))
    controls = search.matched(edits)
    assert len(controls) == DRAWS
    for one in controls:
        assert (len(one.ablated), len(one.amplified)) == (3, 2)
        assert not set(one.latents) & set(edits.latents)
    assert controls == search.matched(edits)


def test_searches_as_hard_are_in_other_directions(search: Search) -> None:
    edits = Edits(strongest(search.support()[1], 2))
    mine, others_N = search.as_hard(edits, draws=4)
    assert len(others_N) == 4 and len(set(others_N.round(6))) == 4 and mine not in others_N
    assert mine == pytest.approx(search.as_hard(edits, draws=1)[0], abs=1e-4)


def test_rivals_are_other_answers(search: Search) -> None:
    reach = search.reach(Edits(), rivals=5)
    words = [word for word, _ in reach.rivals]
    assert len(set(words)) == 5 and not {"standing", "sitting"} & set(words)
    assert [odds for _, odds in reach.rivals] == sorted((odds for _, odds in reach.rivals), reverse=True)


def test_what_is_said_of_nothing_is_no_rival(search: Search) -> None:
    bench = search.bench
    (of_nothing_V,) = bench.likely([bench.change(Steering("nothing", (Edit(ALL, "set", 0.0),)))])
    defaults = {bench.word(int(v)) for v in np.flatnonzero(of_nothing_V >= np.log(DEFAULT))}
    assert defaults and not defaults & {word for word, _ in search.reach(Edits()).rivals}


def test_places_are_compared_by_the_patches_that_are_shared(search: Search) -> None:
    latents_PL = search.ranks.latents_PL
    shown = int(np.argmax(search.ranks.mass_L))
    map_P = np.asarray(latents_PL[:, [shown]].todense()).ravel()
    assert search._map([shown]).tolist() == pytest.approx(map_P.tolist())
    assert _cosine(map_P, map_P) == pytest.approx(1) and _cosine(map_P, map_P * 0) == 0
    assert _cosine(np.array([1.0, 0, 2]), np.array([0.0, 3, 0])) == 0
    apart = search.apart(Edits((shown,)))
    assert 0 <= apart.overlap <= 1 and len(apart.others) == DRAWS and 1 / 20 <= apart.p <= 1
    assert apart == search.apart(Edits((shown,))) and search.apart(Edits()) is None


def test_strengthening_edits_what_was_not_edited_before(search: Search) -> None:
    first = search.strengthen(Edits(), FEW)
    second = search.strengthen(first, FEW)
    assert len(set(second.latents)) == len(second.latents) > len(first.latents)
    assert not second.and_also(strongest(np.zeros(4), 3)).latents[len(second.latents) :]
    assert (search.ranks.mass_L[list(second.latents)] > 0).all()


# --- words -------------------------------------------------------------------------------------------------------


class Spelling:
    """A tokenizer of pieces, some of which begin a word."""

    pieces = ("a", " pers", "on", " sit", "ting", ".")

    def decode(self, ids, skip_special_tokens=True) -> str:
        return "".join(self.pieces[i] for i in ids)


def test_a_word_falls_as_far_as_its_furthest_token() -> None:
    falls_NT = np.array([[9.0, 1.0, 2.0, 4.0, 3.0, 9.0], [0.0, 0.0, 0.5, 0.0, 0.0, 0.0]])
    words, falls_NW = _by_word(Spelling(), range(6), falls_NT)
    assert words == ["person", "sitting"]
    assert falls_NW.tolist() == [[2.0, 4.0], [0.5, 0.0]]


def test_words_are_said_because_of_latents_and_not_of_others(search: Search) -> None:
    """All that is active where the chair is: without it the description has no chair. Others do not carry it."""
    found = carried(search, search.minimal(FEW), "sitting")
    assert found.description and set(found.words) <= set(words_of(found.description))
    assert set(found.others) == set(found.words) - {"sitting"}
    idle = Edits(tuple(int(k) for k in np.argsort(search.ranks.mass_L) if search.ranks.mass_L[k] > 0)[:1])
    assert set(carried(search, idle, "sitting").words) <= set(words_of(found.description))


# --- the whole ---------------------------------------------------------------------------------------------------


def test_a_right_answer_is_no_failure_and_costs_nothing() -> None:
    subject = _asked("none", "animals", 1)
    clean = Answered(subject.contrast.right, margin=4.0)
    found = diagnose(subject, _ranks(subject), clean)
    assert (found.mode, found.runs) == ("none", 0) and found.evidence[0].holds


def test_a_third_answer_is_not_forced_into_a_mode(chair) -> None:
    found = diagnose(chair, _ranks(chair), Answered("a cup", margin=-1.0))
    assert found.mode == "undetermined" and found.evidence[-1].holds is None


def test_another_question_is_no_rephrasing(chair) -> None:
    other = Rephrased("other", "Which is it not?", Answered("sitting", margin=2.0), ("sitting", "standing"))
    found = diagnose(chair, _ranks(chair), Answered("a cup", margin=-1.0), [other])
    assert found.mode == "undetermined" and "asks something else" in found.evidence[1].finding


def test_at_a_text_tap_nothing_is_forced() -> None:
    subject = _asked("misleading-cue", "chair", 1, sae="sketchworld/text.2")
    assert minimal_set(subject, None) is None
    found = diagnose(subject, None, Answered("sitting", margin=-5.0))
    assert found.mode == "undetermined" and found.evidence[-1].holds is None


def test_a_diagnosis_is_recorded_and_can_be_left_out(tmp_path: Path) -> None:
    planted = plant("limited-alignment", "puppet", 3)
    data = {
        "title": "x", "model": "sketchworld", "sae": "sketchworld/vision.3", "prompt": planted.question,
        "image": {"scene": {"mode": "limited-alignment", "variation": "puppet", "seed": 3}, "size": 192},
        "contrast": {"right": planted.right, "wrong": planted.wrong},
        "rephrase": {"named": {"prompt": planted.explicit.text,
                               "contrast": {"right": planted.explicit.answer, "wrong": planted.wrong}}},
    }  # fmt: skip
    (tmp_path / "puppet.yaml").write_text(yaml.safe_dump(data))
    inquiry = evidence.open_case(tmp_path / "puppet.yaml", tmp_path / "out")
    for one in (evidence.look, evidence.attribute, evidence.rephrase, evidence.diagnose, evidence.save):
        one(inquiry)
    recording = load_recording(tmp_path / "out")
    assert recording.diagnosis == inquiry.diagnosis and recording.minimal == inquiry.minimal
    assert recording.figures()["diagnosis"] == recording.diagnosis.mode
    named = Contrast(planted.explicit.answer, planted.wrong)
    assert verdict(recording.rephrased[0].answered.text, named) == "right"
    assert recording.diagnosis.mode == "limited-alignment"
    inquiry.diagnosis, inquiry.case = None, replace(inquiry.case, diagnose=False)
    assert evidence.diagnose(inquiry) is None and inquiry.diagnosis is None
    with pytest.raises(CaseFaults, match="diagnose: false"):
        make_case(data | {"diagnose": False, "expect": {"diagnosis": "limited-alignment"}})


def test_planted_failures_are_called_what_they_are(root: Path) -> None:
    """The benchmark, in small: what is diagnosed is mostly right, and where nothing is wrong nothing is found."""
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        import diagnosis
    finally:
        sys.path.pop(0)
    found = [diagnosis.examined(diagnosis.Asked(*scene)) for scene in (
        ("limited-alignment", "puppet", 3), ("misleading-cue", "chair", 1), ("hidden-cue", "duck-cat", 1),
        ("hidden-cue", "goat-pig", 1), ("cue-missing", "cups", 90000), ("cue-missing", "objects", 90002),
        ("cue-missing", "people", 4006), ("none", "animals", 1), ("none", "people", 1),
    )]  # fmt: skip
    told = diagnosis.summary(found)
    failing = [one for one in found if one.kind == "failing"]
    assert len(failing) >= 6, "the models no longer fail as planted"
    missing = [one.mode for one in failing if one.row == "cue-missing"]
    assert "perception-missing" in missing and set(missing) <= {"perception-missing", "undetermined"}
    assert told["right_among_diagnosed"] >= 0.66
    assert told["undetermined"] <= 0.5
    assert told["false_claims_on_nothing_wrong"] == 0
