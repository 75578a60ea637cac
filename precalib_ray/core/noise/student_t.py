"""``student_t`` noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.noise.base import Noise
from precalib_ray.core.spec import setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class StudentT(Noise):
    """Independent Student t values, scaled to unit variance."""

    kind: Literal["student_t"] = "student_t"
    df: float = setting(5.0, gt=2, le=1e6, description="degrees of freedom")

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        """Source: Bailey, "Polar generation of random variates with the t-distribution", 1994."""
        angle = torch.empty_like(out).uniform_(0, 2 * math.pi, generator=generator)
        # 1 - u lies in (0, 1], so that the power below is finite.
        radius = 1 - out.uniform_(generator=generator)
        # (u^(-2/df) - 1), which cancels for large df, times df - 2 for unit variance
        radius = radius.log_().mul_(-2 / self.df).expm1_().mul_(self.df - 2).sqrt_()
        return torch.mul(radius, angle.cos_(), out=out)
