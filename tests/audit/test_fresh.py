"""Fresh: audits that run what they check, in a kernel; a broken model; the bundled cases; the action of a workflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.audit.conftest import CHAIR, Project
from tests.audit.test_verdicts import holds
from vsp_report import paths


def broken_model(folder: Path) -> Path:
    """The bundled model with noise on every weight of its language model, as large as the weights."""
    shutil.copytree(paths.bundled("sketchworld"), folder)
    torch.manual_seed(0)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.startswith("language_model") and tensor.ndim > 1:
            tensors[name] = tensor + (tensor.float().std() * torch.randn(tensor.shape)).to(tensor.dtype)
    file.chmod(0o644)
    save_file(tensors, file, {"format": "pt"})
    return folder


def test_a_run_confirms_and_a_broken_model_does_not(project: Project) -> None:
    """The same claims of the same picture, measured now: of the bundled model, and of one whose weights are noise."""
    claims = {"before": holds(project)["before"], "after": holds(project)["after"],
              "baseline": {"before.margin": {"abs": 0.01}}}  # fmt: skip
    short = {name: value for name, value in CHAIR.items() if name != "rephrase"}
    short |= {"steer": {"ten": CHAIR["steer"]["ten"]}, "controls": {"draws": 0}, "diagnose": False, "expect": claims}
    project.write("fresh", short)
    model = broken_model(project.folder / "noise")
    project.write("broken", short | {"model": str(model)})
    run = project.audit("--update", "--json", "audit.json", "--fail-on", "unstable")
    told = {one["id"]: one for one in json.loads(Path("audit.json").read_text())["cases"]}
    assert {id: one["verdict"] for id, one in told.items()} == {"fresh": "confirmed", "broken": "not reproduced"}
    assert (run.code, run.last) == (1, "audit: not met (1): 1 not reproduced, 1 confirmed")
    assert told["broken"]["figures"]["before.margin"] != told["fresh"]["figures"]["before.margin"]
    assert "baseline: fresh: before.margin: none -> " in run.out and "cases/broken.yaml:" in run.out
    # Held to nothing but the margin of the model that it was, it has drifted.
    project.write("broken", short | {"model": str(model), "expect": {"baseline": claims["baseline"]}})
    kept = [json.loads(Path(f"cases/baselines/{name}.json").read_text()) for name in ("broken", "fresh")]
    Path("cases/baselines/broken.json").write_text(json.dumps(kept[0] | {"figures": kept[1]["figures"]}))
    run = project.audit("--only", "broken")
    assert (run.code, run.last) == (1, "audit: not met (1): 1 drifted")


def test_bundled_cases_tell_a_broken_model_from_a_broken_dictionary(project: Project, root: Path) -> None:
    """Two of the cases in cases/, without what takes long. Of a model whose weights are noise nothing reproduces;
    through an SAE whose directions are next to nothing the failure is there, and no steering corrects it."""
    sae = project.folder / "faint"
    shutil.copytree(paths.bundled("sketchworld/vision.3"), sae)
    (file,) = sae.glob("*.safetensors")
    tensors = load_file(file)
    file.chmod(0o644)
    save_file(tensors | {"W_dec": tensors["W_dec"] / 1000}, file)
    for name, broken in (("sitting-on-a-bench", {"model": str(project.folder / "noise")}),
                         ("standing-beside-a-chair", {"sae": str(sae)})):  # fmt: skip
        case = yaml.safe_load((root / "cases" / f"{name}.yaml").read_text())
        claims = {key: case["expect"][key] for key in ("before", "after")}
        for outcome in claims["after"].values():
            outcome.pop("p", None)
        short = {key: value for key, value in case.items() if key not in ("sweep", "rephrase", "story")}
        short["steer"] = {key: value for key, value in case["steer"].items() if key in claims["after"]}
        project.write(name, short | broken | {"controls": {"draws": 0}, "diagnose": False, "expect": claims})
    broken_model(project.folder / "noise")
    run = project.audit("--json", "audit.json")
    told = {one["id"]: one["verdict"] for one in json.loads(Path("audit.json").read_text())["cases"]}
    assert told == {"sitting-on-a-bench": "not reproduced", "standing-beside-a-chair": "not corrected"}
    assert (run.code, run.last) == (1, "audit: not met (1): 1 not reproduced, 1 not corrected")


def test_the_bundled_audit_is_met_by_what_is_committed(project: Project, root: Path) -> None:
    run = project.check(str(root / "cases"), "--recordings", str(root / "site" / "recordings"), "--no-history")
    assert run.code == 0, run.out
    assert run.last.startswith("audit: met (0): ")


def test_the_action_ends_as_the_audit_does(project: Project, root: Path) -> None:
    """The script of action.yml, as a runner would run it."""
    action = yaml.safe_load((root / "action.yml").read_text())
    (step,) = [one for one in action["runs"]["steps"] if one.get("id") == "audit"]
    assert "${{" not in step["run"]  # no input is ever read as code
    project.case("met", holds(project))
    project.case("unmet", {"before": {"answer": {"lacks": project.figure("before.answer")}}})
    (project.folder / "site" / "recordings" / "met" / "notebook.ipynb").unlink(missing_ok=True)
    folder = project.folder / "runner"
    folder.mkdir()
    fake = project.folder / "bin"
    fake.mkdir()
    assert "vsp-report build" not in step["run"]  # a page that cannot be built does not stand for what was measured
    (fake / "vsp-report").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vsp_report "$@"\n')
    (fake / "vsp-report").chmod(0o755)
    given = {name.upper().replace("-", "_"): str(one["default"]) for name, one in action["inputs"].items()}
    given |= {"FROM_RECORDINGS": "true", "RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(folder / "output"),
              "PATH": f"{fake}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(root)}  # fmt: skip
    (project.folder / "slip.yaml").write_text("titel: a\nseed: x\n")
    for cases, only, code, said in (
        ("cases", "met", 0, "audit: met (0): 1 confirmed"),
        ("cases", "unmet", 1, "audit: not met (1): 1 not reproduced"),
        ("cases", "*", 1, "audit: not met (1): 1 not reproduced, 1 confirmed"),
        ("cases", "no-such", 5, "audit: no cases selected (5)"),
        ("slip.yaml", "", 2, "error: slip.yaml:1: titel is unknown. Did you mean title?"),
    ):
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        env = {**os.environ, **given, "CASES": cases, "ONLY": only}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        told = dict(line.split("=", 1) for line in (folder / "output").read_text().splitlines())
        assert told["code"] == str(code) and told["said"].startswith(said), told
        if code != 2:
            assert all((Path(told["reports"]) / name).is_file() for name in ("audit.xml", "audit.sarif", "audit.json"))
    assert "slip.yaml:2: seed is x" in done.stderr  # all that is wrong, not only the first


def test_inputs_of_the_action_are_all_used(root: Path) -> None:
    action = yaml.safe_load((root / "action.yml").read_text())
    text = (root / "action.yml").read_text()
    assert all(f"${{{{ inputs.{name} }}}}" in text for name in action["inputs"])
    assert set(action["outputs"]) == {"code", "said", "site", "reports"}
