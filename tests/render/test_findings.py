"""Findings: the sentence, the verdict and the figures that a recording comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.render.recordings import answered, asked, classification, failed, full, not_run
from vsp_report.recording import Answered, EditMade
from vsp_report.render.findings import (
    VERDICTS,
    checks,
    counted,
    edit_words,
    gerund,
    headline,
    headline_steering,
    number,
    p_value,
    plain,
    round_of,
    share,
    tone,
    verdict,
    word_changes,
)


def test_the_headline_says_what_was_seen() -> None:
    assert plain(headline(full())) == (
        "Asked “Is the person sitting or standing?”, the model says “sitting”, which is wrong. Ablating ten latents "
        "makes it say “standing”: the log-odds move by +5.1, and none of 200 matched controls moves them as far "
        "(p = 0.005)."
    )


def test_the_headline_of_what_did_not_work() -> None:
    base = full()
    kept = full(steered=(base.steered[0],), rephrased=())
    assert "Ablating ten latents leaves the answer as it is; the log-odds move by +2.3" in plain(headline(kept))
    assert "and 3 of 200 matched controls move them as far (p = 0.02)." in plain(headline(replace(
        kept, steered=(replace(kept.steered[0], controls=tuple(replace(d, p=0.02) for d in kept.steered[0].controls)),)
    )))  # fmt: skip
    # A rephrasing that works is named before a steering that does not.
    renamed = plain(headline(replace(kept, rephrased=base.rephrased)))
    assert "Asked “Is the person on the chair, or beside it?” instead, it says “beside it”. Ablating" in renamed
    assert plain(headline(full(clean=answered("standing", 2.0), steered=()))).endswith("“standing”, which is right.")


def test_the_headlines_of_other_kinds() -> None:
    assert plain(headline(failed())).startswith("The run stopped at steer no-hand. cases/cup.yaml:14: steer.no-hand")
    assert plain(headline(not_run())).startswith("This case was not run here: It needs a GPU")
    assert plain(headline(classification())).startswith(
        "Of seven classes, the picture is nearest to “rabbit” (61 %). Ablating two latents makes it say “duck”"
    )


def test_a_later_round_is_told_as_one() -> None:
    base = full()
    last = replace(base.steered[2], after=answered("standing", 1.0), flipped=True, change=4.1)
    said = plain(headline(full(steered=(base.steered[0], last))))
    assert "In round two, multiplying two latents by 2, in a part of the picture and adding −1.5 to all latents" in said
    assert round_of(base, base.steered[0]) == 1
    assert round_of(base, replace(base.steered[2], onto="second-round")) == 1  # on top of itself is no round


def test_the_best_steering_is_the_one_that_repairs() -> None:
    assert headline_steering(full()).name == "strongest-ten"
    assert headline_steering(full(steered=())) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "confirmed"),
        ({"clean": answered("standing", 1.0)}, "not reproduced"),
        ({"steered": (full().steered[0], replace(full().steered[1], p=0.2))}, "not corrected"),
        ({"diagnosis": None}, "error"),
        ({"diagnosis": replace(full().diagnosis, mode="hidden-cue")}, "not reproduced"),
        ({"case": asked(expect={})}, "new"),
    ],
)
def test_verdicts(changes: dict, expected: str) -> None:
    assert verdict(full(**changes)) == expected
    assert expected in VERDICTS


def test_controls_that_flip_are_a_side_effect() -> None:
    base = full()
    spilled = tuple(replace(s, controls=tuple(replace(d, flips=0.4) for d in s.controls)) for s in base.steered)
    assert verdict(replace(base, steered=spilled)) == "side effect"


def test_checks_show_what_was_measured() -> None:
    found = {one.what: (one.expected, one.observed, one.holds) for one in checks(full(diagnosis=None))}
    assert found["clean: log-odds"] == ("< 0.00", "−3.11", True)
    assert found["strongest-ten: p among controls"] == ("≤ 0.01", "0.005", True)
    assert found["controls: controls that change the answer"] == ("≤ 5.0 %", "0.5 %", True)
    assert found["failure mode"] == ("is misleading cue", "not measured", None)


def test_figures_have_few_digits() -> None:
    assert [number(v, 2, True) for v in (1.234, -0.5, 0.001, -0.001, None)] == ["+1.23", "−0.50", "0.00", "0.00", "–"]
    assert [share(v) for v in (0, 0.5, 0.005, 0.00001, 0.9999, 1, None)] == [
        "0 %", "50 %", "0.5 %", "< 0.1 %", "> 99.9 %", "100 %", "–"]  # fmt: skip
    assert [p_value(v) for v in (0.004975, 0.5, 0.00001, None)] == ["0.005", "0.5", "< 0.0001", "–"]
    assert [counted(n, "latent") for n in (0, 1, 2, 13)] == ["no latents", "one latent", "two latents", "13 latents"]


def test_edits_in_words() -> None:
    assert edit_words(EditMade((1,), "scale", 0.0)) == "ablate one latent"
    assert edit_words(EditMade("all", "set", 0.0, ((0, 0, 1, 1),))) == "ablate all latents, in a part of the picture"
    assert edit_words(EditMade((1, 2), "scale", 3.0, (), "label duck")) == "multiply two latents (label duck) by 3"
    said = gerund("ablate two latents; multiply one latent by 3")
    assert said == "ablating two latents and multiplying one latent by 3"


def test_an_answer_has_the_tone_that_a_diagnosis_reads() -> None:
    options = ("(a) Open", "(b) Closed")
    for text, told in (("(b)", "wrong"), ("A.", "right"), ("closed", "wrong"), ("unopened", ""), ("a box", "")):
        assert tone(Answered(text), options) == told
    both = "standing, not sitting"
    assert tone(Answered(both), ("standing", "sitting")) == ""
    assert tone(Answered(both, margin=2.0), ("standing", "sitting")) == "right"
    assert tone(None, options) == tone(Answered("(a)"), None) == ""


def test_what_changed_in_an_answer() -> None:
    changed = word_changes("a fish, a star and a ball", "a fish and a ball")
    assert [(run.text, run.tone) for run in changed] == [
        ("a", "same"), ("fish, a star", "gone"), ("fish", "new"), ("and a ball", "same")]  # fmt: skip
