"""Difference: two sites, or two folders of recordings, held against each other: what regressed, what was fixed, what
drifted, what is new or gone.

A case has regressed where its verdict is bad and was not, and was fixed where it was bad and is good. It has drifted
where an answer differs, or a figure by more than `TOLERANCE`, or the verdict in another way. Runs on two machines
differ in the last digits, which is no news. Recordings are read, nothing is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vsp_report.audit.words import figure, mode_name, number
from vsp_report.errors import InputError
from vsp_report.recording import Recording, load_recording, recordings_in
from vsp_report.render.findings import (
    VERDICTS,
    Run,
    contrast_of,
    headline_steering,
    rebuilt,
    tone,
    turns,
    verdict,
    word_changes,
)

TOLERANCE = {"margin": 0.1, "change": 0.1, "p_right": 0.02, "p": 0.02, "flips": 0.02, "collateral": 0.0}
"""How far a figure may stand from what it was: log-odds, then probabilities and shares."""
KINDS = {
    "regressed": "What the case expects was measured before, or had no verdict; now it is not.",
    "fixed": "What the case expects was not measured before; now it is.",
    "drifted": "The verdict is as good as before, and an answer or a figure is another one.",
    "new": "Only the second has it.",
    "gone": "Only the first has it.",
}
"""What may have become of a case, in the order in which it is told; the same is not told."""
_METRICS = {
    "answer": "answer", "margin": "log-odds", "change": "change of the log-odds", "p_right": "probability of the right "
    "answer", "p": "p among controls", "flips": "controls that flip",
    "collateral": "other questions whose answer changes", "diagnosis": "failure mode",
}  # fmt: skip
_MADE_WITH = ("model", "model_sha", "sae", "sae_sha", "image_sha", "package_sha", "device_class", "dtype", "seed")


@dataclass(frozen=True)
class Moved:
    """A figure that is not what it was."""

    what: str
    before: str
    after: str
    by: str
    words: tuple[Run, ...] = ()
    """for a longer answer: the second against the first"""
    said: bool = False
    """words, and no figure: an answer, a failure mode"""


@dataclass(frozen=True)
class Side:
    """A case as one of the two has it."""

    verdict: str
    tone: str
    answer: str
    answer_tone: str
    steered: str
    steered_tone: str
    picture: str = ""
    """where its overlay is, in the page's folder"""


@dataclass(frozen=True)
class Change:
    id: str
    title: str
    kind: str
    prompt: str
    before: Side | None
    after: Side | None
    moved: tuple[Moved, ...] = ()
    asked_otherwise: bool = False
    """the case itself is another one, so its figures cannot be held against each other"""
    made_with: tuple[str, ...] = ()
    """what was different about the run"""
    alt: str = ""
    looks_alike: bool = False
    """what the model looks at is the same picture in both, to the byte"""


@dataclass(frozen=True)
class Difference:
    names: tuple[str, str]
    changes: dict[str, tuple[Change, ...]]
    """by kind, in the order of `KINDS`"""
    same: tuple[str, ...]
    """titles"""
    faults: tuple[str, ...]
    """recordings that could not be read"""
    made_with: tuple[str, ...] = field(default=())
    """what was different about every run"""

    @property
    def count(self) -> int:
        return sum(map(len, self.changes.values()))


def recordings_of(place: Path) -> Path:
    """The recordings of a site, or the folder itself."""
    if not place.is_dir():
        raise InputError(str(place), "is no folder", "Name a site, or a folder of recordings.")
    inside = place / "recordings"
    found = inside if inside.is_dir() else place
    if not any(recordings_in(found)):
        raise InputError(str(place), "holds no recordings", "Name a site, or a folder of recordings.")
    return found


