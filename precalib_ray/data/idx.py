"""The format of MNIST's files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from precalib_ray.data.codec import Pixels
from precalib_ray.errors import DataError


def read_split(source: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) uint8 and labels (N,) int64 of a prefix, ``train`` or ``t10k``."""
    images_path = _find(source, f"{prefix}-images-idx3-ubyte")
    labels_path = _find(source, f"{prefix}-labels-idx1-ubyte")
    images, labels = _read(images_path, num_dims=3), _read(labels_path, num_dims=1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {len(images)} images but {labels_path} {len(labels)} labels"
        )
    if images.size == 0:
        raise DataError(f"{images_path}: no images in it")
    return torch.tensor(images).unsqueeze(1), torch.tensor(labels, dtype=torch.int64)


def _find(source: Path, name: str) -> Path:
    for path in (source / name, source / f"{name}.gz"):
        if path.is_file():
            return path
    there = sorted(path.name for path in source.glob("*ubyte*"))
    raise DataError(
        f"{source}: neither {name} nor {name}.gz exists; "
        f"idx files there: {', '.join(there) or 'none'}"
    )


def _read(path: Path, *, num_dims: int) -> Pixels:
    """An array of unsigned bytes in the idx format: 0 0 8 num_dims, sizes as uint32, values."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file: {error}") from error
    magic = bytes([0, 0, 8, num_dims])
    if data[:4] != magic:
        raise DataError(f"{path}: starts with {data[:4].hex(' ')}, idx with {magic.hex(' ')}")
    header = len(magic) + 4 * num_dims
    if len(data) < header:
        raise DataError(f"{path}: truncated within its header")
    sizes = struct.unpack_from(f">{num_dims}I", data, offset=len(magic))
    expected = header + math.prod(sizes)
    if len(data) != expected:
        kind = "truncated" if len(data) < expected else "too long"
        raise DataError(f"{path}: {kind}: {len(data)} bytes, its header says {expected}")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(sizes)
