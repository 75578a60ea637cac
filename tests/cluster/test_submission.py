"""Jobs given to a running cluster, from Python and from a shell."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from ray.job_submission import JobStatus, JobSubmissionClient

import precalib_ray
from precalib_ray.cluster import submission
from precalib_ray.config import base
from precalib_ray.config.jobs import PretrainConfig, RegisterConfig
from precalib_ray.errors import ClusterError
from tests.e2e.conftest import REPOSITORY
from tests.ray_head import Head, machine, ray_head
from tests.registry.servers import free_port

MIB = 2**20
JOB = {
    "name": "given",
    "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "width": 64},
    "noise": {"kind": "gaussian"},
    "optimizer": {"kind": "adam", "lr": 1e-5},
    "duration": {"steps": 20},
    "scaling": {"cpus_per_worker": 1},
}


def config(**changes: Any) -> PretrainConfig:
    return base.validate(PretrainConfig, JOB | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tracking": {"tags": {"who's": 'a "b" $HOME', "n": "1", "yes": "no"}}},
        {"noise": {"kind": "mixture", "parts": [{"noise": {"kind": "pink"}}] * 9}},
    ],
)
def test_the_command_says_the_same_config(changes: dict[str, Any]) -> None:
    wanted = config(**changes)
    python, *words = shlex.split(submission.command(wanted))
    assert [python, *words[:3]] == ["python", "-m", "precalib_ray", "pretrain"]
    assert base.load(PretrainConfig, None, words[3:]) == wanted


def refused(address: str) -> str:
    started = time.monotonic()
    with pytest.raises(ClusterError) as error:
        precalib_ray.submit(config(), address=address)
    assert time.monotonic() - started < 10
    assert error.value.exit_code == 6
    return str(error.value)


def test_a_cluster_that_is_not_there() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    assert refused(address).startswith(f"{address}: no Ray dashboard answers: ")


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto"])
def test_an_address_that_is_no_dashboards(address: str) -> None:
    assert refused(address) == f"{address}: must be that of the dashboard, http://HOST:PORT"


def test_a_cluster_that_takes_the_call_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert refused(address) == f"{address}: no Ray dashboard answers: timed out"


def upload(folder: Path, file: Path) -> set[str]:
    """Write to a file what Ray uploads of a folder; returns the names in it."""

    def write(path: str, excludes: list[str], **_: Any) -> None:
        create_package(path, file, include_gitignore=True, excludes=excludes)

    content = {"working_dir": str(folder)}
    upload_working_dir_if_needed(content, include_gitignore=True, upload_fn=write)
    return set(zipfile.ZipFile(file).namelist())


def test_a_checkout_is_a_small_upload_whatever_lies_in_it(tmp_path: Path) -> None:
    names = upload(REPOSITORY, tmp_path / "upload.zip")
    assert {"jobs/pretrain.py", "configs/pretrain_mlp.yaml", "precalib_ray/data/parquet.py"} < names
    assert (tmp_path / "upload.zip").stat().st_size < 5 * MIB
    checkout = tmp_path / "checkout"
    zipfile.ZipFile(tmp_path / "upload.zip").extractall(checkout)
    for name in (
        ".git/objects/a", ".mypy_cache/a", ".ruff_cache/a", ".pytest_cache/a", ".hypothesis/a",
        ".venv/lib/a", "venv/lib/a", "env/lib/a", "build/a", "dist/a.whl",
        "precalib_ray.egg-info/a", "runs/x/final/model.safetensors", "data/x/train.parquet",
        "mlruns/0/a", "mlartifacts/0/a", "mlflow.db", "mlflow.db-wal",
        "precalib_ray/__pycache__/a.pyc",
    ):  # fmt: skip
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"")
    assert upload(checkout, tmp_path / "again.zip") == names


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Of one CPU, with the package installed and no repository anywhere."""
    folder = tmp_path_factory.mktemp("head")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--target", str(folder / "installed"), str(copy(folder / "source"))],
        check=True,
    )  # fmt: skip
    (folder / "work").mkdir()
    environment = {"PYTHONPATH": str(folder / "installed")}
    with ray_head(folder, folder / "work", environment, num_cpus=1) as started:
        yield started


def copy(folder: Path) -> Path:
    """The repository, elsewhere: building leaves files beside the sources."""
    upload(REPOSITORY, folder.with_suffix(".zip"))
    zipfile.ZipFile(folder.with_suffix(".zip")).extractall(folder)
    return folder


@pytest.fixture
def cluster(head: Head, monkeypatch: pytest.MonkeyPatch) -> str:
    """The head's address, for who has its token."""
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    return head.address


