"""One owner at a time: on a local disk, and on an object store that has no locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from precalib_ray.errors import ClusterError
from precalib_ray.runs import lease
from precalib_ray.runs.lease import Lease
from precalib_ray.storage.folder import Folder
from tests.registry.servers import S3

OWNER = """
import sys, time
from precalib_ray.runs.lease import Lease
from precalib_ray.storage.folder import Folder

with Lease(Folder.at(sys.argv[1]), name="run", notify=lambda text: None):
    print("owner", flush=True)
    time.sleep(60)
"""


def start_owner(uri: str) -> subprocess.Popen[str]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, uri], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "owner\n"
    return owner


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)
    monkeypatch.setattr(lease, "SETTLE_S", 0.5)
    monkeypatch.setattr(lease, "_POLL_S", 0.1)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = S3()
    kept = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    host = server.endpoint.removeprefix("http://")
    yield f"s3://{server.bucket}/runs?scheme=http&endpoint_override={host}"
    for name, value in kept.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    base: str = request.getfixturevalue("bucket")
    return base.replace("/runs?", f"/{tmp_path.name}?")


@pytest.mark.usefixtures("quick")
def test_many_at_once_are_owners_one_after_the_other(uri: str) -> None:
    inside: list[int] = []
    most: list[int] = []
    messages: list[str] = []

    def submit(number: int) -> None:
        with Lease(Folder.at(uri), name="run", notify=messages.append):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.3)
            inside.remove(number)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 5
    assert set(most) == {1}
    assert any(text.startswith("run is being run by process") for text in messages)
    assert Folder.at(uri).names("") == []  # nothing is left behind


def test_an_owner_that_was_killed_here_is_replaced_at_once(tmp_path: Path) -> None:
    owner = start_owner(str(tmp_path))
    messages: list[str] = []
    threading.Timer(1.5, owner.kill).start()
    started = time.monotonic()
    with Lease(Folder.at(str(tmp_path)), name="run", notify=messages.append):
        assert 1.4 < time.monotonic() - started < 10  # and not the 30 s of the expiry
    assert messages == [
        messages[0],
        "run: it has ended",
    ]
    assert f"run is being run by process {owner.pid} on" in messages[0]
    owner.wait()


@pytest.mark.usefixtures("quick")
def test_an_owner_on_another_machine_is_replaced_when_it_expires(uri: str) -> None:
    folder = Folder.at(uri)
    elsewhere = {"token": "t", "machine": "elsewhere", "pid": 1, "started": 0.0, "shown": "p"}
    folder.write("lease.json", json.dumps(elsewhere))
    started = time.monotonic()
    with Lease(folder, name="run", notify=lambda text: None):
        waited = time.monotonic() - started
    # An object store's times are of whole seconds.
    assert lease.EXPIRY_S - 1.0 < waited < lease.EXPIRY_S + 8
    folder.write("lease.json", json.dumps(elsewhere))
    time.sleep(lease.EXPIRY_S + 1.5)
    started = time.monotonic()
    with Lease(folder, name="run", notify=lambda text: None):
        assert time.monotonic() - started < 2  # it had been dead for longer than that


@pytest.mark.usefixtures("quick")
def test_a_clock_that_jumps_back_by_an_hour(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    elsewhere = {"token": "t", "machine": "elsewhere", "pid": 1, "started": 0.0, "shown": "p"}
    folder.write("lease.json", json.dumps(elsewhere))
    os.utime(tmp_path / "lease.json", (time.time() + 3600,) * 2)
    started = time.monotonic()
    with Lease(folder, name="run", notify=lambda text: None):
        waited = time.monotonic() - started
    assert lease.EXPIRY_S < waited < lease.EXPIRY_S + 4


def be_replaced(mine: Lease, folder: Folder) -> None:
    with mine:
        folder.write("lease.json", json.dumps({"token": "other"}))
        time.sleep(20)


@pytest.mark.usefixtures("quick")
def test_who_was_replaced_is_ended_and_records_nothing(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        mine = Lease(folder, name="run", notify=lambda text: None)
        with pytest.raises(ClusterError, match="another submission of run has taken over"):
            be_replaced(mine, folder)
        assert mine.lost
        assert json.loads(folder.read("lease.json") or "") == {"token": "other"}
        with pytest.raises(ClusterError):
            mine.require()
    finally:
        signal.signal(signal.SIGINT, kept)
