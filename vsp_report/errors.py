"""Errors: everything a user can get wrong, as one tree. Each says place, fault and remedy in one line.

VspError                  exit code 3: it could not run
├── InputError            exit code 2: the user's mistake, and every class below it
│   ├── CaseError         a case file, or something a case file names
│   ├── ImageError        a picture that is missing, unreadable or too large
│   ├── ModelError        a model directory or id that cannot be used
│   ├── CheckpointError   a sparse autoencoder that cannot be read, or does not fit its tap
│   └── SteeringError     an edit that cannot be made: latent out of range, strength not finite
└── MissingExtra          an optional package is absent; the remedy is the command that installs it
"""

from __future__ import annotations


class VspError(Exception):
    """`place`: what is wrong where; `fault`: what is wrong; `remedy`: what to do about it."""

    exit_code = 3

    def __init__(self, place: str, fault: str, remedy: str = "") -> None:
        self.place, self.fault, self.remedy = str(place), fault, remedy
        super().__init__(str(place), fault, remedy)

    def __str__(self) -> str:
        fault = self.fault if self.fault.endswith((".", "!", "?")) else self.fault + "."
        return " ".join(part for part in (f"{self.place}: {fault}", self.remedy) if part)


class InputError(VspError):
    exit_code = 2


class CaseError(InputError):
    pass


class ImageError(InputError):
    pass


class ModelError(InputError):
    pass


class CheckpointError(InputError):
    pass


class SteeringError(InputError):
    pass


class MissingExtra(VspError):
    pass
