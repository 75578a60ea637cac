"""The one connection of a job to its MLflow server.

Metrics are sent in the background of training and never stop it: what a server that has gone away
did not take is kept, tried again with whatever comes next, and at the end written beside the
checkpoints.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from precalib_ray.errors import TrackingError

CONNECT_TIMEOUT_S = 5.0
DEFAULT_URI = "sqlite:///mlflow.db"
_BATCH = 1000  # most metrics that MLflow takes at once
_RETRY_AFTER_S = 15.0

_logger = logging.getLogger(__name__)

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A server that is away holds up the job for seconds; by default it would for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# MLflow narrates the creation of its tables and of every version; jobs say what matters.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def resolve_uri(uri: str | None) -> str:
    """The tracking server: as given, as ``MLFLOW_TRACKING_URI`` says, or SQLite in this folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def require_reachable(uri: str) -> None:
    """Refuse a server that does not answer within seconds; raises TrackingError."""
    parts = urlsplit(uri)
    advice = "start it, name another with tracking.uri, or go on with tracking.offline=true"
    if parts.scheme in ("http", "https"):
        shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        try:
            health = f"{shown}{parts.path.rstrip('/')}/health"
            with urllib.request.urlopen(health, timeout=CONNECT_TIMEOUT_S):
                return
        except urllib.error.HTTPError:
            return  # it answers; what it wants, credentials perhaps, MLflow will be told
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise TrackingError(
                f"no MLflow server answers at {shown} ({reason}); {advice}"
            ) from None
    if parts.scheme == "sqlite":
        file = Path(uri.removeprefix("sqlite:///"))
        try:
            file.absolute().parent.mkdir(parents=True, exist_ok=True)
            sqlite3.connect(file).close()
        except (OSError, sqlite3.Error) as error:
            raise TrackingError(
                f"MLflow's database {file} cannot be opened ({error}); {advice}"
            ) from None


class Run:
    """An MLflow run that is being written."""

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> None:
        """Begin a run, or go on with one.

        Raises:
            TrackingError: the server refused.
        """
        self.uri = uri
        try:
            self.client = MlflowClient(tracking_uri=uri)
            if run_id is not None:
                try:
                    self.client.update_run(run_id, status="RUNNING")
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
                    run_id = None  # begun on another server, or deleted
            if run_id is None:
                run_id = self._begin(experiment, name, tags)
        except Exception as error:  # stores and drivers fail in ways of their own
            raise TrackingError(f"MLflow refused the run: {error}") from error
        self.run_id = run_id
        self._waiting: list[Metric] = []
        self._retry_at = 0.0

    def _begin(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        found = self.client.get_experiment_by_name(experiment)
        experiment_id = (
            found.experiment_id
            if found
            else self.client.create_experiment(experiment, artifact_location(self.uri))
        )
        run = self.client.create_run(experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested plain data under dotted names."""
        flat = [Param(key, str(value)[:6000]) for key, value in _flatten(params)]
        try:
            for first in range(0, len(flat), 100):
                self.client.log_batch(self.run_id, params=flat[first : first + 100])
        except MlflowException as error:
            raise TrackingError(f"MLflow refused the parameters: {error}") from error

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log numbers; a server that is away gets them later."""
        now = int(time.time() * 1000)
        self._waiting += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if time.monotonic() >= self._retry_at:
            self.flush()

    def flush(self) -> bool:
        """Send what is waiting; returns whether nothing is left."""
        while self._waiting:
            try:
                self.client.log_batch(self.run_id, metrics=self._waiting[:_BATCH])
            except Exception as error:  # whatever a client raises when its server is away
                _logger.warning("MLflow did not take metrics, they are kept: %s", error)
                self._retry_at = time.monotonic() + _RETRY_AFTER_S
                return False
            self._waiting = self._waiting[_BATCH:]
        return True

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Store an artifact."""
        try:
            self.client.log_artifact(self.run_id, str(file), folder)
        except Exception as error:  # transports fail in ways of their own
            raise TrackingError(f"MLflow did not take {file.name}: {error}") from error

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        try:
            for key, value in tags.items():
                self.client.set_tag(self.run_id, key, value)
        except Exception as error:
            raise TrackingError(f"MLflow did not take tags: {error}") from error

    def children(self, tag: str) -> set[str]:
        """Values of a tag over the ended runs whose parent this is; raises TrackingError.

        Those that were begun and never ended, by a driver that was killed, are deleted.
        """
        try:
            experiment = self.client.get_run(self.run_id).info.experiment_id
            found, begun, token = set(), [], None
            while True:
                page = self.client.search_runs(
                    [experiment],
                    f"tags.`mlflow.parentRunId` = '{self.run_id}'",
                    page_token=token,
                )
                for run in page:
                    if run.info.status == "RUNNING":
                        begun.append(run.info.run_id)
                    elif tag in run.data.tags:
                        found.add(run.data.tags[tag])
                token = page.token
                if not token:
                    break
            for run_id in begun:  # not before: pages are counted from the first run
                self.client.delete_run(run_id)
            return found
        except Exception as error:  # stores and drivers fail in ways of their own
            raise TrackingError(f"MLflow did not list runs: {error}") from error

    def end(self, status: str, spool: Path) -> Path | None:
        """Set the status: FINISHED, FAILED or KILLED.

        Returns:
            None, or ``spool``, where the metrics that could not be sent were written.
        """
        sent = self.flush()
        try:
            self.client.set_terminated(self.run_id, status=status)
        except Exception as error:  # the server is away: what was computed is not lost for that
            _logger.warning("MLflow did not take the end of run %s: %s", self.run_id, error)
        if sent:
            return None
        lines = [
            json.dumps({"run_id": self.run_id, "key": m.key, "value": m.value,
                        "timestamp": m.timestamp, "step": m.step})
            for m in self._waiting
        ]  # fmt: skip
        spool.parent.mkdir(parents=True, exist_ok=True)
        with spool.open("a") as file:
            file.write("\n".join(lines) + "\n")
        return spool


def artifact_location(uri: str) -> str | None:
    """For SQLite a folder beside the database; None lets a server decide."""
    if urlsplit(uri).scheme != "sqlite":
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def set_global_uri(uri: str) -> None:
    """Point MLflow's module-level functions, which log models, at a server."""
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
