import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from precalib_ray.core import noise
from precalib_ray.core.noise import Noise
from precalib_ray.core.spec import from_plain
from precalib_ray.data.embedded import digits

IMAGES, FLAT = (256, 3, 16, 16), (512, 96)
SPECS = [
    {"kind": "gaussian"},
    {"kind": "uniform"},
    {"kind": "rademacher"},
    {"kind": "laplace"},
    {"kind": "student_t", "df": 9.0},
    {"kind": "pink", "alpha": 1.0},
    {"kind": "blur", "max_sigma": 2.0},
    {"kind": "patches"},
    {
        "kind": "mixture",
        "parts": [
            {"weight": 1.0, "noise": {"kind": "gaussian"}},
            {"weight": 2.0, "noise": {"kind": "pink", "alpha": 2.0}},
        ],
    },
]  # fmt: skip


def kind(spec):
    return spec["kind"]


def draw(spec, shape, seed=0, statistics=None):
    generator = torch.Generator().manual_seed(seed)
    return noise.draw(from_plain(Noise, spec), shape, generator=generator, statistics=statistics)


def standard_error(per_sample):
    return float(per_sample.std() / math.sqrt(len(per_sample)))


@pytest.mark.parametrize("shape", [IMAGES, FLAT], ids=["images", "flat"])
@pytest.mark.parametrize("spec", SPECS, ids=kind)
def test_zero_mean_and_unit_variance(spec, shape):
    """Samples are independent: their means tell how far the mean of all may be off."""
    values = draw(spec, shape).double()
    assert values.shape == shape
    assert values.isfinite().all()
    means, squares = (v.flatten(1).mean(1) for v in (values, values.square()))
    assert abs(means.mean()) <= 4.5 * standard_error(means) + 1e-6
    assert abs(squares.mean() - 1) <= 4.5 * standard_error(squares) + 1e-6
    assert 4.5 * standard_error(squares) < 0.35  # or the line above would say little


@pytest.mark.parametrize("spec", SPECS, ids=kind)
def test_shift_and_scale(spec):
    plain = draw(spec, (8, 1, 8, 8))
    moved = draw(spec | {"shift": -2.0, "scale": 3.0}, (8, 1, 8, 8))
    torch.testing.assert_close(moved, plain * 3 - 2)


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 2, 7, 9), (4, 33), (1, 1, 1, 4), (3, 8)])
@pytest.mark.parametrize("spec", SPECS, ids=kind)
def test_pure_function_of_the_generator(spec, shape):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = draw(spec, shape, 1), draw(spec, shape, 1), draw(spec, shape, 2)
    assert first.shape == shape
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    if shape[0] > 1 and math.prod(shape) > 20:
        assert not torch.equal(first, other)
        assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["pink", "blur", "patches", "gaussian", "student_t"])
def test_fills_what_it_is_given(name):
    out = torch.full((4, 3, 8, 8), 7.0)
    sampler = from_plain(Noise, {"kind": name}).sampler()
    assert sampler(out, torch.Generator().manual_seed(0)) is out
    assert torch.equal(out, draw({"kind": name}, (4, 3, 8, 8)))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("shape", [(128, 1, 32, 32), (1000, 256)], ids=["image", "flat"])
def test_pink_spectrum_falls_as_it_says(alpha, shape):
    values = draw({"kind": "pink", "alpha": alpha}, shape).double()
    if len(shape) == 4:
        power = torch.fft.fft2(values).abs().square().mean((0, 1)).flatten()
        axis = torch.fft.fftfreq(shape[-1], dtype=torch.float64)
        frequency = torch.hypot(axis[:, None], axis).flatten()
    else:
        power = torch.fft.fft(values).abs().square().mean(0)
        frequency = torch.fft.fftfreq(shape[-1], dtype=torch.float64).abs()
    kept = frequency > 0
    slope = stats.linregress(frequency[kept].log(), power[kept].log()).slope
    assert slope == pytest.approx(-alpha, abs=0.1)
    assert power[~kept].max() < 1e-6 * power.max()


def test_pink_channels_are_independent():
    values = draw({"kind": "pink", "alpha": 2.0}, (400, 2, 8, 8))
    correlation = (values[:, 0] * values[:, 1]).flatten(1).mean(1)
    assert abs(correlation.mean()) < 4.5 * standard_error(correlation)


def correlated(shape, generator):
    values = torch.randn(shape, generator=generator)
    for axis in range(2, len(shape)) or (1,):
        values = values + values.roll(1, axis) + 0.5 * values.roll(2, axis)
    channels = torch.arange(1.0, shape[1] + 1).view(-1, 1, 1) if len(shape) == 4 else 2.0
    return values * channels - 3 * channels


