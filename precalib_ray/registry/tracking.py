"""The one connection of a job to its MLflow server.

Metrics are sent by a thread of their own and never hold up training. Each is kept on storage, in
the ``spool``, before it is sent and until the server has taken it: what a server that has gone away
did not take is sent when it is back, by the job, or by the next one that goes on with the run.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import sqlalchemy
from mlflow.entities import LifecycleStage, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from precalib_ray.data.storage import Folder
from precalib_ray.errors import TrackingError
from precalib_ray.registry.secrets import redact
from precalib_ray.registry.spool import Entry, Spool

CONNECT_TIMEOUT_S = 5.0
DEFAULT_URI = "sqlite:///mlflow.db"
_BATCH = 1000  # most metrics that MLflow takes at once
_RETRY_AFTER_S = 5.0
_DATABASES = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": None}

_logger = logging.getLogger(__name__)

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# It prints where a run can be seen, with the password that the server's URI may have.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that is away holds up the job for seconds; by default it would for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# MLflow narrates the creation of its tables and of every version; jobs say what matters.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def resolve_uri(uri: str | None) -> str:
    """The tracking server: as given, as ``MLFLOW_TRACKING_URI`` says, or SQLite in this folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def client_of(uri: str) -> MlflowClient:
    """A client whose registry is the tracking server too, whatever MLFLOW_REGISTRY_URI says."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


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
    elif parts.scheme.partition("+")[0] in _DATABASES:
        _require_database(uri, advice)


def _require_database(uri: str, advice: str) -> None:
    """MLflow itself would try for minutes."""
    engine = None
    try:
        url = sqlalchemy.make_url(uri)
        timeout = _DATABASES[url.get_backend_name()]
        arguments = {timeout: int(CONNECT_TIMEOUT_S)} if timeout else {}
        engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.pool.NullPool, connect_args=arguments
        )
        engine.connect().close()
    except Exception as error:  # drivers fail in ways of their own
        shown, reason = redact(uri), one_line(getattr(error, "orig", None) or error)
        raise TrackingError(
            f"MLflow's database {shown} cannot be opened ({reason}); {advice}"
        ) from None
    finally:
        if engine is not None:
            engine.dispose()


def one_line(error: BaseException | str) -> str:
    """What an error says, for the message of another: short, and without secrets."""
    return redact(" ".join(str(error).split()))[:300]


class Run:
    """An MLflow run that is being written.

    A metric has one value per step: logged again, as by a worker that goes on from a checkpoint,
    it is dropped. So whatever is in doubt can be compared with what the server has, and every
    value gets there once.
    """

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        run_id: str | None = None,
        spool: Folder | None = None,
    ) -> None:
        """Begin a run, or go on with one.

        Args:
            uri: the server.
            experiment: its name; made if need be.
            name: the run's.
            tags: of a run that is begun.
            run_id: the run to go on with.
            spool: where metrics are kept until they are sent; None for memory alone.

        Raises:
            TrackingError: the server refused.
        """
        self.uri = uri
        try:
            self.client = client_of(uri)
            if run_id is not None and self._is_active(run_id):
                self.client.update_run(run_id, status="RUNNING")
            else:
                run_id = None  # begun on another server, or deleted
            self._doubt = run_id is not None  # whether the server has what we do not know of
            if run_id is None:
                run_id = self._begin(experiment, name, tags)
        except Exception as error:  # stores and drivers fail in ways of their own
            raise TrackingError(f"MLflow refused the run: {one_line(error)}") from None
        self.run_id = run_id
        self._spool = Spool(spool)
        self._logged: set[tuple[str, int]] = set()
        self.last_status: str | None = None
        """The end of an earlier submission that the server has not been told."""
        for segment in self._spool.segments:
            for entry in segment.entries:
                if "metric" in entry:
                    key, _, _, step = entry["metric"]
                    self._logged.add((key, step))
                else:
                    self.last_status = entry["status"]
            segment.entries = [entry for entry in segment.entries if "metric" in entry]
        self._there: dict[str, set[int]] = {}  # steps by metric that the server was asked for
        self.last_error = ""
        """Why the server did not take what was sent last."""
        self._changed = threading.Condition()
        self._sending: int = 0
        self._away = self._told_away = self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _is_active(self, run_id: str) -> bool:
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _begin(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            with contextlib.suppress(MlflowException):  # another job was quicker
                self.client.create_experiment(experiment, artifact_location(self.uri))
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                raise TrackingError(f"the experiment {experiment} cannot be made")
        run = self.client.create_run(found.experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested plain data under dotted names."""
        flat = [Param(key, str(value)[:6000]) for key, value in _flatten(params)]
        with self._told("the parameters"):
            for first in range(0, len(flat), 100):
                self.client.log_batch(self.run_id, params=flat[first : first + 100])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log numbers; a server that is away gets them later."""
        now = int(time.time() * 1000)
        fresh = [key for key in metrics if (key, step) not in self._logged]
        self._logged.update((key, step) for key in fresh)
        self._keep([{"metric": [key, float(metrics[key]), now, step]} for key in fresh])

    def flush(self, wait_s: float = 0.0) -> bool:
        """Wait until the server has everything; returns whether it has.

        Args:
            wait_s: how long to wait for a server that is away; one that answers gets the time
                that it needs.
        """
        with self._changed:
            deadline = time.monotonic() + wait_s
            self._away = False  # try now
            self._changed.notify_all()
            while len(self._spool):
                if self._away and time.monotonic() >= deadline:
                    return False
                self._changed.wait(0.1)
        return True

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Store an artifact."""
        with self._told(file.name):
            self.client.log_artifact(self.run_id, str(file), folder)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        with self._told("tags"):
            for key, value in tags.items():
                self.client.set_tag(self.run_id, key, value)

    def children(self, tag: str) -> dict[str, tuple[str, str]]:
        """Run id and status of the runs whose parent this is, by a tag; raises TrackingError."""
        with self._told("a question for runs"):
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
            Whether the server took it all; what it did not take is kept.
        """
        self._keep([{"status": status}])
        sent = self.flush(wait_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        return sent

    def _keep(self, entries: list[Entry]) -> None:
        if not entries:
            return
        with self._changed:
            being_sent = self._spool.segments[self._sending - 1] if self._sending else None
            self._spool.add(entries, after=being_sent)
            self._changed.notify_all()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # transports fail in ways of their own
            raise TrackingError(f"MLflow did not take {what}: {one_line(error)}") from None

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._spool.segments:
                    self._changed.wait()
                if self._closed:
                    return
                self._sending = len(self._spool.segments)
                entries = [e for s in self._spool.segments for e in s.entries]
            error = self._send(entries)
            with self._changed:
                if error is None:
                    self._spool.remove(self._sending)
                    if self._told_away:
                        _logger.warning("MLflow answers again; what was kept has been sent")
                    self._told_away = False
                self._sending = 0
                self._changed.notify_all()
                if error is None:
                    continue
                self.last_error = error
                if not self._told_away:
                    _logger.warning("MLflow does not take metrics, they are kept: %s", error)
                self._told_away = self._away = self._doubt = True
                self._there.clear()
                self._changed.notify_all()
                retry_at = time.monotonic() + _RETRY_AFTER_S
                while self._away and not self._closed and time.monotonic() < retry_at:
                    self._changed.wait(max(0.0, retry_at - time.monotonic()))

    def _send(self, entries: list[Entry]) -> str | None:
        """Send in order; returns what went wrong, if anything."""
        try:
            if self._told_away:
                require_reachable(self.uri)  # gives up sooner than MLflow's client does
            metrics = [Metric(*e["metric"]) for e in entries if "metric" in e]
            if self._doubt:
                metrics = [m for m in metrics if m.step not in self._steps(m.key)]
            for first in range(0, len(metrics), _BATCH):
                self._log_batch(metrics[first : first + _BATCH])
            for entry in entries:
                if "status" in entry:
                    self.client.set_terminated(self.run_id, status=entry["status"])
        except Exception as error:  # whatever a client raises when its server is away
            return one_line(error)
        return None

    def _log_batch(self, metrics: list[Metric]) -> None:
        try:
            self.client.log_batch(self.run_id, metrics=metrics)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or not self._is_active(self.run_id):
                raise
            if len(metrics) == 1:  # it never will: a name that MLflow does not allow
                _logger.warning("MLflow refuses %s: %s", metrics[0].key, one_line(error))
                return
            middle = len(metrics) // 2
            self._log_batch(metrics[:middle])
            self._log_batch(metrics[middle:])

    def _steps(self, key: str) -> set[int]:
        if key not in self._there:
            history = self.client.get_metric_history(self.run_id, key)
            self._there[key] = {metric.step for metric in history}
        return self._there[key]


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
