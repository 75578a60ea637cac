"""The reference trials, which a search compares its trials with."""

from __future__ import annotations

from collections.abc import Iterable

from precalib_ray.config.jobs.search import Reference
from precalib_ray.search.objective import Objective
from precalib_ray.search.trial import Trial

CONTROL: Reference = "untrained"
"""Its accuracy after data training is what no recipe may lose."""


def key(name: Reference) -> str:
    """The key of a reference trial."""
    return f"reference-{name}"


def comparable(objective: Objective, references: Iterable[Trial]) -> list[Trial]:
    """Reference trials whose score compares with those of the trials."""
    if not objective.scores_references:
        return []
    return [trial for trial in references if trial.deviation is not None]
