"""A job's MLflow run: the one connection of a job to its server."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import LifecycleStage, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from precalib_ray.errors import TrackingError
from precalib_ray.registry.outbox import Outbox
from precalib_ray.registry.secrets import redact
from precalib_ray.registry.sending import Sender, active_run
from precalib_ray.registry.server import client_of, tracking_errors
from precalib_ray.registry.uris import artifact_location
from precalib_ray.storage.folder import Folder

PARENT_TAG = "mlflow.parentRunId"
_MAX_VALUE = 6000  # characters of a parameter
_PARAMS = 100  # most parameters that MLflow accepts at once


@dataclass(frozen=True)
class KnownRun:
    """An MLflow run that a server has."""

    client: MlflowClient
    run_id: str
    finished: bool


def find(uri: str, run_ids: Iterable[str]) -> KnownRun | None:
    """The first of some runs that a server has and that is not deleted; raises TrackingError."""
    with tracking_errors("MLflow refused to look up the run"):
        client = client_of(uri)
        for run_id in run_ids:
            if (found := active_run(client, run_id)) is not None:
                return KnownRun(client, run_id, finished=found.info.status == "FINISHED")
    return None


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
        parent: Run | None = None,
        outbox: Folder | None = None,
    ) -> None:
        """Begin a run, or resume one.

        Args:
            uri: the server.
            experiment: its name; created if it does not exist.
            name: the run's.
            tags: of a new run.
            run_id: the run to resume; a new one is begun if this server has no such active run.
            parent: of a new child run, which is begun in the experiment of its parent.
            outbox: where metrics are stored until the server has accepted them; None for memory
                only.

        Raises:
            TrackingError: the server refused.
        """
        self.uri = uri
        with tracking_errors("MLflow refused the run"):
            self.client = client_of(uri)
            known = None if run_id is None else active_run(self.client, run_id)
            if known is not None:
                self.client.update_run(known.info.run_id, status="RUNNING")
            else:
                if parent is not None:
                    experiment_id, tags = parent.experiment_id, {**tags, PARENT_TAG: parent.run_id}
                else:
                    experiment_id = self._experiment(experiment)
                known = self.client.create_run(experiment_id, run_name=name, tags=dict(tags))
        self.run_id: str = str(known.info.run_id)
        self.experiment_id: str = str(known.info.experiment_id)
        self._params = dict(known.data.params)  # as the server has them
        unsent = Outbox(outbox)
        self.last_status: str | None = unsent.drop_status()
        """The final status of an earlier submission that the server has not received."""
        self._logged = {(key, step) for key, _, _, step in (e["metric"] for e in unsent.entries)}
        resumed = self.run_id == run_id
        self._sender = Sender(self.client, self.run_id, unsent, uri=uri, resumed=resumed)

    @property
    def last_error(self) -> str:
        """Why the server did not accept what was sent last."""
        return self._sender.last_error

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested plain data under dotted names, but for names that the run has already, as
        MLflow keeps the first value; raises TrackingError.
        """
        new = [(key, value) for key, value in _flatten(params) if key not in self._params]
        flat = [Param(key, str(value)[:_MAX_VALUE]) for key, value in new]
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
            found: dict[str, tuple[str, str]] = {}
            token = None
            while True:
                page = self.client.search_runs(
                    [self.experiment_id],
                    f"tags.`{PARENT_TAG}` = '{self.run_id}'",
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

    def _experiment(self, experiment: str) -> str:
        """The id of an experiment, which is created if it does not exist."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            try:
                created = self.client.create_experiment(experiment, artifact_location(self.uri))
                return str(created)
            except MlflowException:  # another job has created it
                found = self.client.get_experiment_by_name(experiment)
                if found is None:
                    raise
        if found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise TrackingError(
                f"the experiment {experiment} was deleted in MLflow; restore it with "
                f"MLFLOW_TRACKING_URI={shlex.quote(redact(self.uri))} mlflow experiments restore "
                f"--experiment-id {found.experiment_id}, or name another with tracking.experiment"
            )
        return str(found.experiment_id)

    def _tracking_errors(self, what: str) -> AbstractContextManager[None]:
        return tracking_errors(f"MLflow did not accept {what}")


def _flatten(params: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
