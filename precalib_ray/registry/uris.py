"""Tracking URIs: which server is named, and which file an SQLite database is."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import sqlalchemy

from precalib_ray.errors import TrackingError
from precalib_ray.registry.secrets import redact

DEFAULT_URI = "sqlite:///mlflow.db"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""SQLAlchemy's names of the databases that MLflow takes."""
EXAMPLES = "as http://HOST:PORT or sqlite:///PATH"


def resolve_uri(uri: str | None) -> str:
    """The tracking URI: as given, ``MLFLOW_TRACKING_URI``, or SQLite in the working directory.

    The path of an SQLite database becomes absolute: MLflow keeps the connections of a URI, and the
    working directory may change.

    Raises:
        TrackingError: it names no database that lasts.
    """
    given = (uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI).strip()
    return _absolute(given) if database(given) == "sqlite" else given


def database(uri: str) -> str | None:
    """The database of a SQLAlchemy URI, of ``DATABASES``; None for other URIs."""
    name = uri.partition(":")[0].partition("+")[0]
    return name if name in DATABASES else None


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database; None for other URIs. Raises TrackingError."""
    if database(uri) != "sqlite":
        return None
    name = str(_parse(uri).database)
    if name.startswith("file:"):  # SQLite's own URIs, with uri=true
        name = unquote(urlsplit(name).path)
    return Path(name).absolute()


def artifact_location(uri: str) -> str | None:
    """For SQLite a folder next to the database; None lets the server decide."""
    file = sqlite_file(uri)
    return None if file is None else (file.parent / "mlartifacts").as_uri()


def unsupported(uri: str, schemes: list[str]) -> str:
    """What is wrong with a URI of which MLflow does not know the scheme."""
    known = sorted(name for name in schemes if name)
    near = difflib.get_close_matches(uri.partition(":")[0], known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else f", {EXAMPLES}"
    return f"its scheme must be one of {', '.join(known)}{hint}"


def _absolute(uri: str) -> str:
    url = _parse(uri)
    name = str(url.database)
    if not name.startswith("file:"):
        url = url.set(database=os.path.abspath(name))
        rest = (
            url.set(database="")
            .render_as_string(hide_password=False)
            .removeprefix(f"{url.drivername}:///")
        )
        plain = f"{url.drivername}:///{url.database}{rest}"
        if sqlalchemy.make_url(plain) == url:
            return plain
    # Of sqlite:/// MLflow creates the folder that it reads there, without decoding it.
    driver = "sqlite+pysqlite" if url.drivername == "sqlite" else url.drivername
    return url.set(drivername=driver).render_as_string(hide_password=False)


def _parse(uri: str) -> sqlalchemy.URL:
    try:
        url = sqlalchemy.make_url(uri)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise TrackingError(f"{redact(uri)!r} is not a URI of SQLite, sqlite:///PATH") from None
    if url.host:
        allowed = "names a host; an absolute path has four slashes, sqlite:////PATH"
        raise TrackingError(f"{redact(uri)!r} {allowed}")
    name = url.database or ""
    if not name or ":memory:" in name or url.query.get("mode") == "memory":
        raise TrackingError(
            f"{redact(uri)!r} is a database in memory, which ends with the process; name a file, "
            "sqlite:///PATH"
        )
    return url
