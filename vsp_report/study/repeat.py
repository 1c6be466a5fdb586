"""Repeat: the same case with other seeds, so that an audit can say how often a claim is met.

A seed decides which controls are drawn, how an untrained SAE begins, which latents are tried one by one, and where
k-means starts, and so which latents a steering by cluster finds. Answers do not change with it: decoding is greedy, and
the picture is the same. So what was seen of the model as it is, is kept; latents are grouped, found, edited and
compared again.
"""

from __future__ import annotations

from dataclasses import replace

from vsp_report.model.devices import seed_everything
from vsp_report.recording import Repeated
from vsp_report.study import evidence
from vsp_report.study.inquiry import Inquiry, step


@step("repeat")
def repeat(inquiry: Inquiry) -> tuple[Repeated, ...]:
    """The figures of one more run for each seed that the case's expectation names, its own left out."""
    asked_for, own = inquiry.case.expect.repeat, inquiry.case.seed
    found: list[Repeated] = []
    try:
        for seed in (one for one in (asked_for.seeds if asked_for else ()) if one != own):
            inquiry.step = f"repeat with seed {seed}"
            found.append(Repeated(seed, _again(inquiry, seed)))
            inquiry.repeats = tuple(found)
    finally:
        seed_everything(own)
    return inquiry.repeats


def _again(inquiry: Inquiry, seed: int) -> dict[str, float | str | None]:
    again = replace(inquiry, case=replace(inquiry.case, seed=seed), heat=None, resolved={}, steered=(), repeats=(),
                    minimal=None, diagnosis=None)  # fmt: skip
    seed_everything(seed)
    diagnosed = (evidence.diagnose,) if inquiry.case.expect.diagnosis else ()
    for one in (evidence.cluster, evidence.steer_all, *diagnosed):
        one(again)
    return again.recording().figures()
