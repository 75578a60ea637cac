"""What a search proposes and logs, and how it resumes; without Ray."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.errors import ConfigError, StorageError
from precalib_ray.search.report import TrialReport
from precalib_ray.search.sampler import MEMORY
from precalib_ray.search.trial import Trial
from precalib_ray.search.trials import TrialLog
from precalib_ray.storage.folder import Folder

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
    return load.validate(SearchConfig, content | changes)


def log_of(config: SearchConfig) -> TrialLog:
    return TrialLog(config, Folder.at(config.storage) / config.name)


def report(job: dict[str, Any]) -> TrialReport:
    """Better the nearer the learning rate is to 0.003; reached within a factor of two."""
    recipe: PretrainConfig = job["recipe"]
    if job["reference"]:
        deviation, reached = 0.1, False
    else:
        ratio = recipe.optimizer.lr / 3e-3
        deviation = 0.005 * max(ratio, 1 / ratio)
        reached = deviation <= 0.01
    return TrialReport(
        deviation=deviation,
        samples=int(3200 * min(1.0, deviation / 0.01)),
        reached=reached,
        stop_reason="until_deviation" if reached else "samples",
        compute_seconds=1.0,
    )


def drive(log: TrialLog, most: int = 1000) -> list[str]:
    keys: list[str] = []
    while len(keys) < most and (proposal := log.propose()) is not None:
        key, job = proposal
        keys.append(key)
        log.finish(key, report(job), "")
    return keys


def learning_rate(trial: Trial) -> float:
    assert trial.recipe is not None
    return float(trial.recipe["optimizer"]["lr"])


def test_references_come_first_and_every_trial_once(tmp_path: Path) -> None:
    log = log_of(config(tmp_path))
    assert log.num_left == 12 + 3
    keys = drive(log)
    assert keys[:3] == ["reference-untrained", "reference-zero_head", "reference-paper"]
    assert keys[3:] == [f"{number:05d}" for number in range(12)]
    assert log.num_left == 0
    assert log.propose() is None
    for trial in log.trials:
        assert trial.point is not None
        assert ("noise.pink.alpha" in trial.point) == (trial.point["noise"] == "pink")


def test_the_files_have_the_keys_that_earlier_versions_wrote(tmp_path: Path) -> None:
    """A search that an earlier version began is resumed by this one."""
    log = log_of(config(tmp_path))
    began = ["key", "state", "reference", "point", "recipe", "max_samples"]
    key, _ = log.propose() or ("", {})
    file = tmp_path / "search" / "trials" / f"{key}.json"
    assert list(json.loads(file.read_text())) == began
    report = TrialReport(
        deviation=0.1, samples=64, deviations={"gaussian/running": 0.1}, initial_deviation=0.5,
        seconds=1.0, reached=False, history=[[32, 0.2], [64, 0.1]], compute_seconds=2.0,
        downstream={"gap": 0.1, "accuracy": 0.9, "ece": 0.1, "nll": 0.2}, stop_reason="samples",
    )  # fmt: skip
    log.finish(key, report, "")
    written = json.loads(file.read_text())
    assert set(written) == {
        *began, "reason", "deviation", "samples", "deviations", "initial_deviation", "seconds",
        "reached", "history", "compute_seconds", "downstream",
    }  # fmt: skip
    assert written["reason"] == "samples"
    assert Trial.from_json(written) == log.records[key]
    assert log_of(config(tmp_path)).records[key] == log.records[key]
    # Not by earlier versions, but perhaps by later ones.
    assert Trial.from_json(written | {"unheard_of": 1}) == log.records[key]


def test_the_time_of_all_submissions_is_counted(tmp_path: Path) -> None:
    job, told = config(tmp_path, references=[], num_trials=1), list[float]()
    log = TrialLog(job, Folder.at(str(tmp_path)) / "search", seconds=100.0, on_seconds=told.append)
    drive(log)
    assert told == [log.seconds]
    assert 100 < log.seconds < 160


def test_what_has_ended_is_kept_and_what_was_running_is_run_again(tmp_path: Path) -> None:
    job = config(tmp_path)
    first = log_of(job)
    drive(first, most=9)
    running = [first.propose(), first.propose()]  # the driver is killed here
    ended = {key: trial for key, trial in first.records.items() if trial.ended}
    assert len(ended) == 9

    second = log_of(job)
    assert second.num_left == 15 - 9
    again = [second.propose(), second.propose()]
    assert again == running
    for key, proposed in filter(None, again):
        assert proposed["recipe"].name == f"search/nested/{key}"
        second.finish(key, report(proposed), "")
    assert drive(second) == ["00008", "00009", "00010", "00011"]
    for key, trial in ended.items():
        assert second.records[key] == trial
    for key, _ in filter(None, running):
        assert second.records[key].recipe == first.records[key].recipe
    assert len(second.records) == 15
    assert log_of(job).propose() is None


def test_tpe_learns_from_what_an_earlier_submission_found(tmp_path: Path) -> None:
    job = config(tmp_path, num_trials=60, references=[])
    drive(log_of(job), most=30)
    log = log_of(job)
    drive(log)
    far = [abs(learning_rate(t) / 3e-3 - 1) for t in log.trials]
    assert statistics.median(far[-20:]) < 0.6 * statistics.median(far[:20])  # it still explores


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_what_is_proposed_after_a_kill_was_not_proposed_before(
    algorithm: str, tmp_path: Path
) -> None:
    job = config(tmp_path, algorithm=algorithm, num_trials=16, references=[])
    drive(log_of(job), most=8)
    log = log_of(job)
    drive(log)
    points = {json.dumps(t.point, sort_keys=True) for t in log.trials}
    assert len(points) == 16


@pytest.fixture(scope="module")
def long_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchConfig, TrialLog]:
    """450 trials, driven to the end."""
    job = config(tmp_path_factory.mktemp("long"), num_trials=450, references=[])
    log = log_of(job)
    drive(log)
    return job, log


@pytest.mark.e2e
def test_a_long_search_taken_up_again_knows_what_was_found_where(
    long_search: tuple[SearchConfig, TrialLog],
) -> None:
    log = log_of(long_search[0])
    found = {(t.values[0], t.params["optimizer.lr"]) for t in log.scored_study.trials}
    assert found == {(log.scores(t)[0], learning_rate(t)) for t in log.trials}


@pytest.mark.e2e
def test_a_long_search_looks_at_few_trials_and_forgets_no_score(
    long_search: tuple[SearchConfig, TrialLog],
) -> None:
    log = long_search[1]
    remembered = log.sampler._study.trials
    assert len(remembered) < 2 * MEMORY
    assert len(log.scored_study.trials) == 450
    scores = [log.scores(t)[0] for t in log.trials]
    assert [min(scores)] in [trial.values for trial in remembered]
    near = 1.3 * min(scores)
    assert statistics.median(scores[-50:]) < near < statistics.median(scores[:10])


def test_a_trial_killed_before_it_was_refused_is_refused(tmp_path: Path) -> None:
    job = config(tmp_path, references=[], num_trials=1)
    log = log_of(job)
    log.propose()
    log._save(replace(log.records["00000"], recipe=None))
    again = log_of(job)
    assert again.propose() is None
    assert again.records["00000"].state == "failed"


def test_the_best_reached_the_target_with_the_fewest_samples(tmp_path: Path) -> None:
    log = log_of(config(tmp_path, algorithm="random", num_trials=30))
    drive(log)
    best = log.best(30)
    scores = [log.scores(t)[0] for t in best]
    assert scores == sorted(scores)
    assert best[0].reached
    missed = [t for t in best if not t.reached]
    assert missed
    assert min(log.scores(t)[0] for t in missed) >= 3200


def test_pareto_minimizes_both(tmp_path: Path) -> None:
    log = log_of(config(tmp_path, objective="pareto", references=[]))
    drive(log)
    front = {tuple(trial.values) for trial in log.scored_study.best_trials}
    assert front
    assert front <= {(t.deviation, t.samples) for t in log.trials}


def test_grid_is_tried_in_whole(tmp_path: Path) -> None:
    recipe = {"optimizer": {"kind": "adam", "lr": {"choice": [1e-3, 3e-3]}},
              "noise": {"choice": [{"kind": "gaussian"}, {"kind": "laplace"}]}}  # fmt: skip
    recipe["batch_size"] = {"randint": [1, 101]}
    log = log_of(config(tmp_path, algorithm="grid", recipe=recipe, references=[]))
    assert log.num_trials == 808
    drive(log)
    points = {json.dumps(t.point, sort_keys=True) for t in log.trials}
    assert len(points) == 808


@pytest.mark.parametrize("content", ["{", "[1]", '{"key": "00000"}', "3"])
def test_a_record_that_is_none(content: str, tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path)) / "search"
    (folder / "trials").write("00000.json", content)
    with pytest.raises(StorageError, match=r"/trials/00000\.json: "):
        TrialLog(config(tmp_path), folder)


def test_failures_are_recorded_with_their_reasons(tmp_path: Path) -> None:
    ended: list[str] = []
    job = config(tmp_path, references=[], num_trials=4)
    folder = Folder.at(str(tmp_path)) / job.name
    log = TrialLog(job, folder)
    log.on_end = lambda trial: ended.append(trial.state)
    for error, last in (
        ("lost", None),
        ("", TrialReport(failed="NaN at step 3")),
        ("", TrialReport(deviation=0.2, samples=64)),
        ("", None),
    ):
        key, _ = log.propose() or ("", {})
        log.finish(key, last, error)
    assert ended == ["failed", "failed", "stopped", "stopped"]
    assert [t.reason for t in log.trials] == [
        "lost", "NaN at step 3", "successive halving", "successive halving"
    ]  # fmt: skip
    assert [t.key for t in log.best(9)] == ["00002"]


def test_settings_that_do_not_go_together_are_a_failed_trial(tmp_path: Path) -> None:
    """Each option is good with the first of the others, and not all are with each other."""
    recipe = {
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": {"choice": [0.9, 0.0]},
                      "nesterov": {"choice": [False, True]}},
    }  # fmt: skip
    log = log_of(config(tmp_path, algorithm="grid", recipe=RECIPE | recipe | {
        "noise": {"kind": "gaussian"}}, references=[]))  # fmt: skip
    keys = drive_plain(log)
    failed = [t for t in log.trials if t.state == "failed"]
    assert len(log.trials) == 2 * 2 * 2
    assert len(failed) == 2
    assert all("needs a momentum" in str(t.reason) for t in failed)
    assert len(keys) == 6


def drive_plain(log: TrialLog) -> list[str]:
    keys: list[str] = []
    while (proposal := log.propose()) is not None:
        keys.append(proposal[0])
        log.finish(proposal[0], TrialReport(deviation=0.1, samples=1, stop_reason="samples"), "")
    return keys


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_bad_searches_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)
