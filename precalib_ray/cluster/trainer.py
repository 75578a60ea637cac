"""One job of several workers, from start to end, as the driver sees it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from precalib_ray.cluster import placement
from precalib_ray.errors import ClusterError, DivergedError, PrecalibError


@dataclass(frozen=True)
class Fitted:
    """What rank 0 returned, and the checkpoint that it reported last."""

    outcome: dict[str, Any]
    checkpoint: str
    """Its name in the run's folder on storage."""


def fit(
    worker: Callable[[Mapping[str, Any]], dict[str, Any]],
    config: Mapping[str, Any],
    shared: Mapping[str, Any],
    *,
    keep: int,
    local: bool,
    on_record: Callable[[dict[str, Any]], None],
) -> Fitted:
    """Run ``worker`` on every rank, to the end.

    Args:
        worker: a function of the module ``worker``.
        config: the job's resolved config.
        shared: what else the workers need, by name; put into the object store once.
        keep: newest checkpoints kept on storage.
        local: whether the cluster has fixed resources, so that a job too large can be refused.
        on_record: called, in a thread of its own, with each record of rank 0.

    Raises:
        ConfigError: storage is a folder that other nodes do not see.
        DivergedError: the loss is not finite.
        ClusterError: workers were lost more often than ``scaling.max_failures`` allows, or can
            never start.
    """
    scaling, storage = config["scaling"], storage_path(config["storage"])
    request = placement.Request.of(scaling, local=local)
    placement.require(request, local=local)
    placement.require_shared(
        request, storage=config["storage"], folder=f"{storage}/{config['name']}"
    )
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        worker,
        train_loop_config={
            "config": dict(config),
            "shared": {name: ray.put(value) for name, value in shared.items()},
            "queue": queue,
            "cpus": request.cpus,
        },
        scaling_config=request.scaling_config(),
        run_config=RunConfig(
            name=config["name"],
            storage_path=storage,
            failure_config=FailureConfig(max_failures=scaling["max_failures"]),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
        ),
    )
    ended = threading.Event()
    pump = threading.Thread(target=_pump, args=(queue, on_record, ended), daemon=True)
    pump.start()
    try:
        result = in_thread(trainer.fit)
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        ended.set()
        pump.join()
        queue.shutdown(force=True)
    returned = result.return_value
    if "diverged" in returned:
        raise DivergedError(returned["diverged"])
    return Fitted(returned["outcome"], Path(result.checkpoint.path).name)


def in_thread(work: Callable[[], Any]) -> Any:
    """Run in a thread: in the main one Ray would take over Ctrl-C, and end the process its way."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


def storage_path(storage: str) -> str:
    """What Ray takes: a URI as it is, a relative path made absolute."""
    return storage if "://" in storage else str(Path(storage).absolute())


def _pump(
    queue: Queue, on_record: Callable[[dict[str, Any]], None], ended: threading.Event
) -> None:
    """Hand over records until the job has ended and the queue is empty."""
    while True:
        try:
            record = queue.get(timeout=0.2)
        except Empty:
            if ended.is_set():
                return
        except ray.exceptions.RayError:
            return
        else:
            try:
                on_record(record)
            except Exception:  # what is shown and logged must not stop what is computed
                logging.getLogger(__name__).exception("a progress record was lost")


def _cause(error: ray.train.TrainingFailedError) -> Exception:
    """The user's mistake or lost machine behind a failed run; a defect of ours stays as it is."""
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
            f"{ranks}. Submitted again, the job goes on from its last checkpoint"
        )
    unexpected: Exception = error
    return unexpected
