"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import ray

from precalib_ray.cluster import ray_private
from precalib_ray.errors import ClusterError, one_line

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
    # Ray colors the prefix of the workers' lines also where they go to a file.
    "RAY_COLOR_PREFIX": "0",
}

_ANSWER_S = 5.0
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of gRPC begins; the server begins with such a frame too, of type 4."""

NO_TOKEN = (
    "; RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token, are "
    "needed here as they are there"
)

_started_here = False


@contextlib.contextmanager
def connect(
    stage: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Iterator[bool]:
    """A connection to Ray; yields whether the cluster was started here.

    The cluster is that of ``RAY_ADDRESS``, which ``ray job submit`` sets. Without it one is started
    on this machine, bound to loopback, and ended with the context. A session that is already open
    is used and left open.

    Args:
        stage: shows, as a context, what takes seconds.

    Raises:
        ClusterError: the cluster does not answer, or Ray cannot start here.
    """
    global _started_here  # noqa: PLW0603  one session per process
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        with _ray_errors():
            yield _started_here
        return
    address = os.environ.get("RAY_ADDRESS", "")
    local = _started_here = address in ("", "local")
    # Silences a notice at every start that token authentication is on.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    on_term = signal.getsignal(signal.SIGTERM)
    with stage("starting Ray" if local else f"connecting to Ray at {address}"):
        if not local:
            require_answer(address)
        try:
            ray.init(
                address="local" if local else None,  # None joins one that runs here already
                num_cpus=1 if local and ray_private.counts_no_cpu() else None,
                logging_level=logging.WARNING,
                log_to_driver=not local,
                configure_logging=True,
            )
        except Exception as error:  # Ray raises whatever the system or its own checks do
            ray.shutdown()  # what has started already
            what = f"no Ray cluster at {address}"
            if local:
                folder = os.environ.get("RAY_TMPDIR")
                what = "Ray cannot start here" + (f" (RAY_TMPDIR={folder})" if folder else "")
            refused = isinstance(error, ray.exceptions.AuthenticationError)
            hint = NO_TOKEN if refused else ""
            raise ClusterError(f"{what}: {one_line(error)}{hint}") from error
        finally:
            if threading.current_thread() is threading.main_thread():  # Ray replaces the handler
                signal.signal(signal.SIGTERM, on_term)
    try:
        with _ray_errors():
            yield local
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _ray_errors() -> Iterator[None]:
    """Raise ClusterError for what fails in Ray itself; an error of the code that Ray runs is a
    defect, and stays as it is.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        in_code = isinstance(error, ray.exceptions.RayTaskError)
        if in_code or getattr(error, "actor_init_failed", False):
            raise
        raise ClusterError(f"Ray has failed: {one_line(error)}") from error


def require_answer(address: str) -> None:
    """Refuse a cluster's address at which no gRPC server answers: Ray would try for two minutes,
    deaf to interrupts.

    Args:
        address: as ``RAY_ADDRESS`` has it.

    Raises:
        ClusterError: the address is malformed, or nothing answers within seconds.
    """
    if address == "auto":
        return
    try:
        parts = urllib.parse.urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.netloc != address:
        allowed = "must be HOST:PORT of the cluster's head, auto or local"
        is_dashboard = address.startswith(("http://", "https://"))
        hint = "; that of the dashboard is for ray job submit" if is_dashboard else ""
        raise ClusterError(f"RAY_ADDRESS: {address!r}: {allowed}{hint}")
    reason = "it is not Ray that answers"
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(_HTTP2)
            if connection.recv(9)[3:4] == b"\x04":
                return
    except OSError as error:
        reason = str(error)
    raise ClusterError(f"no Ray cluster at {address}: {reason}")


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
