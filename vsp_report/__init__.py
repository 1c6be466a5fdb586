"""vsp_report: where a vision-language model goes wrong, and whether steering its latents puts it right.

Importing the package loads neither torch nor altair; its rooms are imported by name when they are needed, and
the few names below are looked up where they stand when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vsp_report.errors import InputError, VspError

if TYPE_CHECKING:
    from vsp_report.maths.edits import Contrast, Edit, Region, Steering
    from vsp_report.model.vlm import load_vlm
    from vsp_report.study.observe import load_sae, observe
    from vsp_report.study.steer import steer

__all__ = [
    "Contrast",
    "Edit",
    "InputError",
    "Region",
    "Steering",
    "VspError",
    "__version__",
    "load_sae",
    "load_vlm",
    "observe",
    "steer",
]

__version__ = "0.1.0.dev0"

_ROOMS = {
    "Contrast": "maths.edits",
    "Edit": "maths.edits",
    "Region": "maths.edits",
    "Steering": "maths.edits",
    "load_sae": "study.observe",
    "load_vlm": "model.vlm",
    "observe": "study.observe",
    "steer": "study.steer",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