def compare(first: Path, second: Path, picture: Callable[[Recording, Path, str], str] = lambda *of: "") -> Difference:
    """`picture` draws a recording's overlay, given its folder and which of the two it is of, and says where it is."""
    faults: list[str] = []
    sides = [_loaded(recordings_of(place), faults) for place in (first, second)]
    changes, same = [], []
    for name in sorted({*sides[0], *sides[1]}):
        one, two = (side.get(name) for side in sides)
        change = _change(name, one and one[0], two and two[0])
        if change is None:
            same.append(two[0].case["title"])
            continue
        for attribute, which, found in (("before", "a", one), ("after", "b", two)):
            if found is not None:
                side = replace(getattr(change, attribute), picture=picture(*found, which))
                change = replace(change, **{attribute: side})
        changes.append(change)
    everywhere = _everywhere(changes)
    changes = [replace(c, made_with=tuple(w for w in c.made_with if w not in everywhere)) for c in changes]
    told = {kind: tuple(one for one in changes if one.kind == kind) for kind in KINDS}
    return Difference(_names(first, second), told, tuple(same), tuple(faults), everywhere)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """As short as they can be and still differ."""
    one, two = (Path(place).resolve().parts for place in (first, second))
    for count in range(1, max(len(one), len(two)) + 1):
        if one[-count:] != two[-count:]:
            return "/".join(one[-count:]), "/".join(two[-count:])
    return one[-1], two[-1]


def _everywhere(changes: list[Change]) -> tuple[str, ...]:
    both = [change.made_with for change in changes if change.before and change.after]
    return tuple(what for what in both[0] if all(what in other for other in both)) if len(both) > 1 else ()


def _loaded(folder: Path, faults: list[str]) -> dict[str, tuple[Recording, Path]]:
    found = {}
    for one in recordings_in(folder):
        try:
            found[one.name] = (replace(load_recording(one), id=one.name), one)
        except InputError as fault:
            faults.append(str(fault))
    return found


# --- one case --------------------------------------------------------------------------------------------------------


def _change(name: str, one: Recording | None, two: Recording | None) -> Change | None:
    """What became of a case; None where it is the same."""
    shown = two or one
    sides = [None if r is None else _side(r) for r in (one, two)]
    about: dict[str, Any] = {
        "id": name, "title": shown.case["title"], "prompt": (shown.case.get("prompt") or "").strip(),
        "before": sides[0], "after": sides[1], "alt": (shown.image.alt if shown.image else "") or "The picture",
    }  # fmt: skip
    if one is None or two is None:
        return Change(kind="new" if one is None else "gone", **about)
    otherwise = one.asked().computed() != two.asked().computed()
    moved = () if otherwise else tuple(_moved(one.figures(), two.figures()))
    kind = _kind(sides[0], sides[1], bool(moved) or otherwise)
    if kind is None:
        return None
    return Change(kind=kind, moved=moved, asked_otherwise=otherwise, made_with=_made_with(one, two), **about)


def _kind(one: Side, two: Side, moved: bool) -> str | None:
    if two.tone == "bad" and one.tone != "bad":
        return "regressed"
    if two.tone == "good" and one.tone == "bad":
        return "fixed"
    return "drifted" if moved or one.verdict != two.verdict else None


def _side(recording: Recording) -> Side:
    named, contrast, best = verdict(recording), contrast_of(recording), headline_steering(recording)
    clean = recording.clean
    # An answer that the SAE's reconstruction alone brings is not the steering's.
    after = best.after if best and (not rebuilt(best) or turns(recording, best)) else None
    return Side(
        named, VERDICTS[named][0], clean.text.strip() if clean else "", tone(clean, contrast),
        after.text.strip() if after else "", tone(after, contrast),
    )  # fmt: skip


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Moved]:
    found = []
    for name in [*before, *(name for name in after if name not in before)]:
        one, two = before.get(name), after.get(name)
        where, _, metric = name.rpartition(".")
        if one == two or (_numeric(one) and _numeric(two) and abs(one - two) <= TOLERANCE[metric] + 1e-12):
            continue
        shown = [_shown(metric, value) for value in (one, two)]
        by = number(two - one, 2, True) if metric in ("margin", "change") and _numeric(one) and _numeric(two) else ""
        long = metric == "answer" and isinstance(one, str) and isinstance(two, str) and len(one.split()) > 4
        words = tuple(word_changes(one, two)) if long else ()
        said = metric == "diagnosis" or isinstance(one, str) or isinstance(two, str)
        found.append(Moved(_named(where, metric), *shown, by, words, said))
    return found


def _numeric(value: Any) -> bool:
    return isinstance(value, (int, float))


