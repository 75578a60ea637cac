"""The thread that sends the outbox.

It never blocks training. An entry is on storage before it is sent and until the server has accepted
it: what an unreachable server did not accept is sent once it answers again, by this process or by
the next one that resumes the run.
"""

from __future__ import annotations

import logging
import threading
import time

from mlflow.entities import LifecycleStage, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from precalib_ray.registry.outbox import Entry, Outbox
from precalib_ray.registry.server import one_line, reason, require_reachable

_BATCH = 1000  # most metrics that MLflow accepts at once
_RETRY_AFTER_S = 5.0

_logger = logging.getLogger(__name__)


def active_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run, unless it does not exist or is deleted; raises what MLflow raises."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


class Sender:
    """Sends the entries of one run in order, each of them effectively once.

    An entry may have reached the server without the client having been acknowledged: a process was
    killed, or the connection broke, before the answer. Entries are then deduplicated by key and
    step against the server's history.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, outbox: Outbox, *, uri: str, resumed: bool
    ) -> None:
        """Start the thread.

        Args:
            client: of the server.
            run_id: the run.
            outbox: what an earlier process left is sent first.
            uri: the server.
            resumed: the run exists, and may have entries that are in the outbox too.
        """
        self._client, self._run_id, self._outbox, self._uri = client, run_id, outbox, uri
        self._deduplicate = resumed
        self._server_steps: dict[str, set[int]] = {}  # by metric, as the server has them
        self.last_error = ""
        """Why the server did not accept what was sent last."""
        self._changed = threading.Condition()
        self._num_in_flight = 0  # segments
        self._away = self._outage_logged = self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, entries: list[Entry]) -> None:
        """Store entries in the outbox, and wake the thread."""
        if not entries:
            return
        with self._changed:
            segments = self._outbox.segments
            in_flight = segments[self._num_in_flight - 1] if self._num_in_flight else None
            self._outbox.add(entries, after=in_flight)
            self._changed.notify_all()

    def flush(self, wait_s: float = 0.0) -> bool:
        """Wait until the outbox is empty; returns whether it is.

        Args:
            wait_s: how long to wait for an unreachable server; a reachable server is waited for
                without a limit.
        """
        with self._changed:
            deadline = time.monotonic() + wait_s
            self._away = False  # retry at once
            self._changed.notify_all()
            while len(self._outbox):
                if self._away and time.monotonic() >= deadline:
                    return False
                self._changed.wait(0.1)
        return True

    def close(self) -> None:
        """End the thread; what is in the outbox stays on storage."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._outbox.segments:
                    self._changed.wait()
                if self._closed:
                    return
                self._num_in_flight = len(self._outbox.segments)
                entries = self._outbox.entries
            error = self._send(entries)
            with self._changed:
                if error is None:
                    self._outbox.remove(self._num_in_flight)
                    if self._outage_logged:
                        _logger.warning("MLflow is reachable again; the outbox has been sent")
                    self._outage_logged = False
                self._num_in_flight = 0
                self._changed.notify_all()
                if error is None:
                    continue
                self.last_error = error
                if not self._outage_logged:
                    _logger.warning(
                        "MLflow is unreachable or rejects metrics; the outbox keeps them: %s", error
                    )
                self._outage_logged = self._away = self._deduplicate = True
                self._server_steps.clear()
                self._changed.notify_all()
                retry_at = time.monotonic() + _RETRY_AFTER_S
                while self._away and not self._closed and time.monotonic() < retry_at:
                    self._changed.wait(max(0.0, retry_at - time.monotonic()))

    def _send(self, entries: list[Entry]) -> str | None:
        """Send in order; returns the error, if there was one."""
        try:
            if self._outage_logged:
                require_reachable(self._uri)  # fails sooner than MLflow's client does
            metrics = [Metric(*e["metric"]) for e in entries if "metric" in e]
            if self._deduplicate:
                metrics = [m for m in metrics if m.step not in self._steps(m.key)]
            for first in range(0, len(metrics), _BATCH):
                self._log_batch(metrics[first : first + _BATCH])
            for entry in entries:
                if "status" in entry:
                    self._client.set_terminated(self._run_id, status=entry["status"])
        except Exception as error:  # every transport and store has its own exceptions
            return reason(error)
        return None

    def _log_batch(self, metrics: list[Metric]) -> None:
        """Log metrics; those that MLflow can never accept are bisected out and dropped."""
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:
            invalid = error.error_code == "INVALID_PARAMETER_VALUE"
            if not invalid or active_run(self._client, self._run_id) is None:
                raise
            if len(metrics) == 1:  # a name that MLflow does not allow
                _logger.warning("MLflow refuses %s: %s", metrics[0].key, one_line(error))
                return
            middle = len(metrics) // 2
            self._log_batch(metrics[:middle])
            self._log_batch(metrics[middle:])

    def _steps(self, key: str) -> set[int]:
        if key not in self._server_steps:
            history = self._client.get_metric_history(self._run_id, key)
            self._server_steps[key] = {metric.step for metric in history}
        return self._server_steps[key]
