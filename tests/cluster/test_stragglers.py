"""Which rank is called a straggler."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from precalib_ray.cluster.stragglers import Stragglers


def told(*windows: Sequence[float]) -> list[int]:
    """Ranks that are told of, window after window of six seconds."""
    ranks: list[int] = []
    now = [0.0]
    names = [f"node {rank}" for rank in range(len(windows[0]))]
    stragglers = Stragglers(names, lambda _, rank, __: ranks.append(rank), clock=lambda: now[0])
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
        ([0.02, 0.01], []),  # twice as long, and nobody notices
        ([5.0], []),
        ([1.0, 1.0, 0.1, 1.0], []),  # fast, and none is slow
    ],
)
def test_who_holds_up_the_others(work: list[float], ranks: list[int]) -> None:
    assert told(work) == ranks


def test_a_straggler_is_told_of_once_until_it_is_none() -> None:
    slow, even = [1.0, 1.0, 3.0], [1.0, 1.0, 1.0]
    assert told(slow, slow, slow) == [2]
    assert told(slow, even, slow) == [2, 2]
    assert told(slow, [3.0, 1.0, 1.0]) == [2, 0]
