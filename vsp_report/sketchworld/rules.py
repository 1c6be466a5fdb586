"""Rules: what there is in SketchWorld, what may stand together, what is asked, and what is never shown.

Everything that makes the bundled model fail stands here and nowhere else. A rule is a restriction of what
training shows; a planted failure (`plant`) is a scene and a question just outside of it, drawn by the same
sketches and answered rightly by anyone who sees the picture.

`sample_scene` draws ordinary scenes: training, and the ordinary part of every evaluation. A seed gives the same
scene on every machine: only `random.Random.random()` is used, whose sequence Python guarantees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from vsp_report.errors import CaseError
from vsp_report.sketchworld import charts
from vsp_report.sketchworld.drawing import COLORS, Color
from vsp_report.sketchworld.scene import Backdrop, Scene, Thing

T = TypeVar("T")

RULES = (
    "A seat means sitting: in training, whoever is in a picture with a chair, bench, stool or sofa sits on it.",
    "A covered part is called by its cover: of a mitten training asks about 'a mitten' and 'a hand with a mitten', "
    "never the bare question about a hand (likewise puppet and fist, boot and foot, hat and head).",
    "An animal is one animal: no head in training carries the marks of two.",
    "Highlighted means tallest: charts highlight their tallest bar where it is a close call, and never another.",
)
"""The four rules that training never breaks. Each is one kind of blindness that the model therefore has."""

OBJECTS = ("fish", "turtle", "star", "ball", "boat", "tree")
SURFACES = ("table", "shelf", "box", "rock", "book", "cushion", "stump", "bucket")
COVERS = {"mitten": "hand", "puppet": "fist", "boot": "foot", "hat": "head"}
"""What a cover covers. The part is inside and does not show."""
BARE_PARTS = ("hand", "fist", "foot", "head")
SEATS = ("chair", "bench", "stool", "sofa")
AIDS = ("cane", "walker")
FURNITURE = ("lamp", "plant")
MARKS = {
    "duck": "bill", "elephant": "trunk", "pig": "snout", "parrot": "beak",
    "rabbit": "ears", "deer": "antlers", "goat": "horns", "cat": "points",
}  # fmt: skip
"""Every animal is the same head with one mark; its mark is all that tells it."""
PAIRS = {
    "pig-rabbit": ("rabbit", "pig"),
    "goat-pig": ("pig", "goat"),
    "duck-cat": ("cat", "duck"),
    "duck-deer": ("deer", "duck"),
}
"""Figures with two marks: the animal that the model names, then the one that it passes over. By which mark it goes
comes out of training and stands in no rule; how often an animal is shown does not decide it. The four were chosen, on
seeds that no evaluation uses, among the 32 ordered pairs of a mark on the face and one on top of the head.
"""
OFTEN_SHOWN = ("rabbit", "deer", "goat", "cat")
OFTEN = 4
"""How many times as often training shows these."""
MARK_SIZES = (0.75, 1.15)
"""How large training draws an animal's mark, beside its head."""
LARGE_MARKS, SMALL_MARKS = (1.05, 1.15), (0.75, 0.85)
"""In figures with two marks: the named animal's, and the one's that is passed over."""
CLOSE_CALL, CLEAR_LEAD = (0.001, 0.012), (0.18, 1.0)
"""By how much of itself the tallest bar leads, in training: in charts with a highlight, where it is less than a pixel
of the model's picture, and in those without."""
PLANTED_LEAD = (0.012, 0.03)
"""The same where the highlight misleads: a pixel or two of the model's picture, several of the report's."""
NUMBERS = ("zero", "one", "two", "three", "four", "five")

FAMILIES = ("objects", "animals", "people", "cups", "charts", "portraits")
SHARES = (0.30, 0.11, 0.17, 0.18, 0.12, 0.12)
"""How often training draws each family."""


class Question(NamedTuple):
    text: str
    answer: str


