"""Single images between files and uint8 pixels (C, H, W).

Through Pillow, which torchvision requires anyway: torchvision's own decoders are deprecated since
0.29 and warn at every call.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]


def decode(data: bytes) -> Pixels:
    """Pixels of a PNG or JPEG: 1 channel for gray, 3 for color or a palette, one more for alpha.

    Raises:
        ValueError: the bytes are damaged, another format, or not 8 bits a channel.
    """
    with _opened(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        return pixels(image)


def encode_png(image: Pixels) -> bytes:
    """PNG of pixels (1, H, W) or (3, H, W)."""
    file = io.BytesIO()
    channels_last = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    Image.fromarray(channels_last).save(file, format="PNG")
    return file.getvalue()


def load(path: Path, *, shape: tuple[int, int, int]) -> Pixels:
    """An image file of any format of Pillow, converted to gray or RGB and resized to ``shape``
    (C, H, W) with antialiasing, without preserving the aspect ratio; alpha is dropped.

    Raises:
        ValueError: the file is damaged, no image, or not 8 bits a channel.
    """
    channels, height, width = shape
    with path.open("rb") as file, _opened(file) as image:
        converted = image.convert("L" if channels == 1 else "RGB")
        return pixels(converted.resize((width, height), Image.Resampling.BILINEAR))


def pixels(image: Image.Image) -> Pixels:
    """Pixels (C, H, W) of a Pillow image; ValueError unless it has 8 bits a channel."""
    _refuse_deep(image)
    if image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    array = np.asarray(image, dtype=np.uint8)
    return array[np.newaxis] if array.ndim == 2 else array.transpose(2, 0, 1)


def _refuse_deep(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"more than 8 bits a channel (mode {image.mode})")


@contextmanager
def _opened(file: BinaryIO, *, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    try:
        with Image.open(file, formats=formats) as image:
            _refuse_deep(image)
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"not a {' or '.join(formats or ('known image',))} file") from error
    except Exception as error:  # Pillow's parsers raise arbitrary exceptions on damaged bytes
        raise ValueError(str(error)) from error
