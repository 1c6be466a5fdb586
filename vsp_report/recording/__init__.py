"""Recording: what was seen. Frozen values that pages, audits and the live panel read without torch.

    parts    the values
    plain    values <-> JSON data, and JSON Schema
    folder   a recording on disk, whole or absent
    keys     content hashes: what must run again, what must be shown again
"""

from vsp_report.recording.folder import (
    ARRAYS,
    IMAGES,
    MANIFEST,
    NOTEBOOK,
    RECORDING,
    comparable,
    is_recorded,
    load_recording,
    recording_sha,
    recordings_in,
    restate,
    save_recording,
    scratch,
    sweep,
)
from vsp_report.recording.keys import (
    COMPUTING,
    SHOWING,
    file_sha,
    folder_sha,
    notebook_code_sha,
    package_sha,
    page_key,
    run_key,
    sha,
    sha_of,
)
from vsp_report.recording.parts import (
    SCHEMA,
    VARYING,
    Agreement,
    Answered,
    Arrays,
    Attribution,
    Classified,
    ClassScores,
    Clustering,
    Collateral,
    ControlDraws,
    Diagnosis,
    Dose,
    EditMade,
    Evidence,
    Grid,
    Heatmap,
    Latent,
    MinimalSet,
    Picture,
    Provenance,
    Recording,
    Reference,
    Repeated,
    Rephrased,
    Steered,
    Stop,
    Swept,
    Token,
)
from vsp_report.recording.plain import recording_schema

__all__ = [
    "ARRAYS", "COMPUTING", "IMAGES", "MANIFEST", "NOTEBOOK", "RECORDING", "SCHEMA", "SHOWING", "VARYING", "Agreement",
    "Answered", "Arrays", "Attribution", "ClassScores", "Classified", "Clustering", "Collateral", "ControlDraws",
    "Diagnosis", "Dose", "EditMade", "Evidence", "Grid", "Heatmap", "Latent", "MinimalSet", "Picture", "Provenance",
    "Recording", "Reference", "Repeated", "Rephrased", "Steered", "Stop", "Swept", "Token", "comparable", "file_sha",
    "folder_sha", "is_recorded", "load_recording", "notebook_code_sha", "package_sha", "page_key",
    "recording_schema", "recording_sha", "recordings_in", "restate", "run_key", "save_recording", "scratch", "sha",
    "sha_of", "sweep",
]  # fmt: skip
