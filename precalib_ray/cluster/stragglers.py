"""Which worker holds up the others.

In data-parallel training all steps last as long as the slowest worker's. What a worker does without
waiting for others, drawing its batch and the forward pass, tells who that is.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

WINDOW_S = 5.0
"""Work of the busiest worker before workers are compared."""

FACTOR = 1.5
"""Times the median of the others' work that makes a straggler."""


class Stragglers:
    """Compares the work of ranks over windows of time."""

    def __init__(self, names: Sequence[str], tell: Callable[[str, int, float], None]) -> None:
        """``names`` of the workers, by rank; ``tell`` takes a message, the rank, and the factor."""
        self._names, self._tell = names, tell
        self._work = [0.0] * len(names)
        self._slow: int | None = None

    def add(self, work: Sequence[float]) -> None:
        """Add seconds of work by rank; tells of a straggler once, until it is none any more."""
        self._work = [sum(seconds) for seconds in zip(self._work, work, strict=True)]
        if len(work) < 2 or max(self._work) < WINDOW_S:
            return
        slowest = max(range(len(work)), key=self._work.__getitem__)
        others = self._work[:slowest] + self._work[slowest + 1 :]
        factor = self._work[slowest] / max(statistics.median(others), 1e-9)
        slow = slowest if factor >= FACTOR else None
        if slow is not None and slow != self._slow:
            self._tell(
                f"straggler: rank {slow} ({self._names[slow]}) takes {factor:.1f} times as long as "
                "the others for its part of a step, and they wait for it",
                slow,
                factor,
            )
        self._slow = slow
        self._work = [0.0] * len(work)
