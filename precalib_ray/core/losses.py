"""Losses of class ids and of soft targets. To add one, write a class."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.spec import Family, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Loss(Family):
    """A loss."""

    takes_ids: ClassVar[bool]
    """Whether targets may be class ids (B,)."""
    takes_soft: ClassVar[bool]
    """Whether targets may be probabilities (B, K)."""

    kind: str

    @abstractmethod
    def sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the batch, (), from logits (B, K) float32."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy, for class ids and for soft targets."""

    takes_ids: ClassVar[bool] = True
    takes_soft: ClassVar[bool] = True
    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = setting(0.0, ge=0, lt=1, description="mass spread over all classes")

    def sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(
            logits, targets, reduction="sum", label_smoothing=self.label_smoothing
        )


@dataclass(frozen=True, kw_only=True)
class KLDivergence(Loss):
    """Kullback-Leibler divergence of the prediction from soft targets."""

    takes_ids: ClassVar[bool] = False
    takes_soft: ClassVar[bool] = True
    kind: Literal["kl_div"] = "kl_div"

    def sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(logits.log_softmax(-1), targets, reduction="sum")


@dataclass(frozen=True, kw_only=True)
class Focal(Loss):
    """Focal loss, for class ids (Lin et al., arXiv 1708.02002)."""

    takes_ids: ClassVar[bool] = True
    takes_soft: ClassVar[bool] = False
    kind: Literal["focal"] = "focal"
    gamma: float = setting(
        2.0, ge=0, le=100, description="exponent of 1 - p, which down-weights easy samples"
    )

    def sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        return ((1 - log_p.exp()).pow(self.gamma) * -log_p).sum()
