"""The case language: what it accepts, what it refuses and where, its schema, and the cases that ship with it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import jsonschema
import pytest

from vsp_report import case, cli, paths
from vsp_report.case import pictures
from vsp_report.case.source import Faults, Node, read_source
from vsp_report.errors import CaseError, InputError

BUNDLED = case.case_files([paths.cases_dir()])
TEMPLATES = case.case_files([paths.templates_dir() / "cases"])
PAPER = [path.stem for path in BUNDLED if path.stem.startswith("paper-")]

PLAIN = """\
title: A case
model: sketchworld
sae: sketchworld/vision.3
image: {scene: {family: objects, seed: 3}}
prompt: What is this?
"""


@pytest.fixture
def refused(tmp_path):
    """The faults of a case with this text: (line, everything said)."""

    def read(text: str, name: str = "a-case.yaml") -> list[tuple[int, str]]:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(case.CaseFaults) as caught:
            case.load_case(path)
        return [(int(fault.place.rpartition(":")[2]), str(fault)) for fault in caught.value.faults]

    return read


@pytest.fixture
def accepted(tmp_path):
    def read(text: str, name: str = "a-case.yaml") -> case.Case:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return case.load_case(path)

    return read


# --- what is accepted --------------------------------------------------------------------------------------------


def test_a_case_takes_its_name_from_its_file(accepted) -> None:
    read = accepted(PLAIN, "four-cups.yaml")
    assert (read.id, read.title, read.path.name) == ("four-cups", "A case", "four-cups.yaml")
    assert read.image == case.SceneImage(case.Sampled("objects", 3)) and read.image_path is None
    assert (read.heatmap.top, read.heatmap.noise_filter, read.heatmap.normalize) == (20, 0.02, "column")


def test_every_way_to_name_latents(accepted) -> None:
    named = {
        "113": case.ByNumber((113,)),
        "[113, 2048]": case.ByNumber((113, 2048)),
        "all": case.AllLatents(),
        "{cluster: 2}": case.ByCluster(2),
        "{label: chair, top: 4}": case.ByLabel("chair", 4),
        "{top: 5, by: attribution, supports: right}": case.ByRank(5, "attribution", supports="right"),
        "{top: 5, by: attention, token: person}": case.ByRank(5, "attention", token="person"),
        "{top: 5, by: activation, where: {thing: 1}}": case.ByRank(5, "activation", where=case.Region(thing=1)),
    }
    edits = "".join(f"\n    - {{latents: {words}, set: 0}}" for words in named)
    steering = accepted(f"{PLAIN}contrast: {{right: a, wrong: b}}\nsteer:\n  each:{edits}\n").steer[0]
    assert [edit.latents for edit in steering.edits] == list(named.values())
    assert {(edit.op, edit.value) for edit in steering.edits} == {("set", 0.0)}


def test_the_three_forms_of_a_steering_are_one(accepted) -> None:
    forms = ("{latents: 3, scale: 2}", "[{latents: 3, scale: 2}]", "{edits: [{latents: 3, scale: 2}], mode: delta}")
    read = accepted(PLAIN + "steer:\n" + "".join(f"  form-{i}: {form}\n" for i, form in enumerate(forms)))
    assert {dataclasses.replace(one, name="") for one in read.steer} == {
        case.Steering((case.Edit(case.ByNumber((3,)), scale=2.0),))
    }


@pytest.mark.parametrize(("written", "share"), [("2%", 0.02), ("0.02", 0.02), ("1/50", 0.02), ("0", 0), ("100%", 1)])
def test_shares(accepted, written, share) -> None:
    assert accepted(f"{PLAIN}heatmap: {{noise_filter: {written}}}\n").heatmap.noise_filter == share


def test_yes_and_no_are_words(accepted) -> None:
    read = accepted(PLAIN + "contrast: {right: yes, wrong: no}\ntags: [on, 12-30]\n")
    assert read.contrast == case.Contrast("yes", "no") and read.tags == ("on", "12-30")


def test_a_picture_beside_the_case(accepted, tmp_path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/cup.png").write_bytes(b"")
    text = PLAIN.replace("{scene: {family: objects, seed: 3}}", "images/cup.png")
    assert accepted(text).image_path == tmp_path / "images/cup.png"
    assert accepted(text).image == accepted(text.replace("images/cup.png", "{file: images/cup.png}")).image


def test_a_chart_over_a_table(accepted) -> None:
    chart = "{chart: {table: cars, spec: {mark: bar, encoding: {x: {field: Origin}}}}}"
    image = accepted(PLAIN.replace("{scene: {family: objects, seed: 3}}", chart)).image
    assert (image.table, image.spec.data["mark"]) == ("cars", "bar")


def test_a_case_may_wait_for_its_picture(accepted) -> None:
    text = PLAIN.replace("{scene: {family: objects, seed: 3}}", "later.png") + "needs: [gpu, image]\n"
    assert accepted(text).needs == ("gpu", "image")


def test_expectations_come_to_single_checks_with_their_lines(accepted) -> None:
    read = accepted(
        PLAIN
        + "contrast: {right: one, wrong: two}\n"
        + "steer: {no-fish: {latents: 3, set: 0}}\n"
        + "expect:\n"
        + "  before: {answer: two}\n"
        + "  after:\n"
        + "    no-fish:\n"
        + "      answer: {contains: [a, b], lacks: c}\n"
        + "      margin: {gt: 0, le: 5}\n"
        + "  controls: {flips: {le: 5%}}\n"
        + "  diagnosis: none\n"
    )
    found = [(c.where, c.metric, c.op, c.wanted, read.line_of(c.path)) for c in read.expect.checks]
    assert found == [
        ("before", "answer", "is", "two", 9),
        ("after.no-fish", "answer", "contains", "a", 12),
        ("after.no-fish", "answer", "contains", "b", 12),
        ("after.no-fish", "answer", "lacks", "c", 12),
        ("after.no-fish", "margin", "le", 5, 13),
        ("after.no-fish", "margin", "gt", 0, 13),
        ("controls", "flips", "le", 0.05, 14),
        ("", "diagnosis", "is", "none", 15),
    ]


# --- the canonical form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*BUNDLED, *TEMPLATES], ids=lambda path: path.stem)
def test_the_canonical_form_reads_back_as_the_same_case(path) -> None:
    read = case.load_case(path)
    data = json.loads(json.dumps(read.resolved(), allow_nan=False))
    again = case.make_case(data, read.id)
    assert again == read and again.resolved() == read.resolved() and hash(again) == hash(read)


def test_the_canonical_form_forgets_how_a_case_was_written(accepted) -> None:
    one = accepted(PLAIN + "heatmap: {noise_filter: 2%, top: 20}\ncontrols: {draws: 200}\n")
    assert one.resolved() == accepted("# a remark\n" + PLAIN).resolved()


def test_what_is_told_is_not_computed(accepted) -> None:
    plain = accepted(PLAIN)
    told = accepted(PLAIN.replace("A case", "Another") + "story: s\ntags: [a]\nexpect: {before: {answer: x}}\n")
    assert told.computed() == plain.computed() and told.resolved() != plain.resolved()
    assert accepted(PLAIN + "seed: 1\n").computed() != plain.computed()


# --- what is refused ---------------------------------------------------------------------------------------------

FAULTY = {
    "an unknown key": ("promt: x\n", 6, "promt is unknown. Did you mean prompt?"),
    "an unknown key inside": ("heatmap:\n  normalise: row\n", 7, "normalise is unknown. Did you mean normalize?"),
    "a near choice": ("heatmap: {cluster: kmeans}\n", 6, "heatmap.cluster is kmeans. Did you mean k-means?"),
    "a far choice": ("heatmap: {cluster: x}\n", 6, "heatmap.cluster is x. Write hierarchical or k-means."),
    "a number for text": ("system: 3\n", 6, "system is 3. Put it in quotes: '3'."),
    "a truth value for text": ("contrast: {right: true, wrong: x}\n", 6, "Put it in quotes: 'true'."),
    "text for a number": ("seed: one\n", 6, "seed is one. Write a whole number from 0"),
    "a fraction for a whole number": ("seed: 1.5\n", 6, "seed is 1.5"),
    "a truth value for a number": ("seed: true\n", 6, "seed is true"),
    "too large": ("heatmap: {top: 100000}\n", 6, "Write a whole number from 1 to 1,000."),
    "too long a number": (f"seed: {'9' * 5000}\n", 6, "seed is 999"),
    "NaN": ("steer:\n  a: {latents: 3, set: .nan}\n", 7, "steer.a.set is .nan"),
    "infinity": ("steer:\n  a: {latents: 3, set: 1e999}\n", 7, "steer.a.set is 1e999"),
    "a share over one": ("heatmap: {noise_filter: 120%}\n", 6, "noise_filter is 120%"),
    "nothing": ("story:\n", 6, "story is empty"),
    "a list for a mapping": ("heatmap: [1]\n", 6, "heatmap is a list"),
    "a key a second time": ("seed: 1\nseed: 2\n", 7, "has 'seed' a second time (first on line 6)"),
    "a key a second time inside": ("steer:\n  a: {latents: 1, set: 0}\n  a: {latents: 2, set: 0}\n", 8, "'a' a second"),
    "an anchor": ("tags: &t [a]\n", 6, "uses an anchor or alias"),
    "an alias": ("tags: *t\n", 6, "uses an anchor or alias"),
    "a tag": ("story: !!python/object:os.system x\n", 6, "uses the tag"),
    "a merge": ("<<: {a: 1}\n", 6, "<< is unknown"),
    "a second document": ("---\ntitle: x\n", 6, "begins a second document"),
    "broken YAML": ("tags: [a\n", 7, "is not YAML"),
    "a tab": ("heatmap:\n\ttop: 3\n", 7, "is not YAML"),
    "a mapping as key": ("? {a: 1}\n: 2\n", 6, "as a key"),
    "too deep": (f"story: {'[' * 60}{']' * 60}\n", 6, "is nested more than"),
    "a name with capitals": ("steer:\n  No-Chair: {latents: 3, set: 0}\n", 7, "steer names 'No-Chair'"),
    "a name of reports": ("steer:\n  clean: {latents: 3, set: 0}\n", 7, "steer.clean has a name"),
    "two operations": ("steer:\n  a: {latents: 3, set: 0, scale: 2}\n", 7, "has set and scale together"),
    "no operation": ("steer:\n  a: {latents: 3}\n", 7, "has none of set, scale, add"),
    "no latents": ("steer:\n  a: {set: 3}\n", 7, "steer.a.latents is missing"),
    "a negative latent": ("steer:\n  a: {latents: [1, -2], set: 3}\n", 7, "steer.a.latents[1] is -2"),
    "a latent twice": ("steer:\n  a: {latents: [1, 1], set: 3}\n", 7, "latents[1] is 1 again"),
    "latents by nothing": ("steer:\n  a: {latents: {what: 1}, set: 3}\n", 7, "steer.a.latents is a mapping"),
    "a token by attribution": (
        "steer:\n  a: {latents: {top: 3, by: attribution, token: x}, set: 0}\n", 7, "token means nothing by attribution"
    ),
    "an empty box": ("steer:\n  a: {latents: 3, set: 0, where: {box: [5, 5, 5, 9]}}\n", 7, "where.box is empty"),
    "a box of three": ("steer:\n  a: {latents: 3, set: 0, where: {box: [5, 5, 9]}}\n", 7, "has 3 entries"),
    "onto what comes later": (
        "steer:\n  a: {onto: b, edits: {latents: 3, set: 0}}\n  b: {latents: 3, set: 0}\n", 7, "steer.a.onto is 'b'"
    ),
    "a sweep of nothing": ("sweep: {of: no-chair}\n", 6, "sweep[0].of is 'no-chair', which is no steering"),
    "an expectation of nothing": ("expect: {after: {no-chair: {answer: x}}}\n", 6, "is the name of nothing"),
    "a metric that is not known": ("expect:\n  before: {confidence: {lt: 0}}\n", 7, "before.confidence is unknown"),
    "a comparison that is not known": ("expect:\n  controls: {flips: {less: 0}}\n", 7, "flips.less is unknown"),
    "a comparison with nothing": ("expect:\n  controls: {flips: {}}\n", 7, "compares with nothing"),
    "what is never true": ("expect:\n  controls: {flips: {lt: 1%, gt: 5%}}\n", 7, "is never true"),
    "a margin without a contrast": ("expect:\n  before: {margin: {lt: 0}}\n", 7, "is measured between two answers"),
    "a ranking without a contrast": (
        "steer:\n  a: {latents: {top: 3, by: attribution}, set: 0}\n", 7, "ranks by attribution, which is to a contrast"
    ),
    "a baseline without a contrast": (
        "expect:\n  baseline: {before.margin: {abs: 1}}\n", 7, "is measured between two answers"
    ),
    "a baseline of what is not drawn": (
        "controls: {draws: 0}\nexpect:\n  baseline: {controls.flips: {abs: 1}}\n", 8, "is measured among controls"
    ),
    "flips of what is not drawn": (
        "controls: {draws: 0}\nexpect:\n  controls: {flips: {lt: 5%}}\n", 8, "is measured among controls"
    ),
    "an escape in a key": ('"\\e]0;x\\a": 1\n', 6, "?]0;x? is unknown"),
    "a figure that is not known": ("expect:\n  baseline: {before.margn: {abs: 1}}\n", 7, "is no figure"),
    "a day that is no date": ("expect: {review_by: soon}\n", 6, "Write a date"),
    "one answer twice": ("contrast: {right: Yes, wrong: ' yes'}\n", 6, "contrast.wrong is the right answer"),
    "a prompt and classes": ("classify: {classes: [a, b]}\n", 1, "has prompt and classify together"),
    "a control character": ('story: "a\\u0001b"\n', 6, "control character '\\x01'"),
    "half a character": ('story: "\\ud800"\n', 6, ""),
    "an unknown device": ("device: tpu\n", 6, "device is tpu. Write auto, cpu, cuda or cuda:1."),
    "no tap": ("tap: layer.3\n", 6, "tap is layer.3"),
}  # fmt: skip


@pytest.mark.parametrize(("more", "line", "said"), FAULTY.values(), ids=FAULTY)
def test_a_fault_is_told_with_its_line(refused, more, line, said) -> None:
    faults = refused(PLAIN + more)
    assert (line, True) in [(at, said in text) for at, text in faults], faults


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("../cup.png", "without '..'"),
        ("images/../../cup.png", "without '..'"),
        ("/cup.png", "without '..'"),
        ("C:/cup.png", "without '..'"),
        ("images\\cup.png", "with '/'"),
        ("cup.txt", "Name a picture"),
        ("missing.png", "is missing"),
        ("folder.png", "is not a file"),
        ("outside.png", "leads out of the case's folder"),
        ("linked/cup.png", "leads out of the case's folder"),
        ("loop.png", "loop.png"),
        ("{scene: {mode: misleading-cue, variation: chare}}", "Did you mean chair?"),
        ("{scene: {mode: misleading-cue}}", "variation is missing"),
        ("{scene: {family: ghosts}}", "image.scene.family is ghosts"),
        ("{scene: {family: objects, things: []}}", "things has 0 entries"),
        ("{scene: {family: objects, things: [{kind: cupp, x: 9, y: 9}]}}", "Did you mean cup?"),
        ("{scene: {family: objects, seed: -1}}", "seed is -1"),
        ("{chart: {table: stars, spec: {mark: bar}}}", "image.chart.table is stars"),
        ("{chart: {table: cars, spec: {data: {url: x}, mark: bar}}}", "image.chart.spec.data is not for a case"),
        ("{chart: {table: cars, spec: {layer: [{mark: {type: image, url: x}}]}}}", "is not for a case"),
        ("{chart: {table: cars, spec: {mark: bar, width: .inf}}}", "not finite"),
        ("{what: x}", "Write the name of a picture, {scene: …} or {chart: …}"),
        ("[a]", "image is a list"),
        ("12", "image is 12"),
    ],
)
def test_pictures_that_are_refused(refused, tmp_path, image, said) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir(exist_ok=True)
    (outside / "cup.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "outside.png").symlink_to(outside / "cup.png")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "loop.png").symlink_to("loop.png")
    faults = refused(PLAIN.replace("{scene: {family: objects, seed: 3}}", image))
    assert faults[0][0] == 4 and said in faults[0][1]


SHOWN = "{scene: {family: objects, things: [{kind: cup, x: 9, y: 9}, {kind: boat, x: 50, y: 50, color: red}]}}"


@pytest.mark.parametrize(
    ("steering", "said"),
    [
        ("{latents: {top: 3, by: activation, where: {thing: hat}}, set: 0}", "names 'hat', which is not in the scene"),
        ("{latents: 3, set: 0, where: {thing: 2}}", "There are: 0 cup, 1 red boat."),
        ("[{latents: 3, set: 0, where: {thing: 1}}, {latents: 3, set: 0, where: {thing: red}}]", "names 'red'"),
    ],
)
def test_a_part_is_one_of_a_scene_that_is_written_out(refused, steering, said) -> None:
    faults = refused(PLAIN.replace("{scene: {family: objects, seed: 3}}", SHOWN) + f"steer:\n  a: {steering}\n")
    assert len(faults) == 1 and faults[0][0] == 7 and said in faults[0][1]


@pytest.mark.parametrize("thing", ["cup", "CUP", "boat", "red boat", 0, 1])
def test_a_part_goes_by_its_name_or_its_number(accepted, thing) -> None:
    written = PLAIN.replace("{scene: {family: objects, seed: 3}}", SHOWN)
    accepted(f"{written}steer:\n  a: {{latents: 3, set: 0, where: {{thing: {thing}}}}}\n")


def test_a_link_inside_the_folder_is_fine(accepted, tmp_path) -> None:
    (tmp_path / "cup.png").touch()
    (tmp_path / "link.png").symlink_to("cup.png")
    accepted(PLAIN.replace("{scene: {family: objects, seed: 3}}", "link.png"))


def test_all_faults_of_a_file_are_told_at_once_in_their_order(refused) -> None:
    faults = refused("title: 3\nmodle: x\nseed: -1\nheatmap: {k: 0}\n")
    assert [line for line, _ in faults] == sorted(line for line, _ in faults) and len(faults) == 8
    many = refused(PLAIN + "steer:\n" + "".join(f"  s{i}: 1\n" for i in range(60)))
    assert len(many) == 20


def test_one_error_stands_for_all_faults_of_a_file(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text(PLAIN + "seed: x\ntap: y\n")
    with pytest.raises(InputError, match=r"a\.yaml:6: seed is x.*1 more; `vsp-report check` lists them"):
        case.load_case(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", ["A", "a b", "ä", "-a", "con", "index", "a" * 81])
def test_names_that_are_refused(refused, name) -> None:
    assert "is named" in refused(PLAIN, f"{name}.yaml")[0][1]


@pytest.mark.parametrize(
    ("data", "line", "said"),
    [
        (b"", 1, "is empty"),
        (b"\n# only a remark\n", 1, "is empty"),
        (b"title: \xff\n", 1, "is not UTF-8"),
        (b"title: x\nstory: a\x00b\n", 2, "control character"),
        (b"title: x\n" + b"#" * 300_000, 1, "bytes"),
        (b"just text", 1, "is just text"),
        (b"- a\n- b\n", 1, "is a list"),
        (b"%TAG ! x\n---\na: !y 1\n", 3, "uses the tag"),
        (b"a: b: c\n", 1, "is not YAML"),
        (b"\xef\xbb\xbf\xef\xbb\xbftitle: x\n", 1, ""),
    ],
)
def test_files_that_are_refused(tmp_path, data, line, said) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(CaseError) as caught:
        case.load_case(tmp_path / "a.yaml")
    fault = caught.value.faults[0]
    assert fault.place.endswith(f"a.yaml:{line}") and said in str(fault)


def test_what_is_no_file_is_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    for name in ("pipe", "loop", "gone", "absent"):
        with pytest.raises(CaseError, match=r"is not an ordinary file|cannot be read"):
            case.load_case(tmp_path / f"{name}.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match="has no case files"):
        case.load_cases(tmp_path / "empty")


def test_both_parsers_of_yaml_read_the_same(monkeypatch) -> None:
    import yaml

    from vsp_report.case import source

    for path in BUNDLED:
        nodes = read_source(path.read_bytes(), Faults("x"))
        monkeypatch.setattr(source, "_LOADER", yaml.SafeLoader)
        assert read_source(path.read_bytes(), Faults("x")) == nodes
        monkeypatch.undo()


# --- several files -----------------------------------------------------------------------------------------------


def test_a_folder_a_file_and_a_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases").mkdir()
    for name in ("b.yaml", "a.yaml", "c.yml", ".hidden.yaml", "note.txt"):
        (tmp_path / "cases" / name).write_text(PLAIN)
    assert [c.id for c in case.load_cases("cases")] == ["a", "b", "c"]
    assert [c.id for c in case.load_cases(["cases/c.yml", "a", "cases"])] == ["c", "a", "b"]
    assert case.load_case("duck-rabbit").path == paths.cases_dir() / "duck-rabbit.yaml"
    with pytest.raises(CaseError, match="Did you mean duck-rabbit"):
        case.load_case("duck-rabit")


def test_two_cases_of_one_name_are_refused(tmp_path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.yaml").write_text(PLAIN)
    with pytest.raises(CaseError, match="Rename one"):
        case.load_cases([tmp_path / "one", tmp_path / "two"])


def test_a_slip_in_a_bundled_name_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(paths, "bundled_names", lambda: ["sketchworld", "sketchworld/vision.3"])
    (tmp_path / "a.yaml").write_text(PLAIN.replace("vision.3", "vision.33"))
    with pytest.raises(CaseError, match=r"a\.yaml:3: sae is .*Did you mean sketchworld/vision.3"):
        case.load_case(tmp_path / "a.yaml")


# --- the schema --------------------------------------------------------------------------------------------------

SCHEMA = case.case_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
BEYOND_SCHEMA = (
    "a key a second time", "a key a second time inside", "an anchor", "an alias", "a tag", "a second document",
    "broken YAML", "a tab", "a mapping as key",  # YAML itself
    "NaN", "infinity", "too deep", "a control character", "half a character",  # no such values in JSON
    "a name of reports", "a token by attribution", "an empty box", "onto what comes later", "a sweep of nothing",
    "an expectation of nothing", "a comparison with nothing", "what is never true", "a margin without a contrast",
    "a figure that is not known", "one answer twice", "a ranking without a contrast", "a baseline without a contrast",
    "a baseline of what is not drawn", "flips of what is not drawn",  # values that must fit together
)  # fmt: skip


def plain(node: Node):
    if isinstance(node.value, dict):
        return {key: plain(inner) for key, inner in node.value.items()}
    return [plain(inner) for inner in node.value] if isinstance(node.value, list) else node.value


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    described = list(_properties(SCHEMA))
    assert len(described) > 80 and all(one.get("description") for one in described)


def _properties(schema):
    for part in (schema, *schema.get("$defs", {}).values()):
        yield from part.get("properties", {}).values()


@pytest.mark.parametrize("path", [*BUNDLED, *TEMPLATES], ids=lambda path: path.stem)
def test_cases_are_valid_as_written_and_in_canonical_form(path) -> None:
    VALIDATOR.validate(plain(read_source(path.read_bytes(), Faults("x"))))
    VALIDATOR.validate(case.load_case(path).resolved())


@pytest.mark.parametrize("name", [name for name in FAULTY if name not in BEYOND_SCHEMA])
def test_the_schema_refuses_what_the_reader_refuses(name) -> None:
    node = read_source((PLAIN + FAULTY[name][0]).encode(), Faults("x"))
    assert not VALIDATOR.is_valid(plain(node))


# --- the bundled cases -------------------------------------------------------------------------------------------


def test_the_bundled_cases_are_those_promised() -> None:
    cases = case.load_cases(paths.cases_dir())
    own = [one for one in cases if one.id not in PAPER]
    assert len(own) >= 10 and len(PAPER) == 3
    failures = [one.failure for one in own if one.classify is None]
    assert all(failures.count(mode) >= 2 for mode in ("limited-alignment", "misleading-cue", "hidden-cue"))
    assert "none" in failures and any(one.classify for one in own)
    assert all(not one.needs for one in own)
    assert all(set(one.needs) == {"gpu", "weights", "image"} for one in cases if one.id in PAPER)
    assert all(one.story and one.expect.checks for one in cases)


@pytest.mark.parametrize("path", [p for p in BUNDLED if p.stem not in PAPER], ids=lambda path: path.stem)
def test_a_bundled_case_asks_what_its_scene_was_planted_for(path) -> None:
    from vsp_report.sketchworld import planted, rules
    from vsp_report.sketchworld.scene import make_scene

    read = case.load_case(path)
    scene = read.image.scene
    if isinstance(scene, case.Drawn):
        kinds = {thing.kind for thing in make_scene(scene.data).things}
        if read.contrast is None:  # a caption
            assert kinds == {check.wanted for check in read.expect.checks if check.op == "contains"}
        else:  # a head with the marks of both
            answers = (read.contrast.right, read.contrast.wrong)
            assert kinds == {"animal", *(rules.MARKS[answer.removeprefix("a ")] for answer in answers)}
        return
    found = planted.plant(scene.mode, scene.variation, scene.seed)
    answers = (found.right, found.wrong)
    if read.prompt is not None:
        assert (read.prompt, read.contrast) == (found.question, case.Contrast(*answers))
    else:
        assert read.contrast == case.Contrast(*(answer.removeprefix("a ") for answer in answers))
    if found.explicit is not None:
        assert (read.rephrase[0].prompt, read.rephrase[0].contrast.right) == found.explicit
    things = {edit.where.thing for one in read.steer for edit in one.edits if edit.where and edit.where.thing}
    things |= {e.latents.where.thing for one in read.steer for e in one.edits if getattr(e.latents, "where", None)}
    assert things <= {*found.scene.parts, *range(len(found.scene.parts))}


def test_what_is_repeated_of_the_world_is_still_so() -> None:
    from vega_datasets import local_data

    from vsp_report.sketchworld import drawing, planted, rules

    assert planted.MODES == pictures.PLANTED and rules.FAMILIES == pictures.FAMILIES
    assert tuple(drawing.SKETCHES) == pictures.THINGS
    for scene in (rules.sample_scene(seed, family) for family in rules.FAMILIES for seed in range(3)):
        data = scene.to_dict()
        things = tuple(pictures.SceneThing(**thing) for thing in data.get("things", ()))
        bars = tuple(pictures.SceneBar(**bar) for bar in data.get("chart", {}).get("bars", ()))
        chart = pictures.SceneChart(**data["chart"] | {"bars": bars}) if bars else None
        assert pictures.Drawn(scene.family, things, chart).parts == scene.parts
    assert tuple(sorted(local_data.list_datasets())) == pictures.TABLES
    # What cannot be seen is the world's; that it is not perceived is what a diagnosis says of the model.
    assert {*planted.MODES} - {"cue-missing"} == {*case.FAILURES} - {"perception-missing"}


# --- the commands ------------------------------------------------------------------------------------------------


def test_check_says_all_that_is_wrong(tmp_path, capsys) -> None:
    (tmp_path / "a.yaml").write_text(PLAIN)
    assert cli.main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 case checked, nothing is wrong\n"
    (tmp_path / "b.yaml").write_text(PLAIN + "seed: x\ntap: y\n")
    assert cli.main(["check", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        f"error: {tmp_path}/b.yaml:6: seed is x. Write a whole number from 0 to 2,147,483,647.",
        f"error: {tmp_path}/b.yaml:7: tap is y. Write a tap: vision.18, text.16 or connector.",
        "2 faults in 1 of 2 cases",
    ]


@pytest.mark.parametrize("template", ["question", "classification", "four-topics"])
def test_new_writes_a_case_that_passes_and_overwrites_nothing(tmp_path, monkeypatch, capsys, template) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["new", "my-case", "--from", template]
    assert cli.main(words) == 0 and cli.main(["check"]) == 0
    text = (tmp_path / "cases/my-case.yaml").read_text()
    assert text.startswith("#")
    assert cli.main(words) == 2 and cli.main(["new", "My Case"]) == 2 and cli.main(["new", "x", "--from", "y"]) == 2
    assert [file.name for file in (tmp_path / "cases").iterdir()] == ["my-case.yaml"]
    assert capsys.readouterr().err.count("error: ") == 3


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_new_from_a_bundled_case_asks_the_same_and_is_held_to_no_baseline(tmp_path, monkeypatch, capsys, path) -> None:
    """The baseline's figures stay with the case that they were measured of; nothing else is left out."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "my-case", "--from", path.stem]) == 0
    of, made = case.load_case(path), case.load_case(tmp_path / "cases" / "my-case.yaml")
    told = capsys.readouterr().out
    assert ("left out: the baseline" in told) == bool(of.expect.baseline) and made.expect.baseline == ()
    kept = dataclasses.replace(of.expect, baseline=())
    assert made.resolved() == dataclasses.replace(of, id="my-case", path=made.path, expect=kept).resolved()
    if not of.expect.baseline:
        assert made.path.read_text() == path.read_text()
    else:
        assert "aseline" not in made.path.read_text() and made.expect.review_by == of.expect.review_by


