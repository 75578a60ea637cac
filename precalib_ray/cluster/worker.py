"""What the workers of a trainer run: they train, save and report, and know nothing of MLflow."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray.train import Checkpoint
from ray.train.torch import get_device
from ray.util.queue import Queue

from precalib_ray.cluster.gauges import Gauges
from precalib_ray.core.engine import Progress
from precalib_ray.core.pretraining import Outcome, Pretraining
from precalib_ray.data.training import DataTraining
from precalib_ray.errors import CheckpointError, DivergedError


def pretrain(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Noise pretraining on one worker.

    Returns:
        ``outcome``, or ``diverged``, the message: to Ray that is no failure, for a run that
        diverged once would do it again.
    """
    return _work("pretrain", Pretraining, payload, last="final", to_plain=Outcome.to_json)


def train(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Data training on one worker; returns what ``pretrain`` does."""
    return _work("train", DataTraining, payload, last="best", to_plain=dict)


def _work(
    name: str,
    phase: Callable[..., Any],
    payload: Mapping[str, Any],
    *,
    last: str,
    to_plain: Callable[[Any], dict[str, Any]],
) -> dict[str, Any]:
    """Build a phase, go on where it was, run it to its end, and report the ``last`` checkpoint."""
    run = phase(payload["config"], **_shared(payload), device=_prepare(payload))
    _resume(run.resume)

    def save(progress: Progress) -> str:
        return _report(run.write, f"step-{progress.step:08d}", progress)

    publish = _Publisher(payload["queue"], Gauges(run=payload["config"]["name"], phase=name))
    try:
        outcome = run.run(save=save, on_progress=publish)
    except DivergedError as error:
        return {"diverged": str(error)}
    finally:
        publish.flush()
    _report(lambda directory: run.write(directory, outcome), last, run.progress)
    return {"outcome": to_plain(outcome)}


def _prepare(payload: Mapping[str, Any]) -> torch.device:
    """Use all the cores that were asked for."""
    torch.set_num_threads(max(1, int(payload["cpus"])))
    device: torch.device = get_device()
    return device


def _shared(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ray.get(reference) for name, reference in payload["shared"].items()}


def _resume(resume: Callable[[Path], None]) -> None:
    """Go on from the newest checkpoint that can be read, if there is any."""
    latest = ray.train.get_checkpoint()
    if latest is None:
        return
    candidates = [latest]
    candidates += [
        reported.checkpoint
        for reported in reversed(ray.train.get_all_reported_checkpoints())
        if reported.checkpoint.path != latest.path
    ]
    for index, candidate in enumerate(candidates):
        with candidate.as_directory() as directory:
            try:
                resume(Path(directory))
            except CheckpointError as error:
                if index == len(candidates) - 1:
                    raise
                print(f"checkpoint not usable, going back one: {error}")
            else:
                return


def _report(write: Callable[[Path], None], name: str, progress: Progress) -> str:
    """Put a checkpoint on storage; every rank calls this, rank 0 writes and names it.

    Returns:
        Where it is.
    """
    metrics = {"step": progress.step}
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics, checkpoint=None)
        return name
    storage = ray.train.get_context().get_storage()
    free = _free_name(storage.storage_filesystem, storage.experiment_fs_path, name)
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "checkpoint"
        write(target)
        checkpoint = Checkpoint.from_directory(str(target))
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=free)
    return f"{storage.experiment_fs_path}/{free}"


def _free_name(files: pyarrow.fs.FileSystem, folder: str, name: str) -> str:
    """The name, or with a number if it is taken.

    A run that passed over a damaged checkpoint comes by its step again; under the same name, Ray
    would delete the new one when the old one's time is over.
    """
    candidates = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    missing = pyarrow.fs.FileType.NotFound
    return next(c for c in candidates if files.get_file_info(f"{folder}/{c}").type == missing)


class _Publisher:
    """Sends what the driver shows and logs; a driver that is gone stops no training."""

    def __init__(self, queue: Queue, gauges: Gauges) -> None:
        self._queue, self._gauges = queue, gauges
        self._num_sent = 0
        self._sending: ray.ObjectRef | None = None

    def __call__(self, progress: Progress, metrics: dict[str, float]) -> None:
        """Send a record; training does not wait until it has arrived."""
        record = {
            "step": progress.step,
            "samples": progress.samples,
            "seconds": progress.seconds,
            "evaluations": progress.history[self._num_sent :],
            **metrics,
        }
        self._num_sent = len(progress.history)
        self._gauges.set(progress, metrics)
        self.flush()
        with contextlib.suppress(ray.exceptions.RayError):
            self._sending = self._queue.actor.put_nowait.remote(record)

    def flush(self) -> None:
        """Wait until the last record has arrived."""
        if self._sending is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._sending)
