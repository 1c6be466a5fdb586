"""Site: recordings become pages, and pages are shown and published."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vsp_report.cli.words import command, counted, natural, said
from vsp_report.errors import InputError


def add(rooms: Any) -> None:
    make = command(rooms, "build", "make the site from recordings; only what is stale is made again", build)
    make.add_argument("--recordings", type=Path, metavar="DIR", help="(default: the folder recordings in --out)")
    make.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="(default: %(default)s)")
    make.add_argument("--templates", type=Path, metavar="DIR", help="templates of your own, before the bundled")
    make.add_argument("--force", action="store_true", help="make every page again, over any file in the way")
    serve = command(rooms, "serve", "show the site in a browser on this machine", _serve)
    serve.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="(default: %(default)s)")
    serve.add_argument(
        "--port", type=natural, default=8000, metavar="N", help="0 finds a free one (default: %(default)s)"
    )

    publish = command(rooms, "publish", "push the site to GitHub Pages", _publish)
    publish.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="(default: %(default)s)")
    publish.add_argument("--remote", default="origin", metavar="NAME", help="(default: %(default)s)")
    publish.add_argument("--branch", default="gh-pages", metavar="NAME", help="(default: %(default)s)")
    publish.add_argument("--dry-run", action="store_true", help="say what would be pushed, and push nothing")
    command(rooms, "init-ci", "write GitHub workflows that publish the site and audit the cases", _init_ci)


def build(args: argparse.Namespace) -> int:
    from vsp_report.render import site

    recordings = args.recordings or args.out / site.RECORDINGS
    built = site.build(recordings, args.out, force=args.force, templates=args.templates)
    for fault in built.faults:
        said(str(fault), fault.exit_code)
    changed = f"{counted(len(built.written), 'part')} written" if built.written else "nothing was stale"
    print(f"{args.out / 'index.html'}: {counted(built.cases, 'case')}, {changed}")
    return InputError.exit_code if built.faults else 0


def _serve(args: argparse.Namespace) -> int:
    from vsp_report.render import preview

    def say(address: str) -> None:
        print(f"serving {args.out} at {address} (Ctrl-C ends it)", flush=True)

    preview.serve(args.out, args.port, say)
    return 0


def _publish(args: argparse.Namespace) -> int:
    from vsp_report import hosting

    sent = hosting.parcel(args.out, args.remote, args.branch)
    what = f"{counted(sent.files, 'file')}, {sent.size_bytes / 2**20:.1f} MiB, to {sent.branch} of {sent.address}"
    if args.dry_run:
        print(f"would publish {what}")
        return 0
    hosting.push(sent)
    print(f"published {what}")
    return 0


def _init_ci(args: argparse.Namespace) -> int:
    from vsp_report import hosting

    for file in hosting.write_workflows(Path()):
        print(f"written: {file}")
    return 0
