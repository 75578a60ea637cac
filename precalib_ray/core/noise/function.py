"""``function`` noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.importing import FUNCTION_NAME, load_function
from precalib_ray.core.lazy import torch
from precalib_ray.core.noise.base import Noise
from precalib_ray.core.spec import setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Function(Noise):
    """Your own: function(shape, generator, device) -> tensor."""

    kind: Literal["function"] = "function"
    name: str = setting(pattern=FUNCTION_NAME, description="module:function")

    def fill(self, out: Tensor, generator: Generator) -> Tensor:
        """Raises ValueError unless the function returns a tensor of the requested shape."""
        values = load_function(self.name)(tuple(out.shape), generator, out.device)
        if not isinstance(values, torch.Tensor):
            raise ValueError(f"{self.name} returned {type(values).__name__}, not a tensor")
        if values.shape != out.shape:
            raise ValueError(
                f"{self.name} returned shape {tuple(values.shape)}, not {tuple(out.shape)}"
            )
        return out.copy_(values)
