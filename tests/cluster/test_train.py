"""The job ``train`` on a real local Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from precalib_ray.config import base
from precalib_ray.config.jobs import TrainConfig
from precalib_ray.core import checkpoint
from precalib_ray.data import parquet
from precalib_ray.errors import ConfigError
from precalib_ray.service.train import Trained, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

MODEL = {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "width": 64}


def config(tmp_path: Path, data: Path, **changes: Any) -> TrainConfig:
    content: dict[str, Any] = {
        "name": "run",
        "storage": str(tmp_path),
        "start": {"kind": "random", "model": MODEL},
        "data": {"path": str(data)},
        "epochs": 3,
        "batch_size": 64,
        "scaling": {"cpus_per_worker": 1},
        "tracking": {"offline": True},
    }
    return base.validate(TrainConfig, content | changes)


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return load_file(trained.checkpoint / "model.safetensors")


def test_learns_keeps_the_best_and_logs_every_epoch(tmp_path: Path, digits_folder: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    trained = train(config(tmp_path, digits_folder, tracking={"uri": store}, epochs=4))
    outcome = trained.outcome
    assert outcome["test"]["accuracy"] > 0.8
    assert 0.5 < outcome["test"]["auroc_unknown"] <= 1
    history = outcome["progress"]["history"]
    assert [record["epoch"] for record in history] == [0, 1, 2, 3, 4]
    assert outcome["best"]["nll"] == min(record["nll"] for record in history)
    assert outcome["val"]["nll"] == pytest.approx(outcome["best"]["nll"], rel=1e-6)
    description = checkpoint.read_description(trained.checkpoint)
    assert len(description["normalization"]["mean"]) == 1

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("precalib_ray")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    for name in ("accuracy", "mean_confidence", "ece", "nll"):
        logged = client.get_metric_history(run.info.run_id, f"val/{name}")
        assert [m.value for m in logged] == pytest.approx([r[name] for r in history])
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 4
    assert run.data.metrics["best_test/ece"] == pytest.approx(outcome["test"]["ece"])
    for name in ("train", "val", "test"):
        split = parquet.split_path(digits_folder, name)
        assert run.data.tags[f"precalib.data_sha256.{name}"] == parquet.fingerprint(split)


def test_two_workers_learn_what_one_does(tmp_path: Path, digits_folder: Path) -> None:
    one = train(config(tmp_path / "one", digits_folder))
    scaling = {"num_workers": 2, "cpus_per_worker": 1}
    two = train(config(tmp_path / "two", digits_folder, scaling=scaling))
    assert two.outcome["test"]["nll"] == pytest.approx(one.outcome["test"]["nll"], rel=1e-3)
    for name, values in weights(one).items():
        assert torch.allclose(values, weights(two)[name], rtol=1e-3, atol=1e-4), name


def test_starts_from_a_checkpoint_and_from_a_zeroed_head(
    tmp_path: Path, digits_folder: Path
) -> None:
    first = train(config(tmp_path / "first", digits_folder))
    start = {"kind": "checkpoint", "path": str(first.checkpoint)}
    second = train(config(tmp_path / "second", digits_folder, start=start, epochs=1))
    begun = second.outcome["progress"]["history"][0]
    assert begun["nll"] == pytest.approx(first.outcome["val"]["nll"], rel=1e-5)
    zero = {"kind": "zero_head", "model": MODEL}
    third = train(config(tmp_path / "third", digits_folder, start=zero, epochs=1))
    assert third.outcome["progress"]["history"][0]["mean_confidence"] == pytest.approx(0.1)


def test_refuses_a_model_of_another_number_of_classes(tmp_path: Path, digits_folder: Path) -> None:
    start = {"kind": "random", "model": MODEL | {"num_classes": 7}}
    with pytest.raises(ConfigError, match=r"num_classes: 7: .* has 10 classes"):
        train(config(tmp_path, digits_folder, start=start))


def test_a_run_that_has_trained_is_completed_without_training_again(
    tmp_path: Path, digits_folder: Path
) -> None:
    """Its driver was lost before the end was recorded, and no ordinary checkpoint was written."""
    job = config(tmp_path, digits_folder, epochs=1, save_every_epochs=5)
    first = train(job)
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"result"', '"forgotten"'))
    second = train(job)
    assert second.outcome["best"] == first.outcome["best"]
    assert second.outcome["progress"]["step"] == first.outcome["progress"]["step"]
    assert second.outcome["test"] == pytest.approx(first.outcome["test"])
