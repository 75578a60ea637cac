"""Detects the worker that the others wait for.

In data-parallel training every step takes as long as the slowest worker. What identifies it is the
time of the parts of a step that wait for no other worker: drawing the batch, and the forward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

WINDOW_S = 5.0
"""Seconds over which workers are compared."""

FACTOR, SHARE = 1.5, 0.05
"""A straggler works this many times the median of the others, and the excess is at least this share
of the window."""


class Stragglers:
    """Compares the work of ranks over windows of time."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        notify: Callable[[str, int, float], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``names`` are the workers', by rank; ``notify`` takes message, rank and factor."""
        self._names, self._notify, self._clock = names, notify, clock
        self._work, self._since = [0.0] * len(names), clock()
        self._straggler: int | None = None

    def add(self, work: Sequence[float]) -> None:
        """Add seconds of work by rank; notifies once of a rank that becomes a straggler."""
        self._work = [sum(seconds) for seconds in zip(self._work, work, strict=True)]
        window = self._clock() - self._since
        if len(work) < 2 or window < WINDOW_S:
            return
        slowest = max(range(len(work)), key=self._work.__getitem__)
        usual = statistics.median(self._work[:slowest] + self._work[slowest + 1 :])
        factor = self._work[slowest] / max(usual, 1e-9)
        excess = self._work[slowest] - usual
        straggler = slowest if factor >= FACTOR and excess >= SHARE * window else None
        if straggler is not None and straggler != self._straggler:
            self._notify(
                f"straggler: rank {slowest} ({self._names[slowest]}) takes {factor:.1f} times as "
                "long as the others for its part of a step, and they wait for it",
                slowest,
                factor,
            )
        self._straggler = straggler
        self._work, self._since = [0.0] * len(work), self._clock()
