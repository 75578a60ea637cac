"""Single images between files and uint8 pixels (C, H, W).

:func:`decode` is the one rule of what an image file means, in folders as in Parquet;
``jobs/README.md`` documents it. Through Pillow, which torchvision requires anyway: torchvision's
own decoders are deprecated since 0.29 and warn at every call.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]

SIGNATURE_BYTES = 16
ENDINGS = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".webp", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Of file names that claim to be an image of a known format."""

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_NO_IMAGE = "not a PNG, JPEG, GIF, BMP, TIFF, WebP or PNM file"
_SIGNATURE = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|BM....\0\0\0\0|II[*+]\0|MM\0[*+]|RIFF....WEBP|P[1-6]\s+[#\d]",
    re.DOTALL,
)
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1  # of TIFF


def decode(data: bytes) -> Pixels:
    """Pixels of an image file: 1 channel for gray, 3 for everything else.

    EXIF orientation is applied, transparency is blended over white, CMYK, YCbCr and LAB become RGB.

    Raises:
        ValueError: the bytes are damaged, another format, several frames, or more than 8 bits a
            channel.
    """
    if not data:
        raise ValueError("an empty file")
    with _opened(data) as image:
        _refuse_deep(image, data)
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ValueError(f"{getattr(image, 'n_frames', 'several')} frames; an image has one")
        image.load()
        if _has_orientation(image):
            ImageOps.exif_transpose(image, in_place=True)
        return pixels(image)


def pixels(image: Image.Image) -> Pixels:
    """Pixels (C, H, W) of a Pillow image, as :func:`decode`."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"more than 8 bits a channel (mode {image.mode})")
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        layer = image.convert("LA" if mode == "L" else "RGBA")
        image = Image.new(mode, layer.size, "white")
        image.paste(layer.convert(mode), mask=layer.getchannel("A"))
    elif image.mode != mode:
        image = image.convert(mode)
    array = np.asarray(image)
    return array[np.newaxis] if array.ndim == 2 else array.transpose(2, 0, 1)


def fit(image: Pixels, shape: tuple[int, int, int]) -> Pixels:
    """Pixels (C, H, W), C = 1 or 3, as gray or RGB of another shape, resized with antialiasing,
    without preserving the aspect ratio.
    """
    if image.shape == shape:
        return image
    channels, height, width = shape
    converted = _to_pillow(image).convert("L" if channels == 1 else "RGB")
    return pixels(converted.resize((width, height), Image.Resampling.BILINEAR))


def encode_png(image: Pixels) -> bytes:
    """PNG of pixels (1, H, W) or (3, H, W)."""
    file = io.BytesIO()
    _to_pillow(image).save(file, format="PNG")
    return file.getvalue()


def has_signature(head: bytes) -> bool:
    """Whether the first ``SIGNATURE_BYTES`` of a file are those of a format of ``decode``."""
    return _SIGNATURE.match(head) is not None


def _to_pillow(image: Pixels) -> Image.Image:
    channels_last = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    return Image.fromarray(channels_last)


def _refuse_deep(image: Any, data: bytes) -> None:
    """Pillow reads 16-bit color by its high bytes, so look at what the file itself says."""
    bits = 8
    if image.format == "PNG":
        bits = data[24]  # of IHDR, which comes first
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
        if set(image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
            raise ValueError("signed or floating-point values; 8-bit unsigned ones are read")
    elif image.format == "PPM":
        arguments = image.tile[0].args
        if isinstance(arguments, tuple) and arguments[-1] > 255:  # the maximal value
            bits = 16
    if bits > 8:
        raise ValueError(f"more than 8 bits a channel ({bits})")


def _has_orientation(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)
    except Exception:  # a damaged EXIF block says nothing; the pixels are good
        return False


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata, which pixels do not need
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                yield image
    except UnidentifiedImageError as error:
        is_damaged = has_signature(data[:SIGNATURE_BYTES])
        raise ValueError("damaged, or of an unknown kind" if is_damaged else _NO_IMAGE) from error
    except Exception as error:  # Pillow's parsers raise arbitrary exceptions on damaged bytes
        raise ValueError(str(error) or type(error).__name__) from error
