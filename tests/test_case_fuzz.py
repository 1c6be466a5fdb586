"""Fuzz: five hundred damaged case files. Each is accepted, or refused with file and line; none ends in a traceback.

Whoever reads a damaged file gets the same answer every time: the damage is drawn from a seed.
"""

from __future__ import annotations

import random

import jsonschema
import pytest

from tests.test_case import plain
from vsp_report import case, paths
from vsp_report.case.source import Faults, read_source
from vsp_report.errors import CaseError

FILES = [path.read_bytes() for path in case.case_files([paths.cases_dir(), paths.templates_dir() / "cases"])]
VALUES = """
.nan -.inf 1e999 -1 0 1.5 99999999999999999999 0x10 012 1_000 true no null ~ '' "" [] {} [[]] {a: } - ? : & * ! % @ `
&a *a !!str !!python/object/apply:os.system <<: yes 2001-01-01 12:30:45 "\\u0000" "\\ud800" ../../x /x C:\\x x.png
images/x.png all {cluster: 1} {top: 3} {label: } [1, 2] [1, 1] {set: 0} --- ... # | > >- 100% 101% 1/0 5/4 {{}} 🦆 ￾
""".split()


def damaged(rng: random.Random) -> bytes:
    text = bytearray(rng.choice(FILES))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not text:
            break
        at, to = sorted((rng.randrange(len(text)), rng.randrange(len(text))))
        to = min(to, at + 80)
        lines = bytes(text).split(b"\n")
        row = rng.randrange(len(lines))
        match rng.randrange(9):
            case 0:
                text[at] = rng.randrange(256)
            case 1:
                del text[at:to]
            case 2:
                text[at:at] = text[at:to]
            case 3:
                text[at:at] = rng.choice(VALUES).encode("utf-8", "surrogatepass")
            case 4:  # a line a second time, somewhere
                lines.insert(rng.randrange(len(lines)), lines[row])
                text = bytearray(b"\n".join(lines))
            case 5:  # another indent
                lines[row] = b" " * rng.randrange(6) + lines[row].lstrip()
                text = bytearray(b"\n".join(lines))
            case 6 | 7:  # another value
                key, colon, _ = lines[row].partition(b":")
                lines[row] = key + colon + b" " + rng.choice(VALUES).encode()
                text = bytearray(b"\n".join(lines))
            case _:  # cut off
                del text[at:]
    return bytes(text)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """For each damaged file: its text, and its case or its faults."""
    rng, path = random.Random(20), tmp_path_factory.mktemp("fuzz") / "damaged.yaml"
    found = []
    for _ in range(500):
        data = damaged(rng)
        path.write_bytes(data)
        try:
            found.append((data, case.load_case(path), ()))
        except case.CaseFaults as faults:
            found.append((data, None, faults.faults))
    return path, found


def test_each_is_accepted_or_refused_with_file_and_line(outcomes) -> None:
    path, found = outcomes
    refused = [faults for _, read, faults in found if read is None]
    assert 200 < len(refused) < 490
    for data, _, faults in found:
        for fault in faults:
            place, _, line = fault.place.rpartition(":")
            assert type(fault) is CaseError and place == str(path)
            assert 1 <= int(line) <= data.count(b"\n") + 2, fault
            assert fault.fault and fault.remedy and "Traceback" not in str(fault)


def test_what_is_accepted_has_a_canonical_form(outcomes) -> None:
    for _, read, _ in outcomes[1]:
        if read is not None:
            assert case.make_case(read.resolved(), read.id) == read


def test_what_is_accepted_is_valid_by_the_schema_too(outcomes) -> None:
    """The reader is at least as strict: what the schema refuses, it refuses."""
    validator = jsonschema.Draft202012Validator(case.case_schema())
    for data, read, _ in outcomes[1]:
        if read is not None:
            validator.validate(plain(read_source(data, Faults("x"))))


def test_any_bytes_are_refused_in_words(tmp_path) -> None:
    rng, path = random.Random(7), tmp_path / "noise.yaml"
    for _ in range(100):
        path.write_bytes(bytes(rng.choice(b'{}[]:,-?&*!|>"\'%@`# \n\tab\xc3\xa90') for _ in range(rng.randrange(60))))
        with pytest.raises(case.CaseFaults) as caught:
            case.load_case(path)
        assert all(":" in fault.place and fault.remedy for fault in caught.value.faults)
