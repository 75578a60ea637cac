"""The settings of data training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precalib_ray.core.engine import Optimization
from precalib_ray.core.losses import Loss
from precalib_ray.core.parquet_form import ParquetForm
from precalib_ray.core.spec import Section, setting
from precalib_ray.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Augmentation(Section):
    """Random changes to training images."""

    crop_padding: int = setting(
        0, ge=0, le=64, description="pixels of padding before a random crop"
    )
    flip: bool = setting(False, description="horizontal flips")


@dataclass(frozen=True, kw_only=True)
class TrainData(ParquetForm):
    """A Parquet data set."""

    path: str = setting(
        path=True,
        description="directory of train.parquet, val.parquet and, optionally, test.parquet",
    )
    on_bad_row: Literal["error", "skip"] = setting(
        "error", description="error: refuse the file; skip: leave bad rows out, and list them"
    )
    augmentation: Augmentation = setting(
        Augmentation(), description="augmentation of training images"
    )


@dataclass(frozen=True, kw_only=True)
class DataTrainingSettings(Optimization):
    """Data training of one network."""

    data: TrainData = setting(description="data set to train on")
    epochs: int = setting(10, ge=1, le=100_000, description="passes over the training split")
    num_unknown: int = setting(
        512,
        ge=0,
        le=100_000,
        description="out-of-distribution images (patches of photographs) to measure AUROC against; "
        "0: none",
    )
    save_every_epochs: int = setting(1, ge=1, description="epochs between checkpoints")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.loss.takes_ids:
            fitting = sorted(kind for kind, loss in Loss.members.items() if loss.takes_ids)
            allowed = f"does not take class ids; use {' or '.join(fitting)}"
            raise SettingError("loss.kind", self.loss.kind, allowed)
