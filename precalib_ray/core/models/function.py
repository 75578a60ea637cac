"""The user's own models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from precalib_ray.core.importing import FUNCTION_NAME, load_function
from precalib_ray.core.lazy import torch
from precalib_ray.core.models.base import Model, Snippet
from precalib_ray.core.spec import setting

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Function(Model):
    """Your own: function(num_classes=K, **args) -> torch.nn.Module."""

    runs_code: ClassVar[bool] = True
    kind: Literal["function"] = "function"
    name: str = setting(pattern=FUNCTION_NAME, description="module:function")
    args: dict[str, Any] = setting(factory=dict, description="additional arguments of the function")

    @property
    def architecture(self) -> str:
        return self.name

    def construct(self) -> nn.Module:
        model = load_function(self.name)(num_classes=self.num_classes, **self.args)
        if not isinstance(model, torch.nn.Module):
            raise ValueError(f"{self.name} returned {type(model).__name__}, not a torch.nn.Module")
        return model

    def snippet(self) -> Snippet:
        module, _, name = self.name.partition(":")
        return Snippet(
            imports=[f"from {module} import {name}"],
            lines=[f'model = {name}(num_classes=spec["num_classes"], **spec.get("args", {{}}))'],
            requires=f"torch, safetensors, mlflow and the code that defines {self.name}",
        )
