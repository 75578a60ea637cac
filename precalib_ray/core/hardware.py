"""What a run was computed on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device, *, num_workers: int) -> dict[str, Any]:
    """Plain data: the name of the device, how many workers had one, and threads of each CPU."""
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), None
    else:
        name, threads = _cpu(), torch.get_num_threads()
    return {"device": name, "num_workers": num_workers, "threads": threads}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
