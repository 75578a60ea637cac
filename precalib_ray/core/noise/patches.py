"""``patches`` noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.noise.base import Noise
from precalib_ray.core.spec import setting
from precalib_ray.errors import SettingError

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Patches(Noise):
    """Overlapping rectangles of one color each: edges as in images."""

    kind: Literal["patches"] = "patches"
    num_patches: int = setting(32, ge=1, le=255, description="rectangles per sample")
    min_size: float = setting(
        0.1, gt=0, le=1, description="minimum side, as a fraction of the image's"
    )
    max_size: float = setting(
        1.0, gt=0, le=1, description="maximum side, as a fraction of the image's"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_size > self.max_size:
            raise SettingError("max_size", self.max_size, f"must be >= min_size, {self.min_size}")

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        """Side lengths are log-uniform; colors are standard normal per channel, and so is every
        pixel. Flat samples get intervals.
        """
        n, sample = out.shape[0], out.shape[1:]
        axes = tuple(range(2, out.dim())) or (1,)
        channels, num = sample[0] if len(sample) == 3 else 1, self.num_patches
        numbers = torch.rand((len(axes), 2, num, n), generator=generator, device=out.device)
        colors = torch.randn((n, channels, num + 1), generator=generator, device=out.device)
        covers = torch.ones((num, n, 1), dtype=torch.bool, device=out.device)
        for axis, (size_number, start_number) in zip(axes, numbers, strict=True):
            length = out.shape[axis]
            spread = math.log(self.max_size / self.min_size)
            size = self.min_size * torch.exp(size_number * spread) * length
            # Starts extend beyond both borders, so that every pixel is covered equally often.
            start = (start_number * (length + size) - size)[..., None]
            position = torch.arange(length, device=out.device) + 0.5
            along_axis = (position >= start) & (position < start + size[..., None])
            covers = (covers[..., None] & along_axis[:, :, None, :]).flatten(2)  # (P, n, pixels)
        order = torch.arange(1, num + 1, dtype=torch.uint8, device=out.device)
        top = torch.where(covers, order[:, None, None], 0).amax(0)  # (n, pixels); 0: the background
        index = top.to(torch.int64)[:, None].expand(n, channels, -1)
        return out.copy_(colors.gather(2, index).view(out.shape))
