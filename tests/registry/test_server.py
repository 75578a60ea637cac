"""Whether the tracking server answers: asked as MLflow's client does, once, told in one line."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service import utils as services

from precalib_ray.errors import TrackingError
from precalib_ray.registry import loading, server, tracking, uris, versions
from precalib_ray.registry.gate import Gate
from precalib_ray.registry.server import client_of, require_reachable

Handler = http.server.BaseHTTPRequestHandler
MLFLOW = (200, {"Content-Type": "application/json"}, '{"experiments": []}')
FORBIDDEN_HOST = "Invalid Host header"


def refusal(uri: str, **options: bool) -> str:
    """What ``require_reachable`` says: one line, in time."""
    started = time.monotonic()
    with pytest.raises(TrackingError) as error:
        require_reachable(uris.resolve_uri(uri), **options)
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def database(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Starts servers that give one answer to everything; returns their URI and keeps requests."""
    servers: list[http.server.HTTPServer] = []

    def start(
        status: int, headers: dict[str, str], body: str, seen: list[Handler] | None = None
    ) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if seen is not None:
                    seen.append(self)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(found)
        return f"http://127.0.0.1:{found.server_address[1]}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (200, {"Content-Type": "text/html"}, "<html>", "what answers there is not MLflow"),
        (200, {"Content-Type": "application/json"}, '{"status": "ok"}', "is not MLflow"),
        (200, {}, "", "what answers there is not MLflow"),
        (401, {}, "", "HTTP 401 Unauthorized; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"),
        (403, {"Content-Type": "text/plain"}, FORBIDDEN_HOST, f"HTTP 403 {FORBIDDEN_HOST}"),
        (404, {}, "<html>", "HTTP 404 Not Found; what answers there is not MLflow"),
        (500, {}, '{"error_code": "INTERNAL_ERROR", "message": "a\\nb"}', "HTTP 500 a b"),
        (503, {"Retry-After": "60"}, "<html>", "HTTP 503 Service Unavailable"),
        (429, {"Retry-After": "60"}, "", "HTTP 429 Too Many Requests"),
    ],
)
def test_an_answer_that_is_not_that_of_mlflow(
    answering: Callable[..., str], status: int, headers: dict[str, str], body: str, said: str
) -> None:
    uri = answering(status, headers, body)
    found = refusal(uri)
    assert found.startswith(f"no MLflow server answers at {uri}: ")
    assert said in found


def test_redirects_are_followed_as_mlflow_can(answering: Callable[..., str]) -> None:
    """A client makes a GET of a POST that is redirected by 301 or 302, and repeats it after 308."""
    target = answering(*MLFLOW)
    path = "/api/2.0/mlflow/experiments/search"
    require_reachable(answering(308, {"Location": f"{target}{path}"}, ""))
    moved = answering(301, {"Location": f"{target}/prefix{path}?token=s3cret"}, "")
    assert refusal(moved).endswith(f"it redirects to {target}/prefix; name that")


def test_the_question_has_the_credentials_and_the_path_of_mlflows_client(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Handler] = []
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    require_reachable(answering(*MLFLOW, seen) + "/team/")
    (asked,) = seen
    assert asked.path.startswith("/team/api/2.0/mlflow/experiments/search")
    assert asked.headers["Authorization"] == "Bearer a-token"


