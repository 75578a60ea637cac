import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from precalib_ray.data.codec import SIGNATURE_BYTES, decode, encode_png, fit, has_signature


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


RGB = Image.fromarray(noise(4, 6, 3))
GRAY = RGB.convert("L")
PALETTE = RGB.quantize(8)
WITH_ALPHA = Image.fromarray(np.dstack([noise(4, 6, 3), np.eye(4, 6, dtype=np.uint8) * 255]))


def expected(image):
    array = np.asarray(image)
    return array[np.newaxis] if array.ndim == 2 else array.transpose(2, 0, 1)


def over_white(image):
    """Opaque pixels as they are, the others white."""
    color, alpha = np.asarray(image)[..., :-1], np.asarray(image)[..., -1:]
    return np.where(alpha == 255, color, 255).transpose(2, 0, 1)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_read(file_format):
    image = PALETTE.convert("RGB")
    np.testing.assert_array_equal(decode(saved(image, format=file_format)), expected(image))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_lossy_formats_are_read(file_format, mode):
    decoded = decode(saved(Image.new(mode, (6, 4), "#5a5a5a"), format=file_format, quality=95))
    assert decoded.shape[1:] == (4, 6)
    assert abs(decoded.astype(int) - 90).max() <= 3


@pytest.mark.parametrize(
    ("image", "file_format", "options", "pixels"),
    [
        (GRAY, "PNG", {}, expected(GRAY)),
        (GRAY, "TIFF", {"compression": "tiff_lzw"}, expected(GRAY)),
        (GRAY.convert("1"), "PNG", {}, expected(GRAY.convert("1").convert("L"))),
        (GRAY.convert("1"), "TIFF", {}, expected(GRAY.convert("1").convert("L"))),
        (PALETTE, "PNG", {}, expected(PALETTE.convert("RGB"))),
        (GRAY.quantize(4), "PNG", {}, expected(GRAY.quantize(4).convert("RGB"))),
        (RGB.convert("RGBA"), "PNG", {}, expected(RGB)),
        (WITH_ALPHA, "PNG", {}, over_white(WITH_ALPHA)),
        (WITH_ALPHA.convert("LA"), "PNG", {}, over_white(WITH_ALPHA.convert("LA"))),
        (WITH_ALPHA, "TIFF", {}, over_white(WITH_ALPHA)),
        (WITH_ALPHA, "WEBP", {"lossless": True}, over_white(WITH_ALPHA)),
        (GRAY, "PNG", {"transparency": GRAY.getpixel((0, 0))}, None),
        (RGB, "PNG", {"transparency": RGB.getpixel((0, 0))}, None),
        (PALETTE, "PNG", {"transparency": PALETTE.getpixel((0, 0))}, None),
        (PALETTE, "GIF", {"transparency": PALETTE.getpixel((0, 0))}, None),
        (RGB.convert("CMYK"), "TIFF", {}, expected(RGB)),
    ],
)
def test_modes(image, file_format, options, pixels):
    decoded = decode(saved(image, format=file_format, **options))
    if "transparency" in options:
        assert (decoded[:, 0, 0] == 255).all()
        pixels = expected(image.convert("RGB" if image.mode == "P" else image.mode))
        assert (decoded == pixels).mean() > 0.7
    else:
        np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("YCbCr", "TIFF"), ("LAB", "TIFF")],
)
def test_color_spaces_become_rgb(mode, file_format):
    decoded = decode(
        saved(Image.new("RGB", (6, 4), (200, 90, 30)).convert(mode), format=file_format)
    )
    assert decoded.shape == (3, 4, 6)
    assert abs(decoded.astype(int) - np.array([200, 90, 30])[:, None, None]).max() <= 4


