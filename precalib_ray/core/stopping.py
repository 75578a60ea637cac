"""The stopping rule: limits of a run, and a target deviation."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.core.spec import Section, setting
from precalib_ray.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Duration(Section):
    """Limits of noise pretraining, and a target deviation; the first one reached ends it."""

    steps: int | None = setting(
        None, ge=0, description="maximum number of steps; 0 only measures, without training"
    )
    samples: int | None = setting(
        None, ge=1, description="maximum number of samples, over all workers"
    )
    seconds: float | None = setting(
        None, gt=0, description="maximum number of seconds, spent in training steps"
    )
    until_deviation: float | None = setting(
        None,
        gt=1e-6,
        description="target: stop once the worst deviation on the probes that are not held out is "
        "at most this",
    )
    patience: int = setting(1, ge=1, description="consecutive probe evaluations that must reach it")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is None and self.samples is None and self.seconds is None:
            raise SettingError("", {}, "needs at least one of steps, samples, seconds")
        if self.patience > 1 and self.until_deviation is None:
            raise SettingError("patience", self.patience, "has no effect without until_deviation")

    def num_steps(self, batch_size: int) -> int | None:
        """The last step that the limits in steps and samples allow."""
        ends = [self.steps, None if self.samples is None else -(-self.samples // batch_size)]
        return min((end for end in ends if end is not None), default=None)

    def stop_reason(self, *, step: int, batch_size: int, hits: int, out_of_time: bool) -> str:
        """The limit that ends a run at a step; empty if none does.

        Args:
            step: steps taken.
            batch_size: samples of a step.
            hits: consecutive evaluations with a deviation of at most ``until_deviation``.
            out_of_time: whether ``seconds`` have passed.
        """
        if self.until_deviation is not None and hits >= self.patience:
            return "until_deviation"
        num_steps = self.num_steps(batch_size)
        if num_steps is not None and step >= num_steps:
            return "steps" if self.steps is not None and num_steps >= self.steps else "samples"
        return "seconds" if out_of_time else ""
