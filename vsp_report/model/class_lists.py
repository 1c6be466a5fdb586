"""Class lists: what a zero-shot classification may choose among, and the sentences that the names are put into.

A list is a value: its classes, and templates with {} where a class goes. Those built in are short on purpose, as a
probability says something only among answers that a reader can oversee. A file of one's own holds one class a line,
or a YAML list of plain words (`- red cup`), with # before a comment; other YAML is refused, not guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vsp_report.errors import CaseError

PHOTO = ("a photo of a {}", "a picture of a {}", "an image of a {}", "a close-up photo of a {}")
"""Averaged in the space of embeddings, which is steadier than any one of them."""
PLACE = ("a photo of a {}", "a picture taken in a {}", "a view of a {}")
HUE = ("a photo of a {} object", "a {} thing", "something {}")


@dataclass(frozen=True)
class ClassList:
    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...] = PHOTO
    """sentences with {} where the class goes"""

    def __post_init__(self) -> None:
        _check_classes(self.classes, f"{self.name}: classes")
        if not self.templates:
            raise CaseError(f"{self.name}: templates", "there is none", "Write one such as 'a photo of a {}'.")
        for template in self.templates:
            before, place, after = template.partition("{}")
            if not place or set(before + after) & set("{}"):
                remedy = "Write {} once, where the class goes, and no other braces: 'a photo of a {}'."
                raise CaseError(f"{self.name}: templates", f"{template!r} has no one place for the class", remedy)
        if twice := _first_twice(self.templates):
            raise CaseError(f"{self.name}: templates", f"{twice!r} is there twice", "Write it once.")

    def with_templates(self, *templates: str) -> ClassList:
        return replace(self, templates=templates)

    def sentences(self, template: str) -> list[str]:
        return [template.replace("{}", name) for name in self.classes]


def _check_classes(classes: Iterable[str], place: str) -> None:
    classes = tuple(classes)
    if len(classes) < 2:
        found = "there is none" if not classes else f"there is only {classes[0]!r}"
        raise CaseError(place, found, "Name at least two: a probability is one class against the others.")
    if empty := [k for k, name in enumerate(classes) if not name.strip()]:
        raise CaseError(f"{place}[{empty[0]}]", "is empty", "Name a class, or leave it out.")
    if twice := _first_twice(" ".join(name.lower().split()) for name in classes):
        raise CaseError(place, f"{twice!r} is there twice", "Name each class once: two would share its probability.")


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


# --- built in ------------------------------------------------------------------------------------------------------


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in text.split())


CLASS_LISTS = {
    built_in.name: built_in
    for built_in in (
        # The kinds that have portraits in the bundled world; that they are these is a test.
        ClassList(
            "sketchworld",
            _words(
                "fish turtle star ball boat tree duck elephant pig parrot rabbit deer goat cat chair bench stool sofa "
                "cane walker lamp plant table shelf box rock book cushion stump bucket hand fist foot head mitten "
                "puppet boot hat cup person"
            ),
            ("a {}",),
        ),
        ClassList(
            "animals",
            _words(
                "dog cat horse cow sheep goat pig rabbit mouse squirrel deer fox wolf bear lion tiger elephant giraffe "
                "zebra monkey kangaroo bird chicken duck owl parrot eagle penguin fish shark dolphin whale frog turtle "
                "snake lizard crocodile spider butterfly bee"
            ),
        ),
        ClassList(
            "vehicles",
            _words(
                "car bus truck van taxi ambulance fire_engine tractor motorcycle bicycle scooter tram train airplane "
                "helicopter hot-air_balloon sailing_boat ferry canoe submarine"
            ),
        ),
        ClassList(
            "foods",
            _words(
                "apple banana orange strawberry grape lemon carrot tomato potato mushroom bread sandwich pizza "
                "hamburger hot_dog salad soup pasta rice_dish sushi pancake cake cookie ice_cream cheese egg coffee "
                "glass_of_wine"
            ),
        ),
        ClassList(
            "household",
            _words(
                "chair table sofa bed lamp clock mirror vase book cup plate bottle bowl knife spoon pan oven "
                "refrigerator television laptop telephone keyboard umbrella backpack suitcase toothbrush scissors "
                "hammer candle teddy_bear"
            ),
        ),
        ClassList(
            "places",
            _words(
                "kitchen bedroom bathroom office classroom restaurant supermarket street bridge park forest field "
                "beach mountain desert river lake airport railway_station stadium"
            ),
            PLACE,
        ),
        ClassList("colours", _words("red orange yellow green blue purple pink brown black white grey"), HUE),
    )
}


# --- a file of one's own -------------------------------------------------------------------------------------------


def load_classes(name_or_path: str | Path) -> ClassList:
    """A built-in list by its name, or a file of one's own."""
    if isinstance(name_or_path, str) and name_or_path in CLASS_LISTS:
        return CLASS_LISTS[name_or_path]
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise CaseError(path, "is neither a file nor a class list", f"Built in: {', '.join(CLASS_LISTS)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaseError(path, "is no text in UTF-8", "Write one class a line.") from error
    return ClassList(path.stem, tuple(_parsed(text, path)))


def _parsed(text: str, path: Path) -> list[str]:
    if text.lstrip().startswith("["):
        try:
            names = json.loads(text)
        except json.JSONDecodeError as error:
            fault = f"is no list ({error.msg.lower()})"
            raise CaseError(f"{path}:{error.lineno}", fault, 'Write ["cat", "dog"], or one class a line.') from error
        for name in names:
            if not isinstance(name, str):
                raise CaseError(path, f"{name!r} is no name", "Write every class in quotes.")
        return names
    lines = [(number, _uncommented(line)) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and line != "---"]
    listed = [line.startswith("- ") or line == "-" for _, line in lines]
    if not any(listed):
        if path.suffix in (".yaml", ".yml") and lines:
            raise CaseError(f"{path}:{lines[0][0]}", "is no list", "Write `- ` before every class.")
        return [line for _, line in lines]
    names = []
    for (number, line), is_item in zip(lines, listed, strict=True):
        name = line[1:].strip() if is_item else ""
        if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
            name = name[1:-1].strip()
        elif not name or name[0] in "-[{&*!|>%@`'\"" or name.endswith(":") or ": " in name:
            raise CaseError(f"{path}:{number}", f"{line!r} is no plain word", "Write `- ` and the class, one a line.")
        names.append(name)
    return names


def _uncommented(line: str) -> str:
    line = line.strip()
    return "" if line.startswith("#") else line.partition(" #")[0].strip()