def deep_png(color_type, channels):
    """A PNG of 16 bits a channel, which Pillow cannot write in color."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    rows = b"".join(b"\0" + bytes(4 * channels * 2) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def deep_tiff():
    """A TIFF of RGB with 16 bits a channel, 1 x 1."""
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 206), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return start.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16) + bytes(6)


@pytest.mark.parametrize(
    "data",
    [
        *(deep_png(*kind) for kind in ((0, 1), (2, 3), (4, 2), (6, 4))),
        deep_tiff(),
        saved(Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16)), format="TIFF"),
        b"P6\n2 2\n65535\n" + bytes(24),
        b"P3\n1 1\n1000\n1 500 1000\n",
        b"P5\n2 2\n1023\n" + bytes(8),
        b"Pf\n2 2\n-1.0\n" + bytes(16),
    ],
    ids=[
        *("png-gray", "png-rgb", "png-la", "png-rgba", "tiff-rgb", "tiff-gray"),
        *("ppm", "ppm-plain", "pgm", "pfm"),
    ],
)
def test_more_than_8_bits_are_refused(data):
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        decode(data)


def test_refuses_values_that_are_not_unsigned():
    with pytest.raises(ValueError, match="signed or floating-point values"):
        decode(saved(GRAY.convert("F"), format="TIFF"))
    with pytest.raises(ValueError, match="signed or floating-point values"):
        decode(saved(GRAY, format="TIFF", tiffinfo={339: 2}))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda array: array),
        (2, lambda array: array[:, :, ::-1]),
        (3, lambda array: array[:, ::-1, ::-1]),
        (6, lambda array: np.rot90(array, k=-1, axes=(1, 2))),
        (8, lambda array: np.rot90(array, k=1, axes=(1, 2))),
    ],
)
def test_orientation_is_applied(file_format, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    plain = decode(saved(RGB, format=file_format, **lossless))
    turned = decode(saved(RGB, format=file_format, exif=exif, **lossless))
    np.testing.assert_array_equal(turned, turn(plain))


def test_a_damaged_exif_block_does_not_matter():
    data = saved(RGB, format="PNG", exif=b"Exif\0\0XX*\0rubbish")
    np.testing.assert_array_equal(decode(data), expected(RGB))


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_several_frames_are_refused(file_format):
    frames = {"save_all": True, "append_images": [GRAY.convert("RGB")]}
    with pytest.raises(ValueError, match="2 frames; an image has one"):
        decode(saved(RGB, format=file_format, **frames))


def test_the_preview_in_a_jpeg_of_a_camera_is_no_frame():
    """Format MPO: phones append smaller pictures."""
    data = saved(RGB, format="MPO", save_all=True, append_images=[GRAY])
    np.testing.assert_array_equal(decode(data), decode(saved(RGB, format="JPEG")))


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_truncated_files_are_refused(file_format):
    data = saved(Image.fromarray(noise(40, 40, 3)), format=file_format)
    for length in (SIGNATURE_BYTES, len(data) // 2, len(data) - 40):
        with pytest.raises(ValueError, match=r"."):
            decode(data[:length])


def test_refuses():
    for data in (b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>"):
        with pytest.raises(ValueError, match="not a PNG, JPEG, GIF, BMP, TIFF, WebP or PNM file"):
            decode(data)
    with pytest.raises(ValueError, match="an empty file"):
        decode(b"")
    with pytest.raises(ValueError, match=r"\(100000000 pixels\).*decompression bomb"):
        decode(saved(Image.new("1", (10_000, 10_000)), format="PNG"))


def test_signatures():
    for file_format in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        assert has_signature(saved(RGB, format=file_format)[:SIGNATURE_BYTES])
    assert has_signature(b"P2 # made by hand")
    for head in (b"", b"BMW cars and more", b"P5 is a chapter ", b"GIF89", b"RIFF1234WAVEfmt "):
        assert not has_signature(head)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_is_a_value_error_or_unnoticed(data):
    file_format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]))
    damaged = bytearray(saved(GRAY, format=file_format))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place : place + data.draw(st.integers(1, 8))] = data.draw(st.binary(max_size=8))
    try:
        assert decode(bytes(damaged)).dtype == np.uint8
    except ValueError as error:
        assert str(error)  # noqa: PT017


def test_fit_converts_and_resizes():
    half = np.repeat(np.repeat([[0, 255]], 32, axis=1), 32, axis=0).astype(np.uint8)[np.newaxis]
    gray = fit(half, (1, 8, 4))
    assert gray.shape == (1, 8, 4)
    assert (gray[..., 0] == 0).all()
    assert (gray[..., 3] == 255).all()
    assert fit(half, (3, 8, 4)).shape == (3, 8, 4)
    assert fit(noise(3, 8, 8), (1, 8, 8)).shape == (1, 8, 8)


def test_fit_antialiases():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))[np.newaxis]
    assert abs(fit(stripes, (1, 4, 4)).astype(int) - 127).max() <= 8
