"""A job's MLflow run: the one connection of a job to its server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from precalib_ray.errors import TrackingError
from precalib_ray.registry.outbox import Outbox
from precalib_ray.registry.sending import Sender, is_active
from precalib_ray.registry.server import artifact_location, client_of, one_line
from precalib_ray.storage.folder import Folder

_MAX_VALUE = 6000  # characters of a parameter
_PARAMS = 100  # most parameters that MLflow accepts at once


class Run:
    """An MLflow run that is being written.

    Metrics are deduplicated by key and step: a value that is logged again, as by a worker that
    resumes from a checkpoint, is dropped, and every value reaches the server once.
    """

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        run_id: str | None = None,
        outbox: Folder | None = None,
    ) -> None:
        """Begin a run, or resume one.

        Args:
            uri: the server.
            experiment: its name; created if it does not exist.
            name: the run's.
            tags: of a new run.
            run_id: the run to resume; a new one is begun if this server has no such active run.
            outbox: where metrics are stored until the server has accepted them; None for memory
                only.

        Raises:
            TrackingError: the server refused.
        """
        self.uri = uri
        try:
            self.client = client_of(uri)
            resumed = run_id is not None and is_active(self.client, run_id)
            if run_id is not None and resumed:
                self.client.update_run(run_id, status="RUNNING")
            else:
                run_id = self._begin(experiment, name, tags)
        except Exception as error:  # every transport and store has its own exceptions
            raise TrackingError(f"MLflow refused the run: {one_line(error)}") from None
        self.run_id = run_id
        unsent = Outbox(outbox)
        self.last_status: str | None = unsent.drop_status()
        """The final status of an earlier submission that the server has not received."""
        self._logged = {(key, step) for key, _, _, step in (e["metric"] for e in unsent.entries)}
        self._sender = Sender(self.client, run_id, unsent, uri=uri, resumed=resumed)

    @property
    def last_error(self) -> str:
        """Why the server did not accept what was sent last."""
        return self._sender.last_error

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested plain data under dotted names; raises TrackingError."""
        flat = [Param(key, str(value)[:_MAX_VALUE]) for key, value in _flatten(params)]
        with self._tracking_errors("the parameters"):
            for first in range(0, len(flat), _PARAMS):
                self.client.log_batch(self.run_id, params=flat[first : first + _PARAMS])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log numbers, asynchronously: an unreachable server receives them later."""
        now = int(time.time() * 1000)
        new = [key for key in metrics if (key, step) not in self._logged]
        self._logged.update((key, step) for key in new)
        self._sender.put([{"metric": [key, float(metrics[key]), now, step]} for key in new])

    def flush(self, wait_s: float = 0.0) -> bool:
        """Wait until the server has accepted everything; returns whether it has.

        Args:
            wait_s: how long to wait for an unreachable server; a reachable server is waited for
                without a limit.
        """
        return self._sender.flush(wait_s)

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Store an artifact; raises TrackingError."""
        with self._tracking_errors(file.name):
            self.client.log_artifact(self.run_id, str(file), folder)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run; raises TrackingError."""
        with self._tracking_errors("tags"):
            for key, value in tags.items():
                self.client.set_tag(self.run_id, key, value)

    def children(self, tag: str) -> dict[str, tuple[str, str]]:
        """Run id and status of the child runs, by the value of a tag; raises TrackingError."""
        with self._tracking_errors("a search for runs"):
            experiment = self.client.get_run(self.run_id).info.experiment_id
            found: dict[str, tuple[str, str]] = {}
            token = None
            while True:
                page = self.client.search_runs(
                    [experiment],
                    f"tags.`mlflow.parentRunId` = '{self.run_id}'",
                    page_token=token,
                )
                for run in page:
                    if tag in run.data.tags:
                        found[run.data.tags[tag]] = (run.info.run_id, run.info.status)
                token = page.token
                if not token:
                    return found

    def end(self, status: str, *, wait_s: float = 0.0) -> bool:
        """Set the status, FINISHED, FAILED or KILLED, after everything else has been sent.

        Returns:
            Whether the server accepted everything; the outbox keeps what it did not.
        """
        self._sender.put([{"status": status}])
        sent = self.flush(wait_s)
        self._sender.close()
        return sent

    def _begin(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            with contextlib.suppress(MlflowException):  # another job has created it
                self.client.create_experiment(experiment, artifact_location(self.uri))
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                raise TrackingError(f"the experiment {experiment} cannot be created")
        run = self.client.create_run(found.experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    @contextlib.contextmanager
    def _tracking_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every transport and store has its own exceptions
            raise TrackingError(f"MLflow did not accept {what}: {one_line(error)}") from None


def _flatten(params: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
