"""``uniform`` noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.noise.base import Noise

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Uniform(Noise):
    """Independent values, uniform between -sqrt(3) and sqrt(3)."""

    kind: Literal["uniform"] = "uniform"

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        return out.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)
