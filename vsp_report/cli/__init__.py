"""CLI: the commands. Each reads its words, calls one room, and says what came out.

A room is imported inside the command that needs it, so that `--help` never waits for torch.

Exit codes: 0 done; 1 measured, and a goal is not met; 2 the user's mistake; 3 it could not run; 130
interrupted. A crash of our own is 3 as well, not Python's 1: a job that reads 1 as "not met" must not read a
crash so.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from vsp_report import __version__
from vsp_report.cli import atlas, audit, cases, live, saes, site, world
from vsp_report.cli.words import COULD_NOT_RUN, INTERRUPTED, Parser, lasting_output, said
from vsp_report.errors import VspError


def main(argv: Sequence[str] | None = None) -> int:
    with lasting_output():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
        code = args.command(args)
        sys.stdout.flush()
        return code
    except VspError as error:
        return said(str(error), error.exit_code)
    except KeyboardInterrupt:
        return said("interrupted", INTERRUPTED)
    except OSError as error:
        if error.filename is None:  # not about a file: a library's own failure, which needs its traceback
            traceback.print_exc()
        return said(str(VspError(error.filename or "system", error.strerror or str(error))), COULD_NOT_RUN)
    except Exception as error:
        traceback.print_exc()
        return said(f"{type(error).__name__}: {error}", COULD_NOT_RUN)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vsp-report",
        description="Shows where a vision-language model goes wrong, and whether steering puts it right.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vsp-report {__version__}")
    rooms = parser.add_subparsers(metavar="COMMAND", required=True)
    for room in (cases, audit, site, live, world, saes, atlas):
        room.add(rooms)
    return parser
