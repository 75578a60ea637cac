"""Publishing that was interrupted, and the data that a run says it used."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from precalib_ray.core import checkpoint
from precalib_ray.core.models.mlp import MLP
from precalib_ray.data import convert, parquet
from precalib_ray.registry import lineage, publishing, server, tracking

pytestmark = pytest.mark.server


def test_data_sets_are_inputs_of_a_run_once(tmp_path: Path) -> None:
    convert.convert_digits(tmp_path / "digits")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = tracking.Run(uri=store, experiment="e", name="r", tags={})
    uses = [
        lineage.DatasetUse(str(tmp_path / "digits"), split, split) for split in ("train", "test")
    ]
    others = tmp_path / "others"
    others.mkdir()
    pq.write_table(pa.table({"img": [b"?"]}), others / "val.parquet")  # without our metadata
    uses.append(lineage.DatasetUse(str(others), "val", "val"))
    for _ in range(2):
        digests = lineage.log_data(run, uses)
    inputs = run.client.get_run(run.run_id).inputs.dataset_inputs
    found = {i.dataset.name: (i.dataset.digest, i.tags[0].value) for i in inputs}
    assert len(inputs) == 3
    gone = lineage.DatasetUse(str(tmp_path / "gone@2"), "train", "noise")
    assert gone.name == "gone_2-train"
    assert gone not in lineage.log_data(run, [*uses, gone])
    for use in uses:
        sha = parquet.fingerprint(parquet.split_path(Path(use.path), use.split))
        assert digests[use] == sha
        assert found[use.name] == (sha[:36], use.split)


def test_publishing_that_was_interrupted_half_way_continues(tmp_path: Path) -> None:
    settings = MLP(num_classes=3, input_shape=(4,))
    directory = checkpoint.save(
        tmp_path / "checkpoint", model=settings.build(), settings=settings, metrics={}
    )
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = tracking.Run(uri=store, experiment="e", name="r", tags={})
    server.set_global_uri(store)
    publishing._log_model(run, directory, trust_code=False)  # the process is killed here
    server.set_global_uri(f"sqlite:///{tmp_path / 'another.db'}")  # as in a new process
    versions = [publishing.publish(run, directory, name="m", tags={}) for _ in range(2)]
    assert versions == ["1", "1"]
    experiment = run.client.get_run(run.run_id).info.experiment_id
    assert len(run.client.search_logged_models([experiment])) == 1
    assert len(run.client.search_model_versions("name='m'")) == 1
