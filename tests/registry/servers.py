"""Real servers on loopback: MLflow, PostgreSQL, and an S3 store."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import ClassVar

import psutil

POSTGRES_BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
PASSWORD = "postgres-secret-7f3a"
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes more, of which none is used here
    "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "120",  # else workers that start slowly are killed
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it has started."""
    try:
        family = psutil.Process(process.pid)
        members = [*family.children(recursive=True), family]
    except psutil.NoSuchProcess:
        return
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


class MLflowServer:
    """``mlflow server`` on a loopback port, which can go away and come back."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        backend: str | None = None,
        environment: dict[str, str] | None = None,
        workers: int = 1,
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", str(workers),
            "--backend-store-uri", backend or f"sqlite:///{folder / 'server.db'}",
            *(arguments or ("--artifacts-destination", str(folder / "artifacts"))),
        ]  # fmt: skip
        self._environment = os.environ | SETTINGS | (environment or {})
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.folder, env=self._environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.uri + "/health", timeout=5).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        self.stop()
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        """Kill the server and its workers."""
        end(self.process)


class Postgres:
    """A PostgreSQL server on loopback that asks for a password; it must not run as root."""

    def __init__(self) -> None:
        assert POSTGRES_BINARIES is not None
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="precalib-postgres-"))
        self._data = self._folder / "data"
        self._as: list[str] = []
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}",
                        "--clear-groups"]  # fmt: skip
        (self._folder / "password").write_text(PASSWORD)
        (self._folder / "password").chmod(0o644)
        self._run(
            "initdb", "-D", str(self._data), "-U", "mlflow", "--auth=scram-sha-256",
            f"--pwfile={self._folder / 'password'}", "--no-sync",
        )  # fmt: skip
        self._run(
            "pg_ctl", "-D", str(self._data), "-w", "-l", str(self._data / "log"), "-o",
            f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -c fsync=off "
            "-c max_connections=200",
            "start",
        )  # fmt: skip
        self.uri = f"postgresql+psycopg://mlflow:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{program}.log").open("wb") as log:  # a pipe would stay open
            done = subprocess.run(
                [*self._as, str(POSTGRES_BINARIES / program), *arguments],  # type: ignore[operator]
                cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, timeout=120,
            )  # fmt: skip
        output = (self._folder / f"{program}.log").read_text()
        assert done.returncode == 0, (program, output)

    def stop(self) -> None:
        """Stop it, and remove its data."""
        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + 20
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(self._folder, ignore_errors=True)


class S3:
    """moto's S3 server, with one bucket."""

    bucket = "models"
    environment: ClassVar[dict[str, str]] = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEKEYOFTESTS",
        "AWS_SECRET_ACCESS_KEY": "aws-secret-key-91bc",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        boto3.client(
            "s3", endpoint_url=self.endpoint,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        ).create_bucket(Bucket=self.bucket)  # fmt: skip

    def stop(self) -> None:
        self._server.stop()
