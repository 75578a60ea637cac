"""What publishing costs beside the bytes that it moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest

from precalib_ray.core import checkpoint
from precalib_ray.core.models.torchvision import Torchvision
from precalib_ray.registry import publishing, tracking
from tests.registry.servers import MLflowServer

pytestmark = pytest.mark.server

SETTINGS = Torchvision(name="resnet18", num_classes=10, input_shape=(3, 32, 32))
REPEATS = 3


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@pytest.mark.xfail(
    reason="2.7 s against 1.65 s on two cores, over loopback: export 0.85, the bytes 0.5, but also "
    "MLflow's check that the export loads, 0.6, thirty requests, 0.4, and reading the checkpoint, "
    "0.3. The check is worth its time; the rest is lost in any real network."
)
def test_publishing_costs_little_more_than_its_bytes(tmp_path: Path) -> None:
    """At most 1.5 times what MLflow needs for the same files, and the export; the least of three,
    interleaved.
    """
    server = MLflowServer(tmp_path / "server")
    try:
        directory = checkpoint.save(
            tmp_path / "checkpoint",
            model=SETTINGS.build(seed=0),
            settings=SETTINGS,
            metrics={},
        )
        assert (directory / checkpoint.MODEL_FILE).stat().st_size > 44e6
        model = checkpoint.load_model(directory).eval()
        found: dict[str, list[float]] = {"export": [], "bytes": [], "publish": []}
        for i in range(REPEATS):
            run = tracking.Run(uri=server.uri, experiment="e", name=f"r{i}", tags={})
            exported = tmp_path / f"exported-{i}"

            def export(path: Path = exported) -> None:
                with publishing._quiet():
                    mlflow.pytorch.save_model(
                        model,
                        str(path),
                        input_example=np.zeros((2, 3, 32, 32), dtype=np.float32),
                        extra_files=[str(directory / name) for name in publishing._FILES],
                        pip_requirements=["torch"],
                        serialization_format="pt2",
                    )

            def send(path: Path = exported, run: tracking.Run = run) -> None:
                run.client.log_artifacts(run.run_id, str(path), "same")

            def publish(run: tracking.Run = run) -> None:
                publishing.publish(run, directory, name="m", tags={})

            for name, action in (("export", export), ("bytes", send), ("publish", publish)):
                found[name].append(seconds(action))
        least = {name: min(values) for name, values in found.items()}
        print(least)
        assert least["publish"] <= 1.5 * least["bytes"] + least["export"], found
    finally:
        server.stop()
