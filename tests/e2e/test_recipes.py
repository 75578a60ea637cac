"""What the shipped recipes reach, and what a user brings along."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core.phases.pretraining import Pretraining
from precalib_ray.data import convert, parquet
from precalib_ray.runs import preflight
from tests.e2e.conftest import REPOSITORY, Finished, environment

FASHION = Path("/usr/share/datasets/fashion-mnist")

pytestmark = pytest.mark.e2e


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_resnet18_from_certain_of_everything_to_chance(tmp_path: Path) -> None:
    """He-initialized, on 2,500 samples of noise, also on images that it never saw."""
    config = load.load(PretrainConfig, REPOSITORY / "configs" / "pretrain_resnet18.yaml")
    convert.convert_idx(tmp_path, source=FASHION)
    assert parquet.read_info(parquet.split_path(tmp_path, "test")).num_classes == 10
    size, shape = config.probes.size, config.model.input_shape
    images = preflight.read_inputs(str(tmp_path), "test", shape, limit=size)
    outcome = Pretraining(config, images={"fashion": images}).run()
    probes = {(m.probe, m.mode) for m in outcome.after.measurements}
    names = ("gaussian", "pink", "patches", "fashion")
    assert probes == {(name, mode) for name in names for mode in ("running", "batch")}
    assert outcome.before.deviation > 0.85
    assert outcome.after.deviation <= 0.005
    assert outcome.progress.samples <= 2_500


def test_own_noise_lies_where_the_job_is_started_which_goes_on_when_interrupted(
    job: Callable[..., Finished], tmp_path: Path
) -> None:
    (tmp_path / "my_noise.py").write_text(
        "import torch\n\n\n"
        "def stripes(shape, generator, device):\n"
        "    rows = torch.randn(*shape[:-1], 1, generator=generator, device=device)\n"
        "    return rows.expand(shape)\n"
    )
    arguments = [
        str(REPOSITORY / "configs" / "pretrain_mlp.yaml"),
        "noise={kind: function, name: 'my_noise:stripes'}",
        "duration={steps: 1200}",
        "checkpoints.every_steps=100",
        "tracking.offline=true",
    ]
    # Where the tests run in the background of a shell, SIGINT is ignored, by what they start too.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "pretrain.py"), *arguments],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, inherited)
    folder = tmp_path / "runs" / "mlp-k10"
    deadline = time.monotonic() + 300
    try:
        while not list(folder.glob("step-*/model.safetensors")):
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.1)
    finally:
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert err == "pretrain.py: interrupted; the same command resumes from the last checkpoint\n"
    assert not (folder / "final").exists()

    again = job("pretrain", *arguments)
    assert again.code == 0, again.err
    assert again.err == ""
    assert "stopped by steps after 1200 steps" in again.out
    assert (folder / "final" / "model.safetensors").exists()