@pytest.mark.parametrize("source", ["digits", "color", "odd", "flat"])
def test_matched_has_mean_deviation_and_spectrum_of_the_data(source):
    generator = torch.Generator().manual_seed(3)
    if source == "digits":
        data = digits()["train"].images.float() / 255
    else:
        shape = {"color": (500, 3, 12, 12), "odd": (500, 2, 9, 7), "flat": (900, 40)}[source]
        data = correlated(shape, generator)
    found = noise.statistics(data)
    flat = data.dim() == 2
    axes = (0, 1) if flat else (0, 2, 3)
    torch.testing.assert_close(found.mean, data.mean(axes).reshape(-1))
    torch.testing.assert_close(found.std, data.std(axes, correction=0).reshape(-1))

    num = 4000
    spec = {"kind": "matched", "data": "somewhere"}
    drawn = draw(spec, (num, *data.shape[1:]), statistics={"somewhere": found})
    again = noise.statistics(drawn)
    # Of pixels that go together only few are independent: the spread over samples is the measure.
    means = drawn.mean(1, keepdim=True) if flat else drawn.mean((2, 3))  # (n, C)
    error = means.std(0) / math.sqrt(num)
    assert ((again.mean - found.mean).abs() < 4.5 * error + 1e-5).all()
    torch.testing.assert_close(again.std, found.std, rtol=0.04, atol=0)
    # The power at one frequency is exponential or chi-square with 1 degree of freedom.
    share = again.power / found.power
    relevant = found.power > 1e-4 * found.power.amax()
    assert relevant.float().mean() > 0.3
    assert ((share - 1).abs()[relevant] < 5.5 * math.sqrt(2 / num)).all()


def test_blur_falls_and_keeps_unit_variance_at_every_scale():
    for sigma in (0.5, 1.0, 3.0):
        spec = {"kind": "blur", "min_sigma": sigma, "max_sigma": sigma}
        values = draw(spec, (600, 1, 24, 24)).double()
        squares = values.square().flatten(1).mean(1)
        assert abs(squares.mean() - 1) < 4.5 * standard_error(squares)
        power = torch.fft.fft2(values).abs().square().mean((0, 1))[0, :12]
        expected = torch.exp(-4 * math.pi**2 * sigma**2 * (torch.arange(12) / 24.0).square())
        ratio = (power / power[0])[expected > 1e-4] / expected[expected > 1e-4]
        assert ((ratio - 1).abs() < 0.3).all()
        assert power[11] < 0.6 * power[0]


def test_blur_scales_differ_by_sample():
    values = draw({"kind": "blur", "min_sigma": 0.5, "max_sigma": 4.0}, (200, 1, 32, 32))
    roughness = values.diff(dim=-1).square().flatten(1).mean(1)
    assert roughness.quantile(0.9) > 10 * roughness.quantile(0.1)


@pytest.mark.parametrize("shape", [(64, 1, 24, 24), (64, 200)])
@pytest.mark.parametrize("num_patches", [1, 6, 255])
def test_patches_are_piecewise_constant(num_patches, shape):
    values = draw({"kind": "patches", "num_patches": num_patches}, shape)
    distinct = [len(sample.unique()) for sample in values]
    assert max(distinct) <= num_patches + 1
    assert sum(distinct) / len(distinct) > 1.2
    if num_patches == 6:
        assert max(distinct) > 4
        still = (values.diff(dim=-1) == 0).float().mean()
        assert 0.7 < still < 1


def test_patches_cover_every_pixel_equally_often():
    """At the borders as in the middle: two neighbors differ equally often everywhere."""
    values = draw({"kind": "patches", "num_patches": 8, "min_size": 0.3}, (4000, 12))
    changes = (values.diff(dim=-1) != 0).float().mean(0)
    assert changes.max() - changes.min() < 6 * math.sqrt(0.25 / 4000) * 1.5


def test_patches_colors_are_normal():
    values = draw({"kind": "patches"}, (4000, 2, 4, 4))[:, :, 1, 2]
    assert stats.kstest(values[:, 0].numpy(), "norm").pvalue > 1e-4
    assert abs(values.T.corrcoef()[0, 1]) < 4.5 / math.sqrt(4000)  # channels: each its own color


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 3.0], [5.0, 1.0, 2.0], [1.0]])
def test_mixture_proportions(weights):
    n = 4000
    parts = [
        {"weight": w, "noise": {"kind": "gaussian", "shift": 100.0 * i, "scale": 0.1}}
        for i, w in enumerate(weights)
    ]
    values = draw({"kind": "mixture", "parts": parts}, (n, 5))
    which = (values / 100).round()
    assert (which == which[:, :1]).all()  # a sample is of one part
    counts = which[:, 0].long().bincount(minlength=len(weights)).double()
    expected = torch.tensor(weights).double() * n / sum(weights)
    if len(weights) == 1:
        assert counts.tolist() == [n]
    else:
        assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-4


