"""In-memory data sets, and stratified splitting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """Properties common to all splits of a data set.

    ``mean`` and ``std`` are per channel, of pixel values scaled to [0, 1], measured on train.

    Raises:
        ValueError: the fields contradict each other.
    """

    num_classes: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]  # (C,)
    std: tuple[float, ...]  # (C,)

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes == len(self.class_names):
            raise ValueError(
                f"num_classes must be at least 2 and the number of class_names, "
                f"got {self.num_classes} and {len(self.class_names)} names"
            )
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be three positive numbers (C, H, W), got {self.shape}")
        if not len(self.mean) == len(self.std) == self.shape[0] or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must have one number per channel of {self.shape} and std be "
                f"positive, got {self.mean} and {self.std}"
            )

    @classmethod
    def measured(cls, images: Tensor, *, class_names: Sequence[str]) -> DatasetInfo:
        """Info of the train images, uint8 (N, C, H, W), N >= 1."""
        mean, std = mean_and_std(images)
        _, num_channels, height, width = images.shape
        return cls(
            num_classes=len(class_names),
            class_names=tuple(class_names),
            shape=(num_channels, height, width),
            mean=mean,
            std=std,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> DatasetInfo:
        """Inverse of :meth:`to_json`; ValueError for anything else."""
        try:
            fields = json.loads(text)
            channels, height, width = (int(size) for size in fields["shape"])
            return cls(
                num_classes=int(fields["num_classes"]),
                class_names=tuple(str(name) for name in fields["class_names"]),
                shape=(channels, height, width),
                mean=tuple(float(value) for value in fields["mean"]),
                std=tuple(float(value) for value in fields["std"]),
            )
        except KeyError as error:
            raise ValueError(f"no field {error}") from error
        except TypeError as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, in memory; ``skipped`` has one line for each row left out."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    info: DatasetInfo
    skipped: tuple[str, ...] = ()


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, (C,) each, of images uint8 (N, C, H, W) scaled to
    [0, 1].

    A constant channel gets std 1, so that standardizing makes it 0.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(dim=1):
        weights = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        center = (weights * values).sum()
        mean.append(float(center))
        std.append(float((weights * (values - center).square()).sum().sqrt()) or 1.0)
    return tuple(mean), tuple(std)


def stratified_split(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Stratified splitting: indices of the samples kept and of those split off, each ascending.

    Of every class the share ``fraction`` is split off, rounded to whole samples, drawn by ``seed``.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be at least 0 and below 1, got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    split_off = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        split_off[shuffled[: round(fraction * len(members))]] = True
    return (~split_off).nonzero().flatten(), split_off.nonzero().flatten()
