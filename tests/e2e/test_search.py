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

pytestmark = pytest.mark.e2e

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


def end(folder: Path, sent: signal.Signals, *, after: int) -> tuple[int, str]:
    """Start the search, send it a signal once so many trials have ended; its code, what it said."""
    # Where the tests run in the background of a shell, SIGINT is ignored, by what they start too.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "search.py"), "search.yaml"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, inherited)
    deadline = time.monotonic() + 300
    try:
        while len(ended(folder)) < after:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        running.send_signal(sent)
        _, told = running.communicate(timeout=60)
    return running.returncode, told


def test_a_driver_that_is_killed_then_interrupted_loses_no_trial_and_repeats_none(
    job: Callable[..., Finished], tmp_path: Path
) -> None:
    (tmp_path / "search.yaml").write_text(CONFIG)
    before: dict[str, dict[str, Any]] = {}
    begun: set[str] = set()
    for sent, after in ((signal.SIGKILL, 5), (signal.SIGINT, 10)):
        code, told = end(tmp_path, sent, after=after)
        if sent == signal.SIGINT:
            assert code == 130
            assert told == (
                "search.py: interrupted; the same command resumes from the last checkpoint\n"
            )
        found = ended(tmp_path)
        assert {key: found[key] for key in before} == before, sent
        assert len(before) < len(found) < 17, sent
        assert {r["state"] for r in found.values()} <= {"finished", "stopped"}, sent
        before = found
        begun |= set(records(tmp_path))

    again = job("search", "search.yaml")
    assert again.code == 0, again.err
    assert again.err == ""
    after_all = ended(tmp_path)
    assert set(after_all) == {"reference-untrained", *(f"{n:05d}" for n in range(16))} >= begun
    assert {key: after_all[key] for key in before} == before

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
    assert children == dict.fromkeys(after_all, 1)
    assert "trials: 16, of them" in again.out
