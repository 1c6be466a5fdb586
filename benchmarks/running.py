"""Running: bundled cases one after another in a warm kernel, against a stock papermill kernel for each.

    start    an interpreter that imports the package and loads the model and the SAE, and asks nothing
    warm     `vsp-report run CASES`, the model loaded once
    cold     `vsp-report run --cold CASES`

Both ways run in this order of cases, in processes of their own, into folders of their own; then recordings are compared
in pairs, without what two equal runs may differ in. A ratio of the two says how much of a run is the kernel's start:
what the case itself takes, controls and all, both ways take. So the kernel's share is printed beside it.

    OMP_NUM_THREADS=1 python benchmarks/running.py [CASE ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vsp_report.recording import comparable, load_recording

CASES = ("cup-on-a-mitten", "standing-beside-a-bench", "goat-pig", "four-topics", "goat-or-pig")
EMPTY = "from vsp_report import load_sae, load_vlm\nload_vlm('sketchworld'), load_sae('sketchworld/vision.3')\n"


def seconds(words: list[str]) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="what a warm kernel saves")
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    cases, found = list(args.cases), {}
    with tempfile.TemporaryDirectory() as folder:
        start = seconds(["-c", EMPTY])
        for way, words in (("warm", []), ("cold", ["--cold"])):
            found[way] = seconds(["-m", "vsp_report", "run", *words, "--out", f"{folder}/{way}", *cases])
        pairs = [[load_recording(Path(folder) / way / "recordings" / case) for way in found] for case in cases]
    equal = [comparable(warm) == comparable(cold) for warm, cold in pairs]
    within = sum(warm.provenance.seconds for warm, _ in pairs)
    ratios = {
        "wall_ratio_to_cold": found["warm"] / found["cold"],
        "same_recordings": sum(equal) / len(equal),
        "share_of_warm_within_cases": within / found["warm"],
        "start_wall_ratio_to_cold": start * len(cases) / found["cold"],
    }
    print(f"{len(cases)} cases: warm {found['warm']:.1f} s, cold {found['cold']:.1f} s; a start {start:.1f} s")
    for name, ratio in ratios.items():
        print(f"{name} = {ratio:.3f}")
    if args.json:
        told = {**ratios, "seconds": {**found, "start": start}, "cases": cases, "date": time.strftime("%Y-%m-%d")}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
