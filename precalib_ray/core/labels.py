"""Label schemes: targets for inputs that mean nothing.

A scheme is named by a spec, the plain mapping that a config holds, and drawn for a whole global
batch at once, because ``balanced`` is a property of the batch; ranks take their slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

SOFT = frozenset({"uniform", "dirichlet", "smoothed"})
"""Schemes whose targets are probabilities (B, K) rather than class ids (B,)."""


def draw(
    spec: Mapping[str, Any],
    batch_size: int,
    num_classes: int,
    *,
    generator: Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Targets of one global batch: (B,) int64 class ids, or (B, K) float32 probabilities.

    ``hard`` and ``fixed``: independent uniform ids (what is fixed, the stream repeats).
    ``balanced``: every id ``B // K`` times, the remainder on random ids, in random order.
    ``uniform``: 1/K. ``dirichlet``: Dir(alpha, ..., alpha). ``smoothed``: uniform ids with
    ``epsilon`` of the mass spread over all classes.
    """
    kind = spec["kind"]
    if kind == "uniform":
        return torch.full((batch_size, num_classes), 1 / num_classes, device=device)
    if kind == "dirichlet":
        alpha = torch.full((batch_size, num_classes), float(spec["alpha"]), device=device)
        return torch._sample_dirichlet(alpha, generator)
    if kind == "balanced":
        classes = torch.randperm(num_classes, generator=generator, device=device)
        order = torch.randperm(batch_size, generator=generator, device=device)
        return classes[torch.arange(batch_size, device=device) % num_classes][order]
    ids = torch.randint(num_classes, (batch_size,), generator=generator, device=device)
    if kind == "smoothed":
        epsilon = float(spec["epsilon"])
        one_hot = torch.nn.functional.one_hot(ids, num_classes).float()
        return one_hot.mul_(1 - epsilon).add_(epsilon / num_classes)
    return ids
