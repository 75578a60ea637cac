"""The network that data training starts from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from precalib_ray.config.jobs.train import (
    FromCheckpoint,
    FromRandom,
    FromRegistry,
    FromZeroHead,
    TrainConfig,
)
from precalib_ray.core import checkpoint
from precalib_ray.core.dataset import Split
from precalib_ray.core.models import Model
from precalib_ray.core.phases.training import Start
from precalib_ray.errors import ConfigError, DataError, Problem
from precalib_ray.registry import loading
from precalib_ray.runs import preflight
from precalib_ray.runs.console import console


def read(config: TrainConfig, known: str | None) -> tuple[Start, str | None]:
    """The network, and the registered version or folder that its weights come from.

    Args:
        config: of the job.
        known: the version that an earlier submission started from: an alias may have moved.

    Raises:
        TrackingError: the registry does not have it, or cannot be reached.
        CheckpointError: it is damaged, or built by code that is not trusted.
    """
    start = config.start
    if isinstance(start, FromRandom | FromZeroHead):
        return Start(start.model, zero_head=isinstance(start, FromZeroHead)), None
    assert isinstance(start, FromRegistry | FromCheckpoint), start
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        if isinstance(start, FromRegistry):
            uri = loading.pull(known or start.uri, directory, tracking_uri=config.tracking.uri)
            console.print(f"starting from {uri}")
        else:
            directory, uri = Path(start.path), start.path
        model = checkpoint.load_model(directory, trust_code=start.trust_code)
        settings = checkpoint.read_description(directory).model
    return Start(settings, model.state_dict()), uri


def check(config: TrainConfig, model: Model, splits: Mapping[str, Split]) -> None:
    """Check model and data against each other; raises ConfigError or DataError."""
    info = splits["train"].info
    if model.num_classes != info.num_classes:
        allowed = f"the data set {config.data.path} has {info.num_classes} classes"
        raise ConfigError([Problem("start: num_classes", model.num_classes, allowed)])
    if config.num_unknown and info.shape[0] not in (1, 3):
        allowed = "must be 0: the built-in out-of-distribution images have 1 or 3 channels"
        raise ConfigError([Problem("num_unknown", config.num_unknown, allowed)])
    if len(splits["train"].labels) < config.scaling.max_workers:
        raise DataError(f"{config.data.path}: fewer training images than scaling.num_workers")
    preflight.check_fit(splits["train"], model.input_shape, config.data.path)
    preflight.check_training(config, model, splits, "start.model")
    if isinstance(config.start, FromZeroHead):
        preflight.check_head(model, "start.kind", config.start.kind)