def test_a_comment_below_a_baseline_stays(tmp_path, monkeypatch) -> None:
    (tmp_path / "own").mkdir()
    text = PLAIN + "contrast: {right: a, wrong: b}\nexpect:\n  # of the baseline\n  baseline:\n    before.margin:\n"
    text += "      abs: 1\n\n  # of the review\n  review_by: 2030-01-01\n"
    (tmp_path / "own" / "mine.yaml").write_text(text)
    monkeypatch.setattr(paths, "cases_dir", lambda: tmp_path / "own")
    starter = case.write_starter("copy", "mine", tmp_path)
    assert starter.left_out and starter.file.read_text().endswith(
        "expect:\n\n  # of the review\n  review_by: 2030-01-01\n"
    )
    assert case.load_case(starter.file).expect.review_by == "2030-01-01"


@pytest.mark.parametrize("folder", ["cases", "our cases"])
@pytest.mark.parametrize("template", ["question", "classification"])
def test_a_starter_says_how_an_editor_completes_it(tmp_path, monkeypatch, folder, template) -> None:
    """What it says is done, by a shell, and the schema is where an editor looks for it: beside the file."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "one", "--from", template, "--folder", folder]) == 0
    file = tmp_path / folder / "one.yaml"
    (command,) = re.findall(r"once `vsp-report (.+)` has written", file.read_text())
    subprocess.run(f"{sys.executable} -m vsp_report {command}", shell=True, check=True)
    (named,) = re.findall(r"yaml-language-server: \$schema=(\S+)", file.read_text())
    assert json.loads((file.parent / named).read_text()) == SCHEMA


def test_schema_prints_json(capsys) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
    assert cli.main(["schema", "--recording"]) == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


def test_a_hundred_cases_are_checked_in_a_second_without_torch(tmp_path) -> None:
    for i in range(100):
        (tmp_path / f"case-{i}.yaml").write_bytes(BUNDLED[i % len(BUNDLED)].read_bytes())
    code = (
        "import sys; from vsp_report import cli; code = cli.main(sys.argv[1:]);"
        "print([m for m in ('torch', 'numpy', 'PIL', 'altair') if m in sys.modules]); sys.exit(code)"
    )
    best = 9.0
    for _ in range(3):
        before = time.perf_counter()
        words = [sys.executable, "-c", code, "check", tmp_path]
        run = subprocess.run(words, capture_output=True, text=True, check=False)
        best = min(best, time.perf_counter() - before)
    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "[]"), run.stderr
    assert best < 1.0
