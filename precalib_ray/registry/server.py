"""The tracking server: whether it answers, its errors, and MLflow's process-wide settings."""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import re
import shlex
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

import mlflow
import requests
import sqlalchemy
from mlflow.store.db import utils as databases
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryDatabase
from mlflow.store.tracking.rest_store import RestStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingDatabase
from mlflow.tracking import MlflowClient
from mlflow.tracking._model_registry import utils as registries
from mlflow.tracking._tracking_service import utils as services
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from mlflow.utils.rest_utils import http_request

from precalib_ray.errors import PrecalibError, TrackingError
from precalib_ray.registry import uris
from precalib_ray.registry.secrets import redact

CONNECT_TIMEOUT_S = 5.0
_DEADLINE_S = 8.0  # of a question, with the resolution of names, slow answers and plugins
_SEARCH = "/api/2.0/mlflow/experiments/search"
_NAME = "name another with tracking.uri or MLFLOW_TRACKING_URI"
_TIMEOUTS = {  # the argument of a driver's connect; others have only the deadline
    "pysqlite": "timeout",
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "mysqldb": "connect_timeout",
    "pymysql": "connect_timeout",
}

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow prints the URL of a run, with the password that the server's URI may hold.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# An unreachable server blocks the job for seconds; by MLflow's defaults, for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# MLflow logs the creation of its tables and of every version; jobs report what matters.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# It logs a traceback of what it raises, too.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def client_of(uri: str) -> MlflowClient:
    """A client whose registry is the tracking server, regardless of MLFLOW_REGISTRY_URI.

    Raises:
        TrackingError: MLflow does not take the URI, or cannot open the database.
    """
    try:
        with tracking_errors(f"MLflow at {redact(uri)} cannot be opened"):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            registries._get_store(uri, uri)  # MLflow would open it later
            return client
    except TrackingError as error:
        if "out-of-date database schema" not in str(error):
            raise
        found = re.search(r"found version .*? but expected \w+", str(error))
        raise TrackingError(
            f"MLflow's database {redact(uri)} has the schema of another version of MLflow "
            f"({found[0] if found else 'not known'}): after a backup, mlflow db upgrade "
            f"{shlex.quote(redact(uri))} upgrades an older one; for a newer one, "
            "pip install --upgrade mlflow"
        ) from None


def require_reachable(uri: str, *, writable: bool = False, create: bool = False) -> None:
    """Ask the server once, as MLflow's client does; raises TrackingError within ten seconds.

    Args:
        uri: as ``uris.resolve_uri`` returns it.
        writable: require that an SQLite database can be written.
        create: create an SQLite database that does not exist.
    """
    if uris.database(uri):
        with tracking_errors(f"MLflow's database {redact(uri)} cannot be opened", advice=_NAME):
            _within_deadline(lambda: _connect(uri, writable=writable, create=create))
            client_of(uri)
        return
    with tracking_errors(f"{redact(uri)} is not a tracking URI"):
        store = services._get_store(uri)
    what, advice = f"no MLflow server answers at {_shown(uri)}", f"start it, or {_NAME}"
    with tracking_errors(what, advice=advice):
        _within_deadline(lambda: _ask(store, what))


@contextlib.contextmanager
def tracking_errors(what: str, *, advice: str = "") -> Iterator[None]:
    """Turn what MLflow and its libraries raise into a TrackingError, ``WHAT: reason; ADVICE``:
    each transport, store, driver and plugin has its own exceptions.
    """
    try:
        yield
    except PrecalibError:
        raise
    except Exception as error:
        raise TrackingError("; ".join(filter(None, (f"{what}: {reason(error)}", advice)))) from None


def reason(error: BaseException) -> str:
    """Why MLflow refused, in one line, and what mends it where MLflow's text does not say."""
    if isinstance(error, UnsupportedModelRegistryStoreURIException):
        given = re.search(r"got unsupported URI '(.*?)' for", str(error))
        return uris.unsupported(given[1] if given else "", error.supported_uri_schemes)
    if "MLFLOW_ALLOW_FILE_STORE" in str(error):
        return (
            f"MLflow no longer keeps runs in a folder; name a server or database, {uris.EXAMPLES}"
        )
    if "must be in the 'active' state" in str(error):
        return (
            f"{one_line(error)} It was deleted in MLflow: submitted again, the job begins another "
            "run, or says how to restore the experiment"
        )
    return one_line(error)


