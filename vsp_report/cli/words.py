"""Words: what is typed and what is said, the same for every command: numbers, machines, progress, errors, files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from vsp_report import paths
from vsp_report.errors import InputError

NOT_MET, COULD_NOT_RUN, INTERRUPTED = 1, 3, 130
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")

# --- errors and counts ---------------------------------------------------------------------------------------


def said(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """What is printed goes nowhere once nobody reads it any more (`… | head`); the command goes on to its own end, and
    says by its own exit code what came of it."""
    before = sys.stdout
    if before is None:  # a program without a terminal
        yield
        return
    sys.stdout = _Lasting(before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = before


class _Lasting:
    """A stream for text whose reader may go away. Only what fails in writing to it is forgiven."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._forgiven():
            self._stream.flush()

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # what is left in the buffer is flushed again as Python exits: into nothing
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def print_facts(facts: dict[str, str]) -> None:
    for name, fact in facts.items():
        print(f"{name:<22}{fact}")


# --- commands ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are ours: one line, with place, fault and remedy."""

    def error(self, message: str) -> NoReturn:
        raise InputError(self.prog, message, f"`{self.prog} --help` lists what it takes.")


def group(subparsers: Any, name: str, what: str) -> Any:
    group = subparsers.add_parser(name, help=what, description=what, allow_abbrev=False)
    return group.add_subparsers(metavar="COMMAND", required=True)


def command(subparsers: Any, name: str, what: str, run: Any) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=what, description=what, allow_abbrev=False)
    command.set_defaults(command=run)
    return command


def add_machine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=DEVICES, default="auto", help="(default: %(default)s)")
    command.add_argument("--dtype", choices=DTYPES, help="(default: float32 on a CPU, the model's own elsewhere)")


# --- numbers -------------------------------------------------------------------------------------------------


def natural(text: str) -> int:
    return _whole_number(text, least=0)


def positive(text: str) -> int:
    return _whole_number(text, least=1)


def seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return found


def share(text: str) -> float:
    """0.6, 60% or 3/5"""
    try:
        if text.endswith("%"):
            found = float(text[:-1]) / 100
        else:
            part, _, whole = text.partition("/")
            found = float(part) / float(whole or 1)
    except (ValueError, ZeroDivisionError):
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 0.6, 60% or 3/5")
    return found


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} upwards")
    return number


# --- models --------------------------------------------------------------------------------------------------


def bundled_or_path(name: str) -> Path | str:
    return paths.bundled(name) or name


def quiet() -> None:
    """Libraries are asked to keep their bars and advice to themselves. They read this once, when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


# --- progress and files --------------------------------------------------------------------------------------


class Bar:
    """How far a long part is, how fast, and how long still; on a terminal only, and gone when it is done."""

    def __init__(self, total: int = 0, what: str = "") -> None:
        self.total, self.what, self.done, self.fresh, self.rate = total, what, 0, 0, 0.0
        self.before: int | None = None
        self.shown, self.begun = sys.stderr.isatty(), time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def at(self, done: int | None = None, total: int | None = None, fresh: int | None = None) -> None:
        """One more, or so many; `fresh`: those that are not of an earlier run (default: all since the first)."""
        self.done = self.done + 1 if done is None else done
        self.total = self.total if total is None else total
        self.before = self.done - 1 if self.before is None else self.before
        self.fresh = self.done - self.before if fresh is None else fresh
        self.rate = self.fresh / max(time.monotonic() - self.begun, 1e-9)
        filled = 30 * self.done // max(self.total, 1)
        left = f", {_span((self.total - self.done) / self.rate)} left" if self.fresh and self.done < self.total else ""
        bar = "#" * filled + "." * (30 - filled)
        self.says(f"{bar} {self.done} of {self.total} {self.what}, {self.rate:.1f}/s{left}")

    def says(self, text: str) -> None:
        if self.shown:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"


def check_writable(path: Path | None) -> None:
    """What cannot be written is said before the long part."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError(path, "is a folder", "Name a file in it.")
    if not folder.is_dir():
        raise InputError(path, "its folder does not exist", "Make it first.")
    if not os.access(folder, os.W_OK):
        raise InputError(path, "its folder may not be written to", "Name a file elsewhere.")


def wants_github(args: argparse.Namespace) -> bool:
    """Whether annotations and a summary are asked for: by a word, or by where it runs."""
    return args.github or (args.github is None and os.environ.get("GITHUB_ACTIONS") == "true")


def append_summary(text: str) -> None:
    if place := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(place, "a", encoding="utf-8") as file:
            file.write(text)


def check_folder(path: Path, option: str = "--out") -> None:
    """Of a folder that may have to be made: that no file stands where it, or one above it, is to be."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            remedy = "Name another place, or move it away."
            raise InputError(option, f"{place} is a file, and a folder is wanted", remedy)


def write_json(path: Path, data: object) -> None:
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Whole or absent: written beside its place, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
