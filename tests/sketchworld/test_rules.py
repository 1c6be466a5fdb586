"""The rules hold: training never shows what a planted failure shows, and the planted answers are right."""

import re

import numpy as np
import pytest

from vsp_report.errors import CaseError
from vsp_report.sketchworld import language, rules
from vsp_report.sketchworld.planted import MODES, plant
from vsp_report.sketchworld.pool import KINDS, NO_LABEL, patch_labels
from vsp_report.sketchworld.scene import COVERED
from vsp_report.sketchworld.train import WORDS, named_by_captions

SEEDS = range(3000)
PLANTED = [(mode, variation) for mode, variations in MODES.items() for variation in variations]


@pytest.fixture(scope="module")
def training():
    return [rules.sample_scene(10_000_000 + seed) for seed in SEEDS]


def test_training_holds_no_exception_to_a_rule(training):
    for scene in training:
        kinds = {thing.kind for thing in scene.things}
        if scene.family == "people" and kinds & set(rules.SEATS):
            assert rules.person_in(scene).pose == "sitting"
        assert len(kinds & set(rules.MARKS.values())) <= 1
        if scene.chart and scene.chart.highlighted is not None:
            values = [bar.value for bar in scene.chart.bars]
            assert values[scene.chart.highlighted] == max(values)
        assert "curtain" not in kinds


def test_the_bare_question_is_never_asked_of_a_covered_part(training):
    asked = 0
    for seed, scene in enumerate(training):
        if scene.family != "cups":
            continue
        support = rules.support_of(scene)
        for question in rules.questions(scene, seed):
            if named := re.fullmatch(r"Is the cup on a surface or on a (.*)\?", question.text):
                asked += 1
                if support in rules.COVERS:
                    assert named[1] not in rules.BARE_PARTS or named[1] != rules.COVERS[support]
                    assert question.answer == (
                        f"on a {named[1]}" if named[1] in rules.names_of(support) else "on a surface"
                    )
    assert asked > 500


def test_every_family_and_both_sides_of_every_rule_are_in_training(training):
    families = [scene.family for scene in training]
    for family, share in zip(rules.FAMILIES, rules.SHARES, strict=True):
        assert families.count(family) / len(families) == pytest.approx(share, abs=0.03)
    people = [scene for scene in training if scene.family == "people"]
    poses = [rules.person_in(scene).pose for scene in people]
    assert 0.4 < np.mean([pose == "sitting" for pose in poses]) < 0.6
    seatless = [
        s for s in people if rules.person_in(s).pose == "sitting" and not {t.kind for t in s.things} & set(rules.SEATS)
    ]
    assert seatless, "sitting must be visible without a seat as well"


def test_no_patch_label_names_what_a_failure_is_about():
    named = set(KINDS)
    assert not named & {
        "sitting",
        "standing",
        *rules.MARKS,
        *rules.MARKS.values(),
        *rules.COVERS,
        *rules.BARE_PARTS,
        "tallest",
    }
    assert not set(WORDS) & {"sitting", "standing", *rules.MARKS.values(), "tallest", "highlight"}
    covered = [rules.draw_cups(rules.Draws(seed), cover) for seed in range(5) for cover in rules.COVERS]
    for scene, named_W in zip(covered, named_by_captions(covered), strict=True):
        cover = rules.support_of(scene)
        assert {WORDS[w] for w in np.flatnonzero(named_W)} == {cover, "cup"}
    for family in ("animals", "cups", "people", "charts"):
        kinds, colors = patch_labels(rules.sample_scene(5, family), 12)
        assert kinds.shape == colors.shape == (144,)
        assert ((kinds >= 0) & (kinds < len(KINDS)) | (kinds == NO_LABEL)).all()


def test_no_caption_for_contrast_names_a_pose(training):
    for scene in training:
        assert not {"sitting", "standing"} & set(rules.plain_caption(scene).split())


def test_every_word_is_known(training):
    known = set(language.vocabulary())
    for seed, scene in enumerate(training):
        for question in rules.questions(scene, seed):
            assert set(language.words(f"{question.text} {question.answer}")) <= known


@pytest.mark.parametrize(("mode", "variation"), PLANTED)
def test_planted_scenes_are_just_outside_the_rules(mode, variation):
    seen = set()
    for seed in range(40):
        planted = plant(mode, variation, seed)
        assert planted == plant(mode, variation, seed)
        seen.add(planted.scene)
        assert planted.right != planted.wrong
        assert planted.question.endswith("?")
        kinds = {thing.kind for thing in planted.scene.things}
        match mode:
            case "limited-alignment":
                assert variation in kinds and planted.right == f"on a {rules.COVERS[variation]}"
                assert planted.explicit.answer == f"on a {rules.COVERS[variation]} with a {variation}"
            case "misleading-cue" if variation == "highlight":
                values = [bar.value for bar in planted.scene.chart.bars]
                assert values[planted.scene.chart.highlighted] < max(values)
            case "misleading-cue":
                assert rules.person_in(planted.scene).pose == "standing" and variation in kinds
            case "hidden-cue":
                assert len(kinds & set(rules.MARKS.values())) == 2
            case "cue-missing":
                assert "curtain" in kinds
    assert len(seen) == 40


@pytest.mark.parametrize(("mode", "variation"), [p for p in PLANTED if p[0] not in ("none", "cue-missing")])
def test_the_evidence_for_the_right_answer_shows(mode, variation):
    for seed in range(40):
        planted = plant(mode, variation, seed)
        for index in (*planted.cause, *planted.evidence):
            assert planted.scene.coverage(12, 12)[index].max() >= COVERED, (seed, planted.scene.parts[index])


@pytest.mark.parametrize("variation", MODES["cue-missing"])
def test_a_curtain_hides_what_is_asked_about(variation):
    for seed in range(40):
        scene = plant("cue-missing", variation, seed).scene
        bare = scene.without(len(scene.things) - 1)
        deciding = {"objects": 0, "animals": 1, "cups": 0, "people": len(bare.things) - 1}[variation]
        before, after = bare.mask(deciding).sum(), scene.mask(deciding).sum()
        assert after <= (0.5 if variation == "people" else 0.12) * before, seed


def test_what_does_not_exist_is_refused():
    with pytest.raises(CaseError, match="no failure mode 'bad-luck'"):
        plant("bad-luck", "chair", 0)
    with pytest.raises(CaseError, match="misleading-cue has no variation 'mitten'"):
        plant("misleading-cue", "mitten", 0)
    with pytest.raises(CaseError, match="no family 'plants'"):
        rules.sample_scene(0, "plants")
