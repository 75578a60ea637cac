"""A search whose driver is killed, or interrupted by its user."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.conftest import REPOSITORY, Finished, environment

pytestmark = pytest.mark.slow

CONFIG = """
name: killed
num_trials: 16
references: [untrained]
recipe:
  model: {kind: mlp, num_classes: 10, input_shape: [1, 8, 8], depth: 3, width: 64, init: he}
  noise: {choice: [{kind: gaussian}, {kind: pink, alpha: {uniform: [0.5, 3.0]}}]}
  labels: {choice: [{kind: uniform}, {kind: hard}]}
  optimizer: {kind: adam, lr: {loguniform: [1.0e-4, 1.0e-2]}}
  batch_size: 32
  duration: {samples: 32000, until_deviation: 0.005}
asha: {grace_samples: 3200}
"""


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in folder.glob("runs/killed/trials/*.json")]
    return {record["key"]: record for record in found}


def ended(folder: Path) -> dict[str, dict[str, Any]]:
    return {key: r for key, r in records(folder).items() if r["state"] != "running"}


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_ended_loses_no_trial_and_repeats_none(
    job: Callable[..., Finished], tmp_path: Path, sent: signal.Signals
) -> None:
    (tmp_path / "search.yaml").write_text(CONFIG)
    killed = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "search.py"), "search.yaml"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    try:
        while len(ended(tmp_path)) < 8:
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        killed.send_signal(sent)
        _, told = killed.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert killed.returncode == 130
        assert told == (
            "search.py: interrupted; the same command goes on from the last checkpoint\n"
        )
    before = ended(tmp_path)
    begun = set(records(tmp_path))
    assert len(before) < 17
    assert {r["state"] for r in before.values()} <= {"finished", "stopped"}

    again = job("search", "search.yaml")
    assert again.code == 0, again.err
    assert again.err == ""
    after = ended(tmp_path)
    assert set(after) == {"reference-untrained", *(f"{n:05d}" for n in range(16))} >= begun
    assert {key: after[key] for key in before} == before

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("precalib_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [r for r in runs if r.data.tags["precalib.phase"] == "search"]
    children = Counter(
        r.data.tags["precalib.trial"]
        for r in runs
        if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    )
    assert children == dict.fromkeys(after, 1)
    assert "trials: 16, of them" in again.out
