"""What Prometheus gets of a run, from the port that Ray's agent exports on."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from precalib_ray.cluster.gauges import NAMES
from precalib_ray.jobs.pretrain import pretrain
from tests.cluster.jobs import pretraining

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_a_run_shows_its_gauges(tmp_path: Path) -> None:
    job = pretraining(
        tmp_path, name="watched", batch_size=64, duration={"seconds": 12}, checkpoints={}
    )
    outcome = pretrain(job).outcome
    (port,) = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
    found: dict[str, float] = {}
    deadline = time.monotonic() + 30
    while set(found) != set(NAMES) and time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        for name, labels, value in re.findall(r"^ray_precalib_(\w+)\{(.*?)\} (.*)$", text, re.M):
            assert 'phase="pretrain"' in labels
            assert 'run="watched"' in labels
            found[name] = float(value)
        time.sleep(0.5)
    assert set(found) == set(NAMES)
    assert 0 < found["deviation"] < outcome.before.deviation
    assert 0 < found["step_seconds"] < 1
    assert found["samples_per_second"] == pytest.approx(64 / found["step_seconds"], rel=0.5)
    assert 0 < found["probe_share"] < 1
