"""Checks that need the model's code or the data, before Ray starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.train import TrainConfig
from precalib_ray.config.sections import Scaling
from precalib_ray.core.data_training import TrainData
from precalib_ray.core.dataset import Split
from precalib_ray.core.dry_run import Batches, dry_run
from precalib_ray.core.engine import Optimization
from precalib_ray.core.head import find_head, select_trainable
from precalib_ray.core.models import Model
from precalib_ray.core.models.shapes import ShapeError, check_input, explain
from precalib_ray.core.noise import Noise, Statistics, draw, statistics
from precalib_ray.core.phases.training import evaluation_sizes
from precalib_ray.core.probes import Panel, PanelSettings, chunk_sizes
from precalib_ray.core.transforms import to_input
from precalib_ray.data import parquet
from precalib_ray.errors import ConfigError, Problem, SettingError
from precalib_ray.runs.console import warn

_STATISTICS_SAMPLES = 4096
_MAX_PARAMETERS, _MAX_INPUT, _MAX_SAMPLES = 20_000_000, 3 * 64 * 64, 32
"""Of a user's model that is run with values, of a sample, and of the batches that it is run with:
seconds on a CPU.
"""


def check_pretraining(*configs: PretrainConfig, prefix: str = "") -> None:
    """Check that noise pretraining can build, probe and train its model.

    Args:
        configs: jobs that differ in their batches, noise, labels, rates and scales at most.
        prefix: of the paths in messages.

    Raises:
        ConfigError: it cannot, or ``head_scale`` needs last layers that are not found.
    """
    config, *_ = configs
    num_inputs = {n for c in configs if c.probes.noise for n in (c.probes.size, c.probes.stop_size)}
    batches = Batches(
        training=frozenset(
            part for c in configs if c.num_steps != 0 for part in _parts(c.batch_size, c.scaling)
        ),
        probing=frozenset(size for num in num_inputs for size in chunk_sizes(num)),
        num_workers=config.scaling.max_workers,
    )
    _check_model(config.model, config, batches, path=f"{prefix}model", prefix=prefix)
    scale = next((c.head_scale for c in configs if c.head_scale != 1), None)
    if scale is not None:
        check_head(config.model, f"{prefix}head_scale", scale)


def check_training(
    config: TrainConfig, model: Model, splits: Mapping[str, Split], path: str, prefix: str = ""
) -> None:
    """Check that data training can build, evaluate and train a model.

    Args:
        config: the job.
        model: the network that it starts from.
        splits: the data.
        path: the model's, in messages.
        prefix: of the paths of other settings.

    Raises:
        ConfigError: it cannot.
    """
    scaling = config.scaling
    num_images = {len(split.labels) for name, split in splits.items() if name != "train"}
    batches = Batches(
        training=_parts(min(config.batch_size, len(splits["train"].labels)), scaling),
        evaluation=frozenset(
            size
            for num in num_images | ({config.num_unknown} - {0})
            for world_size in scaling.world_sizes
            for size in evaluation_sizes(num, world_size)
        ),
        num_workers=scaling.max_workers,
    )
    _check_model(model, config, batches, path=path, prefix=prefix)


def check_head(model: Model, path: str, value: object) -> None:
    """Raise ConfigError for a setting that needs last layers where they are not found."""
    try:
        find_head(model.build(device="meta"), model)
    except ValueError as error:
        raise ConfigError([Problem(path, value, str(error))]) from None


def _parts(batch_size: int, scaling: Scaling) -> frozenset[int]:
    """The smallest and the largest part of a batch that a worker may get."""
    sizes = {batch_size // scaling.world_sizes[-1], -(-batch_size // scaling.world_sizes[0])}
    return frozenset(sizes - {0})


def _check_model(
    model: Model, config: PretrainConfig | TrainConfig, batches: Batches, *, path: str, prefix: str
) -> None:
    """Take the passes of a run.

    A user's model is run with values, which its code may depend on, unless it or its input is large
    or it needs a GPU; all others without.

    Raises:
        ConfigError: the model cannot be built, refuses its input shape or a pass, or a pattern of
            ``trainable`` matches no parameter.
    """
    try:
        built = model.build(device="meta")
    except Exception as error:  # a model's code may raise anything
        raise ConfigError([Problem(path, model.architecture, explain(error))]) from None
    num_parameters = sum(parameter.numel() for parameter in built.parameters())
    small = num_parameters <= _MAX_PARAMETERS and math.prod(model.input_shape) <= _MAX_INPUT
    computed = model.runs_code and small and not config.scaling.use_gpu
    device, max_size = ("cpu", _MAX_SAMPLES) if computed else ("meta", None)
    try:
        check_input(model, device=device)
    except ShapeError as error:
        shape = list(model.input_shape)
        raise ConfigError([Problem(f"{path}.input_shape", shape, str(error))]) from None
    try:
        select_trainable(built, model, config.trainable)
    except ValueError as error:
        raise ConfigError([Problem(f"{prefix}trainable", config.trainable, str(error))]) from None
    try:
        dry_run(model, config, batches, device=device, max_size=max_size)
    except SettingError as error:
        problem = error.problem
        found = path if problem.path == "model" else prefix + problem.path
        raise ConfigError([replace(problem, path=found)]) from None


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
        shown = getattr(noise, "name", noise.kind)
        raise ConfigError([Problem(path, shown, explain(error))]) from None


def read_statistics(noises: Iterable[Noise], shape: tuple[int, ...]) -> dict[str, Statistics]:
    """Statistics for ``matched`` noises, by data set, measured on training images as model inputs;
    raises DataError.
    """
    sources = sorted(set().union(*(noise.sources() for noise in noises)))
    return {
        path: statistics(read_inputs(path, "train", shape, limit=_STATISTICS_SAMPLES))
        for path in sources
    }


def read_probes(probes: PanelSettings, model: Model) -> dict[str, Tensor]:
    """Model inputs (N, *input_shape) of every data probe, by its name.

    Raises:
        DataError: a split cannot be read.
        ConfigError: its images cannot be converted to the shape, or there is only one and the model
            cannot be measured on that.
    """
    found = {}
    for name, probe in probes.data.items():
        images = read_inputs(
            probe.path,
            probe.split,
            model.input_shape,
            limit=probes.size,
            column=probe.image_column,
        )
        if len(images) == 1:
            try:
                dry_run(model, Optimization(), Batches(probing=frozenset({1})))
            except SettingError as error:
                allowed = f"its split {probe.split} has a single image: {error.problem.allowed}"
                raise ConfigError([Problem(f"probes.data.{name}", probe.path, allowed)]) from None
        found[name] = images
    return found


def read_panel(probes: PanelSettings, model: Model) -> Panel:
    """The panel for a model; raises DataError or ConfigError if its data cannot be read."""
    shape = model.input_shape
    return probes.panel(
        shape,
        images=read_probes(probes, model),
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
