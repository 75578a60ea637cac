"""The job ``pretrain`` on a real local Ray, with a real MLflow on SQLite."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

import precalib_ray
from precalib_ray.config import base
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.core.engine import Limits
from precalib_ray.core.pretraining import Pretraining
from precalib_ray.errors import CheckpointError, ClusterError, ConfigError, DivergedError
from precalib_ray.service.pretrain import Pretrained, pretrain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def config(tmp_path: Path, **changes: Any) -> PretrainConfig:
    content: dict[str, Any] = {
        "name": "run",
        "storage": str(tmp_path),
        "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "width": 64},
        "noise": {"kind": "gaussian"},
        "batch_size": 64,
        "duration": {"steps": 60},
        "scaling": {"cpus_per_worker": 1},
        "tracking": {"offline": True},
    }
    return base.validate(PretrainConfig, content | changes)


def weights(pretrained: Pretrained) -> dict[str, torch.Tensor]:
    return load_file(pretrained.checkpoint / "model.safetensors")


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def in_process(job: PretrainConfig) -> dict[str, torch.Tensor]:
    """The same recipe without Ray."""
    run = Pretraining(job.model_dump())
    run.run()
    return dict(run.engine.model.state_dict())


def kill_a_worker_at(folder: Path, checkpoint: str, killed: list[int]) -> threading.Thread:
    """SIGKILL a training worker of this process's Ray once a checkpoint is on storage."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (folder / checkpoint / "model.safetensors").exists():
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


def test_is_registered_with_metrics_figures_and_a_loadable_model(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    job = config(tmp_path, tracking={"uri": store})
    done = pretrain(job)
    assert done.model_uri == "models:/mlp-k10-precalibrated/1"

    client = MlflowClient(tracking_uri=store)
    version = client.get_model_version_by_alias("mlp-k10-precalibrated", "candidate")
    assert str(version.version) == "1"
    assert float(version.tags["precalib.deviation"]) == pytest.approx(
        done.outcome["after"]["deviation"], abs=1e-6
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

    model = precalib_ray.load_pretrained(
        "models:/mlp-k10-precalibrated@candidate", tracking_uri=store
    )
    assert model.training
    assert_bit_equal(dict(model.state_dict()), weights(done))

    again = pretrain(job)  # submitted once more: the same version, and no second one
    assert again.model_uri == done.model_uri
    assert len(client.search_model_versions("name='mlp-k10-precalibrated'")) == 1
    assert len(client.search_runs([run.info.experiment_id])) == 1

    with pytest.raises(ConfigError, match=r"(?s)name: 'run': is taken.*seed: 1: was 0"):
        pretrain(config(tmp_path, tracking={"uri": store}, seed=1))


def test_same_seed_gives_the_same_bits_as_a_plain_process(tmp_path: Path) -> None:
    job = config(tmp_path)
    torch.set_num_threads(1)
    first = weights(pretrain(job))
    assert_bit_equal(first, weights(pretrain(config(tmp_path / "again"))))
    assert_bit_equal(first, in_process(job))


def test_two_workers_end_where_one_does(tmp_path: Path) -> None:
    """Without BatchNorm the gradients are those of the same global batches."""
    one = weights(pretrain(config(tmp_path / "one", batch_size=65)))
    scaling = {"num_workers": 2, "cpus_per_worker": 1}
    two = weights(pretrain(config(tmp_path / "two", batch_size=65, scaling=scaling)))
    for name, values in one.items():
        difference = (values - two[name]).norm() / values.norm().clamp_min(1e-12)
        assert difference <= 1e-5, name


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
    undisturbed = weights(pretrain(config(tmp_path / "undisturbed", **changes)))
    killed: list[int] = []
    thread = kill_a_worker_at(tmp_path / "disturbed" / "run", "step-00000500", killed)
    done = pretrain(config(tmp_path / "disturbed", **changes))
    thread.join()
    assert killed
    assert done.outcome["progress"]["step"] == 3000
    assert_bit_equal(undisturbed, weights(done))

    thread = kill_a_worker_at(tmp_path / "lost" / "run", "step-00000500", killed)
    scaling = {"cpus_per_worker": 1, "max_failures": 0}
    with pytest.raises(ClusterError, match=r"workers were lost more often than scaling.max_fail"):
        pretrain(config(tmp_path / "lost", **changes | {"scaling": scaling}))
    thread.join()


def test_damaged_checkpoints_are_passed_over_or_named(tmp_path: Path) -> None:
    """An unfinished run goes on from the newest checkpoint that can be read."""
    job = config(tmp_path, checkpoints={"every_steps": 20, "keep": 3})
    folder = tmp_path / "run"

    def damage(pattern: str) -> None:
        for file in folder.glob(f"{pattern}/trainer_state.pt"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        record = (folder / "run.json").read_text()
        (folder / "run.json").write_text(record.replace('"result"', '"forgotten"'))

    expected = weights(pretrain(job))
    damage("final")
    damage("*60")
    assert_bit_equal(expected, weights(pretrain(job)))
    damage("*")
    with pytest.raises(CheckpointError, match=r"/trainer_state.pt: truncated"):
        pretrain(job)


def test_a_diverging_run_stops_at_once_and_names_its_last_good_checkpoint(tmp_path: Path) -> None:
    noise = {"kind": "function", "name": "tests.cluster.user_functions:noise_turning_nan"}
    job = config(
        tmp_path,
        noise=noise,
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


def test_what_was_made_offline_is_registered_later(tmp_path: Path) -> None:
    made = pretrain(config(tmp_path))
    assert made.model_uri is None
    later = pretrain(config(tmp_path, tracking={"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}))
    assert later.model_uri == "models:/mlp-k10-precalibrated/1"
    assert later.outcome == made.outcome


def test_limits_are_those_of_the_engine(tmp_path: Path) -> None:
    assert config(tmp_path, duration={"steps": 7, "samples": 64}).limits == Limits(
        steps=7, samples=64
    )
