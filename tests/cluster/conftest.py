"""One local Ray for all tests of the folder, and finished runs that tests only look at."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from precalib_ray.cluster import session
from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.data import convert
from precalib_ray.jobs.pretrain import Pretrained, pretrain
from tests.cluster import jobs
from tests.e2e.conftest import REPOSITORY


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """It starts in seconds, and is the real thing."""
    with session.connect():
        yield


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    convert.convert_digits(folder)
    return folder


@pytest.fixture(scope="session")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """``jobs.pretraining`` done, offline. Read-only: see ``copied``."""
    return pretrain(jobs.pretraining(tmp_path_factory.mktemp("finished")))


@pytest.fixture
def copied(finished: Pretrained, tmp_path: Path) -> Callable[[], Path]:
    """Copies the folder of ``finished`` to ``tmp_path``, as if run there; returns the copy."""

    def copy() -> Path:
        folder = tmp_path / "run"
        shutil.copytree(finished.checkpoint.parent, folder)
        return folder

    return copy


@dataclass(frozen=True)
class Twice:
    """One job that two processes were given at the same moment."""

    job: PretrainConfig
    store: str
    done: Pretrained
    said: str
    """By both."""
    other_code: int


@pytest.fixture(scope="session")
def twice(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """The job of ``finished``, tracked, in this process and in another."""
    folder = tmp_path_factory.mktemp("twice")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    job = jobs.pretraining(folder, tracking={"uri": store, "max_wait": 0})
    (folder / "job.yaml").write_text(load.to_yaml(job))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    other = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "pretrain.py"), str(folder / "job.yaml")],
        cwd=folder, env=environment | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as here:
        done = pretrain(job)
    there, _ = other.communicate(timeout=300)
    return Twice(job, store, done, here.getvalue() + there, other.returncode)
