"""Optimizers, and the learning-rate schedule. To add an optimizer, write a class."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.spec import Family, Section, setting
from precalib_ray.errors import SettingError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optimizer(Family):
    """An optimizer, in its fused implementation."""

    kind: str
    lr: float = setting(1e-3, gt=0, le=1e3, description="learning rate")
    weight_decay: float = setting(0.0, ge=0, le=10, description="weight decay")

    @abstractmethod
    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""

    @property
    def _common(self) -> dict[str, Any]:
        return {"lr": self.lr, "weight_decay": self.weight_decay, "fused": True}


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = setting(0.0, ge=0, lt=1, description="momentum")
    nesterov: bool = setting(False, description="Nesterov momentum")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise SettingError("nesterov", True, "needs a momentum > 0")

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, momentum=self.momentum, nesterov=self.nesterov, **self._common
        )


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam."""

    kind: Literal["adam"] = "adam"
    betas: tuple[float, float] = setting(
        (0.9, 0.999), description="exponential decay rates (beta1, beta2)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for index, beta in enumerate(self.betas):
            if not 0 <= beta < 1:
                raise SettingError(f"betas.{index}", beta, "must be >= 0 and < 1")

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, betas=self.betas, **self._common)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"  # type: ignore[assignment]

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, betas=self.betas, **self._common)


@dataclass(frozen=True, kw_only=True)
class Schedule(Section):
    """The learning-rate schedule."""

    kind: Literal["constant", "linear", "cosine"] = setting(
        "constant", description="constant, or decay to 0 at the last step"
    )
    warmup_steps: int = setting(0, ge=0, description="steps of linear warm-up")

    def rate(self, base: float, step: int, num_steps: int | None) -> float:
        """The learning rate of a step, counted from 0; a decay needs ``num_steps``."""
        if step < self.warmup_steps:
            return base * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return base
        assert num_steps is not None, "a decaying schedule needs its end"
        share = min(1.0, (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps))
        if self.kind == "linear":
            return base * (1 - share)
        return base * (1 + math.cos(math.pi * share)) / 2
