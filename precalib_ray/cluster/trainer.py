"""One job of several workers, from start to end, as the driver sees it."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)

from precalib_ray.cluster import placement
from precalib_ray.cluster.channel import Channel
from precalib_ray.cluster.threads import in_thread
from precalib_ray.data.storage import Folder
from precalib_ray.errors import CheckpointError, ClusterError, PrecalibError

GRACE_S = 60.0
"""How long an interrupted run may take to write a checkpoint."""

_GOES_ON = "Submitted again, the job goes on from its last checkpoint"


@dataclass(frozen=True)
class Fitted:
    """What rank 0 returned."""

    outcome: dict[str, Any]
    checkpoint: str
    """The last one's name in the run's folder on storage."""


def fit(
    worker: Callable[[Mapping[str, Any]], dict[str, Any]],
    config: Mapping[str, Any],
    shared: Mapping[str, Any],
    *,
    keep: int,
    local: bool,
    on_record: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None],
    may_save: Callable[[], bool] = lambda: True,
) -> Fitted:
    """Run ``worker`` on every rank, to the end.

    Args:
        worker: a function of the module ``worker``.
        config: the job's resolved config.
        shared: what else the workers need, by name; put into the object store once.
        keep: newest checkpoints kept on storage.
        local: whether the cluster has fixed resources, so that a job too large can be refused.
        on_record: called, in a thread of its own, with each record of rank 0.
        tell: called, in any thread, with what a user should know at once.
        may_save: whether a run that is interrupted may write a checkpoint. It is given ``GRACE_S``
            seconds for it; a second interrupt ends it at once.

    Raises:
        ConfigError: storage is a folder that other nodes do not see.
        DivergedError: the loss is not finite.
        CheckpointError: one cannot be written, or those that there are cannot be read.
        ClusterError: workers were lost more often than ``scaling.max_failures`` allows, or can
            never start.
    """
    scaling, storage = config["scaling"], storage_path(config["storage"])
    request = placement.Request.of(scaling, local=local)
    placement.require(request, local=local, tell=tell)
    placement.require_shared(
        request, storage=config["storage"], folder=f"{storage}/{config['name']}"
    )
    channel, interrupted = Channel(), threading.Event()

    def trainer() -> TorchTrainer:
        return TorchTrainer(
            worker,
            train_loop_config={
                "config": dict(config),
                "shared": references,
                "mailbox": channel.mailbox,
                "cpus": request.cpus,
                "keep": keep,
            },
            scaling_config=request.scaling_config(),
            run_config=RunConfig(
                name=config["name"],
                storage_path=storage,
                failure_config=FailureConfig(max_failures=scaling["max_failures"]),
            ),
        )

    def attempts() -> ray.train.Result:
        """Ray replaces lost workers, but not its controller of the run."""
        for _ in range(scaling["max_failures"]):
            attempt = trainer()
            try:
                return attempt.fit()
            except ray.exceptions.RayActorError as error:
                if interrupted.is_set() or error.actor_init_failed:
                    raise
                tell("Ray's controller of the run was lost; going on with another")
                _release(attempt)
        return trainer().fit()

    def on_interrupt(outcome: Future[ray.train.Result]) -> None:
        interrupted.set()
        if not may_save():
            return
        tell("interrupted: a checkpoint is being written (once more to end at once)")
        channel.ask_to_end()
        concurrent.futures.wait([outcome], GRACE_S)
        if not outcome.done():
            tell(f"no checkpoint was written within {GRACE_S:.0f} s")
        elif outcome.exception() is None:
            error = outcome.result().return_value.get("error")
            if isinstance(error, CheckpointError):
                tell(str(error))

    references = {name: ray.put(value) for name, value in shared.items()}
    # Of runs that were begun when Ray kept the checkpoints; it would insist on all of them.
    (Folder.at(storage) / config["name"]).delete("checkpoint_manager_snapshot.json")
    ended = threading.Event()
    pump = threading.Thread(
        target=_pump, args=(channel, on_record, tell, ended, interrupted), daemon=True
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
    returned = result.return_value
    if "error" in returned:
        raise returned["error"]
    return Fitted(returned["outcome"], returned["checkpoint"])


def _release(attempt: TorchTrainer) -> None:
    """What a lost controller had reserved, which an elastic run leaves alone for 3 minutes."""
    run = attempt.train_run_context.run_id
    TrainAutoscalingCoordinatorClient(f"train-{run}").cancel_resource_request()


def storage_path(storage: str) -> str:
    """What Ray takes: a URI as it is, a relative path made absolute."""
    return storage if "://" in storage else str(Path(storage).absolute())


def _pump(
    channel: Channel,
    on_record: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None],
    ended: threading.Event,
    interrupted: threading.Event,
) -> None:
    """Hand over records until the job has ended and there are no more, or nobody waits for them."""
    while not (ended.is_set() and interrupted.is_set()):
        try:
            record = channel.take(0.2)
        except ray.exceptions.RayError:
            return
        if record is None:
            if ended.is_set():
                return
            continue
        try:
            if "told" in record:
                tell(record["told"])
            else:
                on_record(record)
        except Exception:  # what is shown and logged must not stop what is computed
            logging.getLogger(__name__).exception("a progress record was lost")


def _cause(error: Exception) -> Exception:
    """The user's mistake or lost machine behind a failed run; a defect of ours stays as it is."""
    if isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed:
        return ClusterError(
            "Ray's controller of the run was lost more often than scaling.max_failures allows. "
            + _GOES_ON
        )
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {}
    lost = []
    for rank, failure in failures.items():
        if isinstance(failure, PrecalibError):
            return failure
        # Ray Train wraps what a health check raised; a worker that is gone fails its check.
        if isinstance(
            getattr(failure, "health_check_failure", failure), ray.exceptions.RayActorError
        ):
            lost.append(rank)
    if lost:
        ranks = ", ".join(map(str, sorted(lost)))
        return ClusterError(
            "workers were lost more often than scaling.max_failures allows; the last time of rank "
            f"{ranks}. {_GOES_ON}"
        )
    return error
