"""Live: the site beside a running kernel."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vsp_report.cli.words import DEVICES, command, natural
from vsp_report.errors import InputError


def add(rooms: Any) -> None:
    live = command(rooms, "live", "open the site beside a running kernel, and steer by hand", _live)
    live.add_argument("case", nargs="?", default="", metavar="CASE",
                      help="the case to open (default: the index); behind a #, the state of its panel")  # fmt: skip
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

    case, _, state = args.case.partition("#")
    if args.case and not is_id(case):
        raise InputError("CASE", f"{args.case[:80]!r} is no name of a case", "Give its name, as in its address.")
    if state and not server.is_state(state):
        raise InputError("CASE", f"has a state that no panel writes: {state[:80]!r}", "Copy it again from the panel.")
    server.serve(
        server.Wanted(
            args.out,
            args.cases,
            case,
            state,
            args.port,
            not args.no_browser,
            None if args.device == "auto" else args.device,
        )
    )
    return 0
