"""Connecting to Ray: what is wrong with the environment is told in a line, and within seconds."""

from __future__ import annotations

import concurrent.futures
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import ray

from precalib_ray.cluster import drain, session
from precalib_ray.errors import ClusterError
from tests.e2e.conftest import environment
from tests.registry.servers import free_port


def refused(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    """What is said of an address, whether or not other tests have a session open here."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    started = time.monotonic()
    with pytest.raises(ClusterError) as error, session.connect():
        pass
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)
    return str(error.value)


def not_started(*environments: dict[str, str]) -> list[str]:
    """What is said where Ray cannot start, by a process that has no session."""
    code = (
        "import json, os, sys\n"
        "import ray\n"
        "from precalib_ray.cluster import session\n"
        "from precalib_ray.errors import ClusterError\n"
        "before = dict(os.environ)\n"
        "for environment in json.loads(sys.argv[1]):\n"
        "    os.environ.update(environment)\n"
        "    try:\n"
        "        with session.connect():\n"
        "            print('it has started')\n"
        "    except ClusterError as error:\n"
        "        print(error)\n"
        "    assert not ray.is_initialized()\n"
        "    os.environ.clear()\n"
        "    os.environ.update(before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(environments)],
        env=environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "address",
    ["foo", "http://127.0.0.1:8265", "ray://127.0.0.1:10001", "127.0.0.1:99999", "127.0.0.1:port",
     "127.0.0.1:", ":6379", "127.0.0.1:0", " ", "127.0.0.1:6379/", "[::1:6379",
     "AUTO"],
)  # fmt: skip
def test_an_address_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, address)
    assert message.startswith(f"RAY_ADDRESS: {address!r}: must be HOST:PORT of the cluster's head")
    assert ("for ray job submit" in message) == address.startswith("http://")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "nosuchhost.invalid"])
def test_a_head_that_is_not_there(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{host}:{free_port()}"
    assert refused(monkeypatch, address).startswith(f"no Ray cluster at {address}: ")


def test_a_server_that_takes_the_call_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        message = refused(monkeypatch, address)
    assert message == f"no Ray cluster at {address}: timed out"


@pytest.fixture
def web_server() -> Iterator[str]:
    """As the port of a dashboard, or of MLflow."""
    handler = http.server.BaseHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_port_of_another_server(web_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, web_server)
    assert message == f"no Ray cluster at {web_server}: it is not Ray that answers"


def test_a_grpc_server_is_let_through() -> None:
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    session.require_answer(f"127.0.0.1:{port}")
    server.stop(None)


@pytest.mark.ray
def test_an_environment_that_ray_cannot_start_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folders = [str(tmp_path / place) for place in ("file", "file/deeper", "x" * 90, "x" * 300)]
    hook = {"RAY_ADDRESS": "local", "RAY_RUNTIME_ENV_HOOK": "nosuchmodule.hook"}
    *told, last = not_started(*({"RAY_TMPDIR": folder} for folder in folders), hook)
    for line, folder in zip(told, folders, strict=True):
        assert line.startswith(f"Ray cannot start here (RAY_TMPDIR={folder}): ")
    assert last == "Ray cannot start here: No module named 'nosuchmodule'"


def test_a_session_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for error in (
        ray.exceptions.ObjectStoreFullError("/dev/shm\nis full"),
        ray.exceptions.OutOfDiskError("no space"),
        ray.exceptions.RaySystemError("the GCS is gone"),
    ):
        told = pytest.raises(ClusterError, match=r"^Ray has failed: .*(full|space|gone)")
        with told, session.connect():
            raise error
    defect = ray.exceptions.RayTaskError("f", "a traceback", ValueError("ours"))
    for error in (defect, ValueError("ours")):
        with pytest.raises(type(error)), session.connect():
            raise error


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:8265"])
def test_draining_a_node_of_no_cluster(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: '.*': must be HOST:PORT"):
        drain.main(0)
