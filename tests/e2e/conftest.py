"""Jobs as a user runs them: processes, with their own Ray."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from precalib_ray import cli
from precalib_ray.config import jobs
from precalib_ray.config.sections import JobConfig

REPOSITORY = Path(__file__).parents[2]
CLASSES: dict[str, type[JobConfig]] = {name: jobs.config_class(name) for name in jobs.NAMES}
"""The config of each job; YAML files are named after their job."""


def environment() -> dict[str, str]:
    """That of a user: without what other tests, in this process, have told Ray and MLflow."""
    ours = ("RAY_ADDRESS", "COLUMNS", "MLFLOW_TRACKING_URI")
    return {k: v for k, v in os.environ.items() if k not in ours} | {"PYTHONPATH": str(REPOSITORY)}


@dataclass(frozen=True)
class Finished:
    """A job that has ended."""

    code: int
    out: str
    err: str
    seconds: float


def run_job(folder: Path, name: str, *arguments: str, timeout: float = 300) -> Finished:
    """Run ``python jobs/NAME.py ARGUMENTS`` in a folder."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Finished]:
    """``run_job`` in an empty folder."""
    return functools.partial(run_job, tmp_path)


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """``run_job`` without a process, for jobs that end before they start Ray."""

    def run(name: str, *arguments: str) -> Finished:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        factory, on_term = logging.getLogRecordFactory(), signal.getsignal(signal.SIGTERM)
        code, connected, started = 0, ray.is_initialized(), time.monotonic()
        try:
            cli.run(name, arguments, program=f"python jobs/{name}.py", name=f"{name}.py")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logging.setLogRecordFactory(factory)
            signal.signal(signal.SIGTERM, on_term)
        assert ray.is_initialized() == connected
        return Finished(code, *capsys.readouterr(), time.monotonic() - started)

    return run


@dataclass(frozen=True)
class Quickstart:
    """The quickstart, and where it was given."""

    done: Finished
    folder: Path


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    folder = tmp_path_factory.mktemp("quickstart")
    return Quickstart(run_job(folder, "quickstart"), folder)
