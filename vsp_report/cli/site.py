"""Site: recordings become pages, and pages are shown and published."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vsp_report.cli.words import command, counted, natural, said
from vsp_report.errors import InputError


def add(rooms: Any) -> None:
    make = command(rooms, "build", "make the site from recordings; only what is stale is made again", _build)
    make.add_argument("--recordings", type=Path, metavar="DIR", help="(default: the folder recordings in --out)")
    make.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="(default: %(default)s)")
    make.add_argument("--templates", type=Path, metavar="DIR", help="templates of your own, before the bundled")
    make.add_argument("--force", action="store_true", help="make every page again, over any file in the way")
    make.add_argument("--base-url", default="", metavar="URL", help="where the site is published, for shared links")
    export = command(rooms, "export", "write a case's page as one HTML file, to send or to keep", _export)
    export.add_argument("case", metavar="CASE", help="its name")
    export.add_argument(
        "--recordings", type=Path, default=Path("site/recordings"), metavar="DIR", help="(default: %(default)s)"
    )
    export.add_argument("--out", type=Path, metavar="FILE", help="(default: CASE.html)")
    export.add_argument("--templates", type=Path, metavar="DIR", help="templates of your own, before the bundled")
    export.add_argument("--base-url", default="", metavar="URL", help="where the site is, for links to its other pages")
    export.add_argument("--force", action="store_true", help="over any file in the way")
    diff = command(rooms, "diff", "write a page of what became of the cases from one site to another", _diff)
    diff.add_argument("first", type=Path, metavar="SITE_A", help="a site, or a folder of recordings")
    diff.add_argument("second", type=Path, metavar="SITE_B")
    diff.add_argument(
        "--out", type=Path, default=Path("difference.html"), metavar="FILE|DIR",
        help="one file where it ends in .html, else a folder (default: %(default)s)",
    )  # fmt: skip
    diff.add_argument("--templates", type=Path, metavar="DIR", help="templates of your own, before the bundled")
    diff.add_argument("--force", action="store_true", help="over any file in the way")
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
    ci = command(rooms, "init-ci", "write GitHub workflows that publish the site and audit the cases", _init_ci)
    ci.add_argument("--from", dest="source", metavar="SOURCE", help="where runners get vsp-report: a git address with "
                    "a tag or commit, a wheel in the repository, or NAME==VERSION (default: from where this one came, "
                    "if that was git)")  # fmt: skip
    ci.add_argument("--torch-index", default="", metavar="URL", help="where torch is without CUDA, a much smaller "
                    "download: the address of PyTorch's index for CPUs")  # fmt: skip


def _build(args: argparse.Namespace) -> int:
    return build(args.out, args.recordings, force=args.force, templates=args.templates, base_url=args.base_url)


def build(out: Path, recordings: Path | None = None, **how: Any) -> int:
    """Build, and say what came of it. `how`: as `render.site.build` takes it."""
    from vsp_report.render import site

    built = site.build(recordings or out / site.RECORDINGS, out, **how)
    for fault in built.faults:
        said(str(fault), fault.exit_code)
    changed = f"{counted(len(built.written), 'part')} written" if built.written else "nothing was stale"
    print(f"{out / 'index.html'}: {counted(built.cases, 'case')}, {changed}")
    return InputError.exit_code if built.faults else 0


def _export(args: argparse.Namespace) -> int:
    from vsp_report.render import export

    out = args.out or Path(f"{args.case}.html")
    made = export.export_case(args.case, args.recordings, templates=args.templates, base_url=args.base_url)
    export.save_alone(out, made.html, force=args.force)
    print(f"written: {out}, {len(made.html) / 1e6:.1f} MB")
    if len(made.html) > export.HEAVY_BYTES:
        most = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in made.heaviest[:3])
        warning = f"{out}: larger than {export.HEAVY_BYTES / 1e6:.0f} MB, which many will not take. Most of it: {most}."
        print("warning:", warning, file=sys.stderr)
    return 0


def _diff(args: argparse.Namespace) -> int:
    from vsp_report.render import difference

    found, files = difference.difference_page(args.first, args.second, args.templates)
    page = difference.save_difference(args.out, files, force=args.force)
    for fault in found.faults:
        said(fault, InputError.exit_code)
    counts = [f"{len(changes)} {kind}" for kind, changes in found.changes.items() if changes]
    print(f"{page}: {', '.join([*counts, f'{len(found.same)} as before'])}")
    return InputError.exit_code if found.faults else 0


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

    written = hosting.write_workflows(Path(), args.source, args.torch_index)
    for file in written.files:
        print(f"written: {file}")
    print(f"runners install vsp-report from {written.source}")
    if not written.torch_index:
        print("and torch as their index has it, which may be with CUDA; --torch-index names one without")
    return 0
