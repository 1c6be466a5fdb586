"""Live: the site beside a running kernel."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vsp_report.cli.words import DEVICES, command, natural
from vsp_report.errors import InputError


def add(rooms: Any) -> None:
    live = command(rooms, "live", "open the site beside a running kernel, and steer by hand", _live)
    live.add_argument("case", nargs="?", default="", metavar="CASE", help="the case to open (default: the index)")
    live.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="the site (default: %(default)s)")
    live.add_argument(
        "--cases", type=Path, default=Path("cases"), metavar="DIR",
        help="where cases are, and where a round is saved as one (default: %(default)s)",
    )  # fmt: skip
    live.add_argument("--port", type=natural, default=0, metavar="N", help="(default: a free one)")
    live.add_argument("--no-browser", action="store_true", help="open none, and say what to open")
    live.add_argument("--device", choices=DEVICES, default="auto", help="(default: what the case says)")


def _live(args: argparse.Namespace) -> int:
    from vsp_report.case.files import is_id
    from vsp_report.live import server

    if args.case and not is_id(args.case):
        raise InputError("CASE", f"{args.case[:80]!r} is no name of a case", "Give its name, as in its address.")
    server.serve(
        server.Wanted(
            args.out,
            args.cases,
            args.case,
            args.port,
            not args.no_browser,
            None if args.device == "auto" else args.device,
        )
    )
    return 0
