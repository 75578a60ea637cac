"""The data that a run used, in MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.data import convert
from precalib_ray.registry import tracking
from precalib_ray.runs import publish, tracked


def test_data_that_is_gone_is_announced_and_left_out(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    convert.convert_digits(tmp_path / "digits")
    config = load.validate(
        PretrainConfig,
        {
            "name": "n",
            "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8]},
            "noise": {"kind": "matched", "data": str(tmp_path / "gone")},
            "duration": {"steps": 1},
            "probes": {"data": {"digits": {"path": str(tmp_path / "digits"), "split": "test"}}},
        },
    )
    run = tracking.Run(uri=store, experiment="e", name="r", tags={})
    uses = publish._data(config)
    assert [use.name for use in uses] == ["digits-test", "gone-train"]
    assert set(tracked.log_data(run, uses)) == set(uses[:1])
    assert run.end("FINISHED")
    shown = " ".join(capsys.readouterr().out.split())
    assert "gone no longer exists; logged without its digest" in shown
