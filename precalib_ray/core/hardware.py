"""The hardware of a run."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch


@dataclass(frozen=True)
class Hardware:
    """The hardware of a run."""

    device: str
    num_workers: int
    threads: int | None
    """CPU threads per worker."""

    @classmethod
    def of(cls, device: torch.device, *, num_workers: int) -> Self:
        """The hardware of this process, the same for each of ``num_workers``."""
        if device.type == "cuda":
            return cls(torch.cuda.get_device_name(device), num_workers, None)
        return cls(_cpu(), num_workers, torch.get_num_threads())


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
