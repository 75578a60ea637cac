"""What a user brings: functions that jobs import by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

import ray
import torch
from torch import Tensor, nn


def noise_turning_nan(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Gaussian noise that overflows after the first few draws of a process."""
    noise_turning_nan.calls += 1  # type: ignore[attr-defined]
    values = torch.randn(shape, generator=generator, device=device)
    return values * float("inf") if noise_turning_nan.calls > 40 else values  # type: ignore[attr-defined]


noise_turning_nan.calls = 0  # type: ignore[attr-defined]


def network_with_dropout(*, num_classes: int) -> nn.Module:
    """A small network whose training is random beyond its inputs."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, num_classes)
    )


def noise_that_fails_later(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Gaussian noise that raises for batches, and not for the two samples of a check."""
    if shape[0] > 2:
        raise RuntimeError("noise is gone")
    return torch.randn(shape, generator=generator, device=device)


def noise_that_tells_where(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Gaussian noise; a worker on a node of ``test_placement`` leaves its node's zone."""
    folder = os.environ.get("PRECALIB_TEST_ZONES")
    if folder:
        zone = ray.get_runtime_context().get_node_labels()["zone"]
        Path(folder, f"{zone}-{os.getpid()}").touch()
    return torch.randn(shape, generator=generator, device=device)


def slow_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Gaussian noise that takes its time where Ray runs, so that something can happen meanwhile."""
    if ray.is_initialized():
        time.sleep(2e-4 * shape[0])
    return torch.randn(shape, generator=generator, device=device)
