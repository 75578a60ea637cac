"""The config of ``convert``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precalib_ray.config.sections import JobConfig
from precalib_ray.core.parquet_form import ParquetForm
from precalib_ray.core.spec import Family, setting
from precalib_ray.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Source(Family):
    """A data set to convert."""

    kind: str


@dataclass(frozen=True, kw_only=True)
class FromDigits(Source):
    """scikit-learn's 1,797 handwritten digits, 8x8, which need no download."""

    kind: Literal["digits"] = "digits"


@dataclass(frozen=True, kw_only=True)
class FromTorchvision(Source):
    """A data set of torchvision."""

    kind: Literal["torchvision"] = "torchvision"
    name: str = setting(description="class in torchvision.datasets, such as CIFAR10")
    root: str = setting("data/torchvision", path=True, description="directory of its files")
    download: bool = setting(False, description="download files that are missing")


@dataclass(frozen=True, kw_only=True)
class FromIdx(Source):
    """The four files of MNIST's format, gzipped or not, in one folder."""

    kind: Literal["idx"] = "idx"
    path: str = setting(path=True, description="the folder")
    class_names: list[str] | None = setting(None, description="null: the class ids")


@dataclass(frozen=True, kw_only=True)
class FromFolder(Source):
    """A folder of images in one folder per class."""

    kind: Literal["folder"] = "folder"
    path: str = setting(path=True, description="the folder")
    val_path: str | None = setting(
        None,
        added=True,
        path=True,
        description="folder of validation images, with the same classes; null: drawn from train",
    )
    test_path: str | None = setting(
        None, path=True, description="folder of test images, with the same classes"
    )
    shape: tuple[int, int, int] = setting(
        description="[C, H, W] that all images are resized to; C = 1: gray, 3: RGB"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shape(self.shape)


@dataclass(frozen=True, kw_only=True)
class FromParquet(Source, ParquetForm):
    """A Parquet data set of another program, such as Hugging Face's ``to_parquet``."""

    kind: Literal["parquet"] = "parquet"
    path: str = setting(
        path=True,
        description="directory of train.parquet and, optionally, val.parquet (or "
        "validation.parquet) and test.parquet; or one file, which is then train",
    )
    shape: tuple[int, int, int] | None = setting(
        None, description="[C, H, W] that all images are resized to; null: they have one shape"
    )
    on_bad_row: Literal["error", "skip"] = setting(
        "error", description="error: refuse the file; skip: leave bad rows out, and list them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape is not None:
            _check_shape(self.shape)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(JobConfig):
    """Conversion of a data set to Parquet."""

    source: Source = setting(description="data set to convert")
    output: str = setting(min_length=1, path=True, description="directory to write")
    val_fraction: float = setting(
        0.1,
        ge=0,
        lt=1,
        description="fraction of train that becomes val, where the source has no val of its own",
    )
    seed: int = setting(0, ge=0, description="seed of the split of train into train and val")


def _check_shape(shape: tuple[int, int, int]) -> None:
    if shape[0] not in (1, 3):
        raise SettingError("shape.0", shape[0], "must be 1 (gray) or 3 (RGB)")
    for index, size in enumerate(shape):
        if size < 1:
            raise SettingError(f"shape.{index}", size, "must be >= 1")
