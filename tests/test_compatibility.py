"""What precalib_ray wrote to disk at 4c2394d loads, resumes, promotes, registers and syncs."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

import precalib_ray
from precalib_ray import cli
from precalib_ray.cluster import session, submission
from precalib_ray.config import jobs, load
from precalib_ray.core.importing import load_function
from precalib_ray.core.spec import plain
from tests.fixtures.old_runs import OldRuns, arithmetic, expected, unpack

REPOSITORY = Path(__file__).parents[1]
CONNECT = "precalib_ray.cluster.session.connect"
NAME = "mlp-k10-precalibrated"
CONFIGS = expected()["configs"]
RECORDED = ("pretrain", "train", "search")


def validated(job: str, content: dict[str, Any]) -> Any:
    return load.validate(jobs.config_class(job), content)


def submit(job: str, content: dict[str, Any]) -> Any:
    """Run a job in this process; returns its result."""
    return load_function(f"precalib_ray.jobs.{job}:{job}")(validated(job, content))


def resubmit(old: OldRuns, name: str, **tracking: Any) -> Any:
    """Give a run again, from where it was unpacked."""
    case = CONFIGS[f"runs/{name}"]
    where = {"storage": str(old.storage), "tracking": {"uri": old.store, **tracking}}
    return submit(case["job"], case["config"] | where)


def versions_of(old: OldRuns, run_id: str) -> list[str]:
    found = MlflowClient(old.store).search_model_versions(f"name='{NAME}'")
    return [str(version.version) for version in found if version.run_id == run_id]


def mlflow_run(old: OldRuns, name: str) -> Run:
    return MlflowClient(old.store).get_run(old.record(name)["run_id"])


def steps_of(old: OldRuns, name: str, metric: str) -> list[int]:
    history = MlflowClient(old.store).get_metric_history(old.record(name)["run_id"], metric)
    return sorted(value.step for value in history)


def assert_same_end(old: OldRuns, name: str, checkpoint: Path) -> None:
    """The weights that 4c2394d ended with: bit by bit where the arithmetic is the same."""
    found, kept = load_file(checkpoint / "model.safetensors"), load_file(old.end(name))
    exact = arithmetic() == expected()["arithmetic"]
    assert found.keys() == kept.keys()
    for key, values in kept.items():
        tolerance = 0.0 if exact else 1e-4
        torch.testing.assert_close(found[key], values, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def old_runs(tmp_path_factory: pytest.TempPathFactory) -> OldRuns:
    """For tests that change no run."""
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture
def old(old_runs: OldRuns, monkeypatch: pytest.MonkeyPatch) -> OldRuns:
    monkeypatch.chdir(old_runs.folder)  # data sets of its configs are relative
    return old_runs


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session.connect():
        yield


@pytest.fixture(scope="module")
def changed_runs(tmp_path_factory: pytest.TempPathFactory) -> OldRuns:
    """For tests of which each changes a run of its own."""
    return unpack(tmp_path_factory.mktemp("changed"))


@pytest.fixture
def changed(changed_runs: OldRuns, monkeypatch: pytest.MonkeyPatch) -> OldRuns:
    monkeypatch.chdir(changed_runs.folder)
    return changed_runs


@pytest.mark.parametrize("name", [n for n, case in CONFIGS.items() if case["job"] != "sync"])
def test_a_config_resolves_as_before(name: str) -> None:
    """All but ``sync``, whose tracking has no defaults any more: it holds changes."""
    case = CONFIGS[name]
    assert plain(validated(case["job"], case["config"]), identity=True) == case["resolved"]


@pytest.mark.parametrize("name", [n for n, case in CONFIGS.items() if case["job"] in RECORDED])
def test_a_run_has_its_digest(name: str) -> None:
    case = CONFIGS[name]
    for content in (case["config"], case["resolved"]):
        assert load.digest(validated(case["job"], content)) == case["digest"]


@pytest.mark.parametrize("name", expected()["commands"])
def test_a_config_is_submitted_with_the_command_of_before(name: str) -> None:
    """The words are the same; their order may differ."""
    case = CONFIGS[name]
    found = shlex.split(submission.command(validated(case["job"], case["config"])))
    old = shlex.split(expected()["commands"][name])
    assert found[:4] == old[:4] == ["python", "-m", "precalib_ray", case["job"]]
    assert sorted(found[4:]) == sorted(old[4:])


def test_the_resolved_config_is_printed_as_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    cli.main(["pretrain", "configs/pretrain_mlp.yaml", "--print-config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == yaml.safe_load(expected()["print_config"])


def test_the_recipe_that_a_search_found_is_a_config(old: OldRuns) -> None:
    recipe = yaml.safe_load((old.storage / "searched" / "best.yaml").read_text())
    assert plain(validated("pretrain", recipe))["name"] == "searched-best"


@pytest.mark.server
def test_a_version_is_loaded_by_its_alias(old: OldRuns) -> None:
    model = precalib_ray.load_pretrained(f"models:/{NAME}@candidate", tracking_uri=old.store)
    weights = load_file(old.storage / "finished" / "final" / "model.safetensors")
    found = model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], values) for key, values in weights.items())
    with torch.no_grad():
        confidence = model(torch.randn(64, 1, 8, 8)).softmax(-1).amax(-1).mean()
    assert confidence < 0.12


@pytest.mark.server
def test_a_version_passes_the_gate(old: OldRuns) -> None:
    probes = {"data": {"digits": {"path": "digits"}}, "size": 64}
    content = {"name": NAME, "version": "1", "probes": probes, "tracking": {"uri": old.store}}
    assert submit("promote", content) == "1"
    client = MlflowClient(old.store)
    assert str(client.get_model_version_by_alias(NAME, "champion").version) == "1"


@pytest.mark.server
def test_a_registered_checkpoint_is_known_by_its_digest(old: OldRuns) -> None:
    content = {"path": str(old.storage / "finished" / "final"), "tracking": {"uri": old.store}}
    assert submit("register", content).model_uri == f"models:/{NAME}/1"
    assert len(MlflowClient(old.store).search_model_versions(f"name='{NAME}'")) == 1


@pytest.mark.server
@pytest.mark.parametrize("name", ["finished", "trained", "searched"])
def test_a_finished_run_returns_its_result_without_ray(
    name: str, old: OldRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(CONNECT, refuse)
    record = old.record(name)
    found = resubmit(old, name)
    assert "finished already" in " ".join(capsys.readouterr().out.split())
    assert old.record(name) == record
    if name == "searched":
        assert [t.state for t in found.log.records.values()] == ["finished"] * 5
    else:
        assert load_file(found.checkpoint / "model.safetensors")
    if name == "finished":
        assert found.model_uri == f"models:/{NAME}/1"


@pytest.mark.server
def test_what_mlflow_did_not_take_is_sent_and_registered_once(changed: OldRuns) -> None:
    name = "offline-first"
    assert list((changed.storage / name / "mlflow").glob("*.json"))
    assert mlflow_run(changed, name).info.status == "RUNNING"
    content = {"name": name, "storage": str(changed.storage), "tracking": {"uri": changed.store}}
    version = submit("sync", content).model_uri
    assert submit("sync", content).model_uri == version
    run = mlflow_run(changed, name)
    assert run.info.status == "FINISHED"
    assert [f"models:/{NAME}/{v}" for v in versions_of(changed, run.info.run_id)] == [version]
    probings = changed.record(name)["result"]["outcome"]["progress"]["history"]
    assert steps_of(changed, name, "deviation") == [probing["step"] for probing in probings]
    assert not list((changed.storage / name / "mlflow").glob("*.json"))


@pytest.mark.server
def test_a_finished_run_is_logged_and_registered_where_it_is_not_yet(
    changed: OldRuns,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without Ray and training; and once, also where a submission in between named another server,
    another model, or found that its version or its run was deleted.
    """
    monkeypatch.delattr(CONNECT)
    other = replace(
        changed, server=f"sqlite:///{shutil.copy(empty_store, changed.folder / 'b.db')}"
    )
    client = MlflowClient(other.store)
    first = mlflow_run(changed, "finished").info

    for _ in range(2):
        assert resubmit(other, "finished").model_uri == f"models:/{NAME}/1"
        assert resubmit(changed, "finished").model_uri == f"models:/{NAME}/1"
    assert mlflow_run(changed, "finished").info == first
    resubmit(other, "finished")
    run = mlflow_run(other, "finished")
    assert (run.info.status, versions_of(other, run.info.run_id)) == ("FINISHED", ["1"])
    probings = changed.record("finished")["result"]["outcome"]["progress"]["history"]
    assert steps_of(other, "finished", "deviation") == [probing["step"] for probing in probings]

    client.delete_model_version(NAME, "1")
    capsys.readouterr()
    for _ in range(2):
        assert resubmit(other, "finished").model_uri == f"models:/{NAME}/2"
        shown = " ".join(capsys.readouterr().out.split())
        assert f"registered: models:/{NAME}/2 (alias candidate)" in shown
    assert changed.record("finished")["result"]["model_uri"] == f"models:/{NAME}/2"
    client.delete_run(run.info.run_id)
    assert resubmit(other, "finished").model_uri == f"models:/{NAME}/2"
    assert mlflow_run(other, "finished").info.status == "FINISHED"
    for _ in range(2):
        assert resubmit(other, "finished", register_as="mine").model_uri == "models:/mine/1"
    assert resubmit(other, "finished", offline=True).model_uri is None

    for _ in range(2):
        resubmit(other, "trained")
        resubmit(other, "searched")
    trained = mlflow_run(other, "trained")
    artifacts = client.list_artifacts(trained.info.run_id, "checkpoint")
    assert "checkpoint/model.safetensors" in [artifact.path for artifact in artifacts]
    assert {"best_test/nll", "val/nll", "train/loss"} <= trained.data.metrics.keys()
    children = client.search_runs(
        [run.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{other.record('searched')['run_id']}'",
    )
    assert len(children) == 5


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_pretraining_resumes_and_ends_with_the_same_bits(changed: OldRuns) -> None:
    before = mlflow_run(changed, "interrupted")
    assert before.info.status == "KILLED"
    done = resubmit(changed, "interrupted")
    assert_same_end(changed, "interrupted", done.checkpoint)
    after = mlflow_run(changed, "interrupted")
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    (version,) = versions_of(changed, after.info.run_id)
    assert done.model_uri == f"models:/{NAME}/{version}"
    steps = steps_of(changed, "interrupted", "deviation")
    assert steps == sorted(set(steps))
    assert steps[-1] == 3000


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_data_training_resumes_and_ends_with_the_same_bits(changed: OldRuns) -> None:
    before = mlflow_run(changed, "train-interrupted")
    done = resubmit(changed, "train-interrupted")
    assert_same_end(changed, "train-interrupted", done.checkpoint)
    after = mlflow_run(changed, "train-interrupted")
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    steps = steps_of(changed, "train-interrupted", "val/nll")
    assert len(steps) == len(set(steps)) >= 30


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_search_finishes_the_trials_that_are_left(changed: OldRuns) -> None:
    name = "search-interrupted"
    files = changed.storage / name / "trials"
    ended = {f: f.read_text() for f in files.glob("*.json") if '"finished"' in f.read_text()}
    assert 2 <= len(ended) < 5
    trials = resubmit(changed, name).log.records
    assert [t.state for t in trials.values()] == ["finished"] * 5
    assert all(file.read_text() == text for file, text in ended.items())
    assert changed.record(name)["attempt"] == 2
    run = mlflow_run(changed, name)
    assert run.info.status == "FINISHED"
    children = MlflowClient(changed.store).search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    assert sorted(child.data.tags["precalib.trial"] for child in children) == sorted(trials)
