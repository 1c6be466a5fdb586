"""Recordings: what is written is what is read, whole or absent, whoever is killed while writing."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from vsp_report import case, paths, recording
from vsp_report.errors import InputError
from vsp_report.recording import folder as on_disk
from vsp_report.recording import parts
from vsp_report.recording.plain import to_plain

PNG = b"\x89PNG not really"
FILES = {"images/input.png": PNG, "notebook.ipynb": b'{"cells": []}'}


def full(seed: int = 0) -> recording.Recording:
    """A recording with every part, its numbers drawn from a seed."""
    asked = case.load_case(paths.cases_dir() / "standing-beside-a-chair.yaml")
    rng = np.random.default_rng(seed)
    token = recording.Token(" sitting", "answer", 7, -0.25)
    answered = recording.Answered("standing", (token,), True, 2.0, 0.9, 0.1, {"lying": -9.5})
    draws = recording.ControlDraws("latents", tuple(rng.normal(size=5).round(3).tolist()), 0.0, 1 / 6)
    edit = recording.EditMade((3, 5), "set", 0.0, ((1.0, 2.0, 3.0, 4.0),), "label chair, top 10")
    clusters = recording.Clustering("hierarchical", "correlation", (1, 0), (1, 0), ("chair", "legs"))
    return recording.Recording(
        recording.SCHEMA,
        asked.id,
        "ok",
        asked.resolved(),
        provenance=recording.Provenance(versions={"python": "3.11"}, seed=seed, seconds=1.5, created="2030-01-01"),
        image=recording.Picture("images/input.png", 384, 384, "a person beside a chair"),
        grid=recording.Grid(4, 2, 2),
        tokens=(recording.Token("Is", "prompt", 3), token),
        clean=recording.Answered("sitting", margin=-3.0, p_right=0.05),
        reconstructed=answered,
        latents=(recording.Latent(3, "chair", references=(recording.Reference("people-3", 2.5),)), recording.Latent(5)),
        heatmap=recording.Heatmap((0, 1), (0, 1), 20, "column", (clusters,)),
        attributions=(recording.Attribution(3, -1.5, -1.25), recording.Attribution(5, 0.5)),
        agreements=(recording.Agreement("attribution", 0.9, None, 2, 1),),
        steered=(
            recording.Steered("no-chair", (edit, recording.EditMade("all", "scale", 2.0)), answered, change=5.0,
                              interval=(4.0, 6.0), p=1 / 6, flipped=True, controls=(draws,),
                              collateral=(recording.Collateral("What color?", "red", "red"),)),
        ),
        swept=(recording.Swept("no-chair", (recording.Dose(0.0, answered), recording.Dose(2.0, answered)), 0.5),),
        rephrased=(recording.Rephrased("other-order", "Standing?", answered, ("yes", "no")),),
        classified=recording.Classified(("a", "b"), ("a {}",), (recording.ClassScores("clean", (0.25, 0.75)),)),
        minimal=recording.MinimalSet((3,), answered, 9),
        diagnosis=recording.Diagnosis("misleading-cue", (recording.Evidence("ablate", "flips", True, 5.0, 0.01),), 30),
        repeats=(recording.Repeated(1, {"before.margin": -3.0, "before.answer": "sitting"}),),
        arrays=recording.Arrays(
            predicting_TP=rng.random((2, 4)).astype(np.float16),
            own_TP=np.array([[math.nan] * 4, [0.1] * 4], np.float16),
            boxes_P4=rng.random((4, 4)).astype(np.float32),
            maps_LP=rng.random((2, 4)).astype(np.float16),
            heatmap_TL=rng.random((2, 2)).astype(np.float32),
        ),
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path) -> Path:
    return recording.save_recording(tmp_path / "site/recordings/a-case", full(), FILES)


def listing(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- there and back ----------------------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read(saved) -> None:
    assert recording.load_recording(saved) == full()
    assert recording.load_recording(saved).asked() == case.load_case("standing-beside-a-chair")
    assert listing(saved).keys() == {"arrays.npz", "manifest.json", "recording.json", *FILES}
    assert recording.load_recording(saved, arrays=False, verify=False).arrays == recording.Arrays()
    assert recording.is_recorded(saved) and recording.recordings_in(saved.parent) == [saved]


def test_every_part_is_in_the_test() -> None:
    """So that a part which is added is also written and read above."""
    data = full()
    assert all(getattr(data, f.name) not in (None, ()) for f in dataclasses.fields(data) if f.name != "stop")
    used = set()

    def visit(value):
        if dataclasses.is_dataclass(value):
            used.add(type(value))
            [visit(getattr(value, f.name)) for f in dataclasses.fields(value)]
        elif isinstance(value, tuple):
            [visit(one) for one in value]

    visit(data)
    known = {t for t in vars(parts).values() if dataclasses.is_dataclass(t) and t.__module__ == parts.__name__}
    assert used == known - {recording.Stop}


def test_equal_content_gives_equal_bytes(tmp_path) -> None:
    one = recording.save_recording(tmp_path / "one", full(), FILES)
    other = recording.save_recording(tmp_path / "other", recording.load_recording(one), dict(reversed(FILES.items())))
    assert listing(one) == listing(other)
    with zipfile.ZipFile(one / "arrays.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert recording.recording_sha(one) == recording.recording_sha(other)


def test_two_runs_are_compared_without_what_varies() -> None:
    other = replace(full(), provenance=replace(full().provenance, seconds=9.0, created="", device_name="another"))
    assert recording.comparable(other) == recording.comparable(full())
    assert recording.comparable(full(1)) != recording.comparable(full())


def test_schema_comes_first_and_the_json_is_plain(saved) -> None:
    text = (saved / "recording.json").read_text()
    assert text.startswith('{\n "schema": 1,') and "NaN" not in text
    validator = jsonschema.Draft202012Validator(recording.recording_schema())
    validator.check_schema(recording.recording_schema())
    data = json.loads(text)
    validator.validate(data)
    for wrong in ({"status": "fine"}, {"extra": 1}, {"tokens": [{"text": "x"}]}, {"clean": {"text": 3}}):
        assert not validator.is_valid(data | wrong), wrong
        with pytest.raises(InputError):
            on_disk.from_plain(recording.Recording, data | wrong, "x")
    del data["case"]
    assert not validator.is_valid(data)


def test_numbers_that_are_not_finite_never_reach_json(tmp_path) -> None:
    loose = replace(full(), clean=recording.Answered("x", margin=math.nan, p_right=np.float32(0.5)))
    read = recording.load_recording(recording.save_recording(tmp_path / "a", loose))
    assert (read.clean.margin, read.clean.p_right) == (None, 0.5)
    with pytest.raises(InputError, match=r"recording\.attributions\[0\]\.predicted: is inf"):
        recording.save_recording(tmp_path / "b", replace(full(), attributions=(recording.Attribution(3, math.inf),)))
    with pytest.raises(InputError, match=r"recording\.repeats\[0\]\.figures\.x: is nan"):
        recording.save_recording(tmp_path / "b", replace(full(), repeats=(recording.Repeated(1, {"x": math.nan}),)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_half_a_character_is_written_as_a_question_mark(tmp_path) -> None:
    odd = replace(full(), clean=recording.Answered("a\ud800<b> 🦆"))
    assert recording.load_recording(recording.save_recording(tmp_path / "a", odd)).clean.text == "a?<b> 🦆"


def test_a_failed_run_and_one_that_was_not_run_are_recordings(tmp_path) -> None:
    asked = case.load_case("paper-duck-rabbit")
    for status in ("error", "not-run"):
        stop = recording.Stop("needs", "paper-duck-rabbit: needs a gpu.", "Traceback …")
        short = recording.Recording(recording.SCHEMA, asked.id, status, asked.resolved(), stop)
        assert recording.load_recording(recording.save_recording(tmp_path / status, short)) == short
        with pytest.raises(InputError, match="does not go with its stop"):
            recording.save_recording(tmp_path / "x", replace(short, stop=None))


def test_figures_are_what_expectations_ask_for() -> None:
    figures = full().figures()
    asked = full().asked()
    wanted = {f"{check.where}.{check.metric}".lstrip(".") for check in asked.expect.checks}
    assert {name for name in wanted if "strongest" not in name} <= figures.keys()
    assert (figures["after.no-chair.change"], figures["controls.flips"], figures["controls.collateral"]) == (5, 0, 0)
    assert figures["diagnosis"] == "misleading-cue" and "rephrase.other-order.margin" in figures
    assert recording.Recording(1, "x", "ok", {}).figures() == {}


def test_a_new_story_is_told_without_a_run(saved) -> None:
    asked = full().asked()
    recording.restate(saved, replace(asked, title="Another title"))
    read = recording.load_recording(saved)
    assert read.asked().title == "Another title" and read.provenance.case_sha == recording.sha_of(read.case)
    assert replace(read, case=full().case, provenance=full().provenance) == full()
    assert listing(saved)["images/input.png"] == PNG
    with pytest.raises(InputError, match="another question"):
        recording.restate(saved, replace(asked, prompt="What is this?"))


# --- what is damaged ---------------------------------------------------------------------------------------------


def test_a_damaged_recording_is_told_with_its_file(saved) -> None:
    for name in listing(saved):
        whole = (saved / name).read_bytes()
        for damage in (whole[:-1], whole + b" ", bytes([whole[0] ^ 1]) + whole[1:], b"", None):
            if damage is None:
                (saved / name).unlink()
            else:
                (saved / name).write_bytes(damage)
            if name == "manifest.json" and damage and damage.strip() == whole.strip():
                recording.load_recording(saved)  # a space more or less is the same JSON
                continue
            with pytest.raises(InputError) as caught:
                recording.load_recording(saved)
            assert str(saved) in caught.value.place and caught.value.remedy
        (saved / name).write_bytes(whole)
    assert recording.load_recording(saved) == full()


def rewritten(saved: Path, name: str, data: bytes) -> None:
    """Change a file, and the manifest with it."""
    (saved / name).write_bytes(data)
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": recording.sha(data)}
    (saved / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "has schema 2; this is 1"),
        ({"schema": None}, "has schema None"),
        ({"status": "fine"}, "status is 'fine'; expected ok or error or not-run"),
        ({"more": 1}, "more is unknown"),
        ({"steered": [{"name": "x", "edits": [], "after": {"text": "y"}, "change": "z"}]}, "steered[0].change is 'z'"),
        ({"steered": [{"name": "x"}]}, "steered[0].edits is missing"),
        ({"tokens": 3}, "tokens is 3; expected a list"),
        ({"clean": []}, "clean is a list; expected a mapping"),
        ({"stop": {"step": "x", "message": "y"}}, "status ok does not go with its stop"),
        ({"heatmap": {"rows": [9], "columns": [], "top": 1, "normalize": "row", "clusterings": []}}, "rows leads"),
        ({"grid": {"patches": 9}}, "is (2, 4); the recording says (2, 9)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_place(saved, change, said) -> None:
    data = json.loads((saved / "recording.json").read_text()) | change
    rewritten(saved, "recording.json", json.dumps(data).encode())
    with pytest.raises(InputError) as caught:
        recording.load_recording(saved)
    assert said in str(caught.value) and str(saved) in caught.value.place


def test_json_that_is_none_is_told(saved) -> None:
    for text in ("{", "[" * 100_000, '{"schema": NaN}', "[]", "null", '"\\ud800"'):
        rewritten(saved, "recording.json", text.encode())
        with pytest.raises(InputError, match=r"recording\.json"):
            recording.load_recording(saved)


def test_a_pickle_is_not_read(saved) -> None:
    with zipfile.ZipFile(saved / "arrays.npz", "w") as archive, archive.open("maps_LP.npy", "w") as member:
        np.lib.format.write_array(member, np.array([{"a": 1}], object), allow_pickle=True)
    rewritten(saved, "arrays.npz", (saved / "arrays.npz").read_bytes())
    with pytest.raises(InputError, match=r"arrays\.npz: cannot be read"):
        recording.load_recording(saved)
    with pytest.raises(ValueError, match="allow_pickle"):
        recording.save_recording(saved, replace(full(), arrays=recording.Arrays(maps_LP=np.array([{}], object))))


@pytest.mark.parametrize("name", ["../x.png", "images/../../x.png", "/x", "images/.png", "images/a/b.png", "run.sh"])
def test_a_file_that_does_not_belong_is_neither_written_nor_read(saved, name) -> None:
    with pytest.raises(InputError, match="is no file of a recording"):
        recording.save_recording(saved, full(), {name: b""})
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 0, "sha256": ""}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="is no file of a recording"):
        recording.load_recording(saved)


# --- whole or absent ---------------------------------------------------------------------------------------------


def hidden(parent: Path) -> list[str]:
    return [p.name for p in parent.iterdir() if p.name[0] == "."]


def test_a_full_disk_leaves_the_older_recording(saved, monkeypatch) -> None:
    written = 0

    def write(path, data):
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr(on_disk, "_write", write)
    with pytest.raises(OSError, match="No space"):
        recording.save_recording(saved, full(1), FILES)
    assert recording.load_recording(saved) == full() and hidden(saved.parent) == []


def test_leftovers_are_told_from_what_is_still_written(saved) -> None:
    parent, name = saved.parent, "0" * 32
    (parent / f".a-case.{name}.partial/images").mkdir(parents=True)
    (parent / ".a-case.partial").mkdir()  # not ours
    with on_disk._sibling(saved) as partial:
        assert recording.sweep(parent) == [parent / f".a-case.{name}.partial"]
        assert partial.is_dir()
    assert hidden(parent) == [".a-case.partial"]
    saved.rename(parent / f".a-case.{name}.old")
    recording.sweep(parent)
    assert recording.load_recording(saved) == full() and hidden(parent) == [".a-case.partial"]


def test_what_is_still_written_stays_however_long_it_takes(saved) -> None:
    with on_disk._sibling(saved) as partial:
        os.utime(partial, (1, 1))
        assert recording.sweep(saved.parent) == [] and partial.is_dir()


def test_a_disk_without_locks_is_left_as_clean(saved, monkeypatch) -> None:
    def none(*asked: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(on_disk.fcntl, "flock", none)
    with on_disk._sibling(saved) as partial:
        assert hidden(saved.parent) == [partial.name]
    assert hidden(saved.parent) == []


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.test_recording import FILES, full
from vsp_report import recording
kinds = [full(0), full(1)]
print("ready", flush=True)
for i in range(int(sys.argv[3])):
    recording.save_recording(sys.argv[1], kinds[i % 2], FILES)
"""


