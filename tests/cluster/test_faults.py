"""What breaks on a cluster, and how a run ends all the same: the fault table of the README."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from precalib_ray.errors import CheckpointError, InterruptedRunError
from precalib_ray.jobs.pretrain import Pretrained
from tests.cluster.jobs import MODEL, NAME, Weights, assert_bit_equal, in_process, weights
from tests.cluster.nodes import Nodes, newest_step, wait_for
from tests.e2e.conftest import REPOSITORY, environment
from tests.ray_head import BIN

pytestmark = pytest.mark.faults
NUM_STEPS = 1200
SLOW = {"kind": "function", "name": "tests.cluster.user_functions:slow_noise"}
"""So that a run of two workers takes eight seconds at least."""
EVERY = 100
CANNOT_BE_WRITTEN = r"cannot be written: .*last good checkpoint: /"


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two workers, and a checkpoint every 100 steps."""
    scaling = {"num_workers": 2, "cpus_per_worker": 1, "max_failures": 5}
    return {
        "name": "run",
        "storage": str(folder),
        "model": MODEL,
        "noise": SLOW,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "lr": 0.003},
        "duration": {"steps": NUM_STEPS},
        "probes": {"every": 100, "size": 32, "stop_size": 16},
        "checkpoints": {"every_steps": EVERY},
        "scaling": scaling | changes.pop("scaling", {}),
        "tracking": {"offline": True},
    } | changes


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    nodes.scale_to(2)
    done, _ = nodes.submit(recipe(tmp_path_factory.mktemp("undisturbed"))).result(300)
    return final(done)


def final(done: Pretrained) -> Weights:
    """Weights of a run that has done all of its steps."""
    assert done.outcome.progress.step == NUM_STEPS
    return weights(done)


def assert_same_batches(one: Weights, other: Weights) -> None:
    """Another number of workers sums the same gradients in another order. At this learning rate,
    weights that differ by 1e-7 are 4e-4 apart after 15,000 steps, those of other batches 1e-1.
    """
    for name, values in one.items():
        assert (values - other[name]).norm() / values.norm().clamp_min(1e-12) <= 5e-3, name


def wait_for_progress(folder: Path, running: Future[Any], phase: str) -> int:
    """Wait for a checkpoint that is newer than those there are; its step."""
    before = newest_step(folder)
    wait_for(lambda: newest_step(folder) > before or running.done())
    step = newest_step(folder)
    assert step > before, f"{phase}: no checkpoint after that of step {before}"
    return step


def test_workers_the_controller_and_a_node_killed_in_one_run(
    nodes: Nodes, undisturbed: Weights, tmp_path: Path
) -> None:
    """Each once the run has gone on after the fault before. The node is replaced."""
    nodes.scale_to(2)
    folder = tmp_path / "run"
    running = nodes.submit(recipe(tmp_path))
    wait_for_progress(folder, running, "before any fault")
    (controller,) = nodes.processes(nodes.cluster.head_node, "TrainController")
    controller.kill()
    for number in (1, 2, 3):
        wait_for_progress(folder, running, f"before worker {number} of 3 is killed")
        random.choice(wait_for(nodes.workers)).kill()
    wait_for_progress(folder, running, "before a node is killed")
    assert wait_for(nodes.workers)
    nodes.scale_to(1)
    nodes.scale_to(2)
    wait_for_progress(folder, running, "after a node was killed and replaced")
    done, said = running.result(300)
    assert said.count("Ray's controller of the run was lost; starting another") == 1
    begun = [record["step"] for record in nodes.begun()]
    assert len(begun) >= 2 * (1 + 1 + 3 + 1), begun  # of two ranks: the first time, and by fault
    assert len(set(begun)) >= 6, begun
    assert_bit_equal(undisturbed, final(done))


ELASTIC = {"num_workers": [1, 2]}
HERE, THERE = "198.18.77.1", "198.18.77.2"
"""Of a network between two ends of a cable (RFC 2544)."""


