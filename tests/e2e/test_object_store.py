"""A run whose storage is an object store, from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.conftest import run_job
from tests.registry.servers import S3

pytestmark = pytest.mark.e2e


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    server = S3()
    for name, value in (server.environment | {"AWS_ENDPOINT_URL": server.endpoint}).items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


def test_goes_on_where_an_upload_was_cut_off(s3: S3, tmp_path: Path) -> None:
    bucket = boto3.resource("s3").Bucket(s3.bucket)
    job = [
        "name=far", f"storage=s3://{s3.bucket}/runs", "noise.kind=gaussian", "model.kind=mlp",
        "model.num_classes=10", "model.input_shape=[1,8,8]", "model.width=64", "duration.steps=60",
        "checkpoints.every_steps=20", "checkpoints.keep=2", "scaling.cpus_per_worker=1",
    ]  # fmt: skip

    def folders() -> set[str]:
        keys = [found.key.split("/") for found in bucket.objects.filter(Prefix="runs/far/")]
        return {key[2] for key in keys if len(key) > 3 and key[3]}

    def weights() -> bytes:
        return bucket.Object("runs/far/final/model.safetensors").get()["Body"].read()

    first = run_job(tmp_path, "pretrain", *job)
    assert first.code == 0, first.out + first.err
    assert "registered: models:/mlp-k10-precalibrated/1" in first.out
    assert {name for name in folders() if name.startswith(("step-", "final"))} == {
        "step-00000060", "final",
    }  # fmt: skip
    expected = weights()

    # As if rank 0 had been killed in its last upload, and another step had been damaged.
    bucket.Object("runs/far/final/trainer_state.pt").delete()
    bucket.Object("runs/far/final/model.safetensors").put(Body=expected[:100])
    record = json.loads(bucket.Object("runs/far/run.json").get()["Body"].read())
    del record["result"], record["synced"]
    bucket.Object("runs/far/run.json").put(Body=json.dumps(record).encode())
    again = run_job(tmp_path, "pretrain", *job)
    assert again.code == 0, again.out + again.err
    assert "registered: models:/mlp-k10-precalibrated/1" in again.out
    assert "not usable" not in again.out
    assert weights() == expected
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert len(client.search_model_versions("name='mlp-k10-precalibrated'")) == 1
