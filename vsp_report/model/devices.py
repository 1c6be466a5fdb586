"""Devices: what a model runs on, for the record, and the random numbers of everything that runs there."""

from __future__ import annotations

import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from vsp_report.errors import InputError


class Device(NamedTuple):
    kind: str
    """cpu, or cuda with its architecture: cuda sm_90"""
    name: str
    dtype: str


def device_of(model: nn.Module) -> Device:
    dtype = str(model.dtype).removeprefix("torch.")
    if model.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(model.device)
        return Device(f"cuda sm_{major}{minor}", torch.cuda.get_device_name(model.device), dtype)
    return Device(model.device.type, platform.processor() or platform.machine(), dtype)


def check_device(word: str) -> None:
    """Before anything is drawn or read: that there is such a device."""
    if word.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device", f"is {word}, and torch finds none", "Take cpu or auto.")


@contextmanager
def without_progress() -> Iterator[None]:
    """Load without a bar: a notebook would keep it, with the speed of this machine on this day."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def seed_everything(seed: int) -> None:
    """After loading: loading draws random numbers too, and not as many the second time."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
