"""Which rank is a straggler."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from precalib_ray.cluster.stragglers import Stragglers


def notified(*windows: Sequence[float]) -> list[int]:
    """Ranks of the notices, for windows of six seconds."""
    ranks: list[int] = []
    now = [0.0]
    names = [f"node {rank}" for rank in range(len(windows[0]))]
    stragglers = Stragglers(
        names, notify=lambda _, rank, __: ranks.append(rank), clock=lambda: now[0]
    )
    for work in windows:
        for _ in range(3):
            now[0] += 2
            stragglers.add([seconds / 3 for seconds in work])
    return ranks


@pytest.mark.parametrize(
    ("work", "ranks"),
    [
        ([3.0, 3.1, 2.9, 4.6], [3]),
        ([3.0, 3.1, 2.9, 4.4], []),  # 1.47 times the median
        ([2.0, 1.0], [0]),
        ([0.02, 0.01], []),  # twice as long, but negligible
        ([5.0], []),
        ([1.0, 1.0, 0.1, 1.0], []),  # one is fast, none is slow
    ],
)
def test_a_straggler_is_detected(work: list[float], ranks: list[int]) -> None:
    assert notified(work) == ranks


def test_a_straggler_is_notified_of_once_until_it_is_none() -> None:
    slow, even = [1.0, 1.0, 3.0], [1.0, 1.0, 1.0]
    assert notified(slow, slow, slow) == [2]
    assert notified(slow, even, slow) == [2, 2]
    assert notified(slow, [3.0, 1.0, 1.0]) == [2, 0]
