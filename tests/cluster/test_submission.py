"""Jobs given to a running cluster from Python."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import ray

import precalib_ray
from precalib_ray.cluster import submission
from precalib_ray.config import base
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.errors import ClusterError
from tests.e2e.conftest import REPOSITORY


def config(**changes: Any) -> PretrainConfig:
    content: dict[str, Any] = {
        "name": "given",
        "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "width": 64},
        "noise": {"kind": "gaussian"},
        "optimizer": {"kind": "adam", "lr": 1e-5},
        "duration": {"steps": 20},
        "scaling": {"cpus_per_worker": 1},
    }
    return base.validate(PretrainConfig, content | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tracking": {"tags": {"who's": 'a "b" $HOME', "n": "1", "yes": "no"}}},
        {"noise": {"kind": "mixture", "parts": [{"noise": {"kind": "pink"}}] * 9}},
    ],
)
def test_the_command_says_the_same_config(changes: dict[str, Any]) -> None:
    wanted = config(**changes)
    python, *words = shlex.split(submission.command(wanted))
    assert [python, *words[:3]] == ["python", "-m", "precalib_ray", "pretrain"]
    assert base.load(PretrainConfig, None, words[3:]) == wanted


def test_a_cluster_that_is_not_there() -> None:
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9"):
        precalib_ray.submit(config(), address="http://127.0.0.1:9")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_job_is_followed_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"http://{ray._private.worker.global_worker.node.webui_url}"
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    job = config(storage=str(tmp_path), tracking={"uri": store})
    done = precalib_ray.submit(job, address=address, working_dir=REPOSITORY)
    told = capsys.readouterr().out
    assert (done.status, done.exit_code) == ("SUCCEEDED", 0), told
    assert done.model_uri == "models:/mlp-k10-precalibrated/1"
    assert "noise pretraining" in told
    again = precalib_ray.submit(job, address=address, working_dir=REPOSITORY)
    assert again.model_uri == done.model_uri
    assert "has finished before" in capsys.readouterr().out

    # A config that is refused on the cluster says so by its exit code.
    other = config(storage=str(tmp_path), tracking={"uri": store}, seed=1)
    refused = precalib_ray.submit(other, address=address, working_dir=REPOSITORY)
    assert (refused.status, refused.exit_code) == ("FAILED", 2)
    assert refused.model_uri is None
    assert "seed: 1: was 0 in that run" in capsys.readouterr().out
