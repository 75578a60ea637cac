"""A data set on disk: a directory with ``train.parquet`` and, if it has them, ``val.parquet`` and
``test.parquet``.

A file of ours has a column ``image`` (PNG bytes as binary, or a fixed-shape tensor of uint8
(C, H, W)), a column ``label`` (int64), and :class:`DatasetInfo` as JSON in its schema metadata.
Files of other programs are read too: :mod:`precalib_ray.data.cells` knows their columns, and a
:class:`ParquetForm` says what they do not. Any defect of a file raises :class:`DataError`; rows are
counted from 0 within their row group.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from precalib_ray.core.dataset import DatasetInfo, Split, mean_and_std
from precalib_ray.core.parquet_form import ParquetForm
from precalib_ray.data import cells
from precalib_ray.data.codec import Pixels, encode_png
from precalib_ray.errors import DataError, one_line

T = TypeVar("T")

SPLITS = ("train", "val", "test")
METADATA_KEY = b"precalib_ray"
ROWS_PER_GROUP = 1024
_OWN = ParquetForm()
_SHOWN = 20
"""Labels that a message shows."""


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
        DataError: the file cannot be written.
    """
    _check_arguments(images, labels, info, encoding)
    image_type = pa.binary() if encoding == "png" else pa.fixed_shape_tensor(pa.uint8(), info.shape)
    schema = pa.schema(
        [("image", image_type), ("label", pa.int64())],
        metadata={METADATA_KEY: info.to_json()},
    )
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_split(
    path: Path,
    *,
    form: ParquetForm = _OWN,
    train: DatasetInfo | None = None,
    resize: tuple[int, int, int] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    limit: int | None = None,
) -> Split:
    """Read a split into memory.

    Of a file without our metadata, the classes are those of Hugging Face's metadata, of ``form``,
    or of ``train``; shape, mean and std are those of ``train``, or measured on what is read.

    Args:
        path: the file of the split.
        form: its columns and classes; must agree with what the file says.
        train: the properties of the train split that it belongs to; must agree with the file.
        resize: (C, H, W), C = 1 or 3, that every image gets; None: they must have one shape.
        on_bad_row: ``skip`` leaves out rows that are null, mislabeled, undecodable or of another
            shape, and lists each in ``skipped``. A row group that cannot be read at all, or a file
            without a good row, is an error either way.
        limit: maximum number of good rows to read.
    """
    columns = (form.image_column, form.label_column)
    with _opened(path) as file:
        with _header_of(path):
            declared = _declared(file)
            class_names = _class_names(file, form, declared, train)
            expected = train or declared
            shape = expected.shape if expected else None
            images = cells.Images(file.schema_arrow, columns[0], shape=shape, resize=resize)
        labels = cells.Labels(class_names)

        def read(image: Any, label: Any) -> tuple[int, Pixels]:
            return labels.read(label), images.read(image)

        good, skipped = _read(file, path, columns, read, on_bad_row=on_bad_row, limit=limit)
    ids, pixels = zip(*good, strict=True)
    stacked = torch.from_numpy(np.stack(pixels))
    info = train if resize else declared or train
    if info is None:
        info = DatasetInfo.measured(stacked, class_names=class_names)
    return Split(stacked, torch.tensor(ids), info, skipped)


def read_dataset(
    directory: Path,
    *,
    form: ParquetForm = _OWN,
    on_bad_row: Literal["error", "skip"] = "error",
    names: Sequence[str] = SPLITS,
) -> dict[str, Split]:
    """Read splits of a data set, ``train`` first, as ``read_split``; ``test`` may be missing."""
    splits: dict[str, Split] = {}
    for name in names:
        path = split_path(directory, name)
        if name != "test" or path.exists():
            train = splits["train"].info if splits else None
            splits[name] = read_split(path, form=form, train=train, on_bad_row=on_bad_row)
    return splits


def read_images(
    path: Path, *, column: str = _OWN.image_column, limit: int | None = None
) -> tuple[Tensor, tuple[float, ...], tuple[float, ...]]:
    """Images of a split, whatever its labels.

    Returns:
        Images (N, C, H, W) uint8, and mean and std per channel (C,) of values in [0, 1]: those that
        the file declares, or those of these images.
    """
    with _opened(path) as file:
        with _header_of(path):
            info = _declared(file)
            images = cells.Images(file.schema_arrow, column, shape=info.shape if info else None)
        good, _ = _read(file, path, [column], images.read, limit=limit)
    stacked = torch.from_numpy(np.stack(good))
    mean, std = (info.mean, info.std) if info else mean_and_std(stacked)
    return stacked, mean, std


def read_info(path: Path) -> DatasetInfo | None:
    """The metadata that we wrote into a split, without reading a row; None in a file of another
    program.
    """
    with _opened(path) as file, _header_of(path):
        return _declared(file)


