"""Make a data set directory (see :mod:`precalib_ray.data.parquet`) from other sources.

Each converter reads its whole source before it touches ``directory``, then replaces the data set
there, and returns how many images each split got. ``val_fraction`` of every train class becomes
the val split, drawn by ``seed``; 0 leaves it out, and a source may have its own.
``on_progress(done, total)`` counts images, twice where image files are decoded: when read and when
written. ``notify`` gets a line for each kind of file, and each row, that is left out. An unusable
source raises :class:`DataError`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor

from precalib_ray.core.dataset import DatasetInfo, Split, stratified_split
from precalib_ray.core.parquet_form import ParquetForm
from precalib_ray.data import idx, image_folder
from precalib_ray.data.codec import Pixels, decode, fit, pixels
from precalib_ray.data.embedded import digits
from precalib_ray.data.parquet import SPLITS, read_split, split_path, write_split
from precalib_ray.errors import DataError

OnProgress = Callable[[int, int], None]
Notify = Callable[[str], object]

_log = logging.getLogger(__name__)

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
    """
    train, test = (idx.read_split(source, prefix) for prefix in ("train", "t10k"))
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
    val_source: Path | None = None,
    test_source: Path | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    notify: Notify = _log.warning,
) -> dict[str, int]:
    """Write images that lie in one folder per class.

    Args:
        directory: directory of the data set to write.
        source: ``source/CLASS/**/IMAGE``, see :func:`image_folder.scan`.
        shape: (C, H, W) that every image gets, C = 1 for gray or 3 for RGB; the aspect ratio
            is not preserved.
        val_source: likewise, for the val split, with the same classes; by default it is drawn from
            train.
        test_source: likewise, for the test split; by default there is none.
    """
    if shape[0] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, got shape {shape}")
    sources = {"train": source, "val": val_source, "test": test_source}
    folders = {name: image_folder.scan(path) for name, path in sources.items() if path}
    for folder in folders.values():
        image_folder.check_same_classes(folder, folders["train"])
        for line in folder.notes():
            notify(line)
    files = sum(len(folder.samples) for folder in folders.values())
    progress = _Progress(on_progress, total=2 * files)

    def read(path: Path) -> Pixels:
        try:
            return fit(decode(path.read_bytes()), shape)
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: image cannot be decoded: {error}") from error

    items = {
        name: _read_items(folder.samples, pixels=read, progress=progress)
        for name, folder in folders.items()
    }
    return _split_and_replace(
        directory,
        **items,
        class_names=folders["train"].classes,
        source=str(source),
        val_fraction=val_fraction,
        seed=seed,
        progress=progress,
    )


def convert_parquet(
    directory: Path,
    *,
    source: Path,
    form: ParquetForm,
    shape: tuple[int, int, int] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    val_fraction: float = 0.1,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    notify: Notify = _log.warning,
) -> dict[str, int]:
    """Write a Parquet data set of another program, or one of ours in another shape.

    Args:
        directory: directory of the data set to write.
        source: one file, which is train; or a directory with ``train.parquet`` and, if it has them,
            ``val.parquet`` or ``validation.parquet``, and ``test.parquet``.
        form: its columns and classes.
        shape: as of :func:`convert_folder`; None: the images have one shape.
        on_bad_row: as of :func:`read_split`.
    """
    files = _parquet_files(source, notify)
    if directory.resolve() in (file.parent.resolve() for file in files.values()):
        raise DataError(f"{directory}: holds the source, which the result would replace")
    splits: dict[str, Split] = {}
    for name, file in files.items():
        train = splits["train"].info if splits else None
        splits[name] = read_split(file, form=form, train=train, resize=shape, on_bad_row=on_bad_row)
        for line in splits[name].skipped:
            notify(f"skipped: {line}")
    return _split_and_replace(
        directory,
        **{name: (split.images, split.labels) for name, split in splits.items()},
        class_names=splits["train"].info.class_names,
        source=str(source),
        val_fraction=val_fraction,
        seed=seed,
        progress=_Progress(on_progress, total=sum(len(s.labels) for s in splits.values())),
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
    images, labels, problems = [], [], []
    for index in range(len(items)):
        image, label = items[index]
        try:
            images.append(pixels(image))
        except DataError as error:
            problems.append(str(error))
        labels.append(int(label))
        progress.add(1)
    if problems:
        raise DataError("\n".join(problems))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _split_and_replace(
    directory: Path,
    train: _Items,
    test: _Items | None = None,
    *,
    val: _Items | None = None,
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
    if val is None:
        kept, drawn = stratified_split(labels, fraction=val_fraction, seed=seed)
        if val_fraction > 0 and len(drawn) == 0:
            raise DataError(
                f"{source}: no class is large enough to give {val_fraction:.0%} of its train "
                "images to val; raise val_fraction, or set it to 0 for no val split"
            )
        train = images[kept], labels[kept]
        val = (images[drawn], labels[drawn]) if len(drawn) else None
    info = DatasetInfo.measured(train[0], class_names=names)
    parts = {"train": train, "val": val, "test": test}
    splits = {name: Split(*items, info) for name, items in parts.items() if items is not None}
    return _replace(directory, splits, progress)


def _replace(directory: Path, splits: Mapping[str, Split], progress: _Progress) -> dict[str, int]:
    for name in SPLITS:  # first, so that a crash never leaves splits of two data sets
        split_path(directory, name).unlink(missing_ok=True)
    for name, split in splits.items():
        path = split_path(directory, name)
        encoding: Literal["png", "tensor"] = "png" if split.info.shape[0] in (1, 3) else "tensor"
        write_split(
            path, split.images, split.labels, split.info, encoding=encoding, on_rows=progress.add
        )
    return {name: len(split.labels) for name, split in splits.items()}


def _parquet_files(source: Path, notify: Notify) -> dict[str, Path]:
    """The file of each split that a source has; train is always one of them."""
    if source.is_file():
        return {"train": source}
    files = {name: split_path(source, name) for name in SPLITS}
    other_val = split_path(source, "validation")
    if other_val.exists():
        if files["val"].exists():
            raise DataError(f"{source}: val.parquet and validation.parquet are the same split")
        files["val"] = other_val
    files = {name: path for name, path in files.items() if name == "train" or path.exists()}
    others = sorted(path.name for path in set(source.glob("*.parquet")) - set(files.values()))
    if others:
        shown = image_folder.named(others)
        notify(f"{source}: left out: {len(others)} x a file of no split: {shown}")
    return files
