"""The record of one trial, a JSON file in the folder of its search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from precalib_ray.config.space import Point
from precalib_ray.search.report import TrialReport

State = Literal["running", "finished", "stopped", "failed"]
"""``stopped``: by successive halving."""

_ALWAYS = ("key", "state", "reference", "point", "recipe", "max_samples")
_MEASURED = (
    "deviation", "samples", "deviations", "initial_deviation", "seconds", "reached", "history",
    "compute_seconds", "downstream",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial; None: unknown (yet). Measurements are those of ``TrialReport``."""

    key: str
    state: State
    reference: str | None = None
    """Name of the reference trial; None for others."""
    point: Point | None = None
    """Point of the search space; None for a reference trial."""
    recipe: dict[str, Any] | None = None
    """The resolved config of ``pretrain``, possibly of an older version; None if refused."""
    max_samples: int | None = None
    """Maximum number of samples by its duration."""
    reason: str | None = None
    """Why the trial ended."""
    deviation: float | None = None
    samples: int | None = None
    deviations: dict[str, float] | None = None
    initial_deviation: float | None = None
    seconds: float | None = None
    reached: bool | None = None
    history: list[list[float]] | None = None
    compute_seconds: float | None = None
    downstream: dict[str, float] | None = None

    @property
    def ended(self) -> bool:
        """Whether it has finished, was stopped, or has failed."""
        return self.state != "running"

    @property
    def scored(self) -> bool:
        """Whether it has ended with a deviation."""
        return self.state in ("finished", "stopped") and self.deviation is not None

    def updated(self, report: TrialReport) -> Self:
        """The trial with the measurements of a report."""
        values = {name: getattr(report, name) for name in _MEASURED}
        return replace(self, **{name: v for name, v in values.items() if v is not None})

    def to_json(self) -> dict[str, Any]:
        """Plain data, without unknown measurements."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v for name, v in values.items() if v is not None or name in _ALWAYS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``; unknown keys are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})
