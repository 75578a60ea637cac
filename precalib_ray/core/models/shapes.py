"""Check that a model accepts inputs of its declared shape, without computing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precalib_ray.core.lazy import torch
from precalib_ray.core.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor, nn

_USUAL_SIZES = (32, 64, 224, 299)


class ShapeError(ValueError):
    """The model refuses its input shape."""


def check_input(settings: Model, *, device: str = "meta") -> None:
    """Run a forward pass with inputs of the declared shape, as a rule on the device ``meta``.

    Raises:
        ShapeError: the model refuses the shape; the message names one that it accepts, if one
            of the usual sizes is.
        ValueError: the model cannot be built.
    """
    shape = settings.input_shape
    model = settings.build(seed=0, device=device).eval()
    failure = _try_shape(model, shape, settings.num_classes, device)
    if failure is None:
        return
    first = next((m for m in model.modules() if isinstance(m, torch.nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    for size in _USUAL_SIZES:
        taken = (channels, size, size)
        if _try_shape(model, taken, settings.num_classes, device) is None:
            raise ShapeError(f"the model refuses inputs of shape {shape}; it takes {taken}")
    raise ShapeError(f"the model refuses inputs of shape {shape}: {failure}")


def _try_shape(
    model: nn.Module, shape: tuple[int, ...], num_classes: int, device: str
) -> str | None:
    """The reason why inputs of this shape are refused; None if they are accepted."""
    try:
        with torch.no_grad():
            require_logits(model(torch.zeros(2, *shape, device=device)), (2, num_classes))
    except Exception as error:  # a model may raise anything
        return None if needs_values(error) else explain(error)
    return None


def require_logits(output: object, shape: tuple[int, int]) -> Tensor:
    """The output of a model, if it is logits (B, K) of this shape; otherwise raises ValueError."""
    if isinstance(output, torch.Tensor) and output.shape == shape:
        return output
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    raise ValueError(f"its output is {got}, not (batch, {shape[1]})")


def needs_values(error: Exception) -> bool:
    """Whether a pass failed because tensors have no values on the device ``meta``: then it is not
    known whether it fails elsewhere.
    """
    return "meta tensor" in str(error).lower()


def explain(error: Exception) -> str:
    """Why a user's or a library's code failed, in one line."""
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")
