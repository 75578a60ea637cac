"""What the workers of a trainer run: they train, save and report, and never connect to MLflow."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device

from precalib_ray.cluster.channel import Notice, Report, Sender
from precalib_ray.cluster.checkpoints import Checkpoints
from precalib_ray.cluster.gauges import Gauges
from precalib_ray.cluster.logs import Log
from precalib_ray.cluster.signals import Signals
from precalib_ray.cluster.stragglers import Stragglers
from precalib_ray.cluster.trainer import Failed, Fitted, Payload
from precalib_ray.core.engine import Engine
from precalib_ray.core.loop import Host, Signal
from precalib_ray.core.phases import pretraining, training
from precalib_ray.core.progress import Metrics, Progress
from precalib_ray.errors import CheckpointError, DivergedError, InterruptedRunError
from precalib_ray.storage.checkpoints import step_name

R = TypeVar("R")


def pretrain(loop_config: Mapping[str, Payload]) -> Fitted[pretraining.Outcome] | Failed:
    """Noise pretraining on one worker; ``loop_config`` holds the ``payload``."""
    return _work("pretrain", pretraining.Pretraining, loop_config["payload"], last="final")


def train(loop_config: Mapping[str, Payload]) -> Fitted[training.Outcome] | Failed:
    """Data training on one worker; ``loop_config`` holds the ``payload``."""
    return _work("train", training.Training, loop_config["payload"], last="best")


class _Runnable(Protocol[R]):
    """A phase, as the workers use it."""

    engine: Engine
    progress: Progress[Any]

    def resume(self, directory: Path) -> None: ...

    def write(self, directory: Path, outcome: R | None = None) -> None: ...

    def run(self, host: Host[Any]) -> R: ...


def _work(
    name: str, build: Callable[..., _Runnable[R]], payload: Payload, *, last: str
) -> Fitted[R] | Failed:
    """Build a phase, resume it, run it to its end, and write the ``last`` checkpoint."""
    config, rank = payload.config, ray.train.get_context().get_world_rank()
    torch.set_num_threads(max(1, int(payload.cpus)))
    shared = {key: ray.get(reference) for key, reference in payload.shared.items()}
    phase = build(config, **shared, device=get_device())
    log = Log(run=config.name, phase=name, rank=rank)
    sender = Sender(payload.mailbox)

    def notify(message: str, **fields: Any) -> None:
        log.warning(message, **fields)
        if rank == 0:
            sender.send(Notice(message))

    checkpoints = Checkpoints(
        payload.folder,
        last=last,
        keep=payload.keep,
        on_error=config.on_save_error,
        log=log,
        notify=notify,
    )
    try:
        resumed = checkpoints.resume(phase.resume)
        log.info(
            "training begins",
            world_size=ray.train.get_context().get_world_size(),
            node=socket.gethostname(),
            device=str(phase.engine.device),
            step=phase.progress.step,
            checkpoint=resumed,
        )
        host = _WorkerHost(
            save=lambda progress: checkpoints.save(step_name(progress.step), phase.write, progress),
            sender=sender,
            gauges=Gauges(run=config.name, phase=name),
            stragglers=Stragglers(
                _worker_names(),
                notify=lambda text, rank, factor: notify(text, straggler=rank, factor=factor),
            ),
            signals=Signals(sender, notify=notify),
        )
        outcome = phase.run(host)
        checkpoints.save(
            last,
            lambda directory: phase.write(directory, outcome),
            phase.progress,
            required=True,
        )
    except (DivergedError, CheckpointError, InterruptedRunError) as error:
        log.warning(str(error), error=type(error).__name__, step=phase.progress.step)
        return Failed(error)  # not raised: Ray would restart the workers, which would not help
    finally:
        sender.flush()
    reason = phase.progress.stop_reason
    log.info("training has ended", step=phase.progress.step, stop_reason=reason)
    return Fitted(outcome, last)


class _WorkerHost(Host[Any]):
    """Loop callbacks of a Ray Train worker."""

    compares_ranks = True

    def __init__(
        self,
        *,
        save: Callable[[Progress[Any]], str],
        sender: Sender,
        gauges: Gauges,
        stragglers: Stragglers,
        signals: Signals,
    ) -> None:
        self._save, self._sender, self._gauges = save, sender, gauges
        self._stragglers, self._signals = stragglers, signals
        self._num_sent = 0
        """Number of evaluations sent to the driver."""

    def save(self, progress: Progress[Any]) -> str:
        return self._save(progress)

    def on_progress(self, progress: Progress[Any], metrics: Metrics) -> None:
        self._gauges.set(progress, metrics)
        report = Report(
            step=progress.step,
            samples=progress.samples,
            seconds=progress.seconds,
            evaluations=progress.history[self._num_sent :],
            loss=metrics.loss,
            learning_rate=metrics.learning_rate,
            samples_per_second=metrics.samples_per_second,
        )
        self._num_sent = len(progress.history)
        self._sender.send(report)

    def on_work(self, seconds: list[float]) -> None:
        self._stragglers.add(seconds)

    def signal(self) -> Signal:
        return self._signals.current()


def _worker_names() -> list[str]:
    """Process and node of each rank; collective."""
    name = f"process {os.getpid()} on {socket.gethostname()}"
    if not dist.is_initialized():
        return [name]
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, name)
    return names
