import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precalib_ray.core.labels import Balanced, Dirichlet, Hard
from precalib_ray.core.noise.gaussian import Gaussian
from precalib_ray.core.noise.laplace import Laplace
from precalib_ray.core.noise.mixture import Mixture, Part
from precalib_ray.core.noise.patches import Patches
from precalib_ray.core.noise.pink import Pink
from precalib_ray.core.noise.rademacher import Rademacher
from precalib_ray.core.seeding import mix
from precalib_ray.core.stream import BLOCK_ELEMENTS, MAX_BLOCK, NoiseStream, block_size, shard

WORLDS = [1, 2, 3, 4, 5, 8]
SHAPES = [(12,), (1, 8, 8), (3, 16, 16), (3, 40, 40), (3, 112, 112)]
"""Blocks of 32, 32, 32, 8 and 1 samples: an image of the last is larger than a block."""

NOISES = [
    Gaussian(),
    Pink(),
    Patches(num_patches=4),
    Mixture(
        parts=[
            Part(noise=Gaussian()),
            Part(noise=Pink(alpha=2.0)),
            Part(weight=0.5, noise=Laplace()),
        ]
    ),
]
LABELS = [Balanced(), Dirichlet(alpha=1.0)]


def make(noise, labels=LABELS[0], *, seed=0, batch_size=16, shape=(1, 8, 8), rank=0, world=1):
    return NoiseStream(
        noise,
        labels,
        seed=seed,
        batch_size=batch_size,
        input_shape=shape,
        num_classes=5,
        rank=rank,
        world_size=world,
    )


def batch(stream, step):
    return tuple(tensor.clone() for tensor in stream.batch(step))


def test_block_sizes_of_the_shapes_below():
    device = torch.device("cpu")
    assert [block_size(shape, device) for shape in SHAPES] == [32, 32, 32, 8, 1]
    assert BLOCK_ELEMENTS["cpu"] == 2**15  # part of the definition of the stream
    assert MAX_BLOCK == 32


@st.composite
def sizes(draw):
    shape = draw(st.sampled_from(SHAPES))
    world = draw(st.sampled_from(WORLDS))
    largest = 10 if shape == SHAPES[-1] else 24 if shape == SHAPES[-2] else 150
    return shape, world, draw(st.integers(world, largest))


@settings(max_examples=60, deadline=None)
@given(
    size=sizes(),
    noise=st.sampled_from(NOISES),
    labels=st.sampled_from(LABELS),
    seed=st.integers(0, 2**63 - 1),
    steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=3),
)
def test_ranks_together_see_the_batch_of_one(size, noise, labels, seed, steps):
    shape, world, batch_size = size
    options = {"seed": seed, "batch_size": batch_size, "shape": shape}
    whole = make(noise, labels, **options)
    expected = {step: batch(whole, step) for step in steps}
    ranks = [make(noise, labels, **options, rank=rank, world=world) for rank in range(world)]
    for step in reversed(steps):  # what was drawn before does not matter
        parts = [batch(stream, step) for stream in ranks]
        assert torch.equal(torch.cat([inputs for inputs, _ in parts]), expected[step][0])
        assert torch.equal(torch.cat([targets for _, targets in parts]), expected[step][1])


@settings(max_examples=40, deadline=None)
@given(
    noise=st.sampled_from(NOISES),
    shape=st.sampled_from(SHAPES[:4]),
    small=st.integers(1, 40),
    large=st.integers(1, 70),
)
def test_a_sample_does_not_depend_on_the_batch_size(noise, shape, small, large):
    first, second = (batch(make(noise, batch_size=b, shape=shape), 3)[0] for b in (small, large))
    common = min(small, large)
    assert torch.equal(first[:common], second[:common])


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.kind)
def test_seeds_steps_blocks_and_samples_differ(noise):
    stream = make(noise, batch_size=100)
    here, targets = batch(stream, 0)
    there, other_targets = batch(stream, 1)
    elsewhere, last_targets = batch(make(noise, batch_size=100, seed=1), 0)
    assert len({sample.numpy().tobytes() for sample in torch.cat([here, there, elsewhere])}) == 300
    assert not torch.equal(targets, other_targets)
    assert not torch.equal(targets, last_targets)


def test_inputs_do_not_betray_the_targets():
    """Noise and labels come from different seeds: adding a word of the seed would show here."""
    one, two = (make(Gaussian(), labels) for labels in (Hard(), Balanced()))
    assert torch.equal(batch(one, 5)[0], batch(two, 5)[0])
    assert not torch.equal(batch(one, 5)[1], batch(two, 5)[1])


def test_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    batch(make(NOISES[3], LABELS[1]), 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_memory_is_reused():
    stream = make(Gaussian())
    assert stream.batch(0)[0].data_ptr() == stream.batch(1)[0].data_ptr()


def test_the_stream_never_changes():
    """Its bits are a promise to runs that are resumed; drawn with torch 2.15 on a CPU."""
    inputs, targets = batch(make(Rademacher(), Hard(), batch_size=40), 7)
    assert targets[:12].tolist() == [0, 0, 3, 0, 1, 2, 0, 4, 3, 2, 4, 0]
    assert inputs[33, 0, 0].tolist() == [-1, -1, 1, -1, 1, -1, -1, -1]


@given(batch_size=st.integers(1, 5000), world=st.integers(1, 64))
def test_shards_are_contiguous_and_even(batch_size, world):
    shards = [shard(batch_size, rank, world) for rank in range(world)]
    assert [s.start for s in shards[1:]] == [s.stop for s in shards[:-1]]
    assert (shards[0].start, shards[-1].stop) == (0, batch_size)
    lengths = [s.stop - s.start for s in shards]
    assert max(lengths) - min(lengths) <= 1


@given(
    words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    other=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
)
def test_mix_tells_words_apart(words, other):
    assert 0 <= mix(*words) < 2**63
    assert (mix(*words) == mix(*other)) == (words == other)


def test_mix_is_splitmix64():
    """The first outputs of the reference implementation for seed 0, halved."""
    assert mix(0) == 0xE220A8397B1DCDAF >> 1
    assert mix(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4 >> 1