def _shown(metric: str, value: Any) -> str:
    if value is None:
        return "not measured"
    return mode_name(value) if metric == "diagnosis" else figure(metric, value)


def _named(where: str, metric: str) -> str:
    place = {"before": "as it is", "controls": "controls", "": ""}.get(where, where.partition(".")[2])
    return f"{place}: {_METRICS[metric]}" if place else _METRICS[metric]


def _made_with(one: Recording, two: Recording) -> tuple[str, ...]:
    """What stands differently in how the two were made: what a change may come from."""
    first, second = one.provenance, two.provenance
    found = [
        f"{name.removesuffix('_sha').replace('_class', '')}" for name in _MADE_WITH
        if getattr(first, name) != getattr(second, name)
    ]  # fmt: skip
    versions = [
        f"{name} {first.versions.get(name, 'none')} → {second.versions.get(name, 'none')}"
        for name in sorted({*first.versions, *second.versions})
        if first.versions.get(name) != second.versions.get(name)
    ]
    words = {"sae": "SAE", "image": "picture", "dtype": "numbers"}
    return tuple(dict.fromkeys([*(words.get(name, name) for name in found), *versions]))


# --- as a page -------------------------------------------------------------------------------------------------------


def difference_page(first: Path, second: Path, templates: Path | None = None) -> tuple[Difference, dict[str, bytes]]:
    """The page and its files, by their place in a folder."""
    from vsp_report import paths
    from vsp_report.render import site, theme

    files: dict[str, bytes] = {}
    found = compare(first, second, lambda recording, folder, which: _picture(recording, folder, which, files))
    found = replace(found, changes={kind: tuple(_once(one, files) for one in changes)
                                    for kind, changes in found.changes.items()})  # fmt: skip
    bundled = paths.templates_dir()
    environment = site.make_environment([*([templates] if templates else []), bundled / "pages"])
    html = site.rendered(environment, "difference.html.jinja", root="", difference=found, kinds=KINDS)
    for name in ("report.css", "overview.css", "difference.js", "icon.svg"):
        files[f"static/{name}"] = (bundled / "static" / name).read_bytes()
    files["static/colours.css"] = theme.stylesheet().encode()
    return found, {"index.html": html, **files}


def _once(change: Change, files: dict[str, bytes]) -> Change:
    """Two pictures that are the same are shown once: a slider between them would uncover nothing."""
    before, after = change.before, change.after
    if before is None or after is None or not before.picture or not after.picture:
        return change
    if files[before.picture] != files[after.picture]:
        return change
    del files[after.picture]
    return replace(change, after=replace(after, picture=""), looks_alike=True)


def _picture(recording: Recording, folder: Path, which: str, files: dict[str, bytes]) -> str:
    """The overlay of a recording, among the files; where it is. Empty for one without a picture."""
    from vsp_report.render import looking, overlays

    place = folder / recording.image.file if recording.image else None
    if place is None or place.is_symlink() or not place.resolve().is_relative_to(folder.resolve()):
        return ""
    image = overlays.opened(place)
    if image is None:
        return ""
    opens, boxes = looking.start(recording), recording.arrays.boxes_P4
    if opens is not None and boxes is not None:
        image = overlays.overlay(image, overlays.spread(opens.attention(recording), boxes, image.width, image.height))
    path = f"pictures/{recording.id}-{which}.webp"
    files[path] = overlays.encoded(overlays.fitted(image, 480))
    return path


def save_difference(place: Path, files: Mapping[str, bytes], *, force: bool = False) -> Path:
    """Into a folder, or as one file where the place's name says so. Where the page is."""
    import tempfile

    from vsp_report.render.export import save_alone, together
    from vsp_report.render.ledger import Ledger, write_whole

    if place.suffix.lower() in (".html", ".htm"):
        with tempfile.TemporaryDirectory(prefix="vsp-difference-") as scratch:
            for path, data in files.items():
                write_whole(Path(scratch) / path, data)
            save_alone(place, together(Path(scratch) / "index.html", Path(scratch)).html, force=force)
        return place
    if place.exists() and not place.is_dir():
        raise InputError(str(place), "is a file, and no .html", "Name a folder, or a file that ends in .html.")
    place.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(place)
    ledger.write("difference", "", files, force=force)
    ledger.close()
    return place / "index.html"
