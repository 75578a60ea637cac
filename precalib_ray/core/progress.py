"""The progress of a run, and its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from precalib_ray.core.spec import from_plain


class Evaluation(Protocol):
    """The result of an evaluation; a dataclass."""

    @property
    def step(self) -> int:
        """Steps taken before the evaluation."""

    @property
    def samples(self) -> int:
        """Samples trained on before the evaluation."""

    @property
    def deviation(self) -> float:
        """The deviation that ``until_deviation`` is compared with; NaN where there is none."""

    @property
    def num_forwards(self) -> int:
        """Samples in forward passes."""


E = TypeVar("E", bound=Evaluation)


@dataclass
class Progress(Generic[E]):
    """The progress of a run: all that must be saved besides weights and optimizer."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    """Seconds spent in training steps."""
    evaluation_seconds: float = 0.0
    evaluation_forwards: int = 0
    """Samples in forward passes of evaluations."""
    loss_sum: float = 0.0
    loss_steps: int = 0
    """Sum and number of the losses since the last evaluation."""
    hits: int = 0
    """Consecutive evaluations at or below the target deviation."""
    last_good: str = ""
    """Name of the newest checkpoint."""
    stop_reason: str = ""
    history: list[E] = field(default_factory=list)

    @property
    def mean_loss(self) -> float | None:
        """Mean training loss since the last evaluation, if there was a step."""
        return self.loss_sum / self.loss_steps if self.loss_steps else None

    @classmethod
    def restore(cls, content: Mapping[str, Any], evaluation: type[E]) -> Self:
        """Inverse of ``spec.plain``; raises TypeError for other content."""
        history = [from_plain(evaluation, record) for record in content["history"]]
        return cls(**{**content, "history": history})


@dataclass(frozen=True)
class Metrics:
    """Averages over the steps since the last report."""

    loss: float
    learning_rate: float
    samples_per_second: float
