"""``matched`` noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.noise.base import Noise, Sampler, Statistics
from precalib_ray.core.noise.spectrum import filtered, unit_power
from precalib_ray.core.spec import setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Matched(Noise):
    """Gaussian noise with the mean, standard deviation and power spectrum of a data set."""

    kind: Literal["matched"] = "matched"
    data: str = setting(
        path=True, description="directory of a Parquet data set, whose train split is used"
    )

    def sources(self) -> set[str]:
        return {self.data}

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        raise TypeError("matched noise is drawn by its sampler, which has the statistics")

    def _unscaled(self, statistics: Mapping[str, Statistics]) -> Sampler:
        measured = statistics[self.data]

        def fill(out: Tensor, generator: Generator) -> Tensor:
            per_channel = (-1, 1, 1) if out.dim() == 4 else (-1,)
            gain = unit_power(measured.power.to(out.device).sqrt(), out.shape[-1])
            filtered(out, generator, gain)
            return out.mul_(measured.std.to(out.device).view(per_channel)).add_(
                measured.mean.to(out.device).view(per_channel)
            )

        return fill
