"""Teams: several processes, each with a GPU of its own, that train the same weights. accelerate does the talking.

It is an extra (`train`), imported when a team is asked for; one process alone needs none. Who starts the processes
(`accelerate launch`, `torchrun`) is not our business.
"""

from __future__ import annotations

from typing import Any

import torch

from vsp_report.errors import MissingExtra


class Accelerated:
    """A Team of all processes that were launched together."""

    def __init__(self, cpu: bool = False) -> None:
        try:
            import accelerate
            from accelerate.utils import gather_object
        except ImportError as error:
            fault = "needs the package accelerate, which is not installed"
            raise MissingExtra("--accelerate", fault, "pip install 'vsp-report[train]'") from error
        self._accelerator, self._gather = accelerate.Accelerator(cpu=cpu), gather_object
        self.size, self.rank = self._accelerator.num_processes, self._accelerator.process_index

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._accelerator.reduce(tensor, "mean")

    def any(self, flags: torch.Tensor) -> torch.Tensor:
        return self._accelerator.reduce(flags.float(), "sum") > 0

    def gathered(self, value: Any) -> list[Any]:
        """What every process gives, in the order of their ranks."""
        return self._gather([value])

    def close(self) -> None:
        self._accelerator.end_training()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
