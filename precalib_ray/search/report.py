"""What a trial reports: while it runs, and once it has ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrialReport:
    """The measurements of a trial so far; None is what it has not measured (yet).

    A running trial reports ``deviation``, ``samples``, ``history`` and ``compute_seconds``; one
    that fails ``failed`` and ``compute_seconds``; one that finishes all but ``failed``.
    """

    deviation: float | None = None
    """While the trial runs, that of the last probing; then the worst that the search may see."""
    samples: int | None = None
    """Trained on so far."""
    history: list[list[float]] | None = None
    """[samples, deviation] of each probing."""
    compute_seconds: float | None = None
    """Wall-clock seconds of the trial, without waiting for Tune."""
    deviations: dict[str, float] | None = None
    """By "probe/mode"; held-out probes are left out."""
    initial_deviation: float | None = None
    """Of the untrained network."""
    seconds: float | None = None
    """Spent in training steps."""
    stop_reason: str | None = None
    """None for a trial that was stopped early."""
    reached: bool | None = None
    """Whether ``until_deviation`` ended it."""
    downstream: dict[str, float] | None = None
    """Of the data training after it: gap, accuracy, ece, nll."""
    failed: str | None = None
    """Why the trial failed."""