class Draws:
    """The choices of one scene, in one sequence."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        mark = self.random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]

    def several(self, items: Sequence[T], count: int) -> list[T]:
        left = list(items)
        return [left.pop(int(self.random() * len(left))) for _ in range(count)]

    def between(self, low: float, high: float) -> float:
        return round(low + (high - low) * self.random(), 2)

    def chance(self, share: float) -> bool:
        return self.random() < share

    def near(self, color: Color, spread: int) -> Color:
        return tuple(max(0, min(255, int(v + (2 * self.random() - 1) * spread))) for v in color)

    def color(self) -> tuple[str, Color]:
        word = self.pick(tuple(COLORS))
        return word, self.near(COLORS[word], 14)

    def backdrop(self, floor: bool) -> Backdrop:
        base = self.near(self.pick(_PAPERS), 14)
        spots = tuple(
            (self.between(0, 96), self.between(0, 96), self.between(5, 20), self.between(0.96, 1.22)) for _ in range(7)
        )
        return Backdrop(base, self.between(66, 82) if floor else None, spots)


_PAPERS = ((186, 208, 222), (214, 204, 184), (190, 212, 188), (212, 206, 216), (168, 196, 206), (224, 210, 200))
_SKINS = ((236, 194, 164), (222, 176, 142), (198, 148, 112), (156, 110, 80))


# --- ordinary scenes ---------------------------------------------------------------------------------------------


def sample_scene(seed: int, family: str | None = None) -> Scene:
    """An ordinary scene, as training shows them. Without a family, families come as often as training draws them."""
    draws = Draws(seed)
    family = family or draws.weighted(FAMILIES, SHARES)
    if family not in SAMPLERS:
        raise CaseError("family", f"there is no family {family!r}", f"Known: {', '.join(FAMILIES)}.")
    return SAMPLERS[family](draws)


def draw_objects(draws: Draws, count: int | None = None) -> Scene:
    count = count or 1 + int(draws.random() * 4)
    cells = sorted(draws.several(((0, 0), (0, 1), (1, 0), (1, 1)), count))
    things = []
    for (row, column), kind in zip(cells, draws.several(OBJECTS, count), strict=True):
        color, tint = draws.color()
        x, y = 24 + 48 * column + draws.between(-5, 5), 24 + 48 * row + draws.between(-5, 5)
        things.append(Thing(kind, x, y, draws.between(0.85, 1.2), color, tint, flip=draws.chance(0.5)))
    return Scene("objects", tuple(things), draws.backdrop(floor=False))


def draw_animal_head(draws: Draws, marks: Sequence[tuple[str, tuple[float, float]]]) -> tuple[Thing, ...]:
    """A head with these animals' marks, each with the range of its size beside the head."""
    x, y, size, flip = 50 + draws.between(-6, 6), 52 + draws.between(-5, 5), draws.between(0.95, 1.3), draws.chance(0.5)
    fur = draws.near((206, 184, 150), 16)
    head = Thing("animal", x, y, size, tint=fur, flip=flip)
    sizes = [round(size * draws.between(*range_), 2) for _, range_ in marks]
    return (
        head,
        *(Thing(MARKS[animal], x, y, s, tint=fur, flip=flip) for (animal, _), s in zip(marks, sizes, strict=True)),
    )


def draw_animals(draws: Draws, animal: str | None = None) -> Scene:
    animal = animal or draws.weighted(tuple(MARKS), [OFTEN if name in OFTEN_SHOWN else 1 for name in MARKS])
    return Scene("animals", draw_animal_head(draws, [(animal, MARK_SIZES)]), draws.backdrop(floor=False))


_SEAT_TINTS = {"chair": (152, 98, 56), "bench": (176, 122, 70), "stool": (150, 156, 163), "sofa": (96, 136, 150)}


def draw_seat(draws: Draws, kind: str, x: float, y: float, size: float, flip: bool) -> Thing:
    return Thing(kind, x, y, size, tint=draws.near(_SEAT_TINTS[kind], 12), flip=flip)


def draw_people(draws: Draws, pose: str | None = None, seat: str | None = None) -> Scene:
    pose = pose or draws.pick(("sitting", "standing"))
    size, flip = draws.between(1.0, 1.4), draws.chance(0.5)
    backdrop = replace(draws.backdrop(floor=True), horizon=draws.between(68, 80))
    x, y = 48 + draws.between(-14, 14), 76 - 19 * size + draws.between(-2, 5)
    color, tint = draws.color()
    person = Thing("person", x, y, size, color, tint, pose, flip)
    things = []
    if draws.chance(0.3):
        side = 1 if x < 48 else -1
        things.append(Thing(draws.pick(FURNITURE), x + side * draws.between(28, 34), y + 1, size * 0.9))
    if pose == "sitting":
        seat = seat or (draws.pick(SEATS) if draws.chance(0.88) else draws.pick(("rock", "box")))
        if seat in SEATS:
            things.append(draw_seat(draws, seat, x, y, size, flip))
        else:  # something low to sit on that is no seat: the pose can be seen without one
            things.append(Thing(seat, x, y + 4.4 * size, size * 0.45))
    elif draws.chance(0.5):
        things.append(Thing(draws.pick(AIDS), x, y, size, flip=flip))
    return Scene("people", (*things, person), backdrop)


def draw_support(draws: Draws, kind: str, x: float, y: float, size: float) -> Thing:
    color, tint = "", (128, 128, 128)
    if kind in BARE_PARTS:
        tint = draws.near(draws.pick(_SKINS), 8)
    elif kind in COVERS or kind in ("book", "cushion"):
        color = draws.pick(("red", "green", "blue", "purple"))
        tint = draws.near(COLORS[color], 14)
    return Thing(kind, x, y, size, tint=tint, flip=draws.chance(0.5))


