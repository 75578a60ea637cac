"""Which worker holds up the others.

In data-parallel training all steps last as long as the slowest worker's. What a worker does without
waiting for others, drawing its batch and the forward pass, tells who that is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

WINDOW_S = 5.0
"""Seconds over which workers are compared."""

FACTOR, SHARE = 1.5, 0.05
"""Times the median of the others' work, and the share of the time by which it is more, that make a
straggler."""


class Stragglers:
    """Compares the work of ranks over windows of time."""

    def __init__(
        self,
        names: Sequence[str],
        tell: Callable[[str, int, float], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``names`` of the workers, by rank; ``tell`` takes a message, the rank, and the factor."""
        self._names, self._tell, self._clock = names, tell, clock
        self._work, self._since = [0.0] * len(names), clock()
        self._slow: int | None = None

    def add(self, work: Sequence[float]) -> None:
        """Add seconds of work by rank; tells of a straggler once, until it is none any more."""
        self._work = [sum(seconds) for seconds in zip(self._work, work, strict=True)]
        window = self._clock() - self._since
        if len(work) < 2 or window < WINDOW_S:
            return
        slowest = max(range(len(work)), key=self._work.__getitem__)
        usual = statistics.median(self._work[:slowest] + self._work[slowest + 1 :])
        factor = self._work[slowest] / max(usual, 1e-9)
        excess = self._work[slowest] - usual
        slow = slowest if factor >= FACTOR and excess >= SHARE * window else None
        if slow is not None and slow != self._slow:
            self._tell(
                f"straggler: rank {slow} ({self._names[slow]}) takes {factor:.1f} times as long as "
                "the others for its part of a step, and they wait for it",
                slow,
                factor,
            )
        self._slow = slow
        self._work, self._since = [0.0] * len(work), self._clock()
