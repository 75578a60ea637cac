"""The job ``search`` on a real local Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.config import base
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.config.search import SearchConfig
from precalib_ray.errors import ClusterError
from precalib_ray.service.search import search

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

RECIPE: dict[str, Any] = {
    "model": {
        "kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "depth": 3, "width": 64,
        "init": "he",
    },
    "noise": {"choice": [{"kind": "gaussian"}, {"kind": "pink", "alpha": {"uniform": [0.5, 3]}}]},
    "labels": {"choice": [{"kind": "hard"}, {"kind": "uniform"}]},
    "optimizer": {"kind": "adam", "lr": {"loguniform": [1e-4, 1e-2]}},
    "batch_size": 32,
    "duration": {"samples": 12000, "until_deviation": 0.02},
    "probes": {"every": 5, "max_share": 1.0, "size": 32, "stop_size": 16},
}  # fmt: skip


def config(folder: Path, **changes: Any) -> SearchConfig:
    content: dict[str, Any] = {
        "name": "search",
        "storage": str(folder),
        "recipe": RECIPE | changes.pop("recipe", {}),
        "num_trials": 8,
        "asha": {"grace_samples": 500},
        "paper_samples": 1000,
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    return base.validate(SearchConfig, content | changes)


def states(study: Any) -> dict[str, str]:
    return {key: record["state"] for key, record in study.records.items()}


def test_searches_tracks_and_registers_the_best(tmp_path: Path) -> None:
    study = search(config(tmp_path, register_best=True, register_seeds=1))
    assert len(study.trials) == 8
    assert not {"running", "failed"} & set(states(study).values())
    assert study.records["reference-zero_head"]["deviation"] == pytest.approx(0, abs=1e-7)
    assert study.records["reference-untrained"]["samples"] == 0
    (best,) = study.best()
    assert best["reached"]
    assert best["deviation"] == max(best["deviations"].values()) <= 0.03
    for record in study.trials:
        if record.get("reached"):
            assert record["samples"] >= best["samples"]

    recipe = base.load(PretrainConfig, tmp_path / "search" / "best.yaml")
    assert recipe.labels.kind == best["recipe"]["labels"]["kind"]

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("precalib_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags["precalib.phase"] == "search"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 8 + 3
    by_key = {r.data.tags["precalib.trial"]: r for r in children}
    logged = by_key[best["key"]]
    assert logged.data.metrics["final/deviation"] == pytest.approx(best["deviation"])
    assert logged.data.params["optimizer.lr"] == str(best["recipe"]["optimizer"]["lr"])
    artifacts = {f.path for f in client.list_artifacts(parent.info.run_id, "figures")}
    assert {"figures/history.png", "figures/pareto.png"} <= artifacts
    assert "best.yaml" in {f.path for f in client.list_artifacts(parent.info.run_id)}

    version = client.get_model_version_by_alias("mlp-k10-precalibrated", "candidate")
    assert version.tags["precalib.search_run_id"] == parent.info.run_id
    assert float(version.tags["precalib.seeds_mean_deviation"]) < 0.03
    registered = json.loads((tmp_path / f"search-{best['key']}-1" / "run.json").read_text())[
        "config"
    ]
    assert registered["duration"] == best["recipe"]["duration"] | {"samples": 4 * 12000}

    again = search(config(tmp_path))
    assert again.records == study.records


def test_trials_that_fail_are_recorded_and_do_not_end_the_search(tmp_path: Path) -> None:
    noise = {
        "choice": [
            {"kind": "gaussian"},
            {"kind": "function", "name": "tests.cluster.user_functions:noise_that_fails_later"},
        ]
    }
    lr = {"choice": [1e-3, 1e30]}
    recipe = {"noise": noise, "optimizer": {"kind": "sgd", "lr": lr}}
    with pytest.raises(base.ConfigError, match=r"recipe\.optimizer\.lr"):
        config(tmp_path, recipe=recipe)
    recipe["optimizer"] = {"kind": "sgd", "lr": {"choice": [1e-3, 1000.0]}}
    study = search(
        config(tmp_path, recipe=recipe, algorithm="grid", references=[], tracking={"offline": True})
    )
    assert len(study.trials) == 2 * 2 * 2
    failed = {r["point"]["noise"]: r["reason"] for r in study.trials if r["state"] == "failed"}
    assert "noise is gone" in failed["function"]
    assert all(r["state"] == "failed" for r in study.trials if r["point"]["noise"] == "function")
    assert any(r["state"] != "failed" for r in study.trials)


def test_a_search_of_several_workers_nests_trainers(tmp_path: Path) -> None:
    study = search(
        config(
            tmp_path,
            num_trials=1,
            references=[],
            asha=None,
            objective="deviation",
            trials={"num_workers": 2, "cpus": 1},
            tracking={"offline": True},
        )
    )
    assert states(study) == {"00000": "finished"}
    assert study.trials[0]["history"]


def test_trials_that_can_never_fit_are_refused_at_once(tmp_path: Path) -> None:
    job = config(
        tmp_path, trials={"num_workers": 64}, recipe={"batch_size": 64}, tracking={"offline": True}
    )
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"can never run this job: 64 x 1 CPU, placement PACK; "):
        search(job)
    assert time.monotonic() - started < 10


def test_a_search_with_another_space_is_refused(tmp_path: Path) -> None:
    search(config(tmp_path, num_trials=1, references=[], tracking={"offline": True}))
    changed = RECIPE["optimizer"] | {"lr": {"loguniform": [1e-3, 1e-2]}}
    with pytest.raises(base.ConfigError) as refused:
        search(config(tmp_path, num_trials=1, references=[], tracking={"offline": True},
                      recipe={"optimizer": changed}))  # fmt: skip
    assert "name: 'search': is taken by a run with another config" in str(refused.value)
    assert "recipe.optimizer.lr.loguniform: [0.001, 0.01]: was [0.0001, 0.01]" in str(refused.value)


def test_downstream_judges_by_what_comes_after(tmp_path: Path, digits_folder: Path) -> None:
    study = search(
        config(
            tmp_path,
            num_trials=3,
            objective="downstream",
            downstream={"data": {"path": str(digits_folder)}, "epochs": 2, "num_samples": 500},
            tracking={"offline": True},
        )
    )
    (best,) = study.best()
    assert 0 <= best["downstream"]["gap"] < 1
    control = study.records["reference-untrained"]["downstream"]
    assert best["downstream"]["gap"] < control["gap"]
    scores = [study.scores(r) for r in study.scored()]
    assert study.scores(best) == min(scores)
