"""Sources: what a recording was made of, held against what is there now.

A picture's file is compared by its bytes, whatever its name; a model or an SAE that is a folder here, bundled or of the
user's own, by all of its files. What is not here, or is a revision on a hub, cannot be compared: the recording is
believed. Scenes and charts need no comparison, for they are drawn from the case's own words.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from vsp_report import paths
from vsp_report.errors import InputError
from vsp_report.recording import Recording, file_sha, folder_sha

_SHA_DIGITS = 64
"""A hash of files has so many; the commit of a hub has fewer."""


def replaced(recording: Recording, picture: Path | None) -> str:
    """What is another one now than the recording was made of, in words; empty where nothing is known to be.
    `picture`: the file that is asked of now."""
    made = recording.provenance
    if picture is not None and made.image_sha and picture.is_file() and made.image_sha != _sha(picture):
        return f"another picture than {picture.name} is now"
    if recording.status != "ok":  # of a run that stopped it may not be known
        return ""
    case = recording.asked()
    for what, name, sha in (("model", case.model, made.model_sha), ("SAE", case.sae, made.sae_sha)):
        place = paths.bundled(name) or Path(name)
        if len(sha) == _SHA_DIGITS and place.exists() and sha != _sha(place):
            return f"another {what} than {name} is now"
    return ""


def _sha(place: Path) -> str:
    try:
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        states = [(str(file), (found := file.stat()).st_mtime_ns, found.st_size) for file in files]
        return _sha_of(os.path.abspath(place), tuple(states))
    except OSError as error:
        raise InputError(str(place), f"cannot be read ({error.strerror})", "Make it readable.") from error


@lru_cache(maxsize=64)
def _sha_of(place: str, states: tuple) -> str:
    """Once for all cases of a model. `states`: so that other files are not taken for it."""
    return folder_sha(Path(place)) if os.path.isdir(place) else file_sha(Path(place))
