"""vsp_report: where a vision-language model goes wrong, and whether steering its latents puts it right.

Importing the package loads neither torch nor altair; its rooms are imported by name when they are needed.
"""

from vsp_report.errors import InputError, VspError

__all__ = ["InputError", "VspError", "__version__"]

__version__ = "0.1.0.dev0"
