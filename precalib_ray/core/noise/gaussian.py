"""``gaussian`` noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.noise.base import Noise

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Gaussian(Noise):
    """Independent standard normal values (white noise)."""

    kind: Literal["gaussian"] = "gaussian"

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        return out.normal_(generator=generator)
