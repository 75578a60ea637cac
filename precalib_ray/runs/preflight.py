"""Checks that need the model's code or the data, before Ray starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from precalib_ray.core.data_training import TrainData
from precalib_ray.core.dataset import Split
from precalib_ray.core.engine import Optimization
from precalib_ray.core.head import find_head, select_trainable
from precalib_ray.core.models import Model
from precalib_ray.core.models.shapes import ShapeError, check_input
from precalib_ray.core.noise import Noise, Statistics, draw, statistics
from precalib_ray.core.probes import Panel, PanelSettings
from precalib_ray.core.transforms import to_input
from precalib_ray.data import parquet
from precalib_ray.errors import ConfigError, Problem
from precalib_ray.runs.console import warn

_STATISTICS_SAMPLES = 4096


def check_model(model: Model, settings: Optimization, path: str = "model") -> None:
    """Build the model without values, and push its input shape through it.

    Raises:
        ConfigError: it cannot be built, refuses the shape, has no last layer of K outputs, or a
            pattern of ``trainable`` matches no parameter.
    """
    try:
        check_input(model)
        built = model.build(device="meta")
        find_head(built, model.num_classes)
    except ShapeError as error:
        shape = list(model.input_shape)
        raise ConfigError([Problem(f"{path}.input_shape", shape, str(error))]) from None
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError([Problem(path, model.architecture, str(error))]) from None
    try:
        select_trainable(built, model.num_classes, settings.trainable)
    except ValueError as error:
        raise ConfigError([Problem("trainable", settings.trainable, str(error))]) from None


def check_noise(
    noise: Noise, shape: tuple[int, ...], measured: Mapping[str, Statistics], path: str = "noise"
) -> None:
    """Draw a little noise; raises ConfigError if it has another shape or is not finite."""
    try:
        generator = torch.Generator().manual_seed(0)
        drawn = draw(noise, (2, *shape), generator=generator, statistics=measured)
        if not drawn.isfinite().all():
            raise ValueError("it gives values that are NaN or infinite")
    except Exception as error:  # a user's function may raise anything
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError([Problem(path, getattr(noise, "name", noise.kind), reason)]) from None


def read_statistics(noises: Iterable[Noise], shape: tuple[int, ...]) -> dict[str, Statistics]:
    """Statistics for ``matched`` noises, by data set, measured on training images as model inputs;
    raises DataError.
    """
    sources = sorted(set().union(*(noise.sources() for noise in noises)))
    return {
        path: statistics(read_inputs(path, "train", shape, limit=_STATISTICS_SAMPLES))
        for path in sources
    }


def read_probes(probes: PanelSettings, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Model inputs (N, *shape) of every data probe, by its name; raises as ``read_inputs``."""
    return {
        name: read_inputs(
            probe.path, probe.split, shape, limit=probes.size, column=probe.image_column
        )
        for name, probe in probes.data.items()
    }


def read_panel(probes: PanelSettings, model: Model) -> Panel:
    """The panel for a model; raises DataError or ConfigError if its data cannot be read."""
    shape = model.input_shape
    return probes.panel(
        shape,
        images=read_probes(probes, shape),
        statistics=read_statistics(probes.noise.values(), shape),
    )


def read_inputs(
    path: str, split: str, shape: tuple[int, ...], *, limit: int, column: str = "image"
) -> Tensor:
    """The first images of a split as model inputs (N, *shape); their labels are not read.

    Raises:
        DataError: the split cannot be read.
        ConfigError: its images cannot be converted to the shape.
    """
    file = parquet.split_path(Path(path), split)
    images, mean, std = parquet.read_images(file, column=column, limit=limit)
    return to_shape(images, shape, path, mean=mean, std=std)


def read_splits(data: TrainData, names: Sequence[str] = parquet.SPLITS) -> dict[str, Split]:
    """Splits of the data set to train on; prints which rows are left out. Raises DataError."""
    splits = parquet.read_dataset(
        Path(data.path), form=data, on_bad_row=data.on_bad_row, names=names
    )
    for name, split in splits.items():
        for line in split.skipped:
            warn(f"skipped: {line}")
        if split.skipped:
            warn(f"{data.path}: {len(split.skipped)} rows of {name} are left out")
    return splits


def to_shape(
    images: Tensor,
    shape: tuple[int, ...],
    path: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Images (N, C, H, W) uint8 as model inputs; raises ConfigError if they cannot be converted."""
    try:
        return to_input(images, shape=shape, mean=mean, std=std)
    except ValueError as error:
        raise ConfigError([Problem("model.input_shape", list(shape), f"{path}: {error}")]) from None


def check_fit(split: Split, shape: tuple[int, ...], path: str) -> None:
    """Convert an image of a split to a model's input; raises ConfigError if it cannot be."""
    to_shape(split.images[:1], shape, path, mean=split.info.mean, std=split.info.std)
