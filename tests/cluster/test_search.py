"""The job ``search`` on a real local Ray."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.config import base
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.errors import ClusterError
from precalib_ray.service.search import search
from tests.cluster.jobs import RECIPE, searching

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def states(study: Any) -> dict[str, str]:
    return {key: record["state"] for key, record in study.records.items()}


@dataclass(frozen=True)
class Searched:
    """A search that has registered the best, and its folder."""

    study: Any
    folder: Path


@pytest.fixture(scope="module")
def searched(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("searched")
    return Searched(search(searching(folder, register_best=True, register_seeds=1)), folder)


def test_searches_tracks_and_registers_the_best(searched: Searched) -> None:
    study, folder = searched.study, searched.folder
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

    recipe = base.load(PretrainConfig, folder / "search" / "best.yaml")
    assert recipe.labels.kind == best["recipe"]["labels"]["kind"]

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
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
    registered = json.loads((folder / f"search-{best['key']}-1" / "run.json").read_text())["config"]
    assert registered["duration"] == best["recipe"]["duration"] | {"samples": 4 * 12000}


def test_a_search_submitted_again_is_the_same(searched: Searched) -> None:
    again = search(searching(searched.folder))
    assert again.records == searched.study.records


def test_a_search_with_another_space_is_refused(searched: Searched) -> None:
    changed = RECIPE["optimizer"] | {"lr": {"loguniform": [1e-3, 1e-2]}}
    with pytest.raises(base.ConfigError) as refused:
        search(searching(searched.folder, recipe={"optimizer": changed}))
    assert "name: 'search': is taken by a run with another config" in str(refused.value)
    assert "recipe.optimizer.lr.loguniform: [0.001, 0.01]: was [0.0001, 0.01]" in str(refused.value)


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
        searching(tmp_path, recipe=recipe)
    recipe["optimizer"] = {"kind": "sgd", "lr": {"choice": [1e-3, 1000.0]}}
    study = search(
        searching(
            tmp_path, recipe=recipe, algorithm="grid", references=[], tracking={"offline": True}
        )
    )
    assert len(study.trials) == 2 * 2 * 2
    failed = {r["point"]["noise"]: r["reason"] for r in study.trials if r["state"] == "failed"}
    assert "noise is gone" in failed["function"]
    assert all(r["state"] == "failed" for r in study.trials if r["point"]["noise"] == "function")
    assert any(r["state"] != "failed" for r in study.trials)


def test_a_search_of_several_workers_nests_trainers(tmp_path: Path) -> None:
    study = search(
        searching(
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
    job = searching(
        tmp_path, trials={"num_workers": 64}, recipe={"batch_size": 64}, tracking={"offline": True}
    )
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"can never run this job: 64 x 1 CPU, placement PACK; "):
        search(job)
    assert time.monotonic() - started < 10


def test_downstream_judges_by_what_comes_after(tmp_path: Path, digits_folder: Path) -> None:
    study = search(
        searching(
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
