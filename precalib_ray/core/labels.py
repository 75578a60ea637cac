"""Label schemes: targets for inputs that carry no information.

A scheme is drawn for a whole global batch at once, because ``balanced`` is a property of the batch;
ranks take their slice. To add one, write a class.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.spec import Family, setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Labels(Family):
    """A label scheme."""

    soft: ClassVar[bool] = False
    """Whether targets are probabilities (B, K) float32 rather than class ids (B,) int64."""
    smoothed: ClassVar[bool] = False
    """Whether targets are smoothed already, so that the loss must not smooth them again."""

    kind: str

    @abstractmethod
    def draw(
        self, batch_size: int, num_classes: int, *, generator: Generator, device: torch.device | str
    ) -> Tensor:
        """Targets of one global batch, (B,) or (B, K)."""

    def source_step(self, step: int) -> int:
        """The step whose batch is used at a step: fixed batches repeat."""
        return step


@dataclass(frozen=True, kw_only=True)
class Hard(Labels):
    """Independent uniform class ids."""

    kind: Literal["hard"] = "hard"

    def draw(
        self, batch_size: int, num_classes: int, *, generator: Generator, device: torch.device | str
    ) -> Tensor:
        return torch.randint(num_classes, (batch_size,), generator=generator, device=device)


@dataclass(frozen=True, kw_only=True)
class Balanced(Labels):
    """Class ids, every class equally often in a batch."""

    kind: Literal["balanced"] = "balanced"

    def draw(
        self, batch_size: int, num_classes: int, *, generator: Generator, device: torch.device | str
    ) -> Tensor:
        """Every id ``B // K`` times, the remainder on random ids, in random order."""
        classes = torch.randperm(num_classes, generator=generator, device=device)
        order = torch.randperm(batch_size, generator=generator, device=device)
        return classes[torch.arange(batch_size, device=device) % num_classes][order]


@dataclass(frozen=True, kw_only=True)
class Uniform(Labels):
    """The target 1/K for each of K classes."""

    soft: ClassVar[bool] = True
    kind: Literal["uniform"] = "uniform"

    def draw(
        self, batch_size: int, num_classes: int, *, generator: Generator, device: torch.device | str
    ) -> Tensor:
        return torch.full((batch_size, num_classes), 1 / num_classes, device=device)


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Labels):
    """Soft targets from a Dirichlet distribution."""

    soft: ClassVar[bool] = True
    kind: Literal["dirichlet"] = "dirichlet"
    alpha: float = setting(1.0, gt=1e-3, le=1e6, description="concentration of each class")

    def draw(
        self, batch_size: int, num_classes: int, *, generator: Generator, device: torch.device | str
    ) -> Tensor:
        alpha = torch.full((batch_size, num_classes), self.alpha, device=device)
        return torch._sample_dirichlet(alpha, generator)


@dataclass(frozen=True, kw_only=True)
class Smoothed(Labels):
    """Uniform class ids with label smoothing."""

    soft: ClassVar[bool] = True
    smoothed: ClassVar[bool] = True
    kind: Literal["smoothed"] = "smoothed"
    epsilon: float = setting(0.1, gt=0, lt=1, description="mass spread over all classes")

    def draw(
        self, batch_size: int, num_classes: int, *, generator: Generator, device: torch.device | str
    ) -> Tensor:
        ids = torch.randint(num_classes, (batch_size,), generator=generator, device=device)
        one_hot = torch.nn.functional.one_hot(ids, num_classes).float()
        return one_hot.mul_(1 - self.epsilon).add_(self.epsilon / num_classes)


@dataclass(frozen=True, kw_only=True)
class Fixed(Hard):
    """Pairs of noise and class id, drawn once and repeated."""

    kind: Literal["fixed"] = "fixed"  # type: ignore[assignment]
    num_batches: int = setting(ge=1, description="batches after which the pairs repeat")

    def source_step(self, step: int) -> int:
        return step % self.num_batches
