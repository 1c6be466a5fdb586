"""Conftest: small cases of the bundled model, truly run once, and audits of them with whatever expectations."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from vsp_report import cli
from vsp_report.case import Case, load_case, make_case
from vsp_report.recording import Recording, file_sha, load_recording, save_recording

CHAIR: dict[str, Any] = {
    "title": "Standing beside a chair",
    "failure": "misleading-cue",
    "tags": ["people"],
    "model": "sketchworld",
    "sae": "sketchworld/vision.3",
    "image": {"scene": {"mode": "misleading-cue", "variation": "chair", "seed": 1}, "size": 96},
    "prompt": "Is the person sitting or standing?",
    "contrast": {"right": "standing", "wrong": "sitting"},
    "heatmap": {"top": 2, "k": 2},
    "steer": {
        "ten": [{"latents": {"top": 10, "by": "attribution", "supports": "wrong"}, "set": 0}],
        "weak-1": [{"latents": {"top": 1, "by": "activation"}, "scale": 2}],
        "weak-2": [{"latents": {"top": 2, "by": "activation"}, "scale": 2}],
        "weak-3": [{"latents": {"top": 3, "by": "activation"}, "set": 0}],
        "covered": [{"latents": "all", "set": 0, "where": {"thing": "chair"}}],
    },
    "controls": {"draws": 19, "kinds": ["latents"], "prompts": ["What color is the shirt?"]},
    "rephrase": {"turned": "Is the person standing or sitting?"},
}
SEEDS = {"seeds": [0, 1, 2], "agree": 1}


class Run(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.strip().splitlines()[-1]


class Project:
    """`cases/` and `site/` in a folder of their own, with recordings that were truly made."""

    def __init__(self, folder: Path, made: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
        self.folder, self.made, self._capsys = folder, made, capsys
        self.recordings = folder / "site" / "recordings"
        (folder / "cases").mkdir()
        self.recordings.mkdir(parents=True)

    def case(self, id: str, expect: dict[str, Any] | None = None, of: str = "chair", **changes: Any) -> Path:
        """A case with the recording of another one of the same question."""
        data = question(of) | changes
        wanted = dict(expect or {})
        if of == "seeds":
            wanted.setdefault("repeat", SEEDS)
        file = self.write(id, data | ({"expect": wanted} if wanted else {}))
        if of in self.made:
            self.record(id, of)
        return file

    def write(self, id: str, data: dict[str, Any]) -> Path:
        file = self.folder / "cases" / f"{id}.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        return file

    def record(self, id: str, of: str) -> None:
        shutil.copytree(self.made[of], self.recordings / id, dirs_exist_ok=True)

    def recording(self, of: str = "chair") -> Recording:
        return load_recording(self.made[of], arrays=False)

    def figure(self, name: str, of: str = "chair") -> Any:
        return self.recording(of).figures()[name]

    def audit(self, *words: str) -> Run:
        self._capsys.readouterr()
        code = cli.main(["audit", *words])
        return Run(code, *self._capsys.readouterr())

    def check(self, *words: str) -> Run:
        return self.audit("--from-recordings", *words)


def question(of: str) -> dict[str, Any]:
    data = copy.deepcopy(CHAIR)
    if of == "beyond":
        data["steer"] = {"beyond": [{"latents": [10**6], "set": 0}]}
    if of == "photo":
        data |= {"image": "photo.png", "steer": {k: v for k, v in data["steer"].items() if k != "covered"}}
    return data


def _record(folder: Path, of: str, **changes: Any) -> Path:
    from vsp_report.study import evidence

    file = folder / f"{of}.yaml"
    file.write_text(yaml.safe_dump(question(of) | changes, sort_keys=False))
    try:
        evidence.record(file, folder / "recordings" / of)
    except Exception:
        if of != "beyond":
            raise
    assert load_case(file).id == of
    return folder / "recordings" / of


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings by name: chair; the same with two seeds more, and of a file that has the picture; and one whose
    steering cannot be made."""
    folder = tmp_path_factory.mktemp("made")
    seeds = _record(folder, "seeds", expect={"repeat": SEEDS})
    # The first of its runs is a run of the case without more seeds.
    recording = load_recording(seeds)
    alone = replace(recording, id="chair", repeats=(), case=make_case(question("chair"), "chair").resolved())
    chair = save_recording(folder / "recordings" / "chair", alone, {recording.image.file: seeds / recording.image.file})
    made = {"chair": chair, "seeds": seeds, "beyond": _record(folder, "beyond")}
    # A scene is hashed as the file that it is recorded as.
    assert file_sha(chair / recording.image.file) == recording.provenance.image_sha
    asked = make_case(question("photo"), "photo")
    of_file = replace(alone, id="photo", case=asked.resolved(),
                      steered=tuple(one for one in alone.steered if asked_for(one.name, asked)))  # fmt: skip
    files = {recording.image.file: chair / recording.image.file}
    return made | {"photo": save_recording(folder / "recordings" / "photo", of_file, files)}


def asked_for(name: str, case: Case) -> bool:
    return name in {one.name for one in case.steer}


@pytest.fixture
def project(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Project:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name == "CI" or name.startswith("GITHUB_")]:
        monkeypatch.delenv(name)
    return Project(tmp_path, made, capsys)
