"""Case: what is asked. YAML in; frozen values, or faults with file, line and remedy, out. Neither torch nor numpy.

    source        text -> nodes that know their line
    kinds, words  what a value may be: reads it, describes it, writes it
    language      a case, declared once, with pictures, steerings and expectations
    files         files and folders of cases
    schema        the declaration as JSON Schema, and cases to start from
    written       a case's plain data as the text of a case file
    answers       which of a contrast's two answers a text is
"""

from vsp_report.case.expectations import (
    DIAGNOSES,
    FAILURES,
    Check,
    ControlsOutcome,
    Expectation,
    NumberIs,
    Outcome,
    Repeat,
    ShareIs,
    SteeredOutcome,
    TextIs,
    Tolerance,
)
from vsp_report.case.files import CaseFaults, Read, case_files, load_case, load_cases, make_case, read_cases
from vsp_report.case.kinds import Plain
from vsp_report.case.language import (
    Case,
    Classification,
    Contrast,
    Decoding,
    Heatmap,
    Rephrasing,
)
from vsp_report.case.pictures import ChartImage, Drawn, Image, ImageFile, Planted, Sampled, SceneImage
from vsp_report.case.schema import case_schema, templates, write_starter
from vsp_report.case.steerings import (
    AllLatents,
    ByCluster,
    ByLabel,
    ByNumber,
    ByRank,
    Controls,
    Edit,
    Latents,
    Region,
    Steering,
    Sweep,
)
from vsp_report.case.written import case_yaml

__all__ = [
    "DIAGNOSES", "FAILURES", "AllLatents", "ByCluster", "ByLabel", "ByNumber", "ByRank", "Case", "CaseFaults",
    "ChartImage", "Check", "Classification", "Contrast", "Controls", "ControlsOutcome", "Decoding", "Drawn", "Edit",
    "Expectation", "Heatmap", "Image", "ImageFile", "Latents", "NumberIs", "Outcome", "Plain", "Planted", "Read",
    "Region", "Repeat", "Rephrasing", "Sampled", "SceneImage", "ShareIs", "SteeredOutcome", "Steering", "Sweep",
    "TextIs", "Tolerance", "case_files", "case_schema", "case_yaml", "load_case", "load_cases", "make_case",
    "read_cases", "templates", "write_starter",
]  # fmt: skip
