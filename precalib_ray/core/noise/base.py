"""The base of all noise distributions.

Every distribution has zero mean and unit variance before ``shift`` and ``scale``, and is a pure
function of shape, generator and device. A shape is ``(n, *sample)``, where a sample is an image
``(C, H, W)``, whose channels are independent, or flat ``(D,)``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precalib_ray.core.lazy import torch
from precalib_ray.core.spec import Family, setting

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Sampler = Callable[[Tensor, Generator], Tensor]
    """Fills ``(n, *sample)`` in place from a generator of the same device, and returns it."""
else:
    Sampler = Callable


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a data set's model inputs, for ``matched`` noise.

    For flat samples C is 1, and ``power`` is (D // 2 + 1,).
    """

    mean: Tensor  # (C,)
    std: Tensor  # (C,)
    power: Tensor  # (C, H, W // 2 + 1), mean squared modulus of the Fourier transform


@dataclass(frozen=True, kw_only=True)
class Noise(Family):
    """A noise distribution."""

    kind: str
    shift: float = setting(0.0, description="added to every value")
    scale: float = setting(1.0, gt=0, description="standard deviation")

    @abstractmethod
    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        """Fill ``(n, *sample)`` in place, before shift and scale, and return it."""

    def sampler(self, statistics: Mapping[str, Statistics] | None = None) -> Sampler:
        """The distribution, shifted and scaled; ``statistics`` by data set, of ``sources``."""
        fill = self._unscaled(statistics or {})
        if self.shift == 0.0 and self.scale == 1.0:
            return fill
        return lambda out, generator: fill(out, generator).mul_(self.scale).add_(self.shift)

    def sources(self) -> set[str]:
        """The data sets whose statistics the distribution needs."""
        return set()

    def _unscaled(self, statistics: Mapping[str, Statistics]) -> Sampler:
        return self.fill


def draw(
    noise: Noise,
    shape: Sequence[int],
    *,
    generator: Generator,
    statistics: Mapping[str, Statistics] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise of ``shape`` (n, *sample), float32."""
    return noise.sampler(statistics)(torch.empty(tuple(shape), device=device), generator)


def statistics(inputs: Tensor) -> Statistics:
    """Statistics of model inputs (N, C, H, W) or (N, D).

    Mean and standard deviation per channel, and the mean squared modulus of the Fourier transform
    of the centered inputs, without negative frequencies of the last axis.
    """
    flat = inputs.dim() == 2
    axes = (0, 1) if flat else (0, 2, 3)
    mean, std = inputs.mean(axes), inputs.std(axes, correction=0)
    centered = inputs - (mean if flat else mean.view(-1, 1, 1))
    transform = torch.fft.rfft(centered) if flat else torch.fft.rfft2(centered)
    return Statistics(
        mean=mean.reshape(-1), std=std.reshape(-1), power=transform.abs().square().mean(0)
    )
