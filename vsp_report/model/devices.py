"""Devices: what a model runs on, for the record, and the random numbers of everything that runs there."""

from __future__ import annotations

import platform
import random
from typing import NamedTuple

import numpy as np
import torch
from torch import nn


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


def seed_everything(seed: int) -> None:
    """After loading: loading draws random numbers too, and not as many the second time."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
