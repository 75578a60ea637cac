"""Real images that come with scikit-learn: nothing to download."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from precalib_ray.core.dataset import DatasetInfo, Split, stratified_split
from precalib_ray.data.codec import pixels

_SMALLEST_CROP = 32


def digits() -> dict[str, Split]:
    """1,797 handwritten digits, 8 × 8 gray, as train, val and test of 64, 16 and 20 %.

    The split is stratified and fixed. Pixel values 0..16 are spread over 0..255. Source:
    the test part of UCI's "Optical Recognition of Handwritten Digits".
    """
    source = load_digits()
    images = torch.from_numpy(np.rint(source.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(source.target.astype(np.int64))
    rest, test = stratified_split(labels, fraction=0.2, seed=0)
    train, val = (rest[part] for part in stratified_split(labels[rest], fraction=0.2, seed=1))
    names = [str(name) for name in source.target_names]
    info = DatasetInfo.measured(images[train], class_names=names)
    return {
        split: Split(images[part], labels[part], info)
        for split, part in (("train", train), ("val", val), ("test", test))
    }


def photo_patches(shape: tuple[int, int, int], *, num: int, seed: int) -> Tensor:
    """Square crops of two photographs (a temple, a flower), used as out-of-distribution images.

    Position is uniform and the side log-uniform from 32 pixels to the height of the photograph;
    each crop is resized to H × W with antialiasing.

    Args:
        shape: (C, H, W), C = 1 for gray or 3 for RGB.
        num: number of patches.
        seed: the patches are a pure function of the arguments.

    Returns:
        uint8 (num, C, H, W).
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"photographs have 1 or 3 channels, got shape {shape}")
    photos = [image.convert("L") if channels == 1 else image for image in _photos()]
    patches = np.empty((num, channels, height, width), dtype=np.uint8)
    draws = torch.rand(num, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for patch, (which, size, x, y) in zip(patches, draws.tolist(), strict=True):
        photo = photos[int(which * len(photos))]
        side = int(_SMALLEST_CROP * math.exp(size * math.log(photo.height / _SMALLEST_CROP)))
        left, top = int(x * (photo.width - side + 1)), int(y * (photo.height - side + 1))
        box = (left, top, left + side, top + side)
        patch[:] = pixels(photo.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(patches)


@cache
def _photos() -> list[Image.Image]:
    return [Image.fromarray(image) for image in load_sample_images().images]
