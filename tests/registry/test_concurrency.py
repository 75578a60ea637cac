"""Many who publish at once leave one version for each run."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.core import checkpoint
from precalib_ray.core.models.mlp import MLP
from precalib_ray.registry import tracking
from tests.registry.servers import MLflowServer

pytestmark = pytest.mark.server

SETTINGS = MLP(num_classes=3, input_shape=(4,), width=4, depth=1)
NUM_RUNS, EACH, NUM_PROCESSES = 25, 2, 4
PUBLISHERS = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from precalib_ray.registry import publishing, tracking

uri, name, folder, *runs = sys.argv[1:]
start = threading.Barrier(len(runs))

def publish(run_id):
    run = tracking.Run(uri=uri, experiment="many", name="r", tags={}, run_id=run_id)
    start.wait(300)
    found = publishing.publish(run, Path(folder), name=name, tags={})
    return run_id, found

with ThreadPoolExecutor(len(runs)) as pool:
    print(json.dumps(list(pool.map(publish, runs))))
"""


def test_fifty_publishers_leave_one_version_per_run(
    postgres_server: MLflowServer, tmp_path: Path
) -> None:
    """Each run has two publishers, in different processes: 50 in all."""
    uri, name = postgres_server.uri, f"many-{uuid.uuid4().hex[:6]}"
    directory = checkpoint.save(
        tmp_path / "checkpoint", model=SETTINGS.build(), settings=SETTINGS, metrics={}
    )
    runs = [
        tracking.Run(uri=uri, experiment="many", name="r", tags={}).run_id for _ in range(NUM_RUNS)
    ]
    publishers = runs * EACH
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHERS, uri, name, str(directory),
             *publishers[first::NUM_PROCESSES]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for first in range(NUM_PROCESSES)
    ]  # fmt: skip
    reported: list[tuple[str, str]] = []
    for process in processes:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err[-3000:]
        reported += [tuple(pair) for pair in json.loads(out.splitlines()[-1])]

    client = MlflowClient(tracking_uri=uri)
    versions = client.search_model_versions(f"name='{name}'")
    assert Counter(v.run_id for v in versions) == Counter(runs)  # none lost, none twice
    by_run = {v.run_id: str(v.version) for v in versions}
    assert len(reported) == NUM_RUNS * EACH
    assert all(by_run[run_id] == version for run_id, version in reported)
    # What the others logged is gone, what versions are made from is not.
    experiment = client.get_experiment_by_name("many")
    assert experiment is not None
    kept = client.search_logged_models([experiment.experiment_id], max_results=100)
    assert {m.model_id for m in kept} == {v.tags["precalib.logged_model"] for v in versions}
    newest = max(int(v.version) for v in versions)
    assert client.get_registered_model(name).aliases["candidate"] == str(newest)
