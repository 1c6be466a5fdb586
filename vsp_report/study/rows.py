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
from vsp_report.study import evidence
from vsp_report.study.diagnose import verdict
from vsp_report.study.inquiry import Inquiry, step

PICTURE_PX = 160
"""The longer side of the picture that is kept."""


@step("answer")
def answer(inquiry: Inquiry) -> Answered:
    found = inquiry.subject.answers([])
    inquiry.clean, inquiry.reconstructed = found.clean, found.reconstructed
    return inquiry.clean


@step("diagnose")
def explain(inquiry: Inquiry) -> Diagnosis | None:
    """None where the case asks for none, or where the right answer is given."""
    contrast = inquiry.case.contrast
    if not inquiry.case.diagnose or verdict(inquiry.clean.text, contrast, inquiry.clean.margin) == "right":
        return None
    inquiry.looked = inquiry.subject.look()
    return evidence.diagnose(inquiry)


@step("save")
def save(inquiry: Inquiry) -> Path:
    inquiry.looked = None  # and with it everything that is shown of latents
    small = inquiry.seen.image.copy()
    small.thumbnail((PICTURE_PX, PICTURE_PX))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=4)
    name = "images/small.webp"
    picture = Picture(name, *small.size, inquiry.case.title)
    recording = replace(inquiry.recording(), arrays=Arrays(), image=picture)
    return save_recording(inquiry.folder, recording, {name: buffer.getvalue()})
