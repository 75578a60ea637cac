"""The job ``pretrain`` on a real local Ray, with a real MLflow on SQLite."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

import precalib_ray
from precalib_ray.errors import CheckpointError, ClusterError, ConfigError, DivergedError
from precalib_ray.jobs.pretrain import Pretrained, pretrain
from tests.cluster.conftest import Twice
from tests.cluster.jobs import NAME, assert_bit_equal, in_process, pretraining, weights
from tests.cluster.nodes import newest_step

pytestmark = pytest.mark.ray


def kill_a_worker_at(folder: Path, step: int, killed: list[int]) -> threading.Thread:
    """SIGKILL a training worker of this process's Ray once a step's checkpoint is on storage."""

    def watch() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if newest_step(folder) >= step:
                time.sleep(0.3)  # some steps further
                for process in psutil.Process().children(recursive=True):
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_is_registered_with_metrics_figures_and_a_loadable_model(twice: Twice) -> None:
    done = twice.done
    assert done.model_uri == f"models:/{NAME}/1"
    client = MlflowClient(tracking_uri=twice.store)
    version = client.get_model_version_by_alias(NAME, "candidate")
    assert str(version.version) == "1"
    assert float(version.tags["precalib.deviation"]) == pytest.approx(
        done.outcome.after.deviation, abs=1e-6
    )
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["noise.kind"] == "gaussian"
    assert run.data.metrics["initial/deviation"] > run.data.metrics["final/deviation"]
    steps = [m.step for m in client.get_metric_history(version.run_id, "loss")]
    assert steps
    assert max(steps) == 60
    artifacts = [a.path for a in client.list_artifacts(version.run_id, "figures")]
    assert artifacts == ["figures/deviation.png"]

    model = precalib_ray.load_pretrained(f"models:/{NAME}@candidate", tracking_uri=twice.store)
    assert model.training
    assert_bit_equal(dict(model.state_dict()), weights(done))


def test_submitted_again_it_returns_the_same_version(twice: Twice) -> None:
    again = pretrain(twice.job)
    assert again.model_uri == twice.done.model_uri
    client = MlflowClient(tracking_uri=twice.store)
    (version,) = client.search_model_versions(f"name='{NAME}'")
    assert len(client.search_runs([client.get_run(version.run_id).info.experiment_id])) == 1

    other = pretraining(Path(twice.job.storage), seed=1, tracking={"uri": twice.store})
    with pytest.raises(ConfigError, match=r"(?s)name: 'run': is taken.*seed: 1: was 0"):
        pretrain(other)


def test_same_seed_gives_the_same_bits_as_a_plain_process(
    finished: Pretrained, twice: Twice
) -> None:
    first = weights(finished)
    assert_bit_equal(first, weights(twice.done))
    assert_bit_equal(first, in_process(twice.job))


def test_two_workers_end_where_one_does(finished: Pretrained, tmp_path: Path) -> None:
    """Without BatchNorm the gradients are those of the same global batches."""
    scaling = {"num_workers": 2, "cpus_per_worker": 1}
    two = weights(pretrain(pretraining(tmp_path, scaling=scaling)))
    for name, values in weights(finished).items():
        difference = (values - two[name]).norm() / values.norm().clamp_min(1e-12)
        assert difference <= 1e-5, name


@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_costs_no_bit(tmp_path: Path) -> None:
    model = {
        "kind": "function",
        "name": "tests.cluster.user_functions:network_with_dropout",
        "num_classes": 10,
        "input_shape": [1, 8, 8],
    }
    changes = {
        "model": model,
        "duration": {"steps": 3000},
        "checkpoints": {"every_steps": 500},
    }
    killed: list[int] = []
    thread = kill_a_worker_at(tmp_path / "run", 500, killed)
    scaling = {"cpus_per_worker": 1, "max_failures": 0}
    with pytest.raises(ClusterError, match=r"workers were lost more often than scaling.max_fail"):
        pretrain(pretraining(tmp_path, **changes, scaling=scaling))
    thread.join()

    # Submitted again, it goes on; of this worker's loss Ray may make up.
    thread = kill_a_worker_at(tmp_path / "run", 2000, killed)
    done = pretrain(pretraining(tmp_path, **changes))
    thread.join()
    assert len(killed) == 2
    assert done.outcome.progress.step == 3000
    undisturbed = pretraining(tmp_path / "undisturbed", **changes)
    assert_bit_equal(in_process(undisturbed), weights(done))


def test_damaged_checkpoints_are_passed_over_or_named(
    finished: Pretrained, copied: Callable[[], Path], tmp_path: Path
) -> None:
    """An unfinished run goes on from the newest checkpoint that can be read."""
    folder = copied()
    job = pretraining(tmp_path)

    def damage(pattern: str) -> None:
        for file in folder.glob(f"{pattern}/trainer_state.pt"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        record = (folder / "run.json").read_text()
        (folder / "run.json").write_text(record.replace('"result"', '"forgotten"'))

    damage("final")
    damage("*60")
    assert_bit_equal(weights(finished), weights(pretrain(job)))
    damage("*")
    with pytest.raises(CheckpointError, match=r"/trainer_state.pt: truncated"):
        pretrain(job)


@pytest.mark.usefixtures("ray_session")
def test_a_diverging_run_stops_at_once_and_names_its_last_good_checkpoint(tmp_path: Path) -> None:
    job = pretraining(
        tmp_path,
        noise={"kind": "function", "name": "tests.cluster.user_functions:noise_turning_nan"},
        batch_size=64,
        duration={"steps": 100_000},
        checkpoints={"every_steps": 5},
        scaling={"cpus_per_worker": 1, "max_failures": 3},
    )
    with pytest.raises(DivergedError) as error:
        pretrain(job)
    message = str(error.value)
    assert "step 20" in message  # a batch of 64 is two blocks
    assert "learning rate 0.001" in message
    assert str(tmp_path / "run" / "step-00000020") in message


def test_what_was_made_offline_is_registered_later(
    finished: Pretrained, copied: Callable[[], Path], tmp_path: Path
) -> None:
    assert finished.model_uri is None
    copied()
    later = pretrain(pretraining(tmp_path, tracking={"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}))
    assert later.model_uri == f"models:/{NAME}/1"
    assert later.outcome == finished.outcome