@pytest.mark.slow
def test_a_wrong_token_and_none(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    assert in_a_process(cluster).startswith(f"{cluster}: Authentication failed")
    monkeypatch.delenv("RAY_AUTH_MODE")
    told = in_a_process(cluster)
    assert told.startswith(f"{cluster}: Authentication required")
    assert "RAY_AUTH_MODE=token" in told


def in_a_process(address: str) -> str:
    """What ``refused`` returns; Ray reads the token once in a process."""
    code = f"from tests.cluster.test_submission import refused; print(refused({address!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_job_is_followed_to_its_end(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    job = config(storage=str(tmp_path), tracking={"uri": store})
    at: dict[str, float] = {}
    pieces: list[str] = []

    def tell(piece: str) -> None:
        pieces.append(piece)
        if "noise pretraining: started" in piece:
            at.setdefault("started", time.monotonic())

    done = precalib_ray.submit(job, address=cluster, tell=tell)
    told = "".join(pieces)
    assert (done.status, done.exit_code) == ("SUCCEEDED", 0), told
    assert done.model_uri == "models:/mlp-k10-precalibrated/1"
    assert at["started"] < time.monotonic() - 1, "the log was streamed"
    assert capsys.readouterr() == ("", "")

    # Given again, while every CPU is taken; and by another job, in other words.
    client = JobSubmissionClient(cluster)
    taken = client.submit_job(entrypoint="sleep 600", entrypoint_num_cpus=1)
    try:
        wait(client, taken, JobStatus.RUNNING)
        again = precalib_ray.submit(job, address=cluster, follow=False)
        wait(client, again.id, JobStatus.SUCCEEDED)
        assert "has finished before" in client.get_job_logs(again.id)
        known = base.validate(
            RegisterConfig, {"path": str(tmp_path / "given" / "final"), "tracking": {"uri": store}}
        )
        assert precalib_ray.submit(known, address=cluster).model_uri == done.model_uri
    finally:
        client.stop_job(taken)

    # What is refused on the cluster is told by its exit code.
    other = config(storage=str(tmp_path), tracking={"uri": store}, seed=1)
    ended = precalib_ray.submit(other, address=cluster)
    assert (ended.status, ended.exit_code, ended.model_uri) == ("FAILED", 2, None)
    out, err = capsys.readouterr()
    assert "seed: 1: was 0 in that run" in out
    assert err == ""


def wait(client: JobSubmissionClient, job_id: str, wanted: JobStatus) -> None:
    deadline = time.monotonic() + 60
    while (status := client.get_job_status(job_id)) is not wanted:
        assert time.monotonic() < deadline, status
        assert not status.is_terminal(), client.get_job_logs(job_id)
        time.sleep(0.2)


@pytest.mark.slow
def test_a_folder_goes_with_the_job(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def noise(shape, generator, device): raise SystemExit(77)\n")
    job = config(noise={"kind": "function", "function": "mine:noise"}, tracking={"offline": True})
    assert precalib_ray.submit(job, address=cluster, working_dir=tmp_path).exit_code == 77
    with pytest.raises(ValueError, match="nowhere"):
        precalib_ray.submit(job, address=cluster, working_dir=tmp_path / "nowhere")


@pytest.mark.slow
def test_from_a_shell_with_a_checkout_and_with_the_package_alone(
    cluster: str, tmp_path: Path
) -> None:
    given = ["name=shell", "model={kind: mlp, num_classes: 10, input_shape: [1, 8, 8]}",
             "noise.kind=gaussian", "duration.steps=1", "--print-config"]  # fmt: skip
    alone = submit(cluster, tmp_path, [], ["python", "-m", "precalib_ray", "pretrain", *given])
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "name: shell" in alone.stdout

    folder = ["--working-dir", str(REPOSITORY)]
    job = ["python", "jobs/pretrain.py", "configs/pretrain_mlp.yaml", "--print-config"]
    checkout = submit(cluster, tmp_path, folder, job)
    assert checkout.returncode == 0, checkout.stdout + checkout.stderr
    assert "name: mlp-k10" in checkout.stdout
    where = ["python", "-c", "import precalib_ray; print(precalib_ray.__file__)"]
    assert "/working_dir_files/" in submit(cluster, tmp_path, folder, where).stdout
    assert "/installed/" in submit(cluster, tmp_path, [], where).stdout


def submit(
    address: str, folder: Path, options: list[str], job: list[str]
) -> subprocess.CompletedProcess[str]:
    """``ray job submit``, by the token in this process's environment."""
    ray = str(Path(sys.executable).parent / "ray")
    environment = machine() | {k: os.environ[k] for k in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    return subprocess.run(
        [ray, "job", "submit", "--address", address, *options, "--", *job],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
