"""Rows: one row of a data set becomes a small recording: the answer, its margin, a small picture, and where the answer
is not right, which failure mode that is.

    inquiry = evidence.open_case(case_path, out_dir)
    answer(inquiry)        what the model says
    explain(inquiry)       of a wrong answer, the failure mode with its evidence
    save(inquiry)          the recording, without what pages of single cases show

A thousand rows are a thousand of these, so no attention, no latents and no arrays are kept; a row that deserves a page
of its own is made a case.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from vsp_report.recording import Answered, Arrays, Diagnosis, Picture, save_recording
from vsp_report.study.inquiry import Inquiry, step

PICTURE_PX = 160
"""The longer side of the picture that is kept."""


@step("answer")
def answer(inquiry: Inquiry) -> Answered:
    found = inquiry.subject.answers([])
    inquiry.clean, inquiry.reconstructed = found.clean, found.reconstructed
    return inquiry.clean


@step("diagnose")
def explain(inquiry: Inquiry, wanted: bool = True) -> Diagnosis | None:
    """None where it is not wanted, or where the right answer is given."""
    from vsp_report.study.diagnose import diagnose, verdict

    contrast = inquiry.case.contrast
    if not wanted or verdict(inquiry.clean, contrast.right, contrast.wrong) == "right":
        return None
    inquiry.looked = inquiry.subject.look()
    inquiry.diagnosis = diagnose(inquiry.subject, inquiry.ranks, inquiry.clean, (), inquiry.case.seed)
    return inquiry.diagnosis


@step("save")
def save(inquiry: Inquiry) -> Path:
    inquiry.looked = None  # and with it everything that is shown of latents
    small = inquiry.seen.image.copy()
    small.thumbnail((PICTURE_PX, PICTURE_PX))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=4)
    name = "images/small.webp"
    picture = Picture(name, *small.size, inquiry.case.title)
    found = getattr(inquiry, "diagnosis", None)
    recording = replace(inquiry.recording(), diagnosis=found, arrays=Arrays(), image=picture)
    return save_recording(inquiry.folder, recording, {name: buffer.getvalue()})
