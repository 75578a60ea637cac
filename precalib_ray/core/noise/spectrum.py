"""White noise filtered in the Fourier domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precalib_ray.core.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


def filtered(out: Tensor, generator: Generator, gain: Tensor) -> Tensor:
    """Fill with white Gaussian noise whose Fourier transform is multiplied by ``gain``."""
    out.normal_(generator=generator)
    axes = (-2, -1) if out.dim() == 4 else (-1,)
    transform: Tensor = torch.fft.rfftn(out, dim=axes).mul_(gain)
    return out.copy_(torch.fft.irfftn(transform, s=[out.shape[axis] for axis in axes], dim=axes))


def frequency(sample: tuple[int, ...], device: torch.device) -> Tensor:
    """Modulus of the frequency in cycles per pixel, on the half plane of ``rfft``."""
    last: Tensor = torch.fft.rfftfreq(sample[-1], device=device)
    if len(sample) == 1:
        return last
    return torch.hypot(torch.fft.fftfreq(sample[-2], device=device)[:, None], last)


def unit_power(gain: Tensor, width: int) -> Tensor:
    """Scale a gain (..., W // 2 + 1) so that white noise filtered with it has variance 1."""
    twice = torch.full((gain.shape[-1],), 2.0, device=gain.device)
    twice[0] = 1  # frequencies 0 and, for even widths, W / 2 have no negative counterpart
    if width % 2 == 0:
        twice[-1] = 1
    axes = (-2, -1) if gain.dim() > 1 else (-1,)
    height = gain.shape[-2] if gain.dim() > 1 else 1
    power = (gain.square() * twice).sum(axes, keepdim=True) / (height * width)
    return gain / power.sqrt()
