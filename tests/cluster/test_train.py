"""The job ``train`` on a real local Ray."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from precalib_ray.core import checkpoint
from precalib_ray.data import parquet
from precalib_ray.errors import ConfigError
from precalib_ray.jobs.train import Trained, train
from tests.cluster.jobs import MODEL, training, weights

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
SPARSE = {"epochs": 4, "save_every_epochs": 5}
"""No ordinary checkpoint is written."""


@dataclass(frozen=True)
class Learned:
    """Four epochs of one worker, tracked."""

    done: Trained
    store: str
    folder: Path


@pytest.fixture(scope="module")
def learned(
    ray_session: None, digits_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Learned:
    folder = tmp_path_factory.mktemp("learned")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    done = train(training(folder, digits_folder, tracking={"uri": store}, **SPARSE))
    return Learned(done, store, folder)


def test_learns_keeps_the_best_and_logs_every_epoch(learned: Learned, digits_folder: Path) -> None:
    outcome = learned.done.outcome
    assert outcome.splits["test"]["accuracy"] > 0.8
    assert 0.5 < outcome.splits["test"]["auroc_unknown"] <= 1
    history = outcome.progress.history
    assert [epoch.epoch for epoch in history] == [0, 1, 2, 3, 4]
    assert outcome.best.metrics["nll"] == min(epoch.metrics["nll"] for epoch in history)
    assert outcome.splits["val"]["nll"] == pytest.approx(outcome.best.metrics["nll"], rel=1e-6)
    description = checkpoint.read_description(learned.done.checkpoint)
    assert len(description.normalization["mean"]) == 1

    client = MlflowClient(tracking_uri=learned.store)
    experiment = client.get_experiment_by_name("precalib_ray")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    for name in ("accuracy", "mean_confidence", "ece", "nll"):
        logged = client.get_metric_history(run.info.run_id, f"val/{name}")
        assert [m.value for m in logged] == pytest.approx(
            [epoch.metrics[name] for epoch in history]
        )
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 4
    assert run.data.metrics["best_test/ece"] == pytest.approx(outcome.splits["test"]["ece"])
    for name in ("train", "val", "test"):
        split = parquet.split_path(digits_folder, name)
        assert run.data.tags[f"precalib.data_sha256.{name}"] == parquet.fingerprint(split)


def test_two_workers_learn_what_one_does(
    learned: Learned, tmp_path: Path, digits_folder: Path
) -> None:
    scaling = {"num_workers": 2, "cpus_per_worker": 1}
    two = train(training(tmp_path, digits_folder, scaling=scaling, **SPARSE))
    one = learned.done
    expected = one.outcome.splits["test"]["nll"]
    assert two.outcome.splits["test"]["nll"] == pytest.approx(expected, rel=1e-3)
    for name, values in weights(one).items():
        assert torch.allclose(values, weights(two)[name], rtol=1e-3, atol=1e-4), name


def test_starts_from_a_checkpoint(learned: Learned, tmp_path: Path, digits_folder: Path) -> None:
    """And, in ``test_submissions``, from a zeroed head."""
    start = {"kind": "checkpoint", "path": str(learned.done.checkpoint)}
    second = train(training(tmp_path, digits_folder, start=start, epochs=1))
    begun = second.outcome.progress.history[0]
    assert begun.metrics["nll"] == pytest.approx(
        learned.done.outcome.splits["val"]["nll"], rel=1e-5
    )


def test_refuses_a_model_of_another_number_of_classes(tmp_path: Path, digits_folder: Path) -> None:
    start = {"kind": "random", "model": MODEL | {"num_classes": 7}}
    with pytest.raises(ConfigError, match=r"num_classes: 7: .* has 10 classes"):
        train(training(tmp_path, digits_folder, start=start))


def test_a_run_that_has_trained_is_completed_without_training_again(
    learned: Learned, tmp_path: Path, digits_folder: Path
) -> None:
    """Its driver was lost before the end was recorded, and no ordinary checkpoint was written."""
    folder = tmp_path / "run"
    shutil.copytree(learned.folder / "run", folder)
    assert not list(folder.glob("step-*"))
    file = folder / "run.json"
    file.write_text(file.read_text().replace('"result"', '"forgotten"'))
    first, second = learned.done, train(training(tmp_path, digits_folder, **SPARSE))
    assert second.outcome.best == first.outcome.best
    assert second.outcome.progress.step == first.outcome.progress.step
    assert second.outcome.splits["test"] == pytest.approx(first.outcome.splits["test"])