def fingerprint(path: Path) -> str:
    """SHA-256 of the content of a split, in hex."""
    with _readable(path), path.open("rb") as file:
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
    with _readable(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise DataError if a file is absent, or opening it fails."""
    try:
        if not path.is_file():
            raise _missing(path)
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {one_line(error)}") from error


@contextmanager
def _header_of(path: Path) -> Iterator[None]:
    """Give errors about a file's columns and metadata its name."""
    try:
        yield
    except (ValueError, pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: {one_line(error)}") from error


def _missing(path: Path) -> DataError:
    directory = path if path.is_dir() else path.parent
    what = "is a directory" if path.is_dir() else "no such file"
    names = sorted(file.name for file in directory.glob("*.parquet"))
    if not names:
        return DataError(f"{path}: {what}; there is no Parquet file in {directory}")
    parts = [name for name in names if name.startswith(f"{path.stem}-")]
    if len(parts) > 1:
        return DataError(
            f"{path}: {what}; {directory} has it in parts ({', '.join(parts[:3])}"
            f"{', ...' if len(parts) > 3 else ''}), and a split must be one file"
        )
    nearest = parts or get_close_matches(path.name, names, n=1, cutoff=0.75)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    return DataError(f"{path}: {what}; {directory} has {', '.join(names)}{hint}")


def _declared(file: Any) -> DatasetInfo | None:
    """What our metadata says; raises ValueError if it is damaged."""
    text = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        return DatasetInfo.from_json(text)
    except ValueError as error:
        raise ValueError(f"damaged metadata: {error}") from error


def _class_names(
    file: Any, form: ParquetForm, declared: DatasetInfo | None, train: DatasetInfo | None
) -> tuple[str, ...]:
    """The names of the classes; raises ValueError where nothing says them, or two differ."""
    schema, column = file.schema_arrow, form.label_column
    cells.check_labels(schema, column)
    said = declared.class_names if declared else cells.hugging_face_names(schema, column)
    if said is not None and form.class_names not in (None, said):
        shown = ", ".join(said)
        raise ValueError(f"its classes are {shown}, in this order, not those of class_names")
    names = said or form.class_names or (train.class_names if train else None)
    if names is None and cells.is_boolean(schema, column):
        names = ("false", "true")
    if names is None and form.num_classes is not None and not cells.is_text(schema, column):
        names = tuple(str(k) for k in range(form.num_classes))
    if names is None:
        raise ValueError(_undeclared(file, column))
    if form.num_classes not in (None, len(names)):
        raise ValueError(f"has {len(names)} classes, expected {form.num_classes}")
    if len(names) < 2:
        raise ValueError(f"at least 2 classes are needed, it has {', '.join(names)}")
    if train is not None and names != train.class_names:
        both = ", ".join(names), ", ".join(train.class_names)
        raise ValueError(f"its classes are {both[0]}, those of the train split {both[1]}")
    return names


def _undeclared(file: Any, column: str) -> str:
    """What to set, by the labels that there are."""
    labels = set(file.read(columns=[column])[column].to_pylist()) - {None}
    if cells.is_text(file.schema_arrow, column):
        shown = ", ".join(sorted(labels)[:_SHOWN]) + (", ..." if len(labels) > _SHOWN else "")
        return f"column {column!r} holds strings; set class_names to their order: [{shown}]"
    ids = [int(label) for label in labels if math.isfinite(label)]
    there = f"; its labels are {min(ids)} to {max(ids)}" if ids else ""
    return f"nothing in it says the number of classes: set num_classes{there}"


def _read(
    file: Any,
    path: Path,
    columns: Sequence[str],
    read: Callable[..., T],
    *,
    on_bad_row: Literal["error", "skip"] = "error",
    limit: int | None = None,
) -> tuple[list[T], tuple[str, ...]]:
    """What ``read`` makes of the cells of each good row, and a line for each row left out."""
    good: list[T] = []
    skipped: list[str] = []
    for group, row, values in _rows(file, path, columns):
        if limit is not None and len(good) >= limit:
            break
        try:
            good.append(read(*values))
        except ValueError as error:
            reason = f"{path}: row group {group}, row {row}: {error}"
            if on_bad_row == "error":
                raise DataError(reason) from error
            skipped.append(reason)
    if not good:
        raise DataError("\n".join([f"{path}: no good row", *skipped]))
    return good, tuple(skipped)


def _rows(file: Any, path: Path, columns: Sequence[str]) -> Iterator[tuple[int, int, Any]]:
    """Row group, row in it, and the cells of the columns."""
    for group in range(file.num_row_groups):
        try:
            table = file.read_row_group(group, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: row group {group} cannot be read: {error}") from error
        values = zip(*(cells.cells(table[name]) for name in columns), strict=True)
        for row, row_values in enumerate(values):
            yield group, row, row_values
