"""The tracking server: which one it is, whether it answers, and MLflow's process-wide settings."""

from __future__ import annotations

import http.client
import logging
import os
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import sqlalchemy
from mlflow.tracking import MlflowClient

from precalib_ray.errors import TrackingError
from precalib_ray.registry.secrets import redact

CONNECT_TIMEOUT_S = 5.0
DEFAULT_URI = "sqlite:///mlflow.db"
_ADVICE = "start it, name another with tracking.uri, or run offline with tracking.offline=true"
_DATABASES = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": None}

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow prints the URL of a run, with the password that the server's URI may hold.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# An unreachable server blocks the job for seconds; by MLflow's defaults, for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# MLflow logs the creation of its tables and of every version; jobs report what matters.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def resolve_uri(uri: str | None) -> str:
    """The tracking URI: as given, ``MLFLOW_TRACKING_URI``, or SQLite in the working directory."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def client_of(uri: str) -> MlflowClient:
    """A client whose registry is the tracking server, regardless of MLFLOW_REGISTRY_URI."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def require_reachable(uri: str) -> None:
    """Raise TrackingError unless the server answers within ``CONNECT_TIMEOUT_S``."""
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        _require_http(uri)
    elif scheme == "sqlite":
        _require_sqlite(uri)
    elif scheme.partition("+")[0] in _DATABASES:
        _require_database(uri)


def _require_http(uri: str) -> None:
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    try:
        health = f"{shown}{parts.path.rstrip('/')}/health"
        urllib.request.urlopen(health, timeout=CONNECT_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # it answers; what it may ask for, such as credentials, MLflow's client sends
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise TrackingError(f"no MLflow server answers at {shown} ({reason}); {_ADVICE}") from None


def _require_sqlite(uri: str) -> None:
    file = Path(uri.removeprefix("sqlite:///"))
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        sqlite3.connect(file).close()
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"MLflow's database {file} cannot be opened ({error}); {_ADVICE}"
        ) from None


def _require_database(uri: str) -> None:
    """Connect once: MLflow itself would retry for minutes."""
    engine = None
    try:
        url = sqlalchemy.make_url(uri)
        timeout = _DATABASES[url.get_backend_name()]
        arguments = {timeout: int(CONNECT_TIMEOUT_S)} if timeout else {}
        engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.pool.NullPool, connect_args=arguments
        )
        engine.connect().close()
    except Exception as error:  # every driver has its own exceptions
        shown, reason = redact(uri), one_line(getattr(error, "orig", None) or error)
        raise TrackingError(
            f"MLflow's database {shown} cannot be opened ({reason}); {_ADVICE}"
        ) from None
    finally:
        if engine is not None:
            engine.dispose()


def one_line(error: BaseException | str) -> str:
    """An error's text, to embed in another message: at most 300 characters, secrets redacted."""
    return redact(" ".join(str(error).split()))[:300]


def artifact_location(uri: str) -> str | None:
    """For SQLite a folder next to the database; None lets the server decide."""
    if urlsplit(uri).scheme != "sqlite":
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def set_global_uri(uri: str) -> None:
    """Set the server of MLflow's module-level functions, which log models."""
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