def test_mixture_of_mixtures():
    inner = {"kind": "mixture", "parts": [
        {"weight": 1.0, "noise": {"kind": "rademacher"}},
        {"weight": 1.0, "noise": {"kind": "gaussian", "shift": 50.0}},
    ]}  # fmt: skip
    parts = [{"weight": 1.0, "noise": inner}, {"weight": 1.0, "noise": {"kind": "uniform"}}]
    values = draw({"kind": "mixture", "parts": parts}, (4000, 4))
    shares = [
        (values.abs() == 1).all(1).double().mean(),
        (values > 10).all(1).double().mean(),
    ]
    assert shares == pytest.approx([0.25, 0.25], abs=4.5 * math.sqrt(0.1875 / 4000))


def test_values_of_the_independent_kinds_follow_scipy():
    references = {
        "gaussian": stats.norm,
        "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
        "laplace": stats.laplace(scale=math.sqrt(0.5)),
    }
    for name, reference in references.items():
        values = draw({"kind": name}, (100, 500)).flatten().double().numpy()
        assert stats.kstest(values, reference.cdf).pvalue > 1e-4, name


@pytest.mark.parametrize("df", [2.1, 3.0, 5.0, 30.0, 1e6])
def test_student_t_follows_scipy(df):
    values = draw({"kind": "student_t", "df": df}, (100, 500)).flatten().double()
    assert values.isfinite().all()
    reference = stats.t(df, scale=math.sqrt((df - 2) / df))
    assert stats.kstest(values.numpy(), reference.cdf).pvalue > 1e-4


def test_tails_are_heavy_and_finite():
    laplace = draw({"kind": "laplace"}, (1000, 3000))
    assert laplace.isfinite().all()
    kurtosis = float(laplace.double().pow(4).mean())
    # the fourth power has variance 8!/4 - 36 / ... = E x^8 - (E x^4)^2 = 2520 - 36
    assert kurtosis == pytest.approx(6.0, abs=5 * math.sqrt((2520 - 36) / 3e6))
    assert laplace.abs().max() > 8


def test_uniform_bounds_and_rademacher_values():
    uniform = draw({"kind": "uniform"}, (100, 1000))
    bound = math.sqrt(3) + 1e-6
    assert uniform.abs().max() <= bound
    assert uniform.max() > 0.999 * bound
    assert uniform.min() < -0.999 * bound
    rademacher = draw({"kind": "rademacher"}, (100, 1000))
    assert set(rademacher.unique().tolist()) == {-1.0, 1.0}
    assert abs(rademacher.mean()) < 4.5 / math.sqrt(1e5)


class Extremes:
    """A generator's extreme outcomes: uniform_ at its bounds, and nearest to them."""

    @staticmethod
    def fill(out, low, high):
        out.copy_(torch.tensor([low, 0.0 if low < 0 else low, high]).repeat(out.numel() // 3 + 1)
                  [: out.numel()].view_as(out))  # fmt: skip
        return out


@pytest.mark.parametrize("name", ["laplace", "student_t"])
def test_extreme_numbers_stay_finite(name, monkeypatch):
    """The lower bound itself may be drawn; the upper one only rounded to."""

    def uniform(out, low=0.0, high=1.0, *, generator=None):
        return Extremes.fill(out, low, math.nextafter(high, low) if high != 1 else 1 - 2**-24)

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform)
    assert draw({"kind": name}, (2, 6)).isfinite().all()


def test_function():
    spec = {"kind": "function", "name": "tests.core.user_functions:two_sided"}
    values = draw(spec, (4, 3, 5, 5))
    expected = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).abs() - 0.5
    assert torch.equal(values, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tests.core.user_functions:wrong_shape",
            r"wrong_shape returned shape \(2, 6\), not \(2, 5\)",
        ),
        ("tests.core.user_functions:no_tensor", "no_tensor returned list, not a tensor"),
        ("tests.core.user_functions:absent", "module 'tests.core.user_functions' has no function"),
        ("tests.core.user_functions:ANSWER", "has no function 'ANSWER'"),
        ("no_such_module_at_all:f", "'no_such_module_at_all' does not import: ModuleNotFound"),
        ("no_colon", "'no_colon' is not of the form 'module:function'"),
        (":f", "is not of the form"),
        ("m:", "is not of the form"),
    ],
)
def test_function_refused(name, message):
    with pytest.raises(ValueError, match=message):
        draw({"kind": "function", "name": name}, (2, 5))


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    sample=st.one_of(
        st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
        st.tuples(st.integers(8, 40)),
    ),
    n=st.integers(1, 5),
)
def test_any_shape_gives_finite_values(spec, sample, n):
    values = draw(spec, (n, *sample))
    assert values.shape == (n, *sample)
    assert values.isfinite().all()
