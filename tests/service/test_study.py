"""What a search proposes, records, and takes up again; without Ray."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from precalib_ray.config import base
from precalib_ray.config.search import SearchConfig
from precalib_ray.service.identity import Identity
from precalib_ray.service.study import Study

RECIPE: dict[str, Any] = {
    "model": {"kind": "mlp", "num_classes": 4, "input_shape": [6], "depth": 2, "width": 16},
    "noise": {"choice": [{"kind": "gaussian"}, {"kind": "pink", "alpha": {"uniform": [0.5, 3]}}]},
    "labels": {"choice": [{"kind": "hard"}, {"kind": "uniform"}]},
    "optimizer": {"kind": "adam", "lr": {"loguniform": [1e-4, 1e-2]}},
    "batch_size": 32,
    "duration": {"samples": 3200, "until_deviation": 0.01},
}


DOWNSTREAM = {"objective": "downstream", "downstream": {"data": {"path": "data"}}}


def config(folder: Path, **changes: Any) -> SearchConfig:
    content: dict[str, Any] = {
        "name": "search",
        "storage": str(folder),
        "recipe": RECIPE | changes.pop("recipe", {}),
        "num_trials": 12,
    }
    return base.validate(SearchConfig, content | changes)


def study_of(config: SearchConfig) -> Study:
    return Study(config, Identity(config, name=config.name, storage=config.storage))


def report(job: dict[str, Any]) -> dict[str, Any]:
    """Better the nearer the learning rate is to 0.003; reached within a factor of two."""
    if job["reference"]:
        deviation, reached = 0.1, False
    else:
        ratio = job["recipe"]["optimizer"]["lr"] / 3e-3
        deviation = 0.005 * max(ratio, 1 / ratio)
        reached = deviation <= 0.01
    samples = int(3200 * min(1.0, deviation / 0.01))
    stop_reason = "until_deviation" if reached else "samples"
    return {"deviation": deviation, "samples": samples, "reached": reached,
            "stop_reason": stop_reason, "compute_seconds": 1.0, "pid": 7}  # fmt: skip


def drive(study: Study, most: int = 1000) -> list[str]:
    keys: list[str] = []
    while len(keys) < most and (proposal := study.propose()) is not None:
        key, job = proposal
        keys.append(key)
        study.finish(key, report(job), "")
    return keys


def test_references_come_first_and_every_trial_once(tmp_path: Path) -> None:
    study = study_of(config(tmp_path))
    assert study.num_left == 12 + 3
    keys = drive(study)
    assert keys[:3] == ["reference-untrained", "reference-zero_head", "reference-paper"]
    assert keys[3:] == [f"{number:05d}" for number in range(12)]
    assert study.num_left == 0
    assert study.propose() is None
    record = study.trials[0]
    assert "pid" not in record  # what Tune adds is not ours
    assert ("noise.pink.alpha" in record["point"]) == (record["point"]["noise"] == "pink")


def test_what_has_ended_is_kept_and_what_was_running_is_run_again(tmp_path: Path) -> None:
    job = config(tmp_path)
    first = study_of(job)
    drive(first, most=9)
    running = [first.propose(), first.propose()]  # the driver is killed here
    ended = {k: dict(r) for k, r in first.records.items() if r["state"] != "running"}

    second = study_of(job)
    assert second.num_left == 15 - 9
    keys = drive(second)
    assert keys[:2] == [key for key, _ in running if key]  # type: ignore[misc]
    assert keys[2:] == ["00008", "00009", "00010", "00011"]
    for key, record in ended.items():
        assert second.records[key] == record
    for proposal in running:
        assert proposal is not None
        assert second.records[proposal[0]]["recipe"] == first.records[proposal[0]]["recipe"]
    assert len(second.records) == 15
    assert study_of(job).propose() is None


def test_tpe_learns_from_what_an_earlier_submission_found(tmp_path: Path) -> None:
    job = config(tmp_path, num_trials=60, references=[])
    drive(study_of(job), most=30)
    study = study_of(job)
    drive(study)
    far = [abs(r["recipe"]["optimizer"]["lr"] / 3e-3 - 1) for r in study.trials]
    assert statistics.median(far[-20:]) < 0.6 * statistics.median(far[:20])  # it goes on exploring


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_what_is_proposed_after_a_kill_was_not_proposed_before(
    algorithm: str, tmp_path: Path
) -> None:
    job = config(tmp_path, algorithm=algorithm, num_trials=16, references=[])
    drive(study_of(job), most=8)
    study = study_of(job)
    drive(study)
    points = {json.dumps(r["point"], sort_keys=True) for r in study.trials}
    assert len(points) == 16


@pytest.fixture(scope="module")
def long_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchConfig, Study]:
    """450 trials, driven to the end."""
    job = config(tmp_path_factory.mktemp("long"), num_trials=450, references=[])
    study = study_of(job)
    drive(study)
    return job, study


@pytest.mark.e2e
def test_a_long_search_taken_up_again_knows_what_was_found_where(
    long_search: tuple[SearchConfig, Study],
) -> None:
    study = study_of(long_search[0])
    lr = "optimizer.lr"
    found = {(trial.values[0], trial.params[lr]) for trial in study.scored_study.trials}
    assert found == {(study.scores(r)[0], r["point"][lr]) for r in study.trials}


@pytest.mark.e2e
def test_a_long_search_looks_at_few_trials_and_forgets_no_score(
    long_search: tuple[SearchConfig, Study],
) -> None:
    study = long_search[1]
    assert len(study._recent.trials) < 400
    assert len(study.scored_study.trials) == 450
    values = {tuple(trial.values) for trial in study._recent.trials}
    assert min(tuple(study.scores(r)) for r in study.trials) in values
    scores = [study.scores(r)[0] for r in study.trials]
    near = 1.3 * min(scores)
    assert statistics.median(scores[-50:]) < near < statistics.median(scores[:10])


def test_a_trial_killed_before_it_was_refused_is_refused(tmp_path: Path) -> None:
    job = config(tmp_path, references=[], num_trials=1)
    study = study_of(job)
    study.propose()
    study.records["00000"]["recipe"] = None
    study._save(study.records["00000"])
    again = study_of(job)
    assert again.propose() is None
    assert again.records["00000"]["state"] == "failed"


def test_the_best_reached_the_target_with_the_fewest_samples(tmp_path: Path) -> None:
    study = study_of(config(tmp_path, algorithm="random", num_trials=30))
    drive(study)
    best = study.best(30)
    scores = [study.scores(r)[0] for r in best]
    assert scores == sorted(scores)
    assert best[0]["reached"]
    missed = [r for r in best if not r["reached"]]
    assert missed
    assert min(study.scores(r)[0] for r in missed) >= 3200


def test_pareto_tells_both(tmp_path: Path) -> None:
    study = study_of(config(tmp_path, objective="pareto", references=[]))
    drive(study)
    front = {tuple(trial.values) for trial in study.scored_study.best_trials}
    assert front <= {(r["deviation"], float(r["samples"])) for r in study.trials}


def test_grid_is_tried_in_whole(tmp_path: Path) -> None:
    recipe = {"optimizer": {"kind": "adam", "lr": {"choice": [1e-3, 3e-3]}},
              "noise": {"choice": [{"kind": "gaussian"}, {"kind": "laplace"}]}}  # fmt: skip
    recipe["batch_size"] = {"randint": [1, 101]}
    study = study_of(config(tmp_path, algorithm="grid", recipe=recipe, references=[]))
    assert study.num_trials == 808
    drive(study)
    points = {json.dumps(r["point"], sort_keys=True) for r in study.trials}
    assert len(points) == 808


def test_failures_are_recorded_with_their_reasons(tmp_path: Path) -> None:
    ended: list[str] = []
    job = config(tmp_path, references=[], num_trials=4)
    identity = Identity(job, name=job.name, storage=job.storage)
    study = Study(job, identity, on_end=lambda record: ended.append(record["state"]))
    for error, told in (("lost", None), ("", {"failed": "NaN at step 3"}), ("", {"deviation": 0.2,
                        "samples": 64}), ("", None)):  # fmt: skip
        key, _ = study.propose() or ("", {})
        study.finish(key, told, error)
    assert ended == ["failed", "failed", "stopped", "stopped"]
    assert [r["reason"] for r in study.trials] == [
        "lost", "NaN at step 3", "successive halving", "successive halving"
    ]  # fmt: skip
    assert [r["key"] for r in study.best(9)] == ["00002"]


def test_settings_that_do_not_go_together_are_a_failed_trial(tmp_path: Path) -> None:
    """Each option is good with the first of the others, and not all are with each other."""
    recipe = {
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": {"choice": [0.9, 0.0]},
                      "nesterov": {"choice": [False, True]}},
    }  # fmt: skip
    study = study_of(config(tmp_path, algorithm="grid", recipe=RECIPE | recipe | {
        "noise": {"kind": "gaussian"}}, references=[]))  # fmt: skip
    keys = drive_plain(study)
    failed = [r for r in study.trials if r["state"] == "failed"]
    assert len(study.trials) == 2 * 2 * 2
    assert len(failed) == 2
    assert all("needs a momentum" in r["reason"] for r in failed)
    assert len(keys) == 6


def drive_plain(study: Study) -> list[str]:
    keys: list[str] = []
    while (proposal := study.propose()) is not None:
        keys.append(proposal[0])
        study.finish(proposal[0], {"deviation": 0.1, "samples": 1, "stop_reason": "samples"}, "")
    return keys


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"recipe": {"noise": {"choice": [{"kind": "pnk"}]}}}, r"recipe\.noise\.kind.*pink"),
        ({"recipe": {"batch_sise": 3}}, r"recipe\.batch_sise.*batch_size"),
        ({"recipe": {"optimizer": {"kind": "adam", "lr": {"uniform": [-1, 1]}}}}, "recipe.*lr"),
        ({"recipe": {"duration": {"samples": 100}}}, "until_deviation.*cost_to_target"),
        ({"recipe": {"duration": {"seconds": 5, "until_deviation": 0.01}}}, "steps or samples"),
        ({"recipe": {"name": "x"}}, r"recipe\.name"),
        ({"algorithm": "grid"}, "cannot be enumerated"),
        ({"objective": "downstream"}, "downstream"),
        (DOWNSTREAM | {"trials": {"num_workers": 2}}, r"trials\.num_workers.*must be 1"),
        (DOWNSTREAM | {"references": ["paper"]}, r"references.*must hold untrained"),
        ({"trials": {"num_workers": 2, "gpus": 0.5}}, r"trials\.gpus: 0\.5: must be 0 or 1"),
    ],
)
def test_bad_searches_are_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(base.ConfigError, match=told):
        config(tmp_path, **changes)
