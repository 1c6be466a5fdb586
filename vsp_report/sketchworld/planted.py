"""Planted: failures that are known beforehand: a scene, a question, the wrong answer that the rules lead to, and why.

A planted scene stands just outside of one rule (`rules.RULES`). It is drawn by the same sketches as any other, and
whoever sees the picture answers it rightly. Two more modes are no failures: scenes where nothing is wrong, and scenes
whose answer cannot be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vsp_report.errors import CaseError
from vsp_report.sketchworld import charts, rules
from vsp_report.sketchworld.drawing import COLORS
from vsp_report.sketchworld.rules import (
    ANIMAL_QUESTION,
    COVERS,
    MARKS,
    PAIRS,
    PLANTED_LEAD,
    POSE_QUESTION,
    SEATS,
    TALLEST_QUESTION,
    Draws,
    Question,
    names_of,
    person_in,
    questions,
    support_question,
)
from vsp_report.sketchworld.scene import Scene, Thing

MODES: dict[str, tuple[str, ...]] = {
    "limited-alignment": tuple(COVERS),
    "misleading-cue": (*SEATS, "highlight"),
    "hidden-cue": tuple(PAIRS),
    "none": ("objects", "animals", "people", "cups", "charts"),
    "cue-missing": ("objects", "animals", "people", "cups"),
}
"""The paper's three failure modes with their variations, and two that are none of them: scenes where nothing is
wrong, and scenes whose answer cannot be seen."""


@dataclass(frozen=True)
class Planted:
    """A scene, a question, and what is known of why the model answers it as it does."""

    mode: str
    variation: str
    seed: int
    scene: Scene
    question: str
    right: str
    wrong: str
    cause: tuple[int, ...] = ()
    """The parts of the scene that the wrong answer comes from (indices of `scene.parts`)."""
    evidence: tuple[int, ...] = ()
    """The parts that show the right answer."""
    explicit: Question | None = None
    """The same question in words that the model has learned, and its right answer."""


def plant(mode: str, variation: str, seed: int) -> Planted:
    """The planted scene of this mode and variation; every seed gives another one."""
    if mode not in MODES:
        raise CaseError("mode", f"there is no failure mode {mode!r}", f"Known: {', '.join(MODES)}.")
    if variation not in MODES[mode]:
        raise CaseError("variation", f"{mode} has no variation {variation!r}", f"Known: {', '.join(MODES[mode])}.")
    draws = Draws(1_000_003 * (seed + 1) + 7919 * list(MODES).index(mode) + MODES[mode].index(variation))
    make = {
        "limited-alignment": _plant_cover,
        "misleading-cue": _plant_highlight if variation == "highlight" else _plant_seat,
        "hidden-cue": _plant_pair,
        "none": _plant_nothing,
        "cue-missing": _plant_curtain,
    }[mode]
    return make(Planted(mode, variation, seed, Scene("objects"), "", "", ""), draws)


def _plant_cover(planted: Planted, draws: Draws) -> Planted:
    cover = planted.variation
    part, explicit = COVERS[cover], names_of(cover)[1]
    return replace(
        planted, scene=rules.draw_cups(draws, cover), question=support_question(part),
        right=f"on a {part}", wrong="on a surface",
        evidence=(0,), explicit=Question(support_question(explicit), f"on a {explicit}"),
    )  # fmt: skip


def _plant_seat(planted: Planted, draws: Draws) -> Planted:
    scene = rules.draw_people(draws, "standing")
    person = person_in(scene)
    wide = {"chair": 21, "stool": 20, "bench": 26, "sofa": 27}[planted.variation]
    size = person.size * (0.85 if wide > 22 else 1.0)
    side = 1 if draws.chance(0.5) else -1
    feet = person.y + 19 * person.size
    person = replace(person, x=48 + side * wide * 0.5 * person.size)
    seat = rules.draw_seat(
        draws, planted.variation, person.x - side * wide * person.size, feet - 19.5 * size, size, flip=side < 0
    )
    return replace(
        planted, scene=replace(scene, things=(seat, person)), question=POSE_QUESTION, right="standing", wrong="sitting",
        cause=(0,), evidence=(1,),
    )  # fmt: skip


def _plant_highlight(planted: Planted, draws: Draws) -> Planted:
    chart = charts.sample_chart(draws.random, highlight=False, lead=PLANTED_LEAD)
    order = sorted(range(len(chart.bars)), key=lambda i: -chart.bars[i].value)
    chosen = order[1]
    scene = Scene("charts", chart=replace(chart, highlighted=chosen))
    return replace(
        planted, scene=scene, question=TALLEST_QUESTION, right=f"the {chart.bars[order[0]].color} bar",
        wrong=f"the {chart.bars[chosen].color} bar", cause=(len(chart.bars),), evidence=(order[0],),
    )  # fmt: skip


def _plant_pair(planted: Planted, draws: Draws) -> Planted:
    named, passed_over = PAIRS[planted.variation]
    head = rules.draw_animal_head(draws, [(named, rules.LARGE_MARKS), (passed_over, rules.SMALL_MARKS)])
    scene = Scene("animals", head, draws.backdrop(floor=False))
    return replace(
        planted,
        scene=scene,
        question=ANIMAL_QUESTION,
        right=f"a {passed_over}",
        wrong=f"a {named}",
        cause=(1,),
        evidence=(2,),
    )


def _plant_nothing(planted: Planted, draws: Draws) -> Planted:
    scene = rules.SAMPLERS[planted.variation](draws)
    text = {"animals": ANIMAL_QUESTION, "people": POSE_QUESTION, "charts": TALLEST_QUESTION}.get(planted.variation)
    asked = questions(scene, int(draws.random() * 1e9))
    right = next((q for q in asked if q.text == text), asked[1])
    match planted.variation:
        case "objects":
            wrong, evidence = draws.pick([c for c in COLORS if c != right.answer]), tuple(range(len(scene.things)))
        case "animals":
            wrong, evidence = f"a {draws.pick([a for a in MARKS if f'a {a}' != right.answer])}", (1,)
        case "people":
            wrong, evidence = {"sitting": "standing", "standing": "sitting"}[right.answer], (len(scene.things) - 1,)
        case "cups":
            wrong, evidence = "on a surface", (0,)
        case _:
            bars = scene.chart.bars
            others = [f"the {bar.color} bar" for bar in bars if f"the {bar.color} bar" != right.answer]
            wrong, evidence = draws.pick(others), (max(range(len(bars)), key=lambda i: bars[i].value),)
    return replace(planted, scene=scene, question=right.text, right=right.answer, wrong=wrong, evidence=evidence)


def _plant_curtain(planted: Planted, draws: Draws) -> Planted:
    """An ordinary scene with a curtain before what the question is about."""
    if planted.variation == "objects":
        scene = rules.draw_objects(draws, 1)
        thing = scene.things[0]
        asked = Question(f"What color is the {thing.kind}?", thing.color)
        wrong, x, y, wide, high = draws.pick([c for c in COLORS if c != thing.color]), thing.x, thing.y, 22, 19
    else:
        planted_none = _plant_nothing(planted, draws)
        scene, asked, wrong = (
            planted_none.scene,
            Question(planted_none.question, planted_none.right),
            planted_none.wrong,
        )
        thing = scene.things[-1]
        x, y, size = thing.x, thing.y, thing.size
        match planted.variation:
            case "animals":
                y, wide, high = y - 3 * size, 30 * size, 30 * size
            case "people":
                y, wide, high = y + 6 * size, 26 * size, 18 * size
            case _:
                y, wide, high = y + 32 * size, 38 * size, 26 * size
    curtain = Thing("curtain", x, y, 1.0, pose=f"{wide:.1f}x{high:.1f}")
    return replace(
        planted,
        scene=replace(scene, things=(*scene.things, curtain)),
        question=asked.text,
        right=asked.answer,
        wrong=wrong,
    )
