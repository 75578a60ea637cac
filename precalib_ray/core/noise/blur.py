"""``blur`` noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.noise.base import Noise
from precalib_ray.core.noise.spectrum import filtered, frequency, unit_power
from precalib_ray.core.spec import setting
from precalib_ray.errors import SettingError

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Blur(Noise):
    """Gaussian noise, blurred with a random Gaussian kernel per sample."""

    kind: Literal["blur"] = "blur"
    min_sigma: float = setting(0.5, gt=0, le=1000, description="minimum sigma, in pixels")
    max_sigma: float = setting(4.0, gt=0, le=1000, description="maximum sigma, in pixels")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_sigma > self.max_sigma:
            raise SettingError(
                "max_sigma", self.max_sigma, f"must be >= min_sigma, {self.min_sigma}"
            )

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        """Sigma is log-uniform between its bounds; the Gaussian kernel has circular boundary."""
        squared_frequency = frequency(tuple(out.shape[1:]), out.device).square()
        low, high = math.log(self.min_sigma), math.log(self.max_sigma)
        sigma = torch.empty(out.shape[0], device=out.device)
        sigma = sigma.uniform_(low, high, generator=generator)
        sigma = sigma.exp_().view(-1, *[1] * (out.dim() - 1))
        gain = torch.exp(-2 * math.pi**2 * sigma.square() * squared_frequency)
        return filtered(out, generator, unit_power(gain, out.shape[-1]))
