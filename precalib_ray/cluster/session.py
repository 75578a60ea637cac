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
    # A run ends when its controller polls the workers, by default every two seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # Some clouds preempt a node half a minute after the notice.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # After a node is lost, the first count of the remaining resources may be outdated.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # Ray 2.60 warns in every run without it: the variable only announces a new default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A search has its own record of trials; Tune would write three more files for each.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that failed has no deviation to report.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune's newer output prints a heading even with verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
}

_started_here = False


@contextlib.contextmanager
def connect() -> Iterator[bool]:
    """A connection to Ray; yields whether the cluster was started here.

    The cluster is that of ``RAY_ADDRESS``, which ``ray job submit`` sets. Without it one is started
    on this machine, bound to loopback, and ended with the context. A session that is already open
    is used and left open.

    Raises:
        ClusterError: the cluster does not answer.
    """
    global _started_here  # noqa: PLW0603  one session per process
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield _started_here
        return
    local = _started_here = not os.environ.get("RAY_ADDRESS")
    # Silences a notice at every start that token authentication is on.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local" if local else None,  # None joins one that runs here already
            logging_level=logging.WARNING,
            log_to_driver=not local,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS", "on this machine")
        raise ClusterError(f"no Ray cluster at {address}: {error}") from error
    if threading.current_thread() is threading.main_thread():  # Ray has replaced the handler
        signal.signal(signal.SIGTERM, on_term)
    try:
        yield local
    finally:
        ray.shutdown()


def cpus_per_worker(num_workers: int, configured: float | None, *, local: bool) -> float:
    """CPUs of each worker: as configured, else an equal share of this machine's; 1 on a cluster,
    whose nodes may be smaller than such a share.
    """
    if configured is not None:
        return configured
    if not local:
        return 1.0
    total = ray.cluster_resources().get("CPU", 1.0)
    return float(max(1, int(total // num_workers)))
