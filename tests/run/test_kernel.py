"""The warm kernel: warm from case to case, empty for each, and gone after anything out of the ordinary."""

from __future__ import annotations

from vsp_report.recording import load_recording


def pid(site, id: str) -> str:
    """Which kernel recorded it: the notebook of these tests answers with its process."""
    return load_recording(site.recordings / id).clean.text


def test_one_kernel_serves_all_cases(site, ran) -> None:
    site.cases("one", "two", "three")
    assert {o.status for o in ran().values()} == {"ok"}
    assert len({pid(site, id) for id in ("one", "two", "three")}) == 1
