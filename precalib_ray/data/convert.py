"""Make a data set directory (see :mod:`precalib_ray.data.parquet`) from other sources.

Each converter reads its whole source before it touches ``directory``, then replaces the data set
there, and returns how many images each split got. ``val_fraction`` of every train class becomes
the val split, drawn by ``seed``; 0 leaves it out. ``on_progress(done, total)`` counts images, twice
if they must be decoded: when read and when written. An unusable source raises :class:`DataError`.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from precalib_ray.core.dataset import DatasetInfo, Split, stratified_split
from precalib_ray.data.codec import Pixels, load, pixels
from precalib_ray.data.embedded import digits
from precalib_ray.data.parquet import SPLITS, split_path, write_split
from precalib_ray.errors import DataError

OnProgress = Callable[[int, int], None]

# Data sets of torchvision whose images all have one size, with the arguments of train and test.
_TRAIN_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SPLIT_NAME: Mapping[str, Mapping[str, Any]] = {
    "train": {"split": "train"},
    "test": {"split": "test"},
}
TORCHVISION_DATASETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "CIFAR10": _TRAIN_FLAG,
    "CIFAR100": _TRAIN_FLAG,
    "FashionMNIST": _TRAIN_FLAG,
    "KMNIST": _TRAIN_FLAG,
    "MNIST": _TRAIN_FLAG,
    "STL10": _SPLIT_NAME,
    "SVHN": _SPLIT_NAME,
    "USPS": _TRAIN_FLAG,
}


def convert_digits(directory: Path, *, on_progress: OnProgress | None = None) -> dict[str, int]:
    """Write :func:`precalib_ray.data.embedded.digits`, in its own three splits."""
    splits = digits()
    progress = _Progress(on_progress, total=sum(len(split.labels) for split in splits.values()))
    return _replace(directory, splits, progress)


def convert_torchvision(
    directory: Path,
    *,
    name: str,
    root: Path,
    download: bool = False,
    val_fraction: float = 0.1,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, int]:
    """Write one of :data:`TORCHVISION_DATASETS`.

    Args:
        directory: directory of the data set to write.
        name: name of the class in torchvision.datasets.
        root: directory of the source's files, as torchvision expects it.
        download: let torchvision fetch files that are not under ``root``.
        val_fraction: see the module.
        seed: see the module.
        on_progress: see the module.
    """
    if name not in TORCHVISION_DATASETS:
        by_lower = {known.lower(): known for known in TORCHVISION_DATASETS}
        nearest = get_close_matches(name.lower(), by_lower, n=3)
        hint = f"did you mean {' or '.join(by_lower[n] for n in nearest)}? " if nearest else ""
        raise DataError(
            f"no torchvision data set {name!r} that can be converted; "
            f"{hint}There are {', '.join(TORCHVISION_DATASETS)}"
        )
    build = getattr(torchvision.datasets, name)
    try:
        train, test = (
            build(root, download=download, **TORCHVISION_DATASETS[name][split])
            for split in ("train", "test")
        )
    except Exception as error:  # each class raises its own errors for missing or damaged files
        advice = (
            "the download failed"
            if download
            else "convert with download=true if the network allows it, or put intact files there"
        )
        raise DataError(f"{name} under {root}: {error}; {advice}") from error
    progress = _Progress(on_progress, total=2 * (len(train) + len(test)))
    train_items, test_items = (
        _read_items(items, pixels=pixels, progress=progress) for items in (train, test)
    )
    return _split_and_replace(
        directory,
        train_items,
        test_items,
        class_names=getattr(train, "classes", None),
        source=f"{name} under {root}",
        val_fraction=val_fraction,
        seed=seed,
        progress=progress,
    )


def convert_idx(
    directory: Path,
    *,
    source: Path,
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, int]:
    """Write a data set in the format of MNIST.

    Args:
        directory: directory of the data set to write.
        source: directory of ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and their
            ``t10k-`` counterparts (the test split), each as it is or gzipped with ``.gz``.
        class_names: by default "0", "1", ... up to the largest label of train.
        val_fraction: see the module.
        seed: see the module.
        on_progress: see the module.
    """
    train, test = (_read_idx_split(source, prefix) for prefix in ("train", "t10k"))
    return _split_and_replace(
        directory,
        train,
        test,
        class_names=class_names,
        source=str(source),
        val_fraction=val_fraction,
        seed=seed,
        progress=_Progress(on_progress, total=len(train[1]) + len(test[1])),
    )


def convert_folder(
    directory: Path,
    *,
    source: Path,
    shape: tuple[int, int, int],
    test_source: Path | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, int]:
    """Write images that lie in one folder per class.

    Args:
        directory: directory of the data set to write.
        source: ``source/CLASS/**/*.png``, as torchvision's ImageFolder reads it.
        shape: (C, H, W) that every image gets, C = 1 for gray or 3 for RGB; the aspect ratio
            is not preserved.
        test_source: likewise, for the test split, with the same classes; by default there is none.
        val_fraction: see the module.
        seed: see the module.
        on_progress: see the module.
    """
    if shape[0] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, got shape {shape}")
    folders = [_image_folder(path) for path in (source, test_source) if path is not None]
    classes = folders[0].classes
    if folders[-1].classes != classes:
        odd = sorted(set(folders[-1].classes) ^ set(classes))
        raise DataError(f"{test_source}: its classes differ from those of {source}: {odd}")
    progress = _Progress(on_progress, total=2 * sum(len(folder) for folder in folders))

    def read(path: str) -> Pixels:
        try:
            return load(Path(path), shape=shape)
        except ValueError as error:
            raise DataError(f"{path}: image cannot be decoded: {error}") from error

    train, *test = (
        _read_items(folder.samples, pixels=read, progress=progress) for folder in folders
    )
    return _split_and_replace(
        directory,
        train,
        test[0] if test else None,
        class_names=classes,
        source=str(source),
        val_fraction=val_fraction,
        seed=seed,
        progress=progress,
    )


class _Progress:
    def __init__(self, on_progress: OnProgress | None, *, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0

    def add(self, num: int) -> None:
        self._done += num
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


_Items = tuple[Tensor, Tensor]  # images (N, C, H, W) uint8, labels (N,) int64


def _read_items(items: Any, *, pixels: Callable[[Any], Pixels], progress: _Progress) -> _Items:
    images, labels = [], []
    for index in range(len(items)):
        image, label = items[index]
        images.append(pixels(image))
        labels.append(int(label))
        progress.add(1)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _split_and_replace(
    directory: Path,
    train: _Items,
    test: _Items | None,
    *,
    class_names: Sequence[str] | None,
    source: str,
    val_fraction: float,
    seed: int,
    progress: _Progress,
) -> dict[str, int]:
    images, labels = train
    names = class_names
    if names is None:
        names = [str(k) for k in range(int(labels.max()) + 1)]
    if len(names) < 2:
        raise DataError(f"{source}: at least 2 classes are needed, it has {', '.join(names)}")
    for split, items in (("train", train), ("test", test)):
        if items is not None and items[1].max() >= len(names):
            raise DataError(
                f"{source}: label {int(items[1].max())} in {split} is outside 0..{len(names) - 1}"
            )
    if test is not None and test[0].shape[1:] != images.shape[1:]:
        sizes = tuple(images.shape[1:]), tuple(test[0].shape[1:])
        raise DataError(f"{source}: train images have shape {sizes[0]}, test images {sizes[1]}")
    kept, val = stratified_split(labels, fraction=val_fraction, seed=seed)
    if val_fraction > 0 and len(val) == 0:
        raise DataError(
            f"{source}: no class is large enough to give {val_fraction:.0%} of its train images "
            "to val; raise val_fraction, or set it to 0 for no val split"
        )
    info = DatasetInfo.measured(images[kept], class_names=names)
    splits = {"train": Split(images[kept], labels[kept], info)}
    if len(val):
        splits["val"] = Split(images[val], labels[val], info)
    if test is not None:
        splits["test"] = Split(*test, info)
    return _replace(directory, splits, progress)


def _replace(directory: Path, splits: Mapping[str, Split], progress: _Progress) -> dict[str, int]:
    for name in SPLITS:  # first, so that a crash never leaves splits of two data sets
        split_path(directory, name).unlink(missing_ok=True)
    for name, split in splits.items():
        path = split_path(directory, name)
        write_split(path, split.images, split.labels, split.info, on_rows=progress.add)
    return {name: len(split.labels) for name, split in splits.items()}


def _image_folder(path: Path) -> Any:
    try:
        return torchvision.datasets.ImageFolder(path)
    except OSError as error:
        raise DataError(f"{path}: not a folder of class folders with images: {error}") from error


def _read_idx_split(source: Path, prefix: str) -> _Items:
    images_path = _find_idx(source, f"{prefix}-images-idx3-ubyte")
    labels_path = _find_idx(source, f"{prefix}-labels-idx1-ubyte")
    images, labels = _read_idx(images_path, num_dims=3), _read_idx(labels_path, num_dims=1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {len(images)} images but {labels_path} {len(labels)} labels"
        )
    if images.size == 0:
        raise DataError(f"{images_path}: no images in it")
    return torch.tensor(images).unsqueeze(1), torch.tensor(labels, dtype=torch.int64)


def _find_idx(source: Path, name: str) -> Path:
    for path in (source / name, source / f"{name}.gz"):
        if path.is_file():
            return path
    there = sorted(path.name for path in source.glob("*ubyte*"))
    raise DataError(
        f"{source}: neither {name} nor {name}.gz exists; "
        f"idx files there: {', '.join(there) or 'none'}"
    )


def _read_idx(path: Path, *, num_dims: int) -> Pixels:
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
