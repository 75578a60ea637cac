import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precalib_ray.core.optimizers import Schedule


@pytest.mark.parametrize(
    ("schedule", "num_steps", "expected"),
    [
        ({"kind": "constant"}, None, {0: 1, 1: 1, 999: 1}),
        ({"kind": "constant", "warmup_steps": 4}, None, {0: 0.25, 1: 0.5, 3: 1, 4: 1, 99: 1}),
        ({"kind": "linear"}, 10, {0: 1, 1: 0.9, 5: 0.5, 9: 0.1, 10: 0, 12: 0}),
        ({"kind": "linear", "warmup_steps": 2}, 10, {0: 0.5, 1: 1, 2: 1, 6: 0.5, 9: 0.125}),
        ({"kind": "cosine"}, 12, {0: 1, 3: (1 + math.sqrt(0.5)) / 2, 4: 0.75, 6: 0.5, 8: 0.25}),
        ({"kind": "cosine", "warmup_steps": 10}, 5, {0: 0.1, 4: 0.5}),
        ({"kind": "linear", "warmup_steps": 5}, 5, {4: 1, 5: 1}),
    ],
)
def test_learning_rate(schedule, num_steps, expected):
    found = {step: Schedule(**schedule).rate(3.0, step, num_steps) for step in expected}
    assert found == pytest.approx({step: 3.0 * share for step, share in expected.items()})


@given(
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 20),
    num_steps=st.integers(1, 60),
    step=st.integers(0, 80),
)
def test_learning_rate_stays_within_bounds(kind, warmup, num_steps, step):
    rate = Schedule(kind=kind, warmup_steps=warmup).rate(0.3, step, num_steps)
    assert 0 <= rate <= 0.3 * (1 + 1e-12)