def test_a_node_killed_without_replacement_and_later_another_one_added(
    nodes: Nodes, tmp_path: Path
) -> None:
    """Both nodes are taken at once: the controller killed before must hold neither."""
    nodes.scale_to(2)
    folder = tmp_path / "run"
    content = recipe(tmp_path, scaling=ELASTIC, duration={"steps": 4000})
    running = nodes.submit(content)
    wait_for_progress(folder, running, "two nodes")
    assert len(wait_for(nodes.workers)) == 2
    assert {record["world_size"] for record in nodes.begun()} == {2}

    nodes.scale_to(1)
    wait_for(lambda: nodes.begun()[-1]["world_size"] == 1 or running.done())
    wait_for_progress(folder, running, "a node was killed without replacement")
    assert len(nodes.workers()) == 1

    nodes.scale_to(2)
    done, _ = running.result(300)
    assert done.outcome.progress.step == 4000
    assert done.outcome.hardware.num_workers == 2
    last = nodes.begun()[-1]
    assert last["world_size"] == 2
    assert last["step"] > 0
    assert_same_batches(in_process(content), weights(done))


@pytest.mark.alone
def test_a_worker_whose_core_is_stolen(nodes: Nodes, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    nodes.scale_to(2)
    noise, many = {"kind": "pink"}, 8192  # to draw them is a large part of a step
    running = nodes.submit(recipe(tmp_path, noise=noise, duration={"seconds": 20}, batch_size=many))
    wait_for(lambda: "training begins" in nodes.said_by_workers())
    slow, other = nodes.workers()
    for worker, core in ((slow, cores[0]), (other, cores[1])):
        for thread in worker.threads():
            os.sched_setaffinity(thread.id, {core})
    # One alone takes half of the core at most: 1.4 times the work, which is no straggler. Each has
    # a session of its own, since Linux shares a core among sessions (autogroups) first.
    spin = ["taskset", "-c", str(cores[0]), sys.executable, "-c", "while 1: 0"]
    thieves = [subprocess.Popen(spin, start_new_session=True) for _ in range(12)]
    try:
        done, said = running.result(300)
    finally:
        for thief in thieves:
            thief.kill()
            thief.wait()
    assert done.outcome.progress.stop_reason == "seconds"
    (named,) = set(re.findall(r"straggler: rank \d \((.*?)\) takes", said))
    assert f"process {slow.pid} on" in named


class Job:
    """A submission as a process of its own."""

    def __init__(self, content: dict[str, Any], folder: Path, *, address: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "job.yaml").write_text(yaml.safe_dump(content))
        self._log = folder / f"log-{time.monotonic_ns()}"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "jobs/pretrain.py", str(folder / "job.yaml")],
                cwd=REPOSITORY,  # where workers find the tests' functions
                env=environment() | {"RAY_ADDRESS": address}, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        return self.process.wait(300)


def test_sigterm_then_the_driver_killed_then_the_head_then_resubmitted(
    nodes: Nodes, undisturbed: Weights, tmp_path: Path
) -> None:
    """One run, in four submissions; the last one finishes it."""
    nodes.scale_to(2)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    content = recipe(tmp_path / "runs", tracking={"uri": store})
    folder = tmp_path / "runs" / "run"

    job = Job(content, tmp_path, address=nodes.cluster.address)
    wait_for(lambda: "training begins" in job.said)
    job.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert job.end() == InterruptedRunError.exit_code, job.said
    assert "the same command resumes from the last checkpoint" in job.said
    assert time.monotonic() - started < 30
    step = newest_step(folder)
    assert 0 < step < NUM_STEPS
    assert step % EVERY, "the checkpoint is that of the signal, and no other"

    def until_checkpoint(address: str) -> Job:
        before = newest_step(folder)
        job = Job(content, tmp_path, address=address)
        wait_for(lambda: newest_step(folder) > before or job.process.poll() is not None)
        assert newest_step(folder) > before, job.said
        return job

    job = until_checkpoint(nodes.cluster.address)
    job.process.kill()
    job.end()
    other = Nodes()
    try:
        other.scale_to(2)
        job = until_checkpoint(other.cluster.address)
    finally:
        other.kill_all()
    job.process.kill()  # its pod is the head's
    job.end()
    assert newest_step(folder) < NUM_STEPS
    done, _ = nodes.submit(content).result(300)
    assert_bit_equal(undisturbed, final(done))
    client = MlflowClient(tracking_uri=store)
    (version,) = client.search_model_versions(f"name='{NAME}'")
    assert done.model_uri == f"models:/{version.name}/{version.version}"
    (run,) = client.search_runs([client.get_run(version.run_id).info.experiment_id])
    assert run.info.status == "FINISHED"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    def remount(mode: str) -> int:
        return subprocess.run(
            ["mount", "-o", f"remount,{mode}", disk], capture_output=True, check=False
        ).returncode

    wait_for(lambda: remount("ro") == 0)  # refused while a file is being written
    yield
    assert remount("rw") == 0


