"""What breaks on a cluster, and how a run ends all the same: the fault table of the README."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from precalib_ray.service.pretrain import Pretrained
from tests.cluster.nodes import Nodes, newest_step, wait_for

pytestmark = pytest.mark.slow
NUM_STEPS = 1500


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two workers, and a checkpoint every 100 steps."""
    scaling = {"num_workers": 2, "cpus_per_worker": 1, "max_failures": 5}
    return {
        "name": "run",
        "storage": str(folder),
        "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "width": 64},
        "noise": {"kind": "gaussian"},
        "batch_size": 64,
        "duration": {"steps": NUM_STEPS},
        "probes": {"every": 100, "size": 32, "stop_size": 16},
        "checkpoints": {"every_steps": 100},
        "scaling": scaling | changes.pop("scaling", {}),
        "tracking": {"offline": True},
    } | changes


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    nodes.scale_to(2)
    done, _ = nodes.submit(recipe(tmp_path_factory.mktemp("undisturbed"))).result(300)
    return weights(done)


def weights(done: Pretrained) -> dict[str, torch.Tensor]:
    assert done.outcome["progress"]["step"] == NUM_STEPS
    return load_file(done.checkpoint / "model.safetensors")


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def assert_same_batches(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Ended within rounding: another number of workers sums the same gradients differently."""
    for name, values in one.items():
        assert (values - other[name]).norm() / values.norm().clamp_min(1e-12) <= 1e-3, name


def test_a_worker_killed_three_times(
    nodes: Nodes, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    nodes.scale_to(2)
    running = nodes.submit(recipe(tmp_path))
    for _ in range(3):
        before = newest_step(tmp_path / "run")
        wait_for(lambda before=before: newest_step(tmp_path / "run") > before and nodes.workers())
        random.choice(nodes.workers()).kill()
    done, _ = running.result(300)
    assert_bit_equal(undisturbed, weights(done))


def test_a_node_killed_and_replaced(
    nodes: Nodes, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    nodes.scale_to(2)
    running = nodes.submit(recipe(tmp_path))
    wait_for(lambda: newest_step(tmp_path / "run") and nodes.workers())
    nodes.scale_to(1)
    nodes.scale_to(2)
    done, _ = running.result(300)
    assert_bit_equal(undisturbed, weights(done))


def test_the_controller_killed(
    nodes: Nodes, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    nodes.scale_to(2)
    running = nodes.submit(recipe(tmp_path))
    wait_for(lambda: newest_step(tmp_path / "run"))
    (controller,) = nodes.processes(nodes.cluster.head_node, "TrainController")
    controller.kill()
    done, said = running.result(300)
    assert "Ray's controller of the run was lost; going on with another" in said
    assert_bit_equal(undisturbed, weights(done))
