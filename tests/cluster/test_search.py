"""The job ``search`` on a real local Ray."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.errors import ClusterError, ConfigError
from precalib_ray.jobs.search import Searched, search
from precalib_ray.search.trials import TrialLog
from tests.cluster.jobs import RECIPE, searching

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def states(log: TrialLog) -> dict[str, str]:
    return {key: trial.state for key, trial in log.records.items()}


@dataclass(frozen=True)
class Finished:
    """A search that has registered the best, and its folder."""

    done: Searched
    folder: Path


@pytest.fixture(scope="module")
def searched(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("searched")
    return Finished(search(searching(folder, register_best=True, register_seeds=1)), folder)


def test_searches_tracks_and_registers_the_best(searched: Finished) -> None:
    log, folder = searched.done.log, searched.folder
    assert searched.done.model_uri == "models:/mlp-k10-precalibrated/1"
    assert len(log.trials) == 8
    assert not {"running", "failed"} & set(states(log).values())
    assert log.records["reference-zero_head"].deviation == pytest.approx(0, abs=1e-7)
    assert log.records["reference-untrained"].samples == 0
    (best,) = log.best()
    assert best.reached
    assert best.deviation == max(best.deviations.values()) <= 0.03
    for trial in log.trials:
        if trial.reached:
            assert trial.samples >= best.samples

    recipe = load.load(PretrainConfig, folder / "search" / "best.yaml")
    assert recipe.labels.kind == best.recipe["labels"]["kind"]

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("precalib_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags["precalib.phase"] == "search"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 8 + 3
    by_key = {r.data.tags["precalib.trial"]: r for r in children}
    logged = by_key[best.key]
    assert logged.data.metrics["final/deviation"] == pytest.approx(best.deviation)
    assert logged.data.params["optimizer.lr"] == str(best.recipe["optimizer"]["lr"])
    artifacts = {f.path for f in client.list_artifacts(parent.info.run_id, "figures")}
    assert {"figures/history.png", "figures/pareto.png"} <= artifacts
    assert "best.yaml" in {f.path for f in client.list_artifacts(parent.info.run_id)}

    version = client.get_model_version_by_alias("mlp-k10-precalibrated", "candidate")
    assert version.tags["precalib.search_run_id"] == parent.info.run_id
    assert float(version.tags["precalib.seeds_mean_deviation"]) < 0.03
    run_folder = folder / f"search-{best.key}-1"
    registered = json.loads((run_folder / "run.json").read_text())["config"]
    assert registered["duration"] == best.recipe["duration"] | {"samples": 4 * 12000}


def test_a_search_submitted_again_is_the_same(searched: Finished) -> None:
    again = search(searching(searched.folder))
    assert again.log.records == searched.done.log.records


def test_a_search_with_another_space_is_refused(searched: Finished) -> None:
    changed = RECIPE["optimizer"] | {"lr": {"loguniform": [1e-3, 1e-2]}}
    with pytest.raises(ConfigError) as refused:
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
    with pytest.raises(ConfigError, match=r"recipe\.optimizer\.lr"):
        searching(tmp_path, recipe=recipe)
    recipe["optimizer"] = {"kind": "sgd", "lr": {"choice": [1e-3, 1000.0]}}
    log = search(
        searching(
            tmp_path, recipe=recipe, algorithm="grid", references=[], tracking={"offline": True}
        )
    ).log
    assert len(log.trials) == 2 * 2 * 2
    failed = {t.point["noise"]: t.reason for t in log.trials if t.state == "failed"}
    assert "noise is gone" in failed["function"]
    assert all(t.state == "failed" for t in log.trials if t.point["noise"] == "function")
    assert any(t.state != "failed" for t in log.trials)


def test_a_search_of_several_workers_nests_trainers(tmp_path: Path) -> None:
    log = search(
        searching(
            tmp_path,
            num_trials=1,
            references=[],
            asha=None,
            objective="deviation",
            trials={"num_workers": 2, "cpus": 1},
            tracking={"offline": True},
        )
    ).log
    assert states(log) == {"00000": "finished"}
    assert log.trials[0].history


def test_trials_that_can_never_fit_are_refused_at_once(tmp_path: Path) -> None:
    job = searching(
        tmp_path, trials={"num_workers": 64}, recipe={"batch_size": 64}, tracking={"offline": True}
    )
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"can never run this job: 64 x 1 CPU, placement PACK; "):
        search(job)
    assert time.monotonic() - started < 10


def test_downstream_judges_by_what_comes_after(tmp_path: Path, digits_folder: Path) -> None:
    log = search(
        searching(
            tmp_path,
            num_trials=3,
            objective="downstream",
            downstream={"data": {"path": str(digits_folder)}, "epochs": 2, "num_samples": 500},
            tracking={"offline": True},
        )
    ).log
    (best,) = log.best()
    assert 0 <= best.downstream["gap"] < 1
    control = log.records["reference-untrained"].downstream
    assert best.downstream["gap"] < control["gap"]
    scores = [log.scores(r) for r in log.scored]
    assert log.scores(best) == min(scores)
