"""Survey's leftovers: work folders of surveys that have ended, and of those that nobody went on with.

They lie hidden beside the atlases, inside a site, and may hold gigabytes. What can still go on stays, and is told of;
what cannot is cleared: a survey whose atlases are written, and one that another version of the package began, once
nobody has touched it for a day.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vsp_report.atlas.folder import IDLE_SECONDS
from vsp_report.study.survey_plan import KEY, WORK, Plan, this_package

DONE = "done"
"""A file of this name says that a work folder's atlases are written."""


class Leftover(NamedTuple):
    folder: Path
    size_bytes: int
    of: str
    """pictures and model"""


def forget(plan: Plan) -> None:
    """Clear the work folder of a survey whose atlases are written."""
    with suppress(OSError):
        (plan.folder / DONE).touch()
        shutil.rmtree(plan.folder)


def leftovers(parent: Path, but: Path) -> list[Leftover]:
    """The work folders beside this one that may still go on; the others are cleared."""
    return [one for folder in sorted(parent.glob(f"{WORK}*")) if folder != but for one in _left(folder)]


def told(left: Sequence[Leftover]) -> str:
    """What a user is to know of them; empty where there are none."""
    if not left:
        return ""
    size = sum(one.size_bytes for one in left) / 2**20
    many = f"{len(left)} surveys have" if len(left) > 1 else "a survey has"
    folders = ", ".join(f"{one.folder.name} ({one.of})" for one in left)
    return (f"{many} not ended in {left[0].folder.parent}, {size:.1f} MiB: {folders}; the command that began one "
            "goes on with it, or remove the folder")  # fmt: skip


def _left(folder: Path) -> Iterator[Leftover]:
    sizes, touched = [], 0.0
    for file in folder.rglob("*"):
        with suppress(OSError):  # a running survey's files come and go
            stat = file.stat()
            sizes.append(stat.st_size)
            touched = max(touched, stat.st_mtime)
    try:
        facts = json.loads((folder / KEY).read_text(encoding="utf-8"))
        of, goes_on = str(facts["of"]), facts["package_sha"] == this_package()
    except (OSError, ValueError, KeyError, TypeError):
        of, goes_on = "of what, is not known", False
    if (folder / DONE).exists() or (not goes_on and time.time() - touched > IDLE_SECONDS):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        yield Leftover(folder, sum(sizes), of)