def writer(folder: Path, root: Path, times: int) -> subprocess.Popen:
    words = [sys.executable, "-c", WRITER, folder, root, str(times)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


WRITERS = """
import os, sys
sys.path.insert(0, sys.argv[2])
from tests.test_recording import FILES, full
from vsp_report import recording
kinds = full(0), full(1)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        while True:
            for kind in kinds:
                recording.save_recording(sys.argv[1], kind, FILES)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""
"""For each line that it reads it becomes another writer, so that what they need is imported once."""


def test_a_killed_writer_leaves_a_whole_recording_or_none(tmp_path, root) -> None:
    rng, wholes = random.Random(11), (full(0), full(1))
    folder = tmp_path / "recordings" / "a-case"
    leftovers = 0
    words = [sys.executable, "-c", WRITERS, folder, root]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writers:
        for _ in range(20):
            writers.stdin.write("\n")
            writers.stdin.flush()
            child = int(writers.stdout.readline())
            time.sleep(rng.random() * 0.05)
            os.kill(child, signal.SIGKILL)
            assert writers.stdout.readline() == "gone\n"
            if folder.exists():
                assert recording.load_recording(folder) in wholes
            leftovers += len(hidden(folder.parent)) if folder.parent.exists() else 0
            recording.sweep(folder.parent)
            assert not folder.parent.exists() or hidden(folder.parent) == []
            assert recording.load_recording(recording.save_recording(folder, wholes[0], FILES)) == wholes[0]
            if rng.random() < 0.3:
                for path in sorted(folder.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
                folder.rmdir()
        writers.stdin.close()
    assert leftovers > 0, "no writer was killed while it wrote: the test shows nothing"


CRASHER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from tests.test_recording import FILES, full
from vsp_report import recording
old, new = full(0), full(1)
seen = set()
for crash_at in range(1, 200):
    recording.save_recording(sys.argv[1], old, FILES)
    child = os.fork()
    if child == 0:
        done = 0
        def counted(real):
            def call(*args, **kwargs):
                global done
                done += 1
                if done == crash_at:
                    os._exit(9)
                return real(*args, **kwargs)
            return call
        for name in ("rename", "fsync", "mkdir", "rmdir", "unlink", "open"):
            setattr(os, name, counted(getattr(os, name)))
        recording.save_recording(sys.argv[1], new, FILES)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    recording.sweep(os.path.dirname(sys.argv[1]))
    read = recording.load_recording(sys.argv[1])
    assert read in (old, new)
    seen.add(read == new)
    assert os.listdir(os.path.dirname(sys.argv[1])) == ["a-case"]
    if code == 0:
        break
print(crash_at, sorted(seen))
"""


def test_a_crash_at_any_step_leaves_the_old_or_the_new(tmp_path, root) -> None:
    words = [sys.executable, "-c", CRASHER, tmp_path / "a-case", root]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    steps, _, seen = run.stdout.partition(" ")
    assert int(steps) > 15 and seen == "[False, True]\n"


def test_several_writers_into_one_folder_leave_one_whole_recording(tmp_path, root) -> None:
    folder = tmp_path / "recordings" / "a-case"
    writers = [writer(folder, root, 25) for _ in range(3)]
    for process in writers:
        process.communicate()
    assert [process.returncode for process in writers] == [0, 0, 0]
    assert recording.load_recording(folder) in (full(0), full(1)) and hidden(folder.parent) == []


# --- keys --------------------------------------------------------------------------------------------------------

CONTEXT = {"image_sha": "i", "model_id": "m", "sae_id": "s", "notebook_sha": "n", "package_sha": "p"}
CONTEXT |= {"versions": {"torch": "2"}, "device_class": "cpu"}


def test_what_figures_depend_on_changes_the_run_key() -> None:
    asked = full().asked()
    key = recording.run_key(asked, **CONTEXT)
    assert len(key) == 64 and key == recording.run_key(replace(asked, id="another"), **CONTEXT)
    repeat = asked.expect.repeat  # what is run, and not only what is held against it
    assert key == recording.run_key(
        replace(asked, title="x", tags=(), expect=case.Expectation(repeat=repeat)), **CONTEXT
    )
    others = [recording.run_key(asked, **CONTEXT | {name: {} if name == "versions" else "x"}) for name in CONTEXT]
    others += [recording.run_key(replace(asked, **change), **CONTEXT) for change in (
        {"prompt": "x"}, {"seed": 1}, {"steer": ()}, {"system": "x"}, {"heatmap": case.Heatmap(top=5)},
        {"expect": case.Expectation(repeat=case.Repeat(seeds=(7, 8)))})]  # fmt: skip
    assert len({key, *others}) == 1 + len(others)


def test_style_is_no_part_of_what_computes() -> None:
    assert not set(recording.COMPUTING) & {"render", "audit", "cli", "live", "run"}
    assert recording.package_sha() != recording.package_sha(recording.SHOWING)
    code = {"cell_type": "code", "source": ["a\n", "b"], "outputs": [1]}
    notebook = {"cells": [code, {"cell_type": "markdown", "source": "x"}]}
    same = {"cells": [{"cell_type": "code", "source": "a\nb"}]}
    assert recording.notebook_code_sha(notebook) == recording.notebook_code_sha(same)


def test_a_folder_has_the_hash_of_its_names_and_bytes(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    one = recording.folder_sha(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    other = recording.folder_sha(tmp_path)
    (tmp_path / "b").write_bytes(b"2")
    assert len({one, other, recording.folder_sha(tmp_path)}) == 3


def test_recordings_are_read_without_torch(saved) -> None:
    code = (
        "import sys; from vsp_report import recording; recording.load_recording(sys.argv[1]);"
        "print([m for m in ('torch', 'PIL', 'altair', 'pandas') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, saved], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_plain_data_is_plain() -> None:
    json.dumps(to_plain(full()), allow_nan=False)
