"""``pink`` noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.noise.base import Noise
from precalib_ray.core.noise.spectrum import filtered, frequency, unit_power
from precalib_ray.core.spec import setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Pink(Noise):
    """Gaussian noise with the power spectrum 1 / f^alpha."""

    kind: Literal["pink"] = "pink"
    alpha: float = setting(1.0, ge=0, le=8, description="exponent; photographs have about 2")

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        """The mean (f = 0) of each channel is removed."""
        return filtered(out, generator, _gain(tuple(out.shape[1:]), self.alpha, out.device))


@lru_cache(maxsize=32)
def _gain(sample: tuple[int, ...], alpha: float, device: torch.device) -> Tensor:
    modulus = frequency(sample, device)
    gain = modulus.clamp_min(1e-12).pow(-alpha / 2).masked_fill(modulus == 0, 0)
    return unit_power(gain, sample[-1])
