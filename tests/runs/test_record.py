"""``run.json``: what it keeps, and what version 0.1.0 called it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.sections import Tracking
from precalib_ray.errors import CheckpointError, ConfigError
from precalib_ray.runs import record as records
from precalib_ray.runs.record import RunRecord


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return load.validate(
        PretrainConfig,
        {
            "name": "n",
            "storage": str(tmp_path),
            "model": {"kind": "mlp", "num_classes": 3, "input_shape": [4]},
            "noise": {"kind": "pink", "alpha": 2.0},
            "duration": {"steps": 1},
        },
    )


def test_there_and_back(config: PretrainConfig, tmp_path: Path) -> None:
    record = RunRecord(config)
    assert (record.run_id, record.result, record.synced) == (None, None, False)
    assert not (tmp_path / "n" / "run.json").exists()  # written with the first update
    record.begin("pretrain", run_id="r")
    record.update(result={"a": 1})
    record.update(synced=True)
    again = RunRecord(config)
    assert (again.run_id, again.result, again.synced) == ("r", {"a": 1}, True)
    content = json.loads((tmp_path / "n" / "run.json").read_text())
    assert content["phase"] == "pretrain"
    assert set(content["settings"]) == config.not_identity
    assert not set(content["settings"]) & set(content["config"])
    rebuilt = load.validate(PretrainConfig, content["config"] | content["settings"])
    assert rebuilt == config


@pytest.mark.parametrize("told", [True, False])
def test_the_key_of_version_0_1_0(config: PretrainConfig, told: bool, tmp_path: Path) -> None:
    RunRecord(config).update(result={})
    file = tmp_path / "n" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"told": told}))
    record = RunRecord(config)
    assert record.synced is told
    record.update(a=1)
    content = json.loads(file.read_text())
    assert (content["synced"], "told" in content) == (told, False)


def test_differences(config: PretrainConfig) -> None:
    RunRecord(config).update()
    RunRecord(replace(config, tracking=Tracking(experiment="other"), on_save_error="continue"))
    changed = load.load(
        PretrainConfig,
        None,
        [f"{key}={json.dumps(value)}" for key, value in load.identity(config).items()]
        + [f"storage={config.storage}", "noise.kind=gaussian", "seed=3"],
    )
    with pytest.raises(ConfigError) as error:
        RunRecord(changed)
    assert str(error.value).splitlines() == [
        "name: 'n': is taken by a run with another config; choose another name",
        "noise.alpha: None: was 2.0 in that run",
        "noise.kind: 'gaussian': was 'pink' in that run",
        "seed: 3: was 0 in that run",
    ]


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[1]", b'"text"', b"3", b'{"a": 1}', b'{"config": [1]}', b"[" * 100_000],
)
def test_a_record_that_is_none(content: bytes, config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^storage: .*: cannot be read: "):
        RunRecord(config)


def test_storage_that_cannot_be_written(config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for storage in (str(tmp_path / "file"), "nosuchscheme://a/b"):
        with pytest.raises(ConfigError, match=r"^storage: .*: cannot be written: "):
            RunRecord(replace(config, storage=storage))


def test_a_folder_that_is_only_looked_at_is_not_made(tmp_path: Path) -> None:
    folder = records.open_folder(str(tmp_path), "absent", make=False)
    assert records.read(folder, str(tmp_path)) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_on_remote_storage_that_is_gone(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunRecord(config)

    def download(name: str) -> Path:
        raise FileNotFoundError(name)

    monkeypatch.setattr(record.folder, "download", download)
    with pytest.raises(CheckpointError, match=r"/n/step-1: step-1"):
        record.checkpoint("step-1")