def one_line(error: BaseException | str) -> str:
    """An error's text, to embed in another message: at most 300 characters, secrets redacted."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r" *(\[SQL: |\(Background on this error).*", "", text)  # SQLAlchemy's
    return redact(text)[:300]


def set_global_uri(uri: str) -> None:
    """Set the server of MLflow's module-level functions, which log models.

    ``MLFLOW_TRACKING_URI``, which MLflow sets too, stays as the user has it.
    """
    if mlflow.get_tracking_uri() == uri:
        return
    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if given is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = given


def _connect(uri: str, *, writable: bool, create: bool) -> None:
    """Read the database on MLflow's own engine, by a new connection and without its retries."""
    file = uris.sqlite_file(uri)
    if file is not None and create:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif file is not None and not file.exists():
        raise FileNotFoundError("there is no such file")
    engine = databases.create_sqlalchemy_engine(uri)
    argument = _TIMEOUTS.get(engine.dialect.driver)

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def limit(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> None:
        if argument is not None:
            given = float(parameters.get(argument, CONNECT_TIMEOUT_S))
            parameters[argument] = int(min(given, CONNECT_TIMEOUT_S))

    try:
        with engine.connect() as connection:
            tables = sqlalchemy.inspect(connection).get_table_names()
            if file is not None and writable:
                _require_writable(connection)
    finally:
        engine.dispose()
    if file is not None:
        _forget_connections(uri, empty=not tables)


def _require_writable(connection: sqlalchemy.Connection) -> None:
    """Begin a change of an SQLite file and take it back; MLflow would wait for a lock for 20 s."""
    connection.rollback()
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    connection.rollback()
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    connection.exec_driver_sql(f"PRAGMA user_version = {int(version)}")
    connection.rollback()


def _forget_connections(uri: str, *, empty: bool) -> None:
    """MLflow keeps connections open, also to a file that was deleted or replaced."""
    for store in (TrackingDatabase, RegistryDatabase):
        if uri in store._engine_map:
            store._engine_map[uri].dispose()
    if empty:  # it creates its tables with the store
        for registry in (services._tracking_store_registry, registries._get_store_registry()):
            registry._get_store_with_resolved_uri.cache_clear()


def _ask(store: Any, what: str) -> None:
    """Search experiments; raises TrackingError, ``WHAT: reason``, if MLflow does not answer."""
    if not isinstance(store, RestStore):  # of a plugin
        store.search_experiments(max_results=1)
        return
    try:
        response = http_request(
            store.get_host_creds(),
            _SEARCH,
            "GET",
            params={"max_results": 1},
            max_retries=0,
            timeout=CONNECT_TIMEOUT_S,
            raise_on_status=False,
            retry_timeout_seconds=int(CONNECT_TIMEOUT_S),
        )
    except Exception as error:
        raise RuntimeError(_root_cause(error)) from None
    wrong = _wrong(response)
    if wrong is not None:
        raise TrackingError(f"{what}: {wrong}")


def _wrong(response: requests.Response) -> str | None:
    """What is wrong with an answer; None if it is MLflow's."""
    # Of these redirects a client makes a GET of a POST; it repeats a POST after 307 and 308.
    followed = [each for each in response.history if each.status_code in (301, 302, 303)]
    if followed or response.is_redirect:
        location = (followed or [response])[0].headers.get("Location", "")
        return f"it redirects to {_shown(location, path=True).removesuffix(_SEARCH)}; name that"
    try:
        content = json.loads(response.text)
    except ValueError:
        content = None
    code, content = response.status_code, content if isinstance(content, dict) else None
    if code == 200 and content is not None and content.keys() <= {"experiments", "next_page_token"}:
        return None
    if code == 200:
        return "what answers there is not MLflow"
    plain = response.headers.get("Content-Type", "").startswith("text/plain")
    text = (content or {}).get("message") or (plain and response.text) or response.reason
    advice = {
        401: "; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
        "hold the credentials",
        404: "; what answers there is not MLflow, or the path is another",
    }
    return f"HTTP {code} {one_line(str(text))}" + advice.get(code, "")


def _root_cause(error: BaseException) -> str:
    """The cause of a failed request: the outer exceptions repeat it at length."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    text = one_line(chain[-1])
    if any(isinstance(each, requests.exceptions.ProxyError) for each in chain):
        return f"the proxy of HTTP_PROXY or HTTPS_PROXY: {text}"
    if isinstance(chain[-1], ssl.SSLCertVerificationError):
        return f"{text}; MLFLOW_TRACKING_SERVER_CERT_PATH names the certificate to trust"
    return text


def _within_deadline(question: Callable[[], None]) -> None:
    """Ask in a thread, which is left behind if the answer does not come."""
    outcome: Future[None] = Future()
    context = contextvars.copy_context()

    def ask() -> None:
        try:
            outcome.set_result(context.run(question))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        outcome.result(_DEADLINE_S)
    except TimeoutError:
        if outcome.done():
            raise
        raise TimeoutError(f"timed out: no answer within {_DEADLINE_S:g} s") from None


def _shown(uri: str, *, path: bool = False) -> str:
    """Scheme, host and port of a URL, and its path on request; another URI without credentials."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return redact(uri)
    if parts.scheme not in ("http", "https"):
        return redact(uri)
    _, _, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{host}{parts.path if path else ''}"
