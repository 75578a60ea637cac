"""Publishing that was interrupted, and the data that a run says it used."""

from __future__ import annotations

from pathlib import Path

import pytest

from precalib_ray.core import checkpoint, models
from precalib_ray.data import convert, parquet
from precalib_ray.registry import lineage, publishing, tracking

pytestmark = pytest.mark.server


def test_data_sets_are_inputs_of_a_run_once(tmp_path: Path) -> None:
    convert.convert_digits(tmp_path / "digits")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = tracking.Run(uri=store, experiment="e", name="r", tags={})
    used = [lineage.Used(str(tmp_path / "digits"), split, split) for split in ("train", "test")]
    for _ in range(2):
        digests = lineage.log_data(run, used)
    inputs = run.client.get_run(run.run_id).inputs.dataset_inputs
    found = {i.dataset.name: (i.dataset.digest, i.tags[0].value) for i in inputs}
    assert len(inputs) == 2
    gone = lineage.Used(str(tmp_path / "gone@2"), "train", "noise")
    assert gone.name == "gone_2-train"
    assert gone not in lineage.log_data(run, [*used, gone])
    for use in used:
        sha = parquet.fingerprint(parquet.split_path(Path(use.path), use.split))
        assert digests[use] == sha
        assert found[f"digits-{use.split}"] == (sha[:36], use.split)


def test_publishing_that_ended_half_way_goes_on(tmp_path: Path) -> None:
    spec = {"kind": "mlp", "num_classes": 3, "input_shape": [4]}
    directory = checkpoint.save(
        tmp_path / "checkpoint", model=models.build(spec), spec=spec, metrics={}
    )
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = tracking.Run(uri=store, experiment="e", name="r", tags={})
    tracking.set_global_uri(store)
    publishing._log(run, directory, trust_code=False)  # the first half, and the process is killed
    tracking.set_global_uri(f"sqlite:///{tmp_path / 'another.db'}")  # as in a new process
    versions = [publishing.publish(run, directory, name="m", tags={}) for _ in range(2)]
    assert versions == ["1", "1"]
    experiment = run.client.get_run(run.run_id).info.experiment_id
    assert len(run.client.search_logged_models([experiment])) == 1
    assert len(run.client.search_model_versions("name='m'")) == 1
