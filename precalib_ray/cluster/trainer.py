"""One training run of several workers, from start to end, as the driver sees it."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ray
import ray.train
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchTrainer

from precalib_ray.cluster import placement, ray_private
from precalib_ray.cluster.channel import Channel, Notice, Report
from precalib_ray.cluster.shared_storage import require_shared
from precalib_ray.cluster.threads import in_thread
from precalib_ray.errors import CheckpointError, ClusterError, PrecalibError
from precalib_ray.storage.folder import absolute

if TYPE_CHECKING:
    from precalib_ray.config.sections import Distributed

GRACE_S = 60.0
"""Seconds that an interrupted run has to write a checkpoint."""

_RESUMES = "Submitted again, the job resumes from its last checkpoint"

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The input of a worker."""

    config: Any
    """The job's config."""
    folder: str
    """The run's, absolute or a URI."""
    shared: Mapping[str, ray.ObjectRef]
    """Keyword arguments of the phase."""
    mailbox: Any
    """Actor handle of the channel to the driver."""
    cpus: float
    keep: int
    """Newest checkpoints to keep."""


@dataclass(frozen=True)
class Fitted(Generic[R]):
    """A finished run."""

    outcome: R
    checkpoint: str
    """Name of the last checkpoint in the run's folder."""


@dataclass(frozen=True)
class Failed:
    """A run that failed permanently: restarted workers would fail again."""

    error: PrecalibError


def fit(
    worker: Callable[[Mapping[str, Payload]], Fitted[R] | Failed],
    config: Distributed,
    shared: Mapping[str, Any],
    *,
    keep: int,
    local: bool,
    on_report: Callable[[Report], None],
    notify: Callable[[str], None],
    may_save: Callable[[], bool] = lambda: True,
) -> Fitted[R]:
    """Run ``worker`` on every rank, to the end.

    Args:
        worker: ``worker.pretrain`` or ``worker.train``.
        config: of the job.
        shared: keyword arguments of the phase; each is put into the object store once.
        keep: newest checkpoints to keep.
        local: whether the cluster was started here, and so has fixed resources.
        on_report: called, in a thread of its own, with each report of rank 0.
        notify: called, in any thread, with what a user should know at once.
        may_save: whether a run that is interrupted may write a checkpoint. It has ``GRACE_S``
            seconds for it; a second interrupt ends it at once.

    Raises:
        ConfigError: storage is a folder that other nodes do not see.
        DivergedError: the loss is not finite.
        CheckpointError: one cannot be written, or there are some and none is usable.
        ClusterError: workers were lost more often than ``scaling.max_failures`` allows, or can
            never start.
    """
    scaling, storage = config.scaling, absolute(config.storage)
    request = placement.Request.of(scaling, local=local)
    placement.require(request, local=local, notify=notify)
    folder = f"{storage}/{config.name}"
    require_shared(request, storage=config.storage, folder=folder)
    channel, interrupted = Channel(), threading.Event()
    payload = Payload(
        config=config,
        folder=folder,
        shared={name: ray.put(value) for name, value in shared.items()},
        mailbox=channel.mailbox,
        cpus=request.cpus,
        keep=keep,
    )

    def trainer() -> TorchTrainer:
        return TorchTrainer(
            worker,
            train_loop_config={"payload": payload},
            scaling_config=request.scaling_config(),
            run_config=RunConfig(
                name=config.name,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=scaling.max_failures),
            ),
        )

    def attempts() -> ray.train.Result:
        """Restart the run's controller; Ray itself restarts only workers."""
        for _ in range(scaling.max_failures):
            attempt = trainer()
            try:
                return attempt.fit()
            except ray.exceptions.RayActorError as error:
                if interrupted.is_set() or error.actor_init_failed:
                    raise
                notify("Ray's controller of the run was lost; starting another")
                ray_private.release_reservation(attempt)
        return trainer().fit()

    def on_interrupt(result: Future[ray.train.Result]) -> None:
        interrupted.set()
        if not may_save():
            return
        notify("interrupted: writing a checkpoint (interrupt again to end at once)")
        channel.request_stop()
        concurrent.futures.wait([result], GRACE_S)
        if not result.done():
            notify(f"no checkpoint was written within {GRACE_S:.0f} s")
        elif result.exception() is None:
            returned = result.result().return_value
            if isinstance(returned, Failed) and isinstance(returned.error, CheckpointError):
                notify(str(returned.error))

    ended = threading.Event()
    pump = threading.Thread(
        target=_pump, args=(channel, on_report, notify, ended, interrupted), daemon=True
    )
    pump.start()
    try:
        result = in_thread(attempts, on_interrupt=on_interrupt)
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        raise _cause(error) from error
    finally:
        ended.set()
        pump.join()
        channel.close()
    returned: Fitted[R] | Failed = result.return_value
    if isinstance(returned, Failed):
        raise returned.error
    return returned


def _pump(
    channel: Channel,
    on_report: Callable[[Report], None],
    notify: Callable[[str], None],
    ended: threading.Event,
    interrupted: threading.Event,
) -> None:
    """Deliver messages until the run has ended and there are no more, or it was interrupted."""
    while not (ended.is_set() and interrupted.is_set()):
        try:
            message = channel.take(0.2)
        except ray.exceptions.RayError:
            return
        if message is None:
            if ended.is_set():
                return
            continue
        try:
            if isinstance(message, Notice):
                notify(message.text)
            else:
                on_report(message)
        except Exception:  # a failure to show or log progress must not stop training
            logging.getLogger(__name__).exception("a progress report was lost")


def _cause(error: Exception) -> Exception:
    """The error to raise for a failed run; a defect of ours is returned unchanged."""
    if isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed:
        return ClusterError(
            "Ray's controller of the run was lost more often than scaling.max_failures allows. "
            + _RESUMES
        )
    if isinstance(error, ray.train.ControllerError) and isinstance(
        error.controller_failure, ray.exceptions.RayError
    ):
        # Its retries are exhausted, or the error is not retried, as when workers start too slowly.
        reason = str(error.controller_failure).partition("\n")[0]
        return ClusterError(f"Ray's controller of the run failed: {reason}. {_RESUMES}")
    lost = []
    for rank, failure in ray_private.worker_failures(error).items():
        if isinstance(failure, PrecalibError):
            return failure
        if isinstance(failure, ray.exceptions.RayActorError):  # its health check has failed
            lost.append(rank)
    if lost:
        ranks = ", ".join(map(str, sorted(lost)))
        return ClusterError(
            "workers were lost more often than scaling.max_failures allows; most recently rank "
            f"{ranks}. {_RESUMES}"
        )
    return error
