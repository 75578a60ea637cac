"""The position of a run, and what was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from precalib_ray.core.spec import from_plain


class Evaluation(Protocol):
    """What an evaluation measured; a dataclass."""

    @property
    def step(self) -> int:
        """The step after which it was measured."""

    @property
    def samples(self) -> int:
        """The samples trained on until then."""

    @property
    def deviation(self) -> float:
        """What ``until_deviation`` compares with; NaN where there is none."""

    @property
    def num_forwards(self) -> int:
        """Samples pushed through the model."""


E = TypeVar("E", bound=Evaluation)


@dataclass
class Progress(Generic[E]):
    """The position of a run: all that must be saved besides weights and optimizer."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    """Spent in training steps."""
    evaluation_seconds: float = 0.0
    evaluation_forwards: int = 0
    """Samples pushed through the model by evaluations: for a cost, three are one trained on."""
    loss_sum: float = 0.0
    loss_steps: int = 0
    """Sum and number of the losses since the last evaluation."""
    hits: int = 0
    """Evaluations in a row at or below the deviation to reach."""
    last_good: str = ""
    """The checkpoint written last."""
    stop_reason: str = ""
    history: list[E] = field(default_factory=list)

    @property
    def mean_loss(self) -> float | None:
        """Mean training loss since the last evaluation, if there was a step."""
        return self.loss_sum / self.loss_steps if self.loss_steps else None

    @classmethod
    def restore(cls, content: Mapping[str, Any], evaluation: type[E]) -> Self:
        """Inverse of ``spec.plain``; raises TypeError if it is of something else."""
        history = [from_plain(evaluation, record) for record in content["history"]]
        return cls(**{**content, "history": history})


@dataclass(frozen=True)
class Metrics:
    """Of the steps since the last report."""

    loss: float
    learning_rate: float
    samples_per_second: float
