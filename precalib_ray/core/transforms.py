"""Preprocessing of uint8 images to model inputs, and augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def to_input(
    images: Tensor,
    *,
    shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Scale to [0, 1], standardize each channel, resize, repeat gray over the channels.

    Resizing is bilinear with antialiasing. Color is never made gray: a model that takes one
    channel was meant for other data.

    Args:
        images: (N, C, H, W) uint8.
        shape: shape of one input: (C', H', W') with C' = C or C = 1, or (C · H · W,) if flat.
        mean: mean per channel of the images, of values in [0, 1].
        std: standard deviation, likewise.
        dtype: dtype of the result; the arithmetic is float32.

    Returns:
        (N, *shape)

    Raises:
        ValueError: the images cannot be converted to ``shape``.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images must be uint8 (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}"
        )
    given, wanted = tuple(images.shape[1:]), tuple(shape)
    if not len(mean) == len(std) == given[0]:
        raise ValueError(
            f"mean and std must have one number per channel of {given}, got {len(mean)} and "
            f"{len(std)}"
        )
    is_flat = len(wanted) == 1
    if is_flat and math.prod(given) != wanted[0]:
        raise ValueError(f"images of shape {given} cannot be flattened to input shape {wanted}")
    if not is_flat and (len(wanted) != 3 or given[0] not in (1, wanted[0])):
        raise ValueError(f"images of shape {given} cannot be converted to input shape {wanted}")

    def per_channel(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1)

    inputs = images.to(torch.float32).div_(255).sub_(per_channel(mean)).div_(per_channel(std))
    if is_flat:
        return inputs.flatten(start_dim=1).to(dtype)
    if given[1:] != wanted[1:]:
        inputs = F.interpolate(inputs, size=wanted[1:], mode="bilinear", antialias=True)
    return inputs.to(dtype).expand(-1, *wanted).contiguous()


def augment(images: Tensor, *, generator: torch.Generator, crop_padding: int, flip: bool) -> Tensor:
    """Shift each image at random within a black border, and mirror half of them.

    A pure function of the images and the state of ``generator``, which it advances.

    Args:
        images: (N, C, H, W) of any dtype.
        generator: on any device.
        crop_padding: width of the border in pixels; shifts are uniform over -padding..padding in
            each direction.
        flip: whether to mirror left and right, with probability 1/2 for each image.

    Returns:
        Like ``images``.
    """
    if images.ndim != 4 or crop_padding < 0:
        raise ValueError(
            f"images must be (N, C, H, W) and crop_padding not negative, got shape "
            f"{tuple(images.shape)} and {crop_padding}"
        )
    num, _, height, width = images.shape

    def draw(high: int) -> Tensor:
        drawn = torch.randint(high, (num, 1), generator=generator, device=generator.device)
        return drawn.to(images.device)

    rows = draw(2 * crop_padding + 1) + torch.arange(height, device=images.device)  # (N, H)
    columns = draw(2 * crop_padding + 1) + torch.arange(width, device=images.device)  # (N, W)
    if flip:
        columns = torch.where(draw(2).bool(), columns.flip(dims=(1,)), columns)
    padded = F.pad(images, (crop_padding,) * 4)
    sample = torch.arange(num, device=images.device)
    picked = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return picked.permute(0, 3, 1, 2).contiguous()
