import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from precalib_ray.data.codec import decode, encode_png, load


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 1, 1), (3, 1, 1)])
def test_png_round_trip(shape):
    pixels = noise(*shape)
    decoded = decode(encode_png(pixels))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
def test_jpeg(mode, channels):
    image = Image.new(mode, (6, 4), 90 if mode == "L" else (90,) * channels)
    decoded = decode(saved(image, format="JPEG", quality=95))
    assert decoded.shape == (channels, 4, 6)
    assert abs(decoded.astype(int) - 90).max() <= 2


def test_other_modes_of_png():
    rgb = Image.fromarray(noise(4, 6, 3))
    palette = rgb.quantize(16)
    np.testing.assert_array_equal(
        decode(saved(palette, format="PNG")), np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    )
    bits = Image.fromarray(np.eye(4, dtype=bool))
    np.testing.assert_array_equal(
        decode(saved(bits, format="PNG"))[0], 255 * np.eye(4, dtype=np.uint8)
    )
    assert decode(saved(rgb.convert("RGBA"), format="PNG")).shape == (4, 4, 6)


def test_refuses():
    png = encode_png(noise(3, 40, 40))
    with pytest.raises(ValueError, match="not a PNG or JPEG file"):
        decode(b"no image")
    with pytest.raises(ValueError, match="not a PNG or JPEG file"):
        decode(saved(Image.new("RGB", (2, 2)), format="BMP"))
    with pytest.raises(ValueError, match="truncated"):
        decode(png[: len(png) // 2])
    deep = Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        decode(saved(deep, format="PNG"))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_is_a_value_error_or_unnoticed(data):
    damaged = bytearray(encode_png(noise(1, 8, 8)))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place : place + data.draw(st.integers(1, 8))] = data.draw(st.binary(max_size=8))
    try:
        assert decode(bytes(damaged)).dtype == np.uint8
    except ValueError as error:
        assert str(error)  # noqa: PT017


def test_load_resizes_and_converts(tmp_path):
    path = tmp_path / "half.gif"
    Image.fromarray(np.repeat([[0, 255]], 4, axis=0).astype(np.uint8)).resize(
        (64, 32), Image.Resampling.NEAREST
    ).save(path)
    gray = load(path, shape=(1, 8, 4))
    assert gray.shape == (1, 8, 4)
    assert (gray[..., 0] == 0).all()
    assert (gray[..., 3] == 255).all()
    assert load(path, shape=(3, 8, 4)).shape == (3, 8, 4)


def test_load_antialiases(tmp_path):
    path = tmp_path / "stripes.png"
    Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))).save(path)
    assert abs(load(path, shape=(1, 4, 4)).astype(int) - 127).max() <= 8


def test_load_refuses(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("no image")
    with pytest.raises(ValueError, match="not a known image file"):
        load(path, shape=(1, 4, 4))
    Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(ValueError, match="more than 8 bits"):
        load(path, shape=(1, 4, 4))
