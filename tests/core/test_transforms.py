import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from precalib_ray.core.dataset import DatasetInfo
from precalib_ray.core.transforms import augment, to_input

RGB = {"mean": (0.2, 0.4, 0.6), "std": (0.1, 0.2, 0.3)}
GRAY = {"mean": (0.25,), "std": (0.5,)}


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def test_same_shape_agrees_with_torchvision():
    images = noise(4, 3, 6, 5)
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), **RGB)
    inputs = to_input(images, shape=(3, 6, 5), **RGB)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, expected)


@pytest.mark.parametrize("size", [(12, 12), (3, 4), (7, 2)])
def test_resizing_agrees_with_torchvision(size):
    images = noise(4, 3, 6, 5)
    scaled = tv.resize(tv.to_dtype(images, torch.float32, scale=True), list(size), antialias=True)
    expected = tv.normalize(scaled, **RGB)
    torch.testing.assert_close(
        to_input(images, shape=(3, *size), **RGB), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [(6, 5), (9, 9)])
def test_gray_is_repeated(size):
    images = noise(4, 1, 6, 5)
    one = to_input(images, shape=(1, *size), **GRAY)
    three = to_input(images, shape=(3, *size), **GRAY)
    assert three.shape == (4, 3, *size)
    assert three.is_contiguous()
    assert torch.equal(three, one.repeat(1, 3, 1, 1))


def test_flat():
    images = noise(4, 3, 6, 5)
    flat = to_input(images, shape=(90,), **RGB)
    assert torch.equal(flat.view(4, 3, 6, 5), to_input(images, shape=(3, 6, 5), **RGB))


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 4, 4), (90,)])
def test_dtype_is_that_of_the_result_only(shape):
    images = noise(4, 3, 6, 5)
    exact = to_input(images, shape=shape, **RGB)
    low = to_input(images, shape=shape, dtype=torch.bfloat16, **RGB)
    assert torch.equal(low, exact.to(torch.bfloat16))


def test_measured_info_standardizes():
    images = noise(50, 2, 6, 6)
    images[:, 1] //= 3
    info = DatasetInfo.measured(images, class_names=["a", "b"])
    inputs = to_input(images, shape=info.shape, mean=info.mean, std=info.std).double()
    torch.testing.assert_close(
        inputs.mean(dim=(0, 2, 3)), torch.zeros(2).double(), atol=1e-6, rtol=0
    )
    std = inputs.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(std, torch.ones(2).double(), atol=1e-6, rtol=0)


def test_images_are_left_alone():
    images = noise(4, 3, 6, 5)
    before = images.clone()
    to_input(images, shape=(3, 6, 5), **RGB)
    augment(images, generator=torch.Generator(), crop_padding=2, flip=True)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "shape", "moments", "message"),
    [
        (noise(2, 3, 6, 5), (1, 6, 5), RGB, r"\(3, 6, 5\) cannot be converted to .* \(1, 6, 5\)"),
        (noise(2, 3, 6, 5), (4, 6, 5), RGB, r"\(3, 6, 5\) cannot be converted to .* \(4, 6, 5\)"),
        (noise(2, 1, 6, 5), (6, 5), GRAY, r"\(1, 6, 5\) cannot be converted to .* \(6, 5\)"),
        (noise(2, 3, 6, 5), (64,), RGB, r"\(3, 6, 5\) cannot be flattened to .* \(64,\)"),
        (noise(2, 3, 6, 5), (3, 6, 5), GRAY, r"one number per channel of \(3, 6, 5\), got 1 and 1"),
        (noise(2, 1, 6, 5), (3, 6, 5), RGB, r"one number per channel of \(1, 6, 5\), got 3 and 3"),
        (noise(2, 6, 5), (1, 6, 5), GRAY, r"uint8 \(N, C, H, W\), got torch.uint8 .* \(2, 6, 5\)"),
        (noise(2, 1, 6, 5).float(), (1, 6, 5), GRAY, r"uint8 \(N, C, H, W\), got torch.float32"),
    ],
)
def test_to_input_refuses(images, shape, moments, message):
    with pytest.raises(ValueError, match=message):
        to_input(images, shape=shape, **moments)


def windows(image, padding):
    """Every crop of one padded image, mirrored or not: bytes to (mirrored, dy, dx), the first
    where several are equal.
    """
    _, height, width = image.shape
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    found = {}
    shifts = range(2 * padding + 1)
    for mirrored, dy, dx in itertools.product((False, True), shifts, shifts):
        crop = padded[:, dy : dy + height, dx : dx + width]
        crop = crop.flip(-1) if mirrored else crop
        found.setdefault(crop.numpy().tobytes(), (mirrored, dy, dx))
    return found


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*(st.integers(2, high) for high in (4, 6, 6))),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_each_image_is_a_window_of_itself(shape, padding, flip, seed):
    images = noise(5, *shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    result = augment(images, generator=generator, crop_padding=padding, flip=flip)
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    for image, original in zip(result, images, strict=True):
        mirrored, _, _ = windows(original, padding)[image.numpy().tobytes()]
        assert flip or not mirrored


def test_draws_are_uniform_and_per_image():
    original = noise(1, 1, 8, 8) // 2 + 1
    generator = torch.Generator().manual_seed(0)
    result = augment(
        original.expand(3600, -1, -1, -1), generator=generator, crop_padding=1, flip=True
    )
    known = windows(original[0], 1)
    counts = dict.fromkeys(known.values(), 0)
    for image in result:
        counts[known[image.numpy().tobytes()]] += 1
    assert len(counts) == 18
    # 200 expected, standard deviation 14
    assert 130 < min(counts.values()) <= max(counts.values()) < 270


def test_nothing_to_do_is_the_identity():
    images = noise(4, 3, 6, 5).float()
    assert torch.equal(
        augment(images, generator=torch.Generator(), crop_padding=0, flip=False), images
    )


def test_augment_is_a_function_of_the_generator():
    images = noise(30, 1, 8, 8)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return [augment(images, generator=generator, crop_padding=2, flip=True) for _ in range(2)]

    torch.manual_seed(1)
    first = run(3)
    torch.manual_seed(2)
    again = run(3)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], run(4)[0])


@pytest.mark.parametrize(("images", "padding"), [(noise(3, 8, 8), 1), (noise(2, 3, 8, 8), -1)])
def test_augment_refuses(images, padding):
    with pytest.raises(ValueError, match=r"\(N, C, H, W\) and crop_padding not negative"):
        augment(images, generator=torch.Generator(), crop_padding=padding, flip=False)
