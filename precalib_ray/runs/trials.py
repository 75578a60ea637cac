"""The trials of a search on Ray, with progress on the terminal."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from precalib_ray.cluster import placement, session, tuning
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.core.dataset import Split
from precalib_ray.errors import ClusterError, ConfigError, Problem
from precalib_ray.runs import preflight
from precalib_ray.runs.console import Display, console, stage
from precalib_ray.runs.record import RunRecord
from precalib_ray.search import summary
from precalib_ray.search.trials import TrialLog

_REFRESH_S = 0.5


def check(config: SearchConfig) -> dict[str, Any]:
    """Check what needs the models' code or the data; returns what all trials share.

    Raises:
        ConfigError: a model or noise of the space cannot be built, or does not fit the data.
        DataError: a data set cannot be read.
    """
    corners = config.corners()
    model, probes = corners[0].model, corners[0].probes
    alike = defaultdict(list)
    for corner in corners:
        alike[repr((corner.model, corner.trainable, corner.compute, corner.loss))].append(corner)
    for group in alike.values():
        preflight.check_pretraining(*group, prefix="recipe.")
    if "zero_head" in config.references and all(corner.head_scale == 1 for corner in corners):
        preflight.check_head(model, "references", "zero_head")
    noises = {repr(corner.noise): corner.noise for corner in corners}.values()
    statistics = preflight.read_statistics([*noises, *probes.noise.values()], model.input_shape)
    for noise in noises:
        preflight.check_noise(noise, model.input_shape, statistics, "recipe.noise")
    images = preflight.read_probes(probes, model)
    splits = _read_splits(config, corners) if config.downstream else None
    return {"images": images, "statistics": statistics, "splits": splits}


def run(config: SearchConfig, log: TrialLog, shared: Mapping[str, Any], record: RunRecord) -> None:
    """Run the trials that are left.

    Args:
        config: the search.
        log: proposes the trials and records them.
        shared: as ``check`` returns it.
        record: of the search.

    Raises:
        ClusterError: Ray cannot be reached or provide the resources, or trials did not run.
    """
    given = config.trials
    attempt = record.content.get("attempt", 0) + 1
    record.update(attempt=attempt)
    with session.connect(stage) as local, Display("search", log.num_total) as display:
        request = placement.Request(given.num_workers, given.cpus, given.gpus)
        placement.require(request, local=local, notify=console.print)
        ended = threading.Event()

        def show() -> None:
            display.update(log.num_total - log.num_left, summary.progress(log))

        def watch() -> None:
            while not ended.wait(_REFRESH_S):
                show()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            tuning.run(
                log,
                name=f"{config.name}/tune-{attempt}",
                storage=config.storage,
                num_trials=log.num_left,
                shared=shared,
                resources=given,
                asha=config.asha,
                max_samples=max(job.max_samples or 0 for job in config.corners()),
            )
        finally:
            ended.set()
            watcher.join()
        show()
    if log.num_left:
        raise ClusterError(f"{log.num_left} trials did not run; submit the search again")


def _read_splits(config: SearchConfig, corners: Sequence[PretrainConfig]) -> dict[str, Split]:
    """Training and validation split of the data training that recipes are judged by."""
    downstream, model = config.downstream, corners[0].model
    assert downstream is not None, "the objective is downstream"
    path = downstream.data.path
    splits = preflight.read_splits(downstream.data, ("train", "val"))
    train, num = splits["train"], downstream.num_samples
    if train.info.num_classes != model.num_classes:
        allowed = f"the data set {path} has {train.info.num_classes} classes"
        raise ConfigError([Problem("recipe.model.num_classes", model.num_classes, allowed)])
    preflight.check_fit(train, model.input_shape, path)
    splits["train"] = Split(train.images[:num], train.labels[:num], train.info)
    for corner in {repr(corner.model): corner for corner in corners}.values():
        training = replace(config.data_training(corner), scaling=corner.scaling)
        preflight.check_training(training, corner.model, splits, "recipe.model", "downstream.")
    return splits
