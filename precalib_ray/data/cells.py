"""What the columns of a Parquet file mean: its images, its labels and its classes.

``jobs/README.md`` lists the types that are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
from pyarrow import types

from precalib_ray.data.codec import Pixels, decode, fit

_HUGGING_FACE = b"huggingface"
_MAX_CHANNELS = 4
"""Of a tensor that is taken for (C, H, W) although nothing says so."""

_IMAGES = (
    "image files as binary or as a struct with the field 'bytes' (Hugging Face), or a fixed-shape "
    "tensor of uint8 (C, H, W)"
)
_LABELS = "integers, whole floats, booleans or strings"


class Images:
    """Reads the images of one file, which all have one shape."""

    def __init__(
        self,
        schema: Any,
        column: str,
        *,
        shape: tuple[int, ...] | None = None,
        resize: tuple[int, int, int] | None = None,
    ) -> None:
        """Refuse a column that holds no images.

        Args:
            schema: of the file.
            column: its column of images.
            shape: (C, H, W) that the file declares; None: that of its first good image.
            resize: (C, H, W) that every image gets; None: they are taken as they are.

        Raises:
            ValueError: the column is not there, or of another type.
        """
        _check_column(schema, column, "image_column")
        kind = schema.field(column).type
        is_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        is_tensor = (
            isinstance(kind, pa.FixedShapeTensorType)
            and kind.value_type == pa.uint8()
            and len(kind.shape) == 3
        )
        is_files = _is_binary(kind.field("bytes").type if is_struct else kind)
        if not is_files and not is_tensor:
            raise ValueError(f"column {column!r} must hold {_IMAGES}, is {kind}")
        self._is_declared = shape is not None
        self._shape, self._resize = resize or shape, resize

    def read(self, cell: Any) -> Pixels:
        """Pixels (C, H, W) of a cell; raises ValueError for a bad one."""
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell["bytes"]
            if cell is None and path is not None:
                raise ValueError(f"only the path {path!r} of its image is in the file, no bytes")
        if cell is None:
            raise ValueError("image is null")
        if isinstance(cell, bytes):
            try:
                cell = decode(cell)
            except ValueError as error:
                raise ValueError(f"image cannot be decoded: {error}") from error
        elif not self._is_declared and cell.shape[0] > _MAX_CHANNELS >= cell.shape[2]:
            raise ValueError(f"tensor of shape {cell.shape} is (H, W, C); (C, H, W) is read")
        if self._resize is not None:
            if cell.shape[0] not in (1, 3):
                raise ValueError(f"image of {cell.shape[0]} channels cannot become {self._resize}")
            cell = fit(cell, self._resize)
        if self._shape is None:
            self._shape = cell.shape
        if cell.shape != self._shape:
            advice = "" if self._is_declared else "; convert with a shape to make them alike"
            raise ValueError(f"image has shape {cell.shape}, expected {self._shape}{advice}")
        return cell  # type: ignore[no-any-return]


class Labels:
    """Reads the labels of one file as class ids."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` are those of the classes, in the order of their ids."""
        self._ids = {name: class_id for class_id, name in enumerate(names)}
        self._num = len(names)

    def read(self, label: Any) -> int:
        """The class id of a cell; raises ValueError for a bad one."""
        if label is None or (isinstance(label, float) and math.isnan(label)):
            raise ValueError("label is null")
        if isinstance(label, str):
            if label not in self._ids:
                near = get_close_matches(label, self._ids, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"label {label!r} is none of the {self._num} classes{hint}")
            return self._ids[label]
        if isinstance(label, float) and not label.is_integer():
            raise ValueError(f"label {label} is no whole number")
        class_id = int(label)
        if not 0 <= class_id < self._num:
            hint = ""
            if class_id == -1:
                hint = " (in data sets of Hugging Face, -1 stands for no label)"
            elif class_id == self._num:
                hint = " (ids count from 0)"
            raise ValueError(f"label {class_id} is outside 0..{self._num - 1}{hint}")
        return class_id


def cells(column: Any) -> Iterable[Any]:
    """The cells of a column: bytes, structs, pixels, numbers, strings, or None."""
    return _tensors(column) if isinstance(column.type, pa.FixedShapeTensorType) else _plain(column)


def check_labels(schema: Any, column: str) -> None:
    """Raise ValueError if the column is not there, or holds no labels."""
    _check_column(schema, column, "label_column")
    kind = _values(schema.field(column).type)
    is_number = types.is_integer(kind) or types.is_floating(kind)
    if not is_number and not is_boolean(schema, column) and not is_text(schema, column):
        raise ValueError(f"column {column!r} must hold {_LABELS}, is {kind}")


def hugging_face_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The names of a ``ClassLabel``, from the metadata that the library ``datasets`` writes."""
    try:
        metadata = json.loads((schema.metadata or {})[_HUGGING_FACE])
        names = metadata["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):  # another layout says nothing about this column
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def is_boolean(schema: Any, column: str) -> bool:
    """Whether labels are booleans."""
    return bool(types.is_boolean(_values(schema.field(column).type)))


def is_text(schema: Any, column: str) -> bool:
    """Whether labels are strings, dictionary-encoded or not."""
    kind = _values(schema.field(column).type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _check_column(schema: Any, name: str, setting: str) -> None:
    """Refuse a column that is not there once; ``setting`` is what chooses it."""
    num = schema.names.count(name)
    if num > 1:
        raise ValueError(f"{num} columns {name!r}")
    if num == 0:
        raise ValueError(
            f"no column {name!r}; it has {', '.join(schema.names)}: set {setting}, or convert the "
            "data set"
        )


def _values(kind: Any) -> Any:
    return kind.value_type if types.is_dictionary(kind) else kind


def _is_binary(kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _plain(column: Any) -> Iterator[Any]:
    for chunk in column.chunks:
        yield from chunk.to_pylist()


def _tensors(column: Any) -> Iterator[Pixels | None]:
    """Not by Arrow's ``to_numpy_ndarray``, which refuses permutations of unequal sizes (25.0)."""
    shape, permutation = column.type.shape, column.type.permutation or (0, 1, 2)
    for chunk in column.chunks:
        values = chunk.storage.flatten()
        is_null = values.is_null().to_numpy(zero_copy_only=False).reshape(-1, *shape)
        images = values.fill_null(0).to_numpy().reshape(-1, *shape)
        for image, nulls in zip(images, is_null, strict=True):
            yield None if nulls.any() else image.transpose(permutation)
