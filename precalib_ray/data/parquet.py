"""A data set on disk: a directory with ``train.parquet`` and, if it has them, ``val.parquet`` and
``test.parquet``.

Each file has a column ``image`` (PNG or JPEG bytes as binary, or a fixed-shape tensor of uint8
(C, H, W)), a column ``label`` (int64), and :class:`DatasetInfo` as JSON in its schema metadata.
Any defect of a file raises :class:`DataError`; rows are counted from 0 within their row
group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from precalib_ray.core.dataset import DatasetInfo, Split
from precalib_ray.data.codec import Pixels, decode, encode_png
from precalib_ray.errors import DataError

SPLITS = ("train", "val", "test")
METADATA_KEY = b"precalib_ray"
ROWS_PER_GROUP = 1024


def split_path(directory: Path, split: str) -> Path:
    return directory / f"{split}.parquet"


def write_split(
    path: Path,
    images: Tensor,
    labels: Tensor,
    info: DatasetInfo,
    *,
    encoding: Literal["png", "tensor"] = "png",
    on_rows: Callable[[int], None] | None = None,
) -> None:
    """Write a split under a temporary name and rename it, so that no reader sees half a file.

    The same arguments give the same bytes.

    Args:
        path: replaced if it exists; its directory is made.
        images: (N, C, H, W) uint8 of ``info.shape``; PNG needs 1 or 3 channels.
        labels: (N,) int64 in 0..K-1.
        info: goes into the schema metadata.
        encoding: PNG is smaller, tensors are read without decoding.
        on_rows: called with the number of rows written since the last call.

    Raises:
        ValueError: images and labels do not fit ``info``.
    """
    _check_arguments(images, labels, info, encoding)
    image_type = pa.binary() if encoding == "png" else pa.fixed_shape_tensor(pa.uint8(), info.shape)
    schema = pa.schema(
        [("image", image_type), ("label", pa.int64())],
        metadata={METADATA_KEY: info.to_json()},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        with pq.ParquetWriter(
            partial, schema, compression="zstd", use_dictionary=False, write_page_checksum=True
        ) as writer:
            for start in range(0, len(images), ROWS_PER_GROUP):
                rows = images[start : start + ROWS_PER_GROUP].numpy()
                column = (
                    pa.array([encode_png(image) for image in rows], image_type)
                    if encoding == "png"
                    else pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows))
                )
                group = labels[start : start + ROWS_PER_GROUP].numpy()
                writer.write_table(pa.table([column, group], schema=schema))
                if on_rows is not None:
                    on_rows(len(rows))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_split(
    path: Path,
    *,
    num_classes: int | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    limit: int | None = None,
) -> Split:
    """Read a split into memory.

    A file without our metadata needs ``num_classes``: its classes are then named "0", "1", ...,
    its shape is that of its first good image, and mean and std are measured on this file.

    Args:
        path: the file of the split.
        num_classes: K; must agree with the metadata, if there is any.
        on_bad_row: ``skip`` leaves out rows that are null, mislabeled, undecodable or of another
            shape, and lists each in ``skipped``. A row group that cannot be read at all, or a file
            without a good row, is an error either way.
        limit: maximum number of good rows to read.
    """
    with _opened(path) as file:
        info = _declared(file, path)
        shape: tuple[int, ...] | None
        if info is not None:
            class_names, shape = info.class_names, info.shape
            if num_classes not in (None, info.num_classes):
                raise DataError(f"{path}: has {info.num_classes} classes, expected {num_classes}")
        elif num_classes is not None:
            class_names, shape = tuple(str(k) for k in range(num_classes)), None
        else:
            raise DataError(f"{path}: no metadata of precalib_ray in it; set num_classes")
        _check_columns(file.schema_arrow, path)

        images: list[Pixels] = []
        labels: list[int] = []
        skipped: list[str] = []
        for group, row, cell, label in _rows(file, path):
            if limit is not None and len(images) >= limit:
                break
            try:
                image = _checked(cell, label, num_classes=len(class_names), shape=shape)
            except ValueError as error:
                reason = f"{path}: row group {group}, row {row}: {error}"
                if on_bad_row == "error":
                    raise DataError(reason) from error
                skipped.append(reason)
            else:
                shape = image.shape
                images.append(image)
                labels.append(label)
    if not images:
        raise DataError("\n".join([f"{path}: no good row", *skipped]))
    pixels = torch.from_numpy(np.stack(images))
    if info is None:
        info = DatasetInfo.measured(pixels, class_names=class_names)
    return Split(pixels, torch.tensor(labels), info, tuple(skipped))


def read_dataset(
    directory: Path, *, on_bad_row: Literal["error", "skip"] = "error"
) -> dict[str, Split]:
    """Read ``train``, ``val`` and, if it is there, ``test``, as ``read_split`` does."""
    splits = {}
    for name in SPLITS:
        path = split_path(directory, name)
        if name != "test" or path.exists():
            splits[name] = read_split(path, on_bad_row=on_bad_row)
    return splits


def read_info(path: Path) -> DatasetInfo:
    """The metadata of a split, without reading a row."""
    with _opened(path) as file:
        info = _declared(file, path)
    if info is None:
        raise DataError(f"{path}: no metadata of precalib_ray in it")
    return info


def fingerprint(path: Path) -> str:
    """SHA-256 of the content of a split, in hex."""
    if not path.is_file():
        raise _missing(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_arguments(images: Tensor, labels: Tensor, info: DatasetInfo, encoding: str) -> None:
    if images.dtype != torch.uint8 or images.shape[1:] != info.shape:
        raise ValueError(
            f"images must be uint8 of shape (N, {', '.join(map(str, info.shape))}), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be int64 of shape ({len(images)},), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= info.num_classes:
        raise ValueError(f"labels must be in 0..{info.num_classes - 1} and at least one")
    if encoding == "png" and info.shape[0] not in (1, 3):
        raise ValueError(f"PNG needs 1 or 3 channels, got {info.shape[0]}; use encoding='tensor'")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise _missing(path)
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
    with file:
        yield file


def _missing(path: Path) -> DataError:
    directory = path if path.is_dir() else path.parent
    what = "is a directory" if path.is_dir() else "no such file"
    names = sorted(file.name for file in directory.glob("*.parquet"))
    if not names:
        return DataError(f"{path}: {what}; there is no Parquet file in {directory}")
    nearest = get_close_matches(path.name, names, n=1, cutoff=0.75)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    return DataError(f"{path}: {what}; {directory} has {', '.join(names)}{hint}")


def _declared(file: Any, path: Path) -> DatasetInfo | None:
    text = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        return DatasetInfo.from_json(text)
    except ValueError as error:
        raise DataError(f"{path}: damaged metadata: {error}") from error


def _check_columns(schema: Any, path: Path) -> None:
    for name in ("image", "label"):
        if name not in schema.names:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(schema.names)}")
    image, label = schema.field("image").type, schema.field("label").type
    is_bytes = pa.types.is_binary(image) or pa.types.is_large_binary(image)
    is_pixels = (
        isinstance(image, pa.FixedShapeTensorType)
        and image.value_type == pa.uint8()
        and len(image.shape) == 3
    )
    if not is_bytes and not is_pixels:
        raise DataError(
            f"{path}: column 'image' must be binary (PNG or JPEG) or a fixed-shape tensor of "
            f"uint8 (C, H, W), is {image}"
        )
    if label != pa.int64():
        raise DataError(f"{path}: column 'label' must be int64, is {label}")


def _rows(file: Any, path: Path) -> Iterator[tuple[int, int, Any, Any]]:
    """Row group, row in it, an image as bytes, as pixels, or None, and a label or None."""
    for group in range(file.num_row_groups):
        try:
            table = file.read_row_group(group, columns=["image", "label"])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: row group {group} cannot be read: {error}") from error
        column = table["image"]
        is_tensor = isinstance(column.type, pa.FixedShapeTensorType)
        cells = _tensors(column) if is_tensor else column.to_pylist()
        labels = table["label"].to_pylist()
        for row, (cell, label) in enumerate(zip(cells, labels, strict=True)):
            yield group, row, cell, label


def _tensors(column: Any) -> Iterator[Pixels | None]:
    for chunk in column.chunks:
        null = chunk.storage.values.is_null().to_numpy(zero_copy_only=False)
        has_null = null.reshape(len(chunk), -1).any(axis=1)
        for image, is_bad in zip(chunk.to_numpy_ndarray(), has_null, strict=True):
            yield None if is_bad else image


def _checked(
    cell: bytes | Pixels | None,
    label: int | None,
    *,
    num_classes: int,
    shape: tuple[int, ...] | None,
) -> Pixels:
    """Pixels of a good row; raises ValueError for a bad one."""
    if label is None:
        raise ValueError("label is null")
    if not 0 <= label < num_classes:
        raise ValueError(f"label {label} is outside 0..{num_classes - 1}")
    if cell is None:
        raise ValueError("image is null")
    if isinstance(cell, bytes):
        try:
            cell = decode(cell)
        except ValueError as error:
            raise ValueError(f"image cannot be decoded: {error}") from error
    if shape is not None and cell.shape != shape:
        raise ValueError(f"image has shape {cell.shape}, expected {shape}")
    return cell
