"""What is said of the data that a run used."""

from __future__ import annotations

from pathlib import Path

import pytest

from precalib_ray.config import base
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.data import convert
from precalib_ray.registry import tracking
from precalib_ray.service import job, registration


def test_data_that_is_gone_is_told_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert.convert_digits(tmp_path / "digits")
    config = base.validate(
        PretrainConfig,
        {
            "name": "n",
            "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8]},
            "noise": {"kind": "matched", "data": str(tmp_path / "gone")},
            "duration": {"steps": 1},
            "probes": {"data": {"digits": {"path": str(tmp_path / "digits"), "split": "test"}}},
        },
    )
    run = tracking.Run(uri=f"sqlite:///{tmp_path / 'm.db'}", experiment="e", name="r", tags={})
    used = registration._data(config)
    assert [use.name for use in used] == ["digits-test", "gone-train"]
    assert set(job.log_data(run, used)) == set(used[:1])
    told = " ".join(capsys.readouterr().out.split())
    assert "gone has no train any more: logged without its digest" in told
