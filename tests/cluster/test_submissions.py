"""Submitted twice, to a server that goes away, or to the gate: what a job leaves all the same."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.config import load
from precalib_ray.config.jobs.register import RegisterConfig
from precalib_ray.config.jobs.sync import SyncConfig
from precalib_ray.errors import GateError, TrackingError
from precalib_ray.jobs.pretrain import Pretrained, pretrain
from precalib_ray.jobs.register import register
from precalib_ray.jobs.sync import sync
from precalib_ray.jobs.train import train
from precalib_ray.registry.gate import Gate
from tests.cluster.conftest import Twice
from tests.cluster.jobs import MODEL, NAME, pretraining, training
from tests.registry.servers import MLflowServer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

OUTAGE_S = float(os.environ.get("PRECALIB_OUTAGE_S", "1"))
"""How long the server is away in the middle of a run; longer ones make the run longer."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MLflowServer]:
    server = MLflowServer(tmp_path / "server")
    yield server
    server.stop()


def when_there(file: Path, *actions: Any) -> threading.Thread:
    """Do things, one after the other, once a file is there."""

    def watch() -> None:
        deadline = time.monotonic() + 240
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for action in actions:
            action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_two_submissions_at_the_same_moment_return_one_version(twice: Twice) -> None:
    """One in this process and one in another; only the first to come trains."""
    assert twice.other_code == 0, twice.said
    assert twice.done.model_uri == f"models:/{NAME}/1"
    assert twice.said.count(f"registered: models:/{NAME}/1") == 2
    assert twice.said.count("run has finished already; returning its result") == 1
    client = MlflowClient(tracking_uri=twice.store)
    (version,) = client.search_model_versions(f"name='{NAME}'")
    experiment = client.get_run(version.run_id).info.experiment_id
    assert len(client.search_runs([experiment])) == 1


def test_a_server_away_in_mid_run_and_at_the_end_loses_nothing(
    tmp_path: Path, server: MLflowServer
) -> None:
    num_steps = 4000 + 400 * int(OUTAGE_S - 1)
    job = pretraining(
        tmp_path,
        tracking={"uri": server.uri, "max_wait": 0},
        duration={"steps": num_steps},
        probes={"every": 50, "max_share": 1.0, "size": 64},
        checkpoints={"every_steps": 400},
    )
    folder = tmp_path / "run"
    middle = when_there(
        folder / "step-00000400" / "model.safetensors",
        server.stop, lambda: time.sleep(OUTAGE_S), server.start,
    )  # fmt: skip
    end = when_there(folder / "final" / "model.safetensors", middle.join, server.stop)
    with pytest.raises(TrackingError, match=r"(?s)Nothing is lost.*jobs/sync.py name=run"):
        pretrain(job)
    end.join()
    assert list((folder / "mlflow").glob("*.json"))

    server.start()
    later = SyncConfig(name="run", storage=str(tmp_path))
    for _ in range(2):
        assert sync(later).model_uri == f"models:/{NAME}/1"
    assert not list((folder / "mlflow").glob("*.json"))
    again = pretrain(job)
    assert again.model_uri == f"models:/{NAME}/1"

    client = MlflowClient(tracking_uri=server.uri)
    (version,) = client.search_model_versions(f"name='{NAME}'")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    told = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "deviation")]
    history = again.outcome.progress.history
    assert len(history) > 50
    assert told == [(probing.step, probing.deviation) for probing in history]
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == num_steps
    final = client.get_metric_history(run.info.run_id, "final/deviation")
    assert [m.value for m in final] == [again.outcome.after.deviation]


def test_data_training_with_a_server_away_at_the_end_is_not_trained_again(
    tmp_path: Path, server: MLflowServer, digits_folder: Path
) -> None:
    """And a zeroed head starts at chance."""
    job = training(
        tmp_path,
        digits_folder,
        start={"kind": "zero_head", "model": MODEL},
        epochs=2,
        num_unknown=0,
        tracking={"uri": server.uri, "max_wait": 0},
    )
    end = when_there(tmp_path / "run" / "best" / "model.safetensors", server.stop)
    with pytest.raises(TrackingError, match="Nothing is lost"):
        train(job)
    end.join()
    server.start()
    started = time.monotonic()
    done = train(job)
    assert done.outcome.progress.step > 0
    assert done.outcome.progress.history[0].metrics["mean_confidence"] == pytest.approx(0.1)
    assert sync(SyncConfig(name="run", storage=str(tmp_path))).to_json() == done.to_json()
    client = MlflowClient(tracking_uri=server.uri)
    found = client.get_experiment_by_name("precalib_ray")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_val/accuracy"] == done.outcome.splits["val"]["accuracy"]
    assert time.monotonic() - started < 120


def test_the_gate_of_a_job(tmp_path: Path, copied: Callable[[], Path]) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    online: dict[str, Any] = {"tracking": {"uri": store, "max_wait": 0}}
    zero = {"head_scale": 0.0, "duration": {"steps": 0}, "promote": {"tolerance": 0.5}}
    near = pretraining(tmp_path, name="near", **zero, **online)
    assert pretrain(near).model_uri == f"models:/{NAME}/1"
    gate = Gate(NAME, tracking_uri=store)
    assert gate.champion() == "1"

    copied()  # a run that has finished, far from chance
    far = pretraining(tmp_path, promote={"tolerance": 1e-4}, **online)
    for _ in range(2):  # submitted again, it is refused again
        message = f"models:/{NAME}/2 does not become champion"
        with pytest.raises(GateError, match=message) as refused:
            pretrain(far)
        assert refused.value.model_uri == f"models:/{NAME}/2"
    assert gate.champion() == "1"
    run_id = MlflowClient(tracking_uri=store).get_model_version(NAME, "2").run_id
    assert MlflowClient(tracking_uri=store).get_run(run_id).info.status == "FINISHED"

    again = pretraining(tmp_path, name="again", seed=1, **zero, **online)
    pretrain(again)
    assert gate.champion() == "3"
    pretrain(near)  # has passed before, and does not come back by being submitted again
    assert gate.champion() == "3"


def test_a_checkpoint_directory_is_registered_once(
    finished: Pretrained, twice: Twice, tmp_path: Path
) -> None:
    def job(done: Pretrained, store: str) -> RegisterConfig:
        content = {"path": str(done.checkpoint), "tracking": {"uri": store}}
        return load.validate(RegisterConfig, content)

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    known = job(finished, store)
    for _ in range(2):
        assert register(known).model_uri == f"models:/{NAME}/1"
    client = MlflowClient(tracking_uri=store)
    version = client.get_model_version_by_alias(NAME, "candidate")
    assert float(version.tags["precalib.deviation"]) == pytest.approx(
        finished.outcome.after.deviation, abs=1e-6
    )  # the default panel is that of the run
    assert client.get_run(version.run_id).info.status == "FINISHED"

    # What a job has registered itself is found by its digest too.
    assert register(job(twice.done, twice.store)).model_uri == twice.done.model_uri
    versions = MlflowClient(tracking_uri=twice.store).search_model_versions(f"name='{NAME}'")
    assert len(versions) == 1