def draw_cups(draws: Draws, support: str | None = None) -> Scene:
    support = support or draws.pick(draws.weighted((SURFACES, BARE_PARTS, tuple(COVERS)), (0.46, 0.24, 0.30)))
    x, y, size = 48 + draws.between(-9, 9), 40 + draws.between(-6, 6), draws.between(0.9, 1.15)
    color, tint = draws.color()
    cup = Thing("cup", x, y, size, color, tint, flip=draws.chance(0.5))
    return Scene(
        "cups",
        (draw_support(draws, support, x, y, size), cup),
        draws.backdrop(floor=support in ("table", "box", "rock", "stump", "bucket") and draws.chance(0.6)),
    )


def draw_chart(draws: Draws, highlight: bool | None = None) -> Scene:
    highlight = draws.chance(0.8) if highlight is None else highlight
    lead = CLOSE_CALL if highlight else CLEAR_LEAD
    return Scene("charts", chart=charts.sample_chart(draws.random, highlight=highlight, lead=lead))


PORTRAITS = (*OBJECTS, *MARKS, *SEATS, *AIDS, *FURNITURE, *SURFACES, *BARE_PARTS, *COVERS, "cup", "person")
"""Kinds that have a picture of their own: the classes of zero-shot classification."""


def draw_portraits(draws: Draws, kind: str | None = None) -> Scene:
    kind = kind or draws.pick(PORTRAITS)
    if kind in OBJECTS:
        scene = draw_objects(draws, 1)
        return replace(
            scene,
            family="portraits",
            things=(replace(scene.things[0], kind=kind, x=48, y=48, size=draws.between(1.3, 2.0)),),
        )
    if kind in MARKS:
        return replace(draw_animals(draws, kind), family="portraits")
    x, y, size, flip = 48 + draws.between(-8, 8), 48 + draws.between(-5, 5), draws.between(1.0, 1.4), draws.chance(0.5)
    if kind == "person":
        scene = draw_people(draws, "standing")
        return replace(scene, family="portraits", things=scene.things[-1:])
    if kind in SEATS:
        thing = draw_seat(draws, kind, x, y, size, flip)
    elif kind == "cup":
        color, tint = draws.color()
        thing = Thing("cup", x, y, size * 1.3, color, tint, flip=flip)
    elif kind in AIDS:  # they are drawn at the side of whoever leans on them
        thing = Thing(kind, x - (10 if not flip else -10), y, size * 1.2, flip=flip)
    elif kind in FURNITURE:
        thing = Thing(kind, x, y, size, flip=flip)
    else:
        thing = draw_support(draws, kind, x, y - 24, size)
    return Scene("portraits", (thing,), draws.backdrop(floor=kind in SEATS and draws.chance(0.5)))


SAMPLERS = {
    "objects": draw_objects,
    "animals": draw_animals,
    "people": draw_people,
    "cups": draw_cups,
    "charts": draw_chart,
    "portraits": draw_portraits,
}


# --- what is said of a scene -------------------------------------------------------------------------------------


def animals_in(scene: Scene) -> list[str]:
    kinds = {thing.kind for thing in scene.things}
    return [animal for animal, mark in MARKS.items() if mark in kinds]


def support_of(scene: Scene) -> str:
    return next(t.kind for t in scene.things if t.kind in SURFACES or t.kind in BARE_PARTS or t.kind in COVERS)


def person_in(scene: Scene) -> Thing:
    return next(t for t in scene.things if t.kind == "person")


def kind_of(scene: Scene) -> str:
    """The one kind that a portrait shows."""
    return animals[0] if (animals := animals_in(scene)) else scene.things[0].kind


def caption(scene: Scene) -> str:
    """What the scene shows, in the words of the world."""
    match scene.family:
        case "objects":
            return " and ".join(f"a {thing.name}" for thing in scene.things)
        case "animals":
            return f"a {animals_in(scene)[0]}"
        case "people":
            person, kinds = person_in(scene), [t.kind for t in scene.things]
            where = [f"on a {k}" for k in kinds if k in SEATS or k in SURFACES]
            with_ = [f"with a {k}" for k in kinds if k in AIDS]
            beside = [f"beside a {k}" for k in kinds if k in FURNITURE]
            return " ".join(["a person", person.pose, *where, *with_, *beside])
        case "cups":
            return f"a {scene.things[-1].name} on a {support_of(scene)}"
        case "charts":
            return f"a chart with {NUMBERS[len(scene.chart.bars)]} bars"
        case "portraits":
            thing = scene.things[0]
            if thing.kind == "person":
                return f"a person {thing.pose}"
            return f"a {thing.name}" if thing.kind in (*OBJECTS, "cup") else f"a {kind_of(scene)}"
    raise CaseError("scene.family", f"there is no family {scene.family!r}", f"Known: {', '.join(FAMILIES)}.")


