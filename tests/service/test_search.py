"""Which recipe of a search is registered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.config import base
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.config.search import SearchConfig
from precalib_ray.errors import DivergedError
from precalib_ray.service import search
from precalib_ray.service.pretrain import Pretrained
from precalib_ray.service.study import Study as Study_


def config(**changes: Any) -> SearchConfig:
    content: dict[str, Any] = {
        "name": "s",
        "num_trials": 4,
        "recipe": {
            "model": {"kind": "mlp", "num_classes": 10, "input_shape": [4]},
            "noise": {"kind": "gaussian"},
            "optimizer": {"kind": "adam", "lr": {"loguniform": [1e-4, 1e-2]}},
            "duration": {"samples": 25600, "until_deviation": 0.005},
        },
    }
    return base.validate(SearchConfig, content | changes)


class Study:
    """The best trials, best first."""

    def best(self, num: int) -> list[dict[str, Any]]:
        point = {"optimizer.lr": 1e-3}
        return [{"key": f"{i:05d}", "point": point} for i in range(4)][:num]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs; those of ``missed`` do not reach their target."""
    names: list[str] = []

    def pretrain(job: PretrainConfig) -> Pretrained:
        names.append(job.name)
        assert job.tracking.offline
        assert job.duration.samples == 4 * 25600
        if job.name in diverged:
            raise DivergedError("the loss became nan")
        reason = "samples" if job.name in missed else "until_deviation"
        return Pretrained(Path(job.name), {"progress": {"stop_reason": reason}}, None)

    missed.clear()
    diverged.clear()
    monkeypatch.setattr(search, "pretrain", pretrain)
    return names


missed: set[str] = set()
diverged: set[str] = set()


def test_the_first_recipe_that_reaches_its_target_with_every_seed(ran: list[str]) -> None:
    missed.update({"s-00000-2", "s-00001-1"})
    jobs, done = search._steady(config(), Study())  # type: ignore[arg-type]
    assert [job.name for job in jobs] == ["s-00002-1", "s-00002-2", "s-00002-3"]
    assert [str(result.checkpoint) for result in done] == [job.name for job in jobs]
    # A seed that misses ends a recipe's trial.
    assert ran == ["s-00000-1", "s-00000-2", "s-00001-1", "s-00002-1", "s-00002-2", "s-00002-3"]


def test_the_best_where_none_does(ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    missed.update({"s-00000-1", "s-00001-2", "s-00002-3", "s-00003-1"})
    jobs, done = search._steady(config(register_seeds=3), Study())  # type: ignore[arg-type]
    assert [str(result.checkpoint) for result in done] == [f"s-00000-{i}" for i in (1, 2, 3)]
    assert [job.seed for job in jobs] == [1, 2, 3]
    assert len(ran) == len(set(ran)) == 8
    assert "no recipe reached its target with every seed" in capsys.readouterr().out


def test_a_seed_that_diverges_is_a_miss(ran: list[str]) -> None:
    diverged.add("s-00000-2")
    missed.update({"s-00001-1", "s-00002-1"})
    _, done = search._steady(config(), Study())  # type: ignore[arg-type]
    assert [str(result.checkpoint) for result in done] == [f"s-00001-{i}" for i in (1, 2, 3)]
    diverged.update({"s-00001-2", "s-00002-1"})
    with pytest.raises(DivergedError):
        search._steady(config(), Study())  # type: ignore[arg-type]


@pytest.mark.server
def test_each_trial_is_logged_once_however_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that end faster than MLflow takes them; without Ray, which would be slower."""

    def run_trials(config: SearchConfig, study: Study_, *_: Any) -> None:
        report = {
            "deviation": 0.01, "samples": 100, "compute_seconds": 0.1, "seconds": 0.1,
            "deviations": [["gaussian/running", 0.01]], "stop_reason": "samples",
            "history": [[100, 0.01]],
        }  # fmt: skip
        while (proposed := study.propose()) is not None:
            study.finish(proposed[0], {**report, "deviations": dict(report["deviations"])}, "")

    monkeypatch.setattr(search, "_run_trials", run_trials)
    monkeypatch.setattr(search, "_shared", lambda config: {})
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    settings = config(num_trials=40, storage=str(tmp_path), tracking={"uri": store})
    search.search(settings)
    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name("precalib_ray")
    assert found is not None
    runs = client.search_runs([found.experiment_id], max_results=1000)
    keys = Counter(r.data.tags.get("precalib.trial") for r in runs)
    assert len(keys) == 1 + 40 + 3
    assert set(keys.values()) == {1}
    assert {r.info.status for r in runs} == {"FINISHED"}
    one = next(r for r in runs if r.data.tags.get("precalib.trial") == "00039")
    told = client.get_metric_history(one.info.run_id, "final/deviation")
    assert [m.value for m in told] == [0.01]
