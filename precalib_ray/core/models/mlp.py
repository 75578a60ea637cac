"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precalib_ray.core.models.base import Model, Snippet
from precalib_ray.core.spec import setting

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class MLP(Model):
    """A multilayer perceptron with ReLU: the paper's network."""

    kind: Literal["mlp"] = "mlp"
    depth: int = setting(3, ge=1, le=1000, description="hidden layers")
    width: int = setting(256, ge=1, le=100_000, description="units per hidden layer")
    batch_norm: bool = setting(False, description="BatchNorm before each ReLU")

    @property
    def architecture(self) -> str:
        return "mlp"

    def construct(self) -> nn.Module:
        from torch import nn

        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(self.input_shape)
        for _ in range(self.depth):
            layers.append(nn.Linear(features, self.width))
            if self.batch_norm:
                layers.append(nn.BatchNorm1d(self.width))
            layers.append(nn.ReLU())
            features = self.width
        head = nn.Linear(features, self.num_classes)
        return nn.Sequential(OrderedDict(body=nn.Sequential(*layers), head=head))

    def snippet(self) -> Snippet:
        norm = "nn.BatchNorm1d(width), " if self.batch_norm else ""
        sizes = f"[{math.prod(self.input_shape)}] + [width] * {self.depth - 1}"
        return Snippet(
            imports=["from collections import OrderedDict", "from torch import nn"],
            lines=[
                f"width, body = {self.width}, [nn.Flatten()]",
                f"for features in {sizes}:",
                f"    body += [nn.Linear(features, width), {norm}nn.ReLU()]",
                'head = nn.Linear(width, spec["num_classes"])',
                "model = nn.Sequential(OrderedDict(body=nn.Sequential(*body), head=head))",
            ],
            requires="torch, safetensors and mlflow",
        )