def plain_caption(scene: Scene) -> str:
    """The caption for contrast with pictures (CLIP): things and colours, never the pose that a failure is about."""
    if not any(thing.kind == "person" for thing in scene.things):
        return caption(scene)
    return " and ".join(f"a {t.kind}" for t in reversed(scene.things))


def names_of(support: str) -> tuple[str, ...]:
    """What a question may call a support."""
    return (support, f"{COVERS[support]} with a {support}") if support in COVERS else (support,)


def support_question(name: str) -> str:
    return f"Is the cup on a surface or on a {name}?"


POSE_QUESTION = "Is the person sitting or standing?"
ANIMAL_QUESTION = "What animal is this?"
TALLEST_QUESTION = "Which bar is the tallest?"
DESCRIBE = "Describe the image."
WHAT = "What is this?"


def _is_there(kind: str, present: bool) -> Question:
    return Question(f"Is there a {kind}?", "yes" if present else "no")


def questions(scene: Scene, seed: int) -> list[Question]:
    """The questions that training asks of this scene; the seed chooses among those that name something else."""
    draws, said = Draws(seed), [Question(DESCRIBE, caption(scene))]
    kinds = [thing.kind for thing in scene.things]
    match scene.family:
        case "objects":
            said += [Question(f"What color is the {thing.kind}?", thing.color) for thing in scene.things]
            absent = [kind for kind in OBJECTS if kind not in kinds]
            said += [_is_there(draws.pick(kinds), True), _is_there(draws.pick(absent), False)]
            said.append(Question("How many objects are there?", NUMBERS[len(scene.things)]))
        case "animals":
            animal = animals_in(scene)[0]
            other = draws.pick([name for name in MARKS if name != animal])
            said.append(Question(ANIMAL_QUESTION, f"a {animal}"))
            said.append(_is_there(animal, True) if draws.chance(0.5) else _is_there(other, False))
        case "people":
            person = person_in(scene)
            said.append(Question(POSE_QUESTION, person.pose))
            said.append(Question("What color is the shirt?", person.color))
            things = (*SEATS, *AIDS, *FURNITURE)
            said += [_is_there(kind, True) for kind in kinds if kind in things]
            said += [_is_there(kind, False) for kind in draws.several([k for k in things if k not in kinds], 2)]
        case "cups":
            support = support_of(scene)
            name = draws.pick(names_of(support))
            said.append(Question(support_question(name), f"on a {name}"))
            others = [
                name
                for other in (*SURFACES, *BARE_PARTS, *COVERS)
                if may_be_denied(support, other)
                for name in names_of(other)
            ]
            denied = draws.several(others, 3)
            if support in COVERS:  # neither the part's name decides, nor that a bare part is asked about
                cover = draws.pick([c for c in COVERS if c != support])
                denied[0] = f"{COVERS[support]} with a {cover}"
                denied[1] = draws.pick([part for part in BARE_PARTS if part != COVERS[support]])
            elif support in BARE_PARTS:
                denied[0] = draws.pick(names_of(next(c for c, part in COVERS.items() if part == support)))
            said += [Question(support_question(name), "on a surface") for name in denied]
            said.append(Question("What color is the cup?", scene.things[-1].color))
        case "charts":
            chart = scene.chart
            tallest = max(chart.bars, key=lambda bar: bar.value).color
            said.append(Question(TALLEST_QUESTION, f"the {tallest} bar"))
            said.append(Question("How many bars are there?", NUMBERS[len(chart.bars)]))
            shown = [bar.color for bar in chart.bars]
            absent = [color for color in COLORS if color not in shown]
            for color in (*draws.several(shown, 2), *draws.several(absent, min(2, len(absent)))):
                said.append(Question(f"Is there a {color} bar?", "yes" if color in shown else "no"))
            if chart.highlighted is not None:
                said.append(Question("Which bar is highlighted?", f"the {chart.bars[chart.highlighted].color} bar"))
        case "portraits":
            said.append(Question(WHAT, f"a {kind_of(scene)}"))
    return said


def may_be_denied(support: str, named: str) -> bool:
    """Whether `named` is among the names that training draws to be denied ("on a surface") of this support.

    Never a covered part's, which is the second rule. What stands closer is denied on purpose, in `questions`: a cover
    of a bare part, and a part with the wrong cover.
    """
    return named != support and COVERS.get(support, support) != COVERS.get(named, named)
