"""``laplace`` noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.noise.base import Noise

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Laplace(Noise):
    """Independent Laplace values."""

    kind: Literal["laplace"] = "laplace"

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        """By inversion of the distribution function."""
        # The generator may return the lower bound, where the logarithm is infinite.
        out.uniform_(-1, 1, generator=generator).mul_(1 - 2**-23)
        magnitude = out.abs().neg_().log1p_().mul_(-math.sqrt(0.5))
        return torch.copysign(magnitude, out, out=out)
