"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

import ray

from precalib_ray.errors import ClusterError

_ENVIRONMENT = {
    # A run ends when its controller looks, by default every two seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A node that will be taken away has, on some clouds, half a minute left.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # After a node is lost, the first count of what is left may be of before.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # Said of every run by Ray 2.60: the variable only announces a new default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Trials have a record of their own; Tune would write three more of each.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that failed has no deviation to report.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # What is shown is ours; the newer output of Tune prints a heading even when it is to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
}

_started_here = False


@contextlib.contextmanager
def connect() -> Iterator[bool]:
    """Be connected to Ray for a while; yields whether the cluster was started here.

    A cluster that ``RAY_ADDRESS`` names (``ray job submit`` sets it) is used as it is. Otherwise
    one is started on this machine, bound to loopback, and ended at the end. A session that is
    already open is used and left open.

    Raises:
        ClusterError: the cluster does not answer.
    """
    global _started_here  # noqa: PLW0603  there is one session to a process
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield _started_here
        return
    local = _started_here = not os.environ.get("RAY_ADDRESS")
    # Ray announces at every start that tokens guard the cluster; they do, and shall.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local" if local else None,  # else one that somebody has started here is joined
            logging_level=logging.WARNING,
            log_to_driver=not local,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS", "on this machine")
        raise ClusterError(f"no Ray cluster at {address}: {error}") from error
    if threading.current_thread() is threading.main_thread():  # Ray has put its own in place
        signal.signal(signal.SIGTERM, on_term)
    try:
        yield local
    finally:
        ray.shutdown()


def cpus_per_worker(num_workers: int, wanted: float | None, *, local: bool) -> float:
    """CPUs that each worker asks for: what is wanted; or an equal share of this machine's; on a
    cluster, whose nodes may be smaller than any share of the whole, one.
    """
    if wanted is not None:
        return wanted
    if not local:
        return 1.0
    total = ray.cluster_resources().get("CPU", 1.0)
    return float(max(1, int(total // num_workers)))
