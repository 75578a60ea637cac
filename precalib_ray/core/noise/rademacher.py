"""``rademacher`` noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.noise.base import Noise

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Rademacher(Noise):
    """Independent -1 and +1."""

    kind: Literal["rademacher"] = "rademacher"

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        return out.uniform_(-1, 1, generator=generator).ge_(0).mul_(2).sub_(1)
