"""Findings: the sentence, the verdict and the figures that a recording comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.render.recordings import answered, asked, classification, failed, full, not_run, reconstructing
from vsp_report.recording import Answered, ControlDraws, EditMade
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


def test_what_the_reconstruction_brings_is_not_the_edits_doing() -> None:
    said = plain(headline(reconstructing(alone=1.0, with_edits=1.4)))
    assert "the model says “sitting”, which is wrong. Through the SAE with nothing edited, it says “standing”." in said
    assert "Ablating ten latents leaves the answer as it is; the log-odds move by +0.4, and " in said
    as_far = sum(abs(change - 4.11) >= 0.4 for change in reconstructing().steered[0].controls[0].changes)
    assert as_far > 50 and f"{as_far} of 200 matched controls move them as far" in said
    # What the edits bring beyond it is theirs.
    said = plain(headline(reconstructing(alone=-2.0, with_edits=1.4)))
    assert "edited, it says “sitting”. Ablating ten latents makes it say “standing”: the log-odds move by +3.4" in said
    # So it does not come before one that puts the answer right by itself.
    made = reconstructing()
    both = replace(made, steered=(*made.steered, replace(full().steered[1], p=0.9)))
    assert headline_steering(both).name == "strongest-ten"


def test_what_was_not_compared_is_said() -> None:
    base = full()
    alone = replace(base.steered[1], controls=(), p=None, interval=None)
    told = plain(headline(full(steered=(alone,))))
    assert told.endswith("the log-odds move by +5.1 (not compared with controls).")
    others = replace(alone, controls=base.steered[1].controls[1:])  # an edit of all latents has no other latents
    told = plain(headline(full(steered=(others,))))
    assert told.endswith("the log-odds move by +5.1 (not compared with matched latents).")
    worded = replace(alone, change=None, controls=(ControlDraws("latents", (), 0.05),))
    told = plain(headline(full(steered=(worded,))))
    assert told.endswith("makes it say “standing”, and 5.0 % of its matched controls change the answer in some way.")
    worded = replace(worded, controls=(ControlDraws("latents", (), 0.0),))
    assert plain(headline(full(steered=(worded,)))).endswith("and none of its matched controls changes the answer.")
    assert "not compared" not in plain(headline(base))


def test_what_other_controls_do_as_well_is_said() -> None:
    """An untrained autoencoder's best latents that move the log-odds as far speak against the claim, beside it."""
    best = full().steered[1]
    latents, directions, untrained = best.controls
    assert "draws of" not in plain(headline(full()))

    def told(*others: ControlDraws) -> str:
        return plain(headline(full(steered=(replace(best, controls=(latents, *others)),))))

    random, twin = (replace(one, changes=(1.0,) * 40, p=0.41) for one in (directions, untrained))
    nothing = "none of 200 matched controls moves them as far (p = 0.005)"
    assert told(directions, twin).endswith(f"{nothing}; but 16 of 40 draws of an untrained SAE do (p = 0.41).")
    assert told(random, replace(twin, p=0.98)).endswith(
        "; but 16 of 40 draws of random directions do (p = 0.41), and 39 of 40 draws of an untrained SAE do (p = 0.98)."
    )
    assert told(directions, replace(twin, p=0.05)).endswith(f"{nothing}.")
    # So are those that take them past zero, though not as far.
    over, zero = replace(twin, p=0.025, flips=0.75), "take them past zero"
    assert told(directions, over).endswith(f"{nothing}; but 30 of 40 draws of an untrained SAE {zero} as well.")
    assert told(directions, replace(twin, flips=0.75)).endswith(f"SAE do (p = 0.41), and 30 {zero}.")
    assert told(directions, replace(over, flips=0.05)).endswith(f"{nothing}.")
    latents = replace(latents, flips=0.1)
    assert told(directions).endswith(f"{nothing}; but 20 of those {zero} as well.")
    # Where matched latents do as much, nothing is claimed that others could speak against.
    latents = replace(latents, p=0.3)
    assert "; but" not in told(random, twin)


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
    assert found["controls: controls that flip the answer"] == ("≤ 5.0 %", "0.5 %", True)
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
