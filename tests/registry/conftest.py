"""The back ends that the registry is tested on; each is started once, when a test first asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.servers import POSTGRES_BINARIES, S3, MLflowServer, Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if POSTGRES_BINARIES is None:
        pytest.skip("needs PostgreSQL's binaries: apt-get install postgresql")
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MLflowServer]:
    """MLflow on PostgreSQL, which takes artifacts itself and keeps them in a folder."""
    folder = tmp_path_factory.mktemp("postgres")
    server = MLflowServer(
        folder, "--serve-artifacts", "--artifacts-destination", str(folder / "artifacts"),
        backend=postgres.uri, workers=2,
    )  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """MLflow whose clients talk to the artifact store themselves."""
    server = MLflowServer(
        tmp_path_factory.mktemp("s3"), "--no-serve-artifacts",
        "--default-artifact-root", f"s3://{s3.bucket}/artifacts",
        environment=s3.environment | {"MLFLOW_S3_ENDPOINT_URL": s3.endpoint},
    )  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgres", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking URI: SQLite, a server on PostgreSQL, or one with an S3-compatible store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'mlflow.db'}"
    server: MLflowServer = request.getfixturevalue(f"{request.param}_server")
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3")
        for name, value in (s3.environment | {"MLFLOW_S3_ENDPOINT_URL": s3.endpoint}).items():
            monkeypatch.setenv(name, value)
    return server.uri
