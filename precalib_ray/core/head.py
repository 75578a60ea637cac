"""The last layer of a classifier, and which parameters are trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
from torch import nn

from precalib_ray.core.models.base import nearest


def find_head(model: nn.Module, num_classes: int) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and module of the last linear or convolution layer with K outputs.

    Raises:
        ValueError: there is none.
    """
    found: tuple[str, nn.Linear | nn.Conv2d] | None = None
    for name, module in model.named_modules():
        if (isinstance(module, nn.Linear) and module.out_features == num_classes) or (
            isinstance(module, nn.Conv2d) and module.out_channels == num_classes
        ):
            found = name, module
    if found is None:
        raise ValueError(f"no linear or convolution layer of the model has {num_classes} outputs")
    return found


@torch.no_grad()
def scale_head(model: nn.Module, num_classes: int, factor: float) -> None:
    """Multiply weights and biases of the last layer; 0 gives the zero-head baseline."""
    _, head = find_head(model, num_classes)
    for parameter in head.parameters(recurse=False):
        parameter.mul_(factor)


def select_trainable(model: nn.Module, num_classes: int, which: str | Sequence[str]) -> None:
    """Freeze every parameter but ``all``, those of the ``head``, or those that patterns match.

    Patterns are shell-style, over the parameters' names: ``layer4.*``.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    if which == "all":
        return
    names = [name for name, _ in model.named_parameters()]
    patterns = [which] if isinstance(which, str) else list(which)
    if which == "head":
        patterns = [find_head(model, num_classes)[0] + ".*"]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = ", ".join(nearest(pattern, names)) or names[-1]
            raise ValueError(f"{pattern!r} matches no parameter; there are for example {near}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in patterns))
