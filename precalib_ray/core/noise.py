"""Noise distributions.

Every distribution has zero mean and unit variance before ``shift`` and ``scale``, and is a pure
function of shape, generator and device. A shape is ``(n, *sample)``, where a sample is an image
``(C, H, W)``, whose channels are independent, or flat ``(D,)``.

A distribution is named by a spec, the plain mapping that a config holds::

    draw({"kind": "pink", "alpha": 1.0}, (8, 3, 32, 32), generator=g)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Generator, Tensor

from precalib_ray.core.importing import load_function

Noise = Callable[[Tensor, Generator], Tensor]
"""Fills ``(n, *sample)`` in place from a generator of the same device, and returns it."""


def gaussian(out: Tensor, generator: Generator) -> Tensor:
    """Independent standard normal values."""
    return out.normal_(generator=generator)


def uniform(out: Tensor, generator: Generator) -> Tensor:
    """Independent values, uniform in [-sqrt(3), sqrt(3)): unit variance."""
    return out.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)


def rademacher(out: Tensor, generator: Generator) -> Tensor:
    """Independent -1 and +1, each with probability 1/2."""
    return out.uniform_(-1, 1, generator=generator).ge_(0).mul_(2).sub_(1)


def laplace(out: Tensor, generator: Generator) -> Tensor:
    """Independent Laplace values, by inversion of the distribution function."""
    # The generator may return the lower bound itself; a hair inside it the logarithm is finite.
    out.uniform_(-1, 1, generator=generator).mul_(1 - 2**-23)
    magnitude = out.abs().neg_().log1p_().mul_(-math.sqrt(0.5))
    return torch.copysign(magnitude, out, out=out)


def student_t(out: Tensor, generator: Generator, *, df: float = 5.0) -> Tensor:
    """Independent Student t values, ``df`` > 2, divided by their standard deviation.

    Source: Bailey, "Polar generation of random variates with the t-distribution", 1994.
    """
    angle = torch.empty_like(out).uniform_(0, 2 * math.pi, generator=generator)
    # 1 - u lies in (0, 1], so that the power below is finite.
    radius = 1 - out.uniform_(generator=generator)
    # (u^(-2/df) - 1), which cancels for large df, times df - 2 for unit variance
    radius = radius.log_().mul_(-2 / df).expm1_().mul_(df - 2).sqrt_()
    return torch.mul(radius, angle.cos_(), out=out)


def pink(out: Tensor, generator: Generator, *, alpha: float = 1.0) -> Tensor:
    """Gaussian noise whose power spectrum falls as ``1 / f**alpha``, without its mean (f = 0)."""
    gain = _power_law_gain(tuple(out.shape[1:]), alpha, out.device)
    return _filtered(out, generator, gain)


def blur(
    out: Tensor, generator: Generator, *, min_sigma: float = 0.5, max_sigma: float = 4.0
) -> Tensor:
    """Gaussian noise, each sample blurred with its own sigma (pixels), log-uniform between bounds.

    Blurred with a Gaussian of circular boundary, then scaled back to unit variance.
    """
    squared_frequency = _frequency(tuple(out.shape[1:]), out.device).square()
    low, high = math.log(min_sigma), math.log(max_sigma)
    sigma = torch.empty(out.shape[0], device=out.device).uniform_(low, high, generator=generator)
    sigma = sigma.exp_().view(-1, *[1] * (out.dim() - 1))
    gain = torch.exp(-2 * math.pi**2 * sigma.square() * squared_frequency)
    return _filtered(out, generator, _unit_power(gain, out.shape[-1]))


def patches(
    out: Tensor,
    generator: Generator,
    *,
    num_patches: int = 32,
    min_size: float = 0.1,
    max_size: float = 1.0,
) -> Tensor:
    """Overlapping rectangles, each of one color: sharp edges at every scale, as in images.

    Side lengths are log-uniform between ``min_size`` and ``max_size`` of the image's sides;
    colors are standard normal per channel, and so is every pixel. Flat samples get intervals.
    """
    n, sample = out.shape[0], out.shape[1:]
    axes = tuple(range(2, out.dim())) or (1,)
    channels = sample[0] if len(sample) == 3 else 1
    numbers = torch.rand((len(axes), 2, num_patches, n), generator=generator, device=out.device)
    colors = torch.randn((n, channels, num_patches + 1), generator=generator, device=out.device)
    covers = torch.ones((num_patches, n, 1), dtype=torch.bool, device=out.device)
    for axis, (size_number, start_number) in zip(axes, numbers, strict=True):
        length = out.shape[axis]
        size = min_size * torch.exp(size_number * math.log(max_size / min_size)) * length
        # Starts reach over both borders, so that every pixel is covered equally often.
        start = (start_number * (length + size) - size)[..., None]
        position = torch.arange(length, device=out.device) + 0.5
        along_axis = (position >= start) & (position < start + size[..., None])
        covers = (covers[..., None] & along_axis[:, :, None, :]).flatten(2)  # (P, n, pixels)
    order = torch.arange(1, num_patches + 1, dtype=torch.uint8, device=out.device)
    top = torch.where(covers, order[:, None, None], 0).amax(0)  # (n, pixels); 0 is the ground
    index = top.to(torch.int64)[:, None].expand(n, channels, -1)
    return out.copy_(colors.gather(2, index).view(out.shape))


def matched(
    out: Tensor, generator: Generator, *, mean: Tensor, std: Tensor, power: Tensor
) -> Tensor:
    """Gaussian noise with the mean, standard deviation and power spectrum of a data set.

    ``mean`` and ``std`` are (C,), ``power`` (C, H, W // 2 + 1), as ``statistics`` gives them; for
    flat samples (1,), (1,) and (D // 2 + 1,). Data standardized for a model has mean 0 and
    standard deviation 1, and so has its noise.
    """
    per_channel = (-1, 1, 1) if out.dim() == 4 else (-1,)
    gain = _unit_power(power.to(out.device).sqrt(), out.shape[-1])
    _filtered(out, generator, gain)
    return out.mul_(std.to(out.device).view(per_channel)).add_(
        mean.to(out.device).view(per_channel)
    )


def mixture(
    out: Tensor, generator: Generator, *, parts: Sequence[Noise], weights: Sequence[float]
) -> Tensor:
    """Each sample from one of ``parts``, chosen with probability proportional to ``weights``.

    Every part is drawn for every sample and one is kept: the choice stays on the device.
    """
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    edges = (edges / edges[-1])[:-1].to(out.device, torch.float32)
    uniform_numbers = torch.rand(out.shape[0], generator=generator, device=out.device)
    choice = torch.bucketize(uniform_numbers, edges, right=True)
    choice = choice.view(-1, *[1] * (out.dim() - 1))
    parts[0](out, generator)
    drawn = torch.empty_like(out)
    for index, part in enumerate(parts[1:], start=1):
        torch.where(choice == index, part(drawn, generator), out, out=out)
    return out


def function(out: Tensor, generator: Generator, *, name: str) -> Tensor:
    """The user's ``module:function(shape, generator, device)``.

    Raises:
        ValueError: it returned no tensor of the shape asked for, or values that are not finite.
    """
    values = load_function(name)(tuple(out.shape), generator, out.device)
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} returned {type(values).__name__}, not a tensor")
    if values.shape != out.shape:
        raise ValueError(f"{name} returned shape {tuple(values.shape)}, not {tuple(out.shape)}")
    return out.copy_(values)


KINDS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        gaussian, uniform, rademacher, laplace, student_t, pink, blur, patches, matched, mixture,
        function,
    )
}  # fmt: skip


def build(spec: Mapping[str, Any]) -> Noise:
    """The noise that a spec names: ``kind``, its parameters, ``shift`` and ``scale``.

    A ``mixture`` holds its parts as specs, and a ``matched`` its statistics as tensors or lists.
    """
    parameters = {k: v for k, v in spec.items() if k not in ("kind", "shift", "scale")}
    if spec["kind"] == "mixture":
        parameters["weights"] = [part["weight"] for part in spec["parts"]]
        parameters["parts"] = [build(part["noise"]) for part in spec["parts"]]
    if spec["kind"] == "matched":
        parameters.pop("data", None)
        parameters = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in parameters.items()}
    fill: Noise = partial(KINDS[spec["kind"]], **parameters)
    shift, scale = float(spec.get("shift", 0.0)), float(spec.get("scale", 1.0))
    if shift == 0.0 and scale == 1.0:
        return fill
    return lambda out, generator: fill(out, generator).mul_(scale).add_(shift)


def draw(
    spec: Mapping[str, Any],
    shape: Sequence[int],
    *,
    generator: Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise of ``shape`` (n, *sample), float32."""
    return build(spec)(torch.empty(tuple(shape), device=device), generator)


def statistics(inputs: Tensor) -> dict[str, Tensor]:
    """What ``matched`` noise takes from model inputs (N, C, H, W) or (N, D).

    Mean and standard deviation per channel, and the mean squared modulus of the Fourier transform
    of the centered inputs, without negative frequencies of the last axis.
    """
    flat = inputs.dim() == 2
    axes = (0, 1) if flat else (0, 2, 3)
    mean, std = inputs.mean(axes), inputs.std(axes, correction=0)
    centered = inputs - (mean if flat else mean.view(-1, 1, 1))
    transform = torch.fft.rfft(centered) if flat else torch.fft.rfft2(centered)
    return {
        "mean": mean.reshape(-1),
        "std": std.reshape(-1),
        "power": transform.abs().square().mean(0),
    }


def _filtered(out: Tensor, generator: Generator, gain: Tensor) -> Tensor:
    """White Gaussian noise whose Fourier transform is multiplied by ``gain``."""
    out.normal_(generator=generator)
    axes = (-2, -1) if out.dim() == 4 else (-1,)
    transform: Tensor = torch.fft.rfftn(out, dim=axes).mul_(gain)
    return out.copy_(torch.fft.irfftn(transform, s=[out.shape[axis] for axis in axes], dim=axes))


def _frequency(sample: tuple[int, ...], device: torch.device) -> Tensor:
    """Modulus of the frequency in cycles per pixel, on the half plane of ``rfft``."""
    frequency: Tensor = torch.fft.rfftfreq(sample[-1], device=device)
    if len(sample) == 1:
        return frequency
    return torch.hypot(torch.fft.fftfreq(sample[-2], device=device)[:, None], frequency)


@lru_cache(maxsize=32)
def _power_law_gain(sample: tuple[int, ...], alpha: float, device: torch.device) -> Tensor:
    frequency = _frequency(sample, device)
    gain = frequency.clamp_min(1e-12).pow(-alpha / 2).masked_fill(frequency == 0, 0)
    return _unit_power(gain, sample[-1])


def _unit_power(gain: Tensor, width: int) -> Tensor:
    """Scale a gain (..., W // 2 + 1) so that white noise filtered with it has variance 1."""
    twice = torch.full((gain.shape[-1],), 2.0, device=gain.device)
    twice[0] = 1  # frequencies 0 and, for even widths, W / 2 have no negative twin
    if width % 2 == 0:
        twice[-1] = 1
    axes = (-2, -1) if gain.dim() > 1 else (-1,)
    height = gain.shape[-2] if gain.dim() > 1 else 1
    power = (gain.square() * twice).sum(axes, keepdim=True) / (height * width)
    return gain / power.sqrt()