def test_storage_that_cannot_be_written(
    nodes: Nodes, undisturbed: Weights, small_disk: Path
) -> None:
    """A full disk ends the run, a read-only one its resubmission; the third goes on without
    storage, as it is told to, until there is some again.
    """
    nodes.scale_to(2)
    folder = small_disk / "run"
    content = recipe(small_disk)
    for fault in (full, read_only):
        running = nodes.submit(content)
        wait_for_progress(folder, running, f"before the disk is {fault.__name__}")
        with fault(small_disk):
            with pytest.raises(CheckpointError, match=CANNOT_BE_WRITTEN):
                running.result(300)
            step = newest_step(folder)
            for name in ("model.safetensors", "trainer_state.pt"):
                assert (folder / f"step-{step:08d}" / name).exists(), fault.__name__

    running = nodes.submit(content | {"on_save_error": "continue"})
    step = wait_for_progress(folder, running, "where the run goes on without storage")
    with full(small_disk):
        wait_for(lambda: "cannot be written" in nodes.said_by_workers() or running.done())
        assert "cannot be written" in nodes.said_by_workers()
    done, _ = running.result(300)
    assert newest_step(folder) > step
    assert_bit_equal(undisturbed, final(done))


class Island:
    """A host of its own, at the far end of a cable, and a cluster that it may join."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self._environment = {
            "RAY_ADDRESS": nodes.cluster.address,
            "GLOO_SOCKET_IFNAME": "precalib1",  # both ends have the same host name
        }

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Run a command there."""
        return subprocess.Popen(
            ["ip", "netns", "exec", "precalib", *command],
            cwd=REPOSITORY, env=os.environ | self._environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Until the end, the host is a node of the cluster."""
        node = self.start(
            str(BIN / "ray"), "start", "--block", f"--address={self.nodes.cluster.address}",
            f"--node-ip-address={THERE}", "--num-cpus=1",
        )  # fmt: skip
        try:
            wait_for(lambda: self.nodes.alive() == 3)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    commands = [
        "ip netns add precalib", "ip link add precalib0 type veth peer name precalib1",
        "ip link set precalib1 netns precalib", f"ip addr add {HERE}/30 dev precalib0",
        "ip link set precalib0 up", f"ip netns exec precalib ip addr add {THERE}/30 dev precalib1",
        "ip netns exec precalib ip link set precalib1 up",
        "ip netns exec precalib ip link set lo up",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["ip", "netns", "del", "precalib"], capture_output=True)
        for command in commands:
            made = subprocess.run(command.split(), capture_output=True, check=False)
            if made.returncode:
                pytest.skip(f"needs the right to make network namespaces: {made.stderr.decode()}")
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("GLOO_SOCKET_IFNAME", "precalib0")
        nodes = stack.enter_context(contextlib.closing(Nodes(ip=HERE)))
        nodes.scale_to(1)
        yield Island(nodes)


def test_a_node_that_will_be_taken_away(island: Island, tmp_path: Path) -> None:
    """Its notice leads to the only checkpoint that this run writes on the way."""
    content = recipe(
        tmp_path,
        scaling=ELASTIC,
        checkpoints={"every_steps": 1_000_000},
        duration={"steps": 3000},
    )
    with island.joined():
        running = island.nodes.submit(content)
        wait_for(lambda: island.nodes.said_by_workers().count('"world_size": 2') == 2)
        leaving = island.start(sys.executable, "-m", "precalib_ray.cluster.drain", "10")
        step = wait_for(lambda: newest_step(tmp_path / "run"), seconds=10)
        assert leaving.wait(15) == 0
    done, said = running.result(300)
    assert "is being preempted: writing a checkpoint" in said
    assert 0 < step < 3000
    assert done.outcome.hardware.num_workers == 1
    assert_same_batches(in_process(content), weights(done))


def test_a_node_cut_off_for_30_seconds(island: Island, tmp_path: Path) -> None:
    content = recipe(tmp_path, scaling=ELASTIC, duration={"steps": 2000})
    with island.joined():
        running = island.nodes.submit(content)
        wait_for(lambda: island.nodes.said_by_workers().count('"world_size": 2') == 2)
        wait_for(lambda: newest_step(tmp_path / "run"))
        subprocess.run(["ip", "link", "set", "precalib0", "down"], check=True)
        time.sleep(30)
        assert not running.done()
        subprocess.run(["ip", "link", "set", "precalib0", "up"], check=True)
        done, _ = running.result(400)
    assert done.outcome.progress.step == 2000
    assert_same_batches(in_process(content), weights(done))
