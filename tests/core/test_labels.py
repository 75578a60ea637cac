import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from precalib_ray.core.labels import Fixed, Labels
from precalib_ray.core.noise.gaussian import Gaussian
from precalib_ray.core.spec import from_plain
from precalib_ray.core.stream import NoiseStream

SPECS = {
    "hard": {"kind": "hard"},
    "balanced": {"kind": "balanced"},
    "uniform": {"kind": "uniform"},
    "dirichlet": {"kind": "dirichlet", "alpha": 0.7},
    "smoothed": {"kind": "smoothed", "epsilon": 0.2},
    "fixed": {"kind": "fixed", "num_batches": 3},
}


def draw(spec, batch_size, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = from_plain(Labels, spec)
    return labels.draw(batch_size, num_classes, generator=generator, device="cpu")


@pytest.mark.parametrize("name", SPECS)
def test_shape_and_type(name):
    targets = draw(SPECS[name], 12, 5)
    if Labels.members[name].soft:
        assert targets.shape == (12, 5)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(12))
        assert (targets >= 0).all()
    else:
        assert targets.shape == (12,)
        assert targets.dtype == torch.int64
        assert 0 <= targets.min() <= targets.max() < 5


@pytest.mark.parametrize("name", SPECS)
def test_pure_function_of_the_generator(name):
    before = torch.random.get_rng_state()
    first, again, other = (draw(SPECS[name], 40, 7, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "uniform")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["hard", "fixed", "smoothed", "balanced"])
@pytest.mark.parametrize("num_classes", [2, 7, 10])
def test_every_class_equally_often(name, num_classes):
    targets = draw(SPECS[name], 7001, num_classes)
    ids = targets if targets.dim() == 1 else targets.argmax(1)
    counts = ids.bincount(minlength=num_classes).numpy()
    assert stats.chisquare(counts).pvalue > 1e-4


def test_hard_labels_are_independent_along_the_batch():
    ids = draw(SPECS["hard"], 9000, 3)
    pairs = (ids[::2] * 3 + ids[1::2]).bincount(minlength=9).numpy()
    assert stats.chisquare(pairs).pvalue > 1e-4


@settings(max_examples=100, deadline=None)
@given(batch_size=st.integers(1, 200), num_classes=st.integers(2, 60), seed=st.integers(0, 2**62))
def test_balanced_counts(batch_size, num_classes, seed):
    counts = draw(SPECS["balanced"], batch_size, num_classes, seed).bincount(minlength=num_classes)
    assert counts.sum() == batch_size
    assert counts.max() - counts.min() <= 1


def test_balanced_remainder_and_order_are_random():
    draws = torch.stack([draw(SPECS["balanced"], 7, 5, seed) for seed in range(3000)])
    at_each_place = torch.stack([draws[:, i].bincount(minlength=5) for i in range(7)])
    assert all(stats.chisquare(counts.numpy()).pvalue > 1e-5 for counts in at_each_place)
    # Two of the 21 pairs of places hold the same class, any equally often.
    first_and_sixth = (draws[:, 0] == draws[:, 5]).double().mean()
    assert float(first_and_sixth) == pytest.approx(2 / 21, abs=4.5 * math.sqrt(0.0862 / 3000))
    twice = torch.stack([(draws == k).sum(1) == 2 for k in range(5)]).double().mean(1)
    assert twice.tolist() == pytest.approx([2 / 5] * 5, abs=4.5 * math.sqrt(0.24 / 3000))


def test_uniform_is_chance():
    assert (draw(SPECS["uniform"], 6, 8) == 1 / 8).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("num_classes", [2, 6])
def test_dirichlet_moments(alpha, num_classes):
    n = 20_000
    targets = draw({"kind": "dirichlet", "alpha": alpha}, n, num_classes).double()
    assert (targets.sum(1) - 1).abs().max() < 1e-5
    reference = stats.beta(alpha, alpha * (num_classes - 1))
    for column in targets.T:
        assert abs(column.mean() - reference.mean()) < 4.5 * reference.std() / math.sqrt(n)
        squares = (column - reference.mean()).square()
        assert abs(squares.mean() - reference.var()) < 4.5 * squares.std() / math.sqrt(n)


@pytest.mark.parametrize("alpha", [2e-3, 1e6])
def test_dirichlet_at_the_bounds_of_the_config(alpha):
    targets = draw({"kind": "dirichlet", "alpha": alpha}, 500, 10)
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(1), torch.ones(500), atol=1e-4, rtol=0)


def test_smoothed_mass():
    hard, smoothed = draw(SPECS["hard"], 50, 4), draw(SPECS["smoothed"], 50, 4)
    assert torch.equal(smoothed.argmax(1), hard)
    top = smoothed.amax(1)
    torch.testing.assert_close(top, torch.full((50,), 0.8 + 0.2 / 4))
    rest = smoothed.scatter(1, hard[:, None], 0.05)
    torch.testing.assert_close(rest, torch.full((50, 4), 0.05))


def test_fixed_pairs_repeat_through_the_stream():
    stream = NoiseStream(
        Gaussian(), Fixed(num_batches=3), seed=4, batch_size=9, input_shape=(6,), num_classes=5
    )
    batches = [tuple(t.clone() for t in stream.batch(step)) for step in range(8)]
    for step, (inputs, targets) in enumerate(batches):
        assert torch.equal(inputs, batches[step % 3][0])
        assert torch.equal(targets, batches[step % 3][1])
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(batches[a][0], batches[b][0])
        assert not torch.equal(batches[a][1], batches[b][1])
