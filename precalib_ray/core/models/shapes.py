"""Check that a model accepts inputs of its declared shape, without computing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precalib_ray.core.lazy import torch
from precalib_ray.core.models.base import Model

if TYPE_CHECKING:
    from torch import nn

_USUAL_SIZES = (32, 64, 224, 299)


class ShapeError(ValueError):
    """The model refuses its input shape."""


def check_input(settings: Model) -> None:
    """Run a forward pass on the device ``meta`` with inputs of the declared shape.

    Raises:
        ShapeError: the model refuses the shape; the message names one that it accepts, if one
            of the usual sizes is.
        ValueError: the model cannot be built.
    """
    shape = settings.input_shape
    model = settings.build(device="meta").eval()
    failure = _try_shape(model, shape, settings.num_classes)
    if failure is None:
        return
    first = next((m for m in model.modules() if isinstance(m, torch.nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    for size in _USUAL_SIZES:
        taken = (channels, size, size)
        if _try_shape(model, taken, settings.num_classes) is None:
            raise ShapeError(f"the model refuses inputs of shape {shape}; it takes {taken}")
    raise ShapeError(f"the model refuses inputs of shape {shape}: {failure}")


def _try_shape(model: nn.Module, shape: tuple[int, ...], num_classes: int) -> str | None:
    """The reason why inputs of this shape are refused; None if they are accepted."""
    try:
        with torch.no_grad():
            outputs = model(torch.empty(2, *shape, device="meta"))
    except Exception as error:  # a model may raise anything
        return str(error).partition("\n")[0] or type(error).__name__
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, num_classes):
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        return f"its output is {got}, not (batch, {num_classes})"
    return None
