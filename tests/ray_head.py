"""A real ``ray start --head`` on loopback, with a token, beside whatever Ray this machine runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.registry.servers import end, free_port

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """What a client must know."""

    address: str
    token: str

    @property
    def environment(self) -> dict[str, str]:
        """Of who submits, beside that of the machine."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


def machine() -> dict[str, str]:
    """The environment of this machine, without what would lead elsewhere."""
    ours = ("RAY_", "MLFLOW_", "COLUMNS", "PYTHONPATH")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return kept | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_worker_niceness": "0"}


@contextlib.contextmanager
def ray_head(cwd: Path, environment: Mapping[str, str], *, num_cpus: int) -> Iterator[Head]:
    """A head for a while; its drivers run in ``cwd``, with ``environment`` and the token.

    Its files are directly in the folder for temporary files: one of pytest's leaves too little of
    the 107 bytes that the path of a socket may have. The dashboard then fails to start, Ray waits
    for it for a minute, and its client server gives up meanwhile, "waiting for node info".
    """
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "head.log"
        process, head = _start(Path(folder), log, cwd, environment, num_cpus)
        try:
            assert answers(f"{head.address}/api/version", process), log.read_text()[-2000:]
            yield head
        finally:
            end(process)


def _start(
    folder: Path, log: Path, cwd: Path, environment: Mapping[str, str], num_cpus: int
) -> tuple[subprocess.Popen[bytes], Head]:
    port = free_port()
    head = Head(f"http://127.0.0.1:{port}", secrets.token_hex(16))
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={free_port()}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1",
        f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}",
        f"--ray-client-server-port={free_port()}", f"--num-cpus={num_cpus}",
        "--disable-usage-stats", "--temp-dir", str(folder),
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=machine() | dict(environment) | head.environment, cwd=cwd, stdout=file,
            stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return process, head


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a server that was started answers; False if it ends, or takes two minutes."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return True
        except urllib.error.HTTPError:
            return True  # it answers, and wants a token
        except OSError:
            time.sleep(0.2)
    return False
