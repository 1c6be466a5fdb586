"""Audit: the bundled audit anew, as continuous integration runs it, and what it says once the model is broken.

    whole     `vsp-report audit --force --jobs 2` of the cases, into an empty folder
    broken    the same command for those that were confirmed, by a copy of the package whose models have noise on every
              weight that makes words: `--noise` times the weights' own spread, 2 by default. (With 1 the language
              model still names 85 % of the animals.)

Nothing of a case is changed for the second: the same names, claims and baselines, with other weights under the names.
A confirmed case that is confirmed there too claims something that a model of noise fulfils.

    OMP_NUM_THREADS=1 python benchmarks/audit.py [CASE ...] [--jobs 2] [--noise 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vsp_report import paths

ROOT = Path(__file__).resolve().parents[1]
WORDS = {"sketchworld": ("language_model",), "clip": ("text_model", "text_projection")}
"""What makes words, in each of the two models."""


def audit(checkout: Path, cases: list[str], site: Path, jobs: int) -> dict:
    """What one audit came to: code, last line, verdicts, and seconds."""
    told = site.with_suffix(".json")
    words = ["audit", "--force", "--jobs", str(jobs), "--out", str(site), "--json", str(told), "--no-github"]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    began, before = time.monotonic(), cpu_seconds()
    run = subprocess.run([sys.executable, "-m", "vsp_report", *words, "--", *cases], cwd=checkout, env=env, text=True,
                         stdout=subprocess.PIPE)  # fmt: skip
    wall, cpu = time.monotonic() - began, cpu_seconds() - before
    if not told.is_file():
        raise SystemExit(f"the audit ended with {run.returncode} and no account")
    found = json.loads(told.read_text())
    within = {
        one["id"]: {"verdict": one["verdict"], "why": one["why"], "wall_seconds": one["seconds"]}
        for one in found["cases"]
    }
    ran = sum(one["verdict"] != "not run" for one in within.values())
    return {
        "code": run.returncode, "last_line": run.stdout.strip().splitlines()[-1], "cases": within, "ran": ran,
        "wall_seconds": wall, "cpu_seconds": cpu, "wall_seconds_per_case": wall / max(ran, 1),
        "cpu_seconds_per_case": cpu / max(ran, 1),
    }  # fmt: skip

UNJUDGED = ("error", "not run")
"""Nothing is said of such a case's claims: of a model that answers with its own image token, for one."""


def cpu_seconds() -> float:
    """Of every process that was started from here and has ended, kernels too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def broken_copy(folder: Path, noise: float) -> Path:
    """The package, its templates and cases, with noise on what makes words."""
    for name in ("vsp_report", "templates", "cases"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    torch.manual_seed(0)
    weights = folder / paths.weights_dir().relative_to(ROOT)
    for model, parts in WORDS.items():
        for file in sorted((weights / model).glob("*.safetensors")):
            tensors = load_file(file)
            for name, tensor in tensors.items():
                if name.startswith(parts) and tensor.ndim > 1:
                    added = noise * tensor.float().std() * torch.randn(tensor.shape)
                    tensors[name] = (tensor.float() + added).to(tensor.dtype)
            save_file(tensors, file, {"format": "pt"})
    return folder


def told(name: str, found: dict) -> None:
    counts = f"{found['ran']} of {len(found['cases'])} cases ran"
    print(f"{name}: {counts}, code {found['code']}, {found['wall_seconds']:.0f} s, {found['cpu_seconds']:.0f} CPU s; "
          f"a case {found['wall_seconds_per_case']:.1f} s, {found['cpu_seconds_per_case']:.1f} CPU s")  # fmt: skip
    print(f"    {found['last_line']}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the bundled audit, of the bundled models and of broken ones")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="(default: all of cases/)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--noise", type=float, default=2.0, metavar="X", help="times the spread of a weight's own "
                        "values (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        whole = audit(ROOT, [f"cases/{name}.yaml" for name in args.cases] or ["cases"], place / "whole", args.jobs)
        told("whole", whole)
        confirmed = [id for id, one in whole["cases"].items() if one["verdict"] == "confirmed"]
        if not confirmed:
            print("nothing is confirmed, so that nothing can break")
            return 1
        copy = broken_copy(place / "checkout", args.noise)
        broken = audit(copy, [f"cases/{id}.yaml" for id in confirmed], place / "broken", args.jobs)
        told("broken", broken)
    verdicts = Counter(one["verdict"] for one in broken["cases"].values())
    judged = sum(count for verdict, count in verdicts.items() if verdict not in UNJUDGED)
    failing = judged - verdicts["confirmed"]
    print(f"{failing} of {judged} confirmed cases that could be judged fail with the broken models:")
    for id, one in broken["cases"].items():
        print(f"    {one['verdict']:15} {id}: {one['why']}")
    ratios = {
        "share_confirmed_of_ran": len(confirmed) / max(whole["ran"], 1),
        "share_failing_when_broken": failing / max(judged, 1),
        "share_judged_when_broken": judged / len(confirmed),
        "cpu_ratio_to_wall": whole["cpu_seconds"] / whole["wall_seconds"],
    }
    for name, ratio in ratios.items():
        print(f"{name} = {ratio:.3f}")
    if args.json:
        asked = {"jobs": args.jobs, "noise": args.noise, "cpus": os.cpu_count(),
                 "threads": os.environ.get("OMP_NUM_THREADS", "")}  # fmt: skip
        found = {**ratios, "verdicts_when_broken": dict(verdicts), "whole": whole, "broken": broken, "asked": asked,
                 "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if whole["code"] == 0 and failing == judged > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
