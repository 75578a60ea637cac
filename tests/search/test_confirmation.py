"""Which recipe of a search is registered, and how its trials reach MLflow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.core.loop import Progress
from precalib_ray.core.phases.pretraining import Outcome
from precalib_ray.core.probes import Measurement, PanelResult
from precalib_ray.core.stopping import Duration
from precalib_ray.errors import DivergedError
from precalib_ray.jobs import search as job
from precalib_ray.jobs.pretrain import Pretrained
from precalib_ray.search.confirmation import Confirmation, at_full_length, confirm
from precalib_ray.search.report import TrialReport
from precalib_ray.search.trial import Trial
from precalib_ray.search.trials import TrialLog

BEST = [Trial(key=f"{i:05d}", state="finished", point={"optimizer.lr": 1e-3}) for i in range(3)]


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
    return load.validate(SearchConfig, content | changes)


def outcome(stop_reason: str = "samples", deviation: float = 0.1) -> Outcome:
    measured = PanelResult([Measurement("gaussian", "running", deviation, 0.0, [0.1] * 10)])
    return Outcome(Progress(stop_reason=stop_reason), measured, measured)


class Runs:
    """Runs of seeds, by name: some miss their target, some diverge."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.missed: set[str] = set()
        self.diverged: set[str] = set()
        self.warnings: list[str] = []

    def pretrain(self, job: PretrainConfig) -> Pretrained:
        self.names.append(job.name)
        assert job.tracking.offline
        assert job.duration.samples == 4 * 25600
        if job.name in self.diverged:
            raise DivergedError("the loss became nan")
        reason = "samples" if job.name in self.missed else "until_deviation"
        return Pretrained(Path(job.name), outcome(reason))

    def confirm(self) -> Confirmation:
        found = confirm(config(), BEST, run=job._run_seed, notify=self.warnings.append)
        assert len(found.outcomes) == len(found.jobs) == 3
        return found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(job, "pretrain", found.pretrain)
    return found


def test_the_first_recipe_that_reaches_its_target_with_every_seed(runs: Runs) -> None:
    runs.missed |= {"s-00000-2", "s-00001-1"}
    found = runs.confirm()
    assert [job.name for job in found.jobs] == ["s-00002-1", "s-00002-2", "s-00002-3"]
    assert found.trial.key == "00002"
    assert not runs.warnings
    # A seed that misses ends a recipe's trial.
    assert runs.names == [
        "s-00000-1", "s-00000-2", "s-00001-1", "s-00002-1", "s-00002-2", "s-00002-3"
    ]  # fmt: skip


def test_the_best_where_none_does(runs: Runs) -> None:
    runs.missed |= {"s-00000-1", "s-00001-2", "s-00002-3"}
    found = runs.confirm()
    assert [job.name for job in found.jobs] == [f"s-00000-{i}" for i in (1, 2, 3)]
    assert [job.seed for job in found.jobs] == [1, 2, 3]
    assert len(runs.names) == len(set(runs.names)) == 8
    assert "no recipe reached its target with every seed" in runs.warnings[0]


def test_a_seed_that_diverges_is_a_miss(runs: Runs) -> None:
    runs.diverged.add("s-00000-2")
    runs.missed |= {"s-00001-1", "s-00002-1"}
    assert [job.name for job in runs.confirm().jobs] == [f"s-00001-{i}" for i in (1, 2, 3)]
    assert runs.warnings[0] == "the loss became nan"
    runs.diverged |= {"s-00001-2", "s-00002-1"}
    with pytest.raises(DivergedError):
        runs.confirm()


def test_the_median_seed_is_registered() -> None:
    jobs = [replace(config().corners()[0], seed=seed) for seed in range(4)]
    deviations = [0.4, 0.1, 0.3, 0.2]
    for num, seed, mean, std in ((4, 3, "0.250000", "0.129099"), (1, 0, "0.400000", "0.000000")):
        outcomes = [outcome(deviation=d) for d in deviations[:num]]
        found = Confirmation(BEST[0], jobs[:num], outcomes)
        assert found.median.seed == seed
        assert found.tags("s", "run") == {
            "precalib.search": "s",
            "precalib.search_run_id": "run",
            "precalib.seeds_mean_deviation": mean,
            "precalib.seeds_std_deviation": std,
        }
        assert f"over {num} seeds" in found.summary()


def test_other_seeds_get_more_samples_only_to_reach_a_target() -> None:
    assert at_full_length(Duration(steps=10)) == Duration(steps=10)
    assert at_full_length(Duration(steps=10, seconds=5.0, until_deviation=0.1)) == Duration(
        steps=40, seconds=5.0, until_deviation=0.1
    )


@pytest.mark.server
def test_each_trial_is_logged_once_however_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that end faster than MLflow takes them; without Ray, which would be slower."""

    def run_trials(config: SearchConfig, log: TrialLog, *_: Any) -> None:
        report = TrialReport(
            deviation=0.01, samples=100, compute_seconds=0.1, seconds=0.1,
            deviations={"gaussian/running": 0.01}, stop_reason="samples", history=[[100, 0.01]],
        )  # fmt: skip
        while (proposed := log.propose()) is not None:
            log.finish(proposed[0], report, "")

    monkeypatch.setattr(job.trials, "run", run_trials)
    monkeypatch.setattr(job.trials, "check", lambda config: {})
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    job.search(config(num_trials=40, storage=str(tmp_path), tracking={"uri": store}))
    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name("precalib_ray")
    assert found is not None
    runs = client.search_runs([found.experiment_id], max_results=1000)
    keys = Counter(r.data.tags.get("precalib.trial") for r in runs)
    assert len(keys) == 1 + 40 + 3
    assert set(keys.values()) == {1}
    assert {r.info.status for r in runs} == {"FINISHED"}
    one = next(r for r in runs if r.data.tags.get("precalib.trial") == "00039")
    history = client.get_metric_history(one.info.run_id, "final/deviation")
    assert [m.value for m in history] == [0.01]
