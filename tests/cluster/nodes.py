"""A Ray of several nodes on this machine, and a process that gives it jobs."""

from __future__ import annotations

import concurrent.futures
import datetime
import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.jobs import pretrain as service
from precalib_ray.jobs.pretrain import Pretrained
from precalib_ray.runs.console import console

Node = Any


class Nodes:
    """Head without CPUs, where drivers run; nodes of one CPU each are added and killed."""

    def __init__(self, *, ip: str | None = None) -> None:
        """``ip`` is that of the head, where other hosts are to reach it."""
        address = {"node_ip_address": ip} if ip else {}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **address})
        self._address = address
        self.here: list[Node] = []
        self._driver = self._new_driver()
        self._running: concurrent.futures.Future[Any] | None = None

    def _new_driver(self) -> concurrent.futures.ProcessPoolExecutor:
        return concurrent.futures.ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self.cluster.address,),
        )

    def _end_driver(self) -> None:
        """End the process that submits, and what a test that has failed left running in it."""
        for process in list((self._driver._processes or {}).values()):
            if self._running is not None and not self._running.done():
                process.kill()
        self._driver.shutdown(cancel_futures=True)

    def scale_to(self, number: int) -> None:
        """Add nodes, or kill some."""
        while len(self.here) < number:
            self.here.append(self.cluster.add_node(num_cpus=1, wait=True, **self._address))
        while len(self.here) > number:
            self.kill(self.here[-1])

    def kill(self, node: Node) -> None:
        """SIGKILL a node's processes."""
        self.here.remove(node)
        processes = self.processes(node)
        self.cluster.remove_node(node, allow_graceful=False)
        for process in processes:  # as where the machine itself is gone
            if process.is_running():
                process.kill()

    def processes(self, node: Node, name: str = "") -> list[psutil.Process]:
        """What a node's raylet has started, such as ``RayTrainWorker``."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        children = raylet.children(recursive=True)
        return [p for p in children if name in " ".join(_command(p))]

    def workers(self) -> list[psutil.Process]:
        """Training workers of all nodes."""
        return [p for node in self.here for p in self.processes(node, "RayTrainWorker")]

    def submit(self, content: dict[str, Any]) -> concurrent.futures.Future[tuple[Pretrained, str]]:
        """Run a pretraining; what it returned and what it said."""
        if self._running is not None and not self._running.done():
            self._end_driver()
            self._driver = self._new_driver()
        self._since = datetime.datetime.now(datetime.UTC)
        self._running = self._driver.submit(_run, content)
        return self._running

    def alive(self) -> int:
        """Nodes that the head knows of, itself included."""
        known = GcsClient(address=self.cluster.address).get_all_node_info()
        return sum(node.state == 0 for node in known.values())

    def said_by_workers(self) -> str:
        """What workers have logged since the last submission."""
        logs = Path(self.cluster.head_node.get_session_dir_path()) / "logs"
        lines = [
            line for file in logs.glob("worker-*.err") for line in file.open() if line[0] == "{"
        ]
        since = self._since.isoformat()
        return "".join(line for line in lines if json.loads(line)["time"] >= since)

    def begun(self) -> list[dict[str, Any]]:
        """What each rank said when it began, since the last submission; in order of time."""
        records = [json.loads(line) for line in self.said_by_workers().splitlines()]
        begun = [record for record in records if record["message"] == "training begins"]
        return sorted(begun, key=lambda record: record["time"])

    def kill_all(self) -> None:
        """SIGKILL all nodes, the head included."""
        self.scale_to(0)
        self.here.append(self.cluster.head_node)
        self.kill(self.cluster.head_node)
        self._end_driver()

    def close(self) -> None:
        """End everything."""
        self._end_driver()
        self.cluster.shutdown()


def _begin(address: str) -> None:
    os.environ["RAY_ADDRESS"] = address


def _run(content: dict[str, Any]) -> tuple[Pretrained, str]:
    console.file = io.StringIO()
    done = service.pretrain(load.validate(PretrainConfig, content))
    return done, console.file.getvalue()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_for(found: Callable[[], Any], *, seconds: float = 240.0) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return result


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint of a run; 0 if there is none."""
    return max((int(p.name.split("-")[1]) for p in folder.glob("step-*")), default=0)
