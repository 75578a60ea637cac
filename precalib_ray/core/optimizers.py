"""Optimizers, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def learning_rate(
    schedule: Mapping[str, Any], base: float, step: int, num_steps: int | None
) -> float:
    """The learning rate of a step (from 0): linear warm-up, then ``constant``, ``linear`` or
    ``cosine`` decay to 0 at ``num_steps``, which only ``constant`` can do without.
    """
    warmup = int(schedule.get("warmup_steps", 0))
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule["kind"] == "constant":
        return base
    assert num_steps is not None, "a decaying schedule needs its end"
    share = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    return base * (
        (1 - share) if schedule["kind"] == "linear" else (1 + math.cos(math.pi * share)) / 2
    )


def build_optimizer(
    spec: Mapping[str, Any], parameters: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """``sgd``, ``adam`` or ``adamw``, fused."""
    common = {"lr": spec["lr"], "weight_decay": spec.get("weight_decay", 0.0), "fused": True}
    if spec["kind"] == "sgd":
        momentum, nesterov = spec.get("momentum", 0.0), spec.get("nesterov", False)
        return torch.optim.SGD(parameters, momentum=momentum, nesterov=nesterov, **common)
    optimizer = torch.optim.Adam if spec["kind"] == "adam" else torch.optim.AdamW
    return optimizer(parameters, betas=tuple(spec.get("betas", (0.9, 0.999))), **common)
