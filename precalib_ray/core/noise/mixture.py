"""Mixtures of noises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.noise.base import Noise, Sampler, Statistics
from precalib_ray.core.spec import Section, setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Part(Section):
    """A component of a mixture, and its weight."""

    weight: float = setting(1.0, gt=0, description="relative frequency")
    noise: Noise = setting(description="(as noise)")


@dataclass(frozen=True, kw_only=True)
class Mixture(Noise):
    """Each sample is drawn from one of several distributions."""

    kind: Literal["mixture"] = "mixture"
    parts: list[Part] = setting(min_length=1, description="components")

    def sources(self) -> set[str]:
        return set().union(*(part.noise.sources() for part in self.parts))

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        return self._unscaled({})(out, generator)

    def _unscaled(self, statistics: Mapping[str, Statistics]) -> Sampler:
        """Every part is drawn for every sample and one is kept: the choice stays on the device."""
        first, *others = (part.noise.sampler(statistics) for part in self.parts)
        weights = torch.tensor([part.weight for part in self.parts], dtype=torch.float64)
        cumulated = weights.cumsum(0)
        edges = (cumulated / cumulated[-1])[:-1].float()

        def fill(out: Tensor, generator: Generator) -> Tensor:
            numbers = torch.rand(out.shape[0], generator=generator, device=out.device)
            choice = torch.bucketize(numbers, edges.to(out.device), right=True)
            choice = choice.view(-1, *[1] * (out.dim() - 1))
            first(out, generator)
            drawn = torch.empty_like(out)
            for index, part in enumerate(others, start=1):
                torch.where(choice == index, part(drawn, generator), out, out=out)
            return out

        return fill
