"""Reports of a trial, while it runs and when it has ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrialReport:
    """The measurements of a trial so far; None: not measured (yet).

    A running trial reports ``deviation``, ``samples``, ``history`` and ``compute_seconds``; one
    that fails ``failed`` and ``compute_seconds``; one that finishes all but ``failed``.
    """

    deviation: float | None = None
    """Deviation of the last probing; of a finished trial, the worst over probes not held out."""
    samples: int | None = None
    """Samples trained on so far."""
    history: list[list[float]] | None = None
    """[samples, deviation] of each probing."""
    compute_seconds: float | None = None
    """Wall-clock seconds of the trial, without waiting for Tune."""
    deviations: dict[str, float] | None = None
    """Deviations by "probe/mode", without held-out probes."""
    initial_deviation: float | None = None
    """Deviation of the untrained network."""
    seconds: float | None = None
    """Seconds spent in training steps."""
    stop_reason: str | None = None
    """The limit that ended the trial; None if it was stopped early."""
    reached: bool | None = None
    """Whether ``until_deviation`` ended the trial."""
    downstream: dict[str, float] | None = None
    """Metrics of the data training that follows: gap, accuracy, ece, nll."""
    failed: str | None = None
    """Why the trial failed."""
