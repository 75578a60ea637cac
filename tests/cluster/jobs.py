"""Small jobs, what they leave, and the same without Ray: all that these tests know of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.config.jobs.train import TrainConfig
from precalib_ray.core.phases.pretraining import Pretraining
from precalib_ray.jobs.pretrain import Pretrained
from precalib_ray.jobs.train import Trained

MODEL = {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "width": 64}
NAME = "mlp-k10-precalibrated"
"""Under which networks of ``MODEL`` are registered."""
Weights = dict[str, torch.Tensor]


def pretraining(storage: Path, **changes: Any) -> PretrainConfig:
    """60 steps in batches that two workers cannot halve, with a checkpoint every 20."""
    content: dict[str, Any] = {
        "name": "run",
        "storage": str(storage),
        "model": MODEL,
        "noise": {"kind": "gaussian"},
        "batch_size": 65,
        "duration": {"steps": 60},
        "checkpoints": {"every_steps": 20, "keep": 3},
        "scaling": {"cpus_per_worker": 1},
        "tracking": {"offline": True},
    }
    return load.validate(PretrainConfig, content | changes)


def training(storage: Path, data: Path, **changes: Any) -> TrainConfig:
    """Three epochs from random weights."""
    content: dict[str, Any] = {
        "name": "run",
        "storage": str(storage),
        "start": {"kind": "random", "model": MODEL},
        "data": {"path": str(data)},
        "epochs": 3,
        "batch_size": 64,
        "scaling": {"cpus_per_worker": 1},
        "tracking": {"offline": True},
    }
    return load.validate(TrainConfig, content | changes)


RECIPE: dict[str, Any] = {
    "model": {**MODEL, "depth": 3, "init": "he"},
    "noise": {"choice": [{"kind": "gaussian"}, {"kind": "pink", "alpha": {"uniform": [0.5, 3]}}]},
    "labels": {"choice": [{"kind": "hard"}, {"kind": "uniform"}]},
    "optimizer": {"kind": "adam", "lr": {"loguniform": [1e-4, 1e-2]}},
    "batch_size": 32,
    "duration": {"samples": 12000, "until_deviation": 0.02},
    "probes": {"every": 5, "max_share": 1.0, "size": 32, "stop_size": 16},
}


def searching(storage: Path, **changes: Any) -> SearchConfig:
    """Eight trials, tracked in ``mlflow.db`` beside the runs."""
    content: dict[str, Any] = {
        "name": "search",
        "storage": str(storage),
        "recipe": RECIPE | changes.pop("recipe", {}),
        "num_trials": 8,
        "asha": {"grace_samples": 500},
        "paper_samples": 1000,
        "tracking": {"uri": f"sqlite:///{storage / 'mlflow.db'}"},
    }
    return load.validate(SearchConfig, content | changes)


def weights(done: Pretrained | Trained) -> Weights:
    return load_file(done.checkpoint / "model.safetensors")


def in_process(job: PretrainConfig | dict[str, Any]) -> Weights:
    """The same recipe without Ray, by one worker of one thread."""
    torch.set_num_threads(1)
    run = Pretraining(load.validate(PretrainConfig, job))
    run.run()
    return dict(run.engine.model.state_dict())


def assert_bit_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name