def test_the_question_goes_through_the_proxy(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Handler] = []
    for name in ("http_proxy", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", answering(*MLFLOW, seen))
    require_reachable("http://mlflow.example.invalid:5000")
    assert seen[0].path.startswith("http://mlflow.example.invalid:5000/api/")
    monkeypatch.setenv("HTTP_PROXY", "http://bob:proxy-secret@127.0.0.1:9")
    found = refusal("http://mlflow.example.invalid:5000")
    assert "the proxy of HTTP_PROXY or HTTPS_PROXY: " in found
    assert "proxy-secret" not in found


def test_a_server_that_sends_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read succeeds in time; only the whole question does not."""
    monkeypatch.setattr(server, "_DEADLINE_S", 0.3)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, closing(connection.makefile("wb", 0)) as file:
                for character in b"HTTP/1.1 200 OK\r\nX-Slow: 0123456789":
                    file.write(bytes([character]))
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        port = listening.getsockname()[1]
        assert "timed out: no answer within 0.3 s" in refusal(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg"])
def test_a_server_that_accepts_and_is_silent(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_DEADLINE_S", 0.3)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        uri = f"{scheme}://bob:uri-secret@127.0.0.1:{listening.getsockname()[1]}/x"
        found = refusal(uri)
    assert "timed out: no answer within" in found
    assert "uri-secret" not in found


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp://host", "htp://host is not a tracking URI: its scheme must be one of"),
        ("postgres://bob:uri-secret@host/db", "(did you mean postgresql?)"),
        ("localhost:5000", "as http://HOST:PORT"),
        ("mlruns", "MLflow no longer keeps runs in a folder"),
        ("/srv/mlflow.db", "sqlite:///PATH"),
        ("C:\\runs\\mlflow.db", "sqlite:///PATH"),
        ("file:///srv/mlruns", "MLflow no longer keeps runs in a folder"),
        ("arn:aws:sagemaker:eu-west-1:1:mlflow-tracking-server/x", "its scheme must be one of"),
        ("uc:http://host", "Unity Catalog"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://127.0.0.1:port", "not a valid host or port"),
        ("https://127.0.0.1:9", "Connection refused"),
        ("mysql+nothing://host/db", "mysql.nothing"),
        ("postgresql+psycopg://bob@/db?host=/no/such/socket", "/no/such/socket"),
        ("sqlite://", "is a database in memory"),
        ("sqlite:///:memory:", "is a database in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "is a database in memory"),
        ("sqlite:/mlflow.db", "is not a URI of SQLite"),
        ("sqlite://mlflow.db", "four slashes"),
    ],
)
def test_a_uri_that_leads_nowhere(
    uri: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = refusal(uri, writable=True, create=True)
    assert said in found
    assert "uri-secret" not in found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("query", ["?timeout=30", "?timeout=30&check_same_thread=false"])
def test_a_query_is_not_part_of_the_name(database: Path, query: str) -> None:
    uri = uris.resolve_uri(f"sqlite:///{database}{query}")
    require_reachable(uri, writable=True, create=True)
    assert uris.artifact_location(uri) == (database.parent / "mlartifacts").as_uri()
    assert [file.name for file in database.parent.iterdir()] == [database.name]


@pytest.mark.parametrize(
    ("folder", "form"),
    [
        ("a b", "sqlite:///{}/a%20b/mlflow.db"),
        ("a b", "sqlite:///{}/a b/mlflow.db"),
        ("50%25", "sqlite:///{}/50%2525/mlflow.db"),
        ("ü", "sqlite:///{}/%C3%BC/mlflow.db"),
        ("plain", "sqlite+pysqlite:///{}/plain/mlflow.db"),
        ("plain", "sqlite:///file:{}/plain/mlflow.db?uri=true"),
    ],
)
def test_a_folder_is_decoded_as_sqlalchemy_does(
    empty_store: Path, tmp_path: Path, folder: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    shutil.copy(empty_store, tmp_path / folder / "mlflow.db")
    uri = uris.resolve_uri(form.format(tmp_path))
    require_reachable(uri, writable=True, create=True)
    assert uris.sqlite_file(uri) == tmp_path / folder / "mlflow.db"
    assert [file.name for file in tmp_path.rglob("*")] == [folder, "mlflow.db"]


def test_a_relative_database_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert uris.resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000\n")  # as of a mounted secret
    assert uris.resolve_uri(None) == "http://host:5000"


def text(file: Path) -> None:
    file.write_text("not a database\n" * 100)


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def foreign_schema(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'abc123'")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (text, "file is not a database"),
        (truncated, "malformed"),
        (folder, "unable to open database file"),
        (foreign_schema, "mlflow db upgrade sqlite:////"),
    ],
)
def test_a_file_that_is_not_mlflows_database(
    database: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(database)
    for options in ({}, {"writable": True, "create": True}):
        found = refusal(f"sqlite:///{database}", **options)
        assert said in found
        assert "SQL: " not in found


ENTRIES: dict[str, Callable[[str, Path], object]] = {
    "client": lambda uri, _: client_of(uri),
    "gate": lambda uri, _: Gate("m", tracking_uri=uri),
    "pull": lambda uri, folder: loading.pull("models:/m/1", folder, tracking_uri=uri),
    "run": lambda uri, _: tracking.Run(uri=uri, experiment="e", name="r", tags={}),
    "find": lambda uri, _: tracking.find(uri, ["1"]),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("damage", [text, truncated, foreign_schema])
def test_wherever_mlflow_is_entered(
    database: Path, damage: Callable[[Path], None], entry: str
) -> None:
    damage(database)
    with pytest.raises(TrackingError) as error:
        ENTRIES[entry](f"sqlite:///{database}", database.parent)
    assert "\n" not in str(error.value)


def test_a_database_that_is_locked_or_read_only(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECT_TIMEOUT_S", 0.0)
    uri = f"sqlite:///{database}"
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN IMMEDIATE")
        require_reachable(uri)  # it can be read
        assert "database is locked" in refusal(uri, writable=True)
    require_reachable(uri, writable=True)
    read_only = f"sqlite:///file:{database}?mode=ro&uri=true"
    require_reachable(uris.resolve_uri(read_only))
    assert "readonly database" in refusal(read_only, writable=True)


def test_what_cannot_be_created_says_why(database: Path, tmp_path: Path) -> None:
    uri = uris.resolve_uri(f"sqlite:///file:{database}?mode=ro&uri=true")
    with pytest.raises(TrackingError, match=r"MLflow refused the run: .*readonly database"):
        tracking.Run(uri=uri, experiment="new", name="r", tags={})
    with pytest.raises(MlflowException, match="readonly database"):
        versions.create(
            client_of(uri), "new", key="k", source=str(tmp_path), run_id="", model_id="", tags={}
        )


def test_reading_creates_no_database(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(f"sqlite:///{tmp_path / 'a' / 'mlflow.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_was_replaced_is_read_anew(database: Path, empty_store: Path) -> None:
    """MLflow's store of this process has connections to the file that is gone."""
    uri = f"sqlite:///{database}"
    require_reachable(uri)
    client_of(uri).create_experiment("e")
    database.unlink()
    shutil.copy(empty_store, database)
    require_reachable(uri)
    assert client_of(uri).get_experiment_by_name("e") is None


def test_the_environment_keeps_the_users_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow sets it for its subprocesses; the next job would take it for the user's."""
    monkeypatch.setattr(services, "_tracking_uri", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://given")
    server.set_global_uri("http://another")
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://given"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    server.set_global_uri("http://a-third")
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_of_an_error_of_sqlalchemy_the_statement_is_left_out() -> None:
    said = "(x.Error) no [SQL: INSERT]\n(Background on this error at: https://sqlalche.me/e/1)"
    assert server.one_line(said) == "(x.Error) no"
    assert server.one_line(ValueError()) == "ValueError"
