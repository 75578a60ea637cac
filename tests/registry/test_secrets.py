"""What is planted in the environment is found in nothing that is written."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.core import checkpoint
from precalib_ray.core.models.mlp import MLP
from precalib_ray.registry.secrets import guard_logs, redact
from tests.registry.servers import PASSWORD, S3, MLflowServer, Postgres, free_port

REPOSITORY = Path(__file__).parents[2]
SETTINGS = MLP(num_classes=3, input_shape=(4,), width=4, depth=1)
PLANTED = {
    "MLFLOW_TRACKING_USERNAME": "bob",
    "MLFLOW_TRACKING_PASSWORD": "tracking-password-55d1",
    "MLFLOW_TRACKING_TOKEN": "tracking-token-c0ffee",
    **S3.environment,
    "AWS_SESSION_TOKEN": "aws-session-token-77ab",
}
SECRETS = [
    *(v for k, v in PLANTED.items() if k not in ("MLFLOW_TRACKING_USERNAME", "AWS_DEFAULT_REGION")),
    PASSWORD,
    "uri-password-4242",
]


def job(folder: Path, name: str, *arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *arguments],
        cwd=folder, env=os.environ | PLANTED | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def assert_clean(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text


def test_redact_leaves_what_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:p%40ssword@host")
    shown = redact("postgresql://bob:secret@host:5432/db of models:/NAME@champion: p@ssword p%40ss")
    assert shown == "postgresql://***@host:5432/db of models:/NAME@champion: *** p%40ss"
    assert redact("https://token@host/a@b") == "https://***@host/a@b"
    assert redact("postgresql://bob:pa/ss@host/db") == "postgresql://***@host/db"
    assert redact("s3://bucket/a@b and models:/NAME@champion") == (
        "s3://bucket/a@b and models:/NAME@champion"
    )
    shown = redact("postgresql://host/db?user=u&password=s3cret&sslmode=require (away)")
    assert shown == "postgresql://host/db?user=u&password=***&sslmode=require (away)"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:secret@[::1")  # it cannot be parsed
    assert redact("http://bob:secret@[::1 is away") == "http://***@[::1 is away"


def test_logs_are_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "tracking-password-55d1")
    kept = logging.getLogRecordFactory()
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("tests.secrets")
    logger.addHandler(handler)
    try:
        guard_logs()
        try:
            raise ValueError("tracking-password-55d1")
        except ValueError:
            logger.exception("of %s", "http://bob:uri-password-4242@host")
    finally:
        logging.setLogRecordFactory(kept)
        logger.removeHandler(handler)
    err = capsys.readouterr().err
    assert "of http://***@host" in err
    assert "ValueError: ***" in err
    assert_clean(err)


@pytest.mark.server
def test_planted_secrets_are_in_nothing_that_is_written(
    postgres: Postgres, postgres_server: MLflowServer, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "run", model=SETTINGS.build(), settings=SETTINGS, metrics={})
    server = f"http://bob:uri-password-4242@127.0.0.1:{postgres_server.port}"
    code, shown = job(
        tmp_path, "register", "path=run", "tracking.register_as=planted", MLFLOW_TRACKING_URI=server
    )
    assert code == 0, shown
    written = [shown]

    # Straight to the database, whose URI has the password; and with a wrong one.
    code, shown = job(
        tmp_path, "register", "path=run", "tracking.register_as=planted",
        MLFLOW_TRACKING_URI=postgres.uri,
    )  # fmt: skip
    assert code == 0, shown
    assert "is registered already" in shown
    written.append(shown)
    wrong = postgres.uri.replace(PASSWORD, "uri-password-4242")
    code, shown = job(tmp_path, "register", "path=run", MLFLOW_TRACKING_URI=wrong)
    assert code == 4
    assert "authentication failed" in shown
    written.append(shown)

    # A server that is away; one that refuses; a password in the config.
    gone = f"http://bob:uri-password-4242@127.0.0.1:{free_port()}"
    code, shown = job(tmp_path, "register", "path=run", MLFLOW_TRACKING_URI=gone)
    assert code == 4
    written.append(shown)
    code, shown = job(tmp_path, "promote", "name=unknown", MLFLOW_TRACKING_URI=server)
    assert code == 4
    written.append(shown)
    code, shown = job(tmp_path, "register", "path=run", f"tracking.uri={server}")
    assert code == 2
    assert "must hold no user, password or key" in shown
    written.append(shown)

    client = MlflowClient(tracking_uri=postgres_server.uri)
    version = client.get_model_version_by_alias("planted", "candidate")
    run = client.get_run(version.run_id)
    written += [json.dumps(run.to_dictionary()), repr(dict(version)), repr(version.tags)]
    folders = [tmp_path, postgres_server.folder / "artifacts"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "MLmodel" for file in files)
    written += [file.read_bytes().decode("latin-1") for file in files]
    for text in written:
        assert_clean(text)
        assert "Traceback" not in text
