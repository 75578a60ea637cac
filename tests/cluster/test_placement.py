"""Where workers are, and what is refused: on several raylets, by drivers of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.util import get_node_ip_address

from precalib_ray.cluster.placement import Request, _too_small
from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from tests.e2e.conftest import REPOSITORY, Finished, environment

RAY = Path(sys.executable).parent / "ray"


def node(cpus: float, gpus: float = 0, *, kind: str = "", **labels: str) -> dict[str, Any]:
    """A node, as ``ray.nodes()`` has it."""
    resources = {"CPU": float(cpus), "GPU": float(gpus), "memory": 1e9}
    if kind:
        resources[f"accelerator_type:{kind}"] = 1.0
    return {"Alive": True, "Resources": resources, "Labels": labels}


MIXED = [
    node(0),
    node(4, zone="a"),
    node(3, zone="b"),
    node(8, 2, kind="T4", zone="a"),
    node(8, 4, kind="H100", zone="b"),
    {**node(64, 8, kind="H100", zone="b"), "Alive": False},
]


@pytest.mark.parametrize(
    ("request_", "capacity"),
    [
        (Request(1, 1), 23),
        (Request(1, 2), 2 + 1 + 4 + 4),
        (Request(1, 0.1), 230),  # in floats, 3 // 0.1 is 29
        (Request(1, 2, placement="SPREAD"), 11),
        (Request(1, 2, placement="STRICT_PACK"), 4),
        (Request(1, 2, placement="STRICT_SPREAD"), 4),
        (Request(1, 9), 0),
        (Request(1, 9, placement="STRICT_PACK"), 0),
        (Request(1, 1, 1), 6),
        (Request(1, 4, 1), 4),
        (Request(1, 1, 0.5), 12),
        (Request(1, 1, 1, accelerator_type="H100"), 4),
        (Request(1, 1, 1, accelerator_type="A100"), 0),
        (Request(1, 1, labels={"zone": "a"}), 12),
        (Request(1, 1, labels={"zone": "!a"}), 11),
        (Request(1, 1, labels={"zone": "in(c, a)"}), 12),
        (Request(1, 1, labels={"zone": "!in(c, a)"}), 11),
        (Request(1, 1, 1, "STRICT_SPREAD", labels={"zone": "b"}), 1),
    ],
    ids=str,
)
def test_room_is_counted_by_node(request_: Request, capacity: int) -> None:
    assert request_.capacity(MIXED) == capacity


def test_a_refusal_names_the_request_and_the_resources() -> None:
    asked = Request(5, 6, 1, accelerator_type="H100", labels={"zone": "b"})
    nodes = [node(8, 4, kind="H100", zone="b"), node(8, 4, kind="H100", zone="b"), node(2)]
    assert _too_small(asked, nodes) == (
        "the cluster can never run this job: 5 x 6 CPU and 1 GPU (H100) on nodes with "
        "zone=b, placement PACK; it has capacity for 2 on\n"
        "  2 nodes of 8 CPU, 4 GPU (H100), zone=b\n"
        "  1 node of 2 CPU, 0 GPU, none of the labels"
    )

    assert str(Request((5, 8), 1)) == "5 to 8 x 1 CPU, placement PACK"


@dataclass(frozen=True)
class Nodes:
    """A cluster of raylets on this host: two CPUs in each of the zones a and b, and one in the
    zone blind, where the folder ``storage`` is another one.
    """

    settings: dict[str, str]
    """Of a driver's environment."""
    storage: Path
    zones: Path
    start: Callable[..., None]

    def run(self, *words: str) -> Finished:
        """Run Python in a process that knows the cluster as a user's does."""
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, *words], cwd=self.zones, check=False, capture_output=True, text=True,
            env=environment() | self.settings | {"COLUMNS": "500"}, timeout=90,
        )  # fmt: skip
        return Finished(done.returncode, done.stdout, done.stderr, time.monotonic() - started)

    def pretrain(self, name: str, **scaling: Any) -> Finished:
        """Run a short job."""
        content = {
            "name": name,
            "storage": str(self.storage),
            "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "width": 8},
            "noise": {
                "kind": "function",
                "name": "tests.cluster.user_functions:noise_that_tells_where",
            },
            "duration": {"steps": 3},
            "scaling": scaling,
            "tracking": {"offline": True},
        }
        file = self.storage / f"{name}.yaml"
        file.write_text(load.to_yaml(load.validate(PretrainConfig, content)))
        return self.run(str(REPOSITORY / "jobs" / "pretrain.py"), str(file))

    def workers(self) -> list[str]:
        """Zones of the workers since the last time this was asked."""
        files = sorted(self.zones.glob("*-*"))
        for file in files:
            file.unlink()
        return [file.name.partition("-")[0] for file in files]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Apart from every other Ray of this host: ``ray.cluster_utils`` would tell them of it."""
    folder = tmp_path_factory.mktemp("nodes")
    storage, zones = folder / "storage", folder / "zones"
    storage.mkdir()
    zones.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"{get_node_ip_address()}:{port}"
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    temporary = f"/tmp/ray-{port}"  # short: it holds sockets
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, before: tuple[str, ...] = (), ip: str = "") -> None:
        command = [
            *before, str(RAY), "start", "--block", "--disable-usage-stats",
            "--object-store-memory=80000000", *words, *([f"--node-ip-address={ip}"] if ip else []),
        ]  # fmt: skip
        with (folder / "ray.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env=environment() | secret | {"PRECALIB_TEST_ZONES": str(zones)},
                )
            )  # fmt: skip

    def join(zone: str, cpus: int, **how: Any) -> None:
        words = [f"--labels=zone={zone}", f"--num-cpus={cpus}"]
        start(f"--address={address}", *words, **how)

    def wait_until_started() -> None:
        deadline = time.monotonic() + 60
        while (folder / "ray.log").read_text().count("Ray runtime started") < len(started):
            assert time.monotonic() < deadline, (folder / "ray.log").read_text()
            time.sleep(0.2)

    try:
        start("--head", f"--port={port}", f"--temp-dir={temporary}", "--num-cpus=0",
              "--include-dashboard=false", "--labels=zone=head")  # fmt: skip
        wait_until_started()
        for zone in ("a", "b"):
            join(zone, 2)
            wait_until_started()  # at the same time they may take each other's sockets
        mount = 'mount -t tmpfs none "$0" && exec "$@"'
        join("blind", 1, before=("unshare", "-m", "sh", "-c", mount, str(storage)), ip="127.0.0.2")
        cluster = Nodes(secret | {"RAY_ADDRESS": address}, storage, zones, join)
        wait = (
            "import ray, time; ray.init()\n"
            "while sum(n['Alive'] for n in ray.nodes()) < 4: time.sleep(0.3)"
        )
        done = cluster.run("-c", wait)
        assert done.code == 0, done.err
        yield cluster
    finally:
        for process in reversed(started):
            process.terminate()  # it ends what it has started
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


ELSEWHERE = {"zone": "!blind"}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("scaling", "zones"),
    [
        ({"placement": "PACK", "labels": ELSEWHERE}, [["a", "a"], ["b", "b"]]),
        ({"placement": "SPREAD", "labels": ELSEWHERE}, [["a", "b"]]),
        ({"placement": "SPREAD", "labels": {"zone": "b"}}, [["b", "b"]]),
    ],
    ids=["pack", "spread", "labels"],
)
def test_workers_are_where_they_are_asked_for(
    nodes: Nodes, scaling: dict[str, Any], zones: list[list[str]], request: pytest.FixtureRequest
) -> None:
    done = nodes.pretrain(request.node.callspec.id, num_workers=2, **scaling)
    assert done.code == 0, done.out + done.err
    assert nodes.workers() in zones


@pytest.mark.ray
def test_what_can_never_fit_is_refused_within_a_minute(nodes: Nodes) -> None:
    done = nodes.pretrain("never", num_workers=3, placement="STRICT_SPREAD", labels=ELSEWHERE)
    assert done.code == 6, done.out + done.err
    assert done.seconds < 60
    assert (
        "3 x 1 CPU on nodes with zone=!blind, placement STRICT_SPREAD; it has capacity for 2 on"
        in (done.err)
    )
    assert "1 node of 2 CPU, 0 GPU, zone=a" in done.err
    assert done.out.count("waiting up to 20 s for nodes") == 1
    assert "Traceback" not in done.err


@pytest.mark.ray
def test_a_node_that_is_just_starting_is_waited_for(nodes: Nodes) -> None:
    code = (
        "import ray\n"
        "from precalib_ray.cluster import placement, ray_private\n"
        "ray.init(logging_level='ERROR')\n"
        "assert not ray_private.is_autoscaled()\n"
        "request = placement.Request(1, 1, labels={'zone': 'late'})\n"
        "placement.require(request, local=False, notify=print)\n"
    )
    nodes.start("late", 1)
    done = nodes.run("-c", code)
    assert done.code == 0, done.err


@pytest.mark.ray
def test_storage_that_a_node_does_not_see_is_refused(nodes: Nodes) -> None:
    done = nodes.pretrain("blind")
    assert done.code == 2, done.out + done.err
    assert f"storage: '{nodes.storage}': is not seen by 1 of " in done.err
    assert "nodes: 127.0.0.2 (" in done.err
    assert "s3://BUCKET/runs" in done.err
    assert not list((nodes.storage / "blind").glob(".seen-*"))
