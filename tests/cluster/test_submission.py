"""Jobs given to a running cluster, from Python and from a shell."""

from __future__ import annotations

import http.server
import shlex
import socket
import subprocess
import sys
import threading
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
from precalib_ray.config import load
from precalib_ray.config.jobs import name_of
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.register import RegisterConfig
from precalib_ray.config.sections import JobConfig
from precalib_ray.core.spec import plain
from precalib_ray.errors import ClusterError
from tests.e2e.conftest import REPOSITORY
from tests.ray_head import BIN, Head, machine, ray_head
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
FREE = {
    "kind": "function", "name": "m:f", "num_classes": 2, "input_shape": [3],
    "args": {"a": ["1e-4", "on", "010", "0o7", "2026-11-25"], "on": 1e-5},
}  # fmt: skip


def config(**changes: Any) -> PretrainConfig:
    return load.validate(PretrainConfig, JOB | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tracking": {"tags": {"who's": 'a "b" $HOME', "n": "1", "yes": "no"}}},
        {"noise": {"kind": "mixture", "parts": [{"noise": {"kind": "pink"}}] * 9}},
        {"model": FREE},
        *(
            {"storage": text, "tracking": {"uri": text, "tags": {"a": text, text: "b"}}}
            for text in ("null", "1e-4", "'a'", '"', " #a ", "[x]", "{a: b}", "!x", "a\nb", "- a")
        ),
    ],
)
def test_the_command_says_the_same_config(changes: dict[str, Any]) -> None:
    wanted = config(**changes)
    python, *words = shlex.split(submission.command(wanted))
    assert [python, *words[:3]] == ["python", "-m", "precalib_ray", "pretrain"]
    assert load.load(PretrainConfig, None, words[3:]) == wanted


def refused(address: str | None) -> str:
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


def test_a_cluster_that_takes_the_call_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = refused(address)
    assert told.startswith(f"{address}: no Ray dashboard answers: ")
    assert "timed out" in told


@pytest.mark.parametrize(
    "address", ["http://", "http://127.0.0.1:99999", "http://[::1", "https://a b"]
)
def test_an_address_that_is_none(address: str) -> None:
    assert refused(address).startswith(f"{address}: no Ray dashboard answers: ")


def test_the_address_of_a_client_server_is_left_to_ray() -> None:
    submission._require_answer("ray://127.0.0.1:1", given=False)


@pytest.mark.parametrize("name", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_an_address_of_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "foo")
    assert refused(None).startswith("RAY_ADDRESS: 'foo': must be HOST:PORT")
    monkeypatch.setenv(name, f"127.0.0.1:{free_port()}")
    assert refused(None).startswith("no Ray cluster at 127.0.0.1:")
    dashboard = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv(name, dashboard)
    assert refused(None).startswith(f"{dashboard}: no Ray dashboard answers: ")


def test_a_web_server_that_is_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = http.server.BaseHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # the argument prevails
        assert refused(address).startswith(f"{address}: 501 Server Error")
        server.shutdown()


def test_proxies_are_those_of_rays_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves out networks, where urllib would ask the proxy."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    handler = http.server.BaseHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        submission._require_answer(f"http://127.0.0.1:{server.server_port}", given=True)
        server.shutdown()


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
    with ray_head(folder / "work", environment, num_cpus=1) as started:
        yield started


def copy(folder: Path) -> Path:
    """The repository, elsewhere: building leaves files beside the sources."""
    upload(REPOSITORY, folder.with_suffix(".zip"))
    zipfile.ZipFile(folder.with_suffix(".zip")).extractall(folder)
    return folder


def ours(head: Head) -> dict[str, str]:
    """The environment of who submits. Ray reads it once in a process, so each has its own."""
    return machine() | head.environment | {"PYTHONPATH": str(REPOSITORY)}


def run(environment: dict[str, str], *code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(code)], env=environment, cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def given(head: Head, job: JobConfig, **options: Any) -> subprocess.Popen[str]:
    """``precalib_ray.submit`` in a process, which prints what was returned as its last line."""
    return run(
        ours(head),
        "import precalib_ray",
        "from precalib_ray.config import jobs, load",
        f"job = load.validate(jobs.config_class({name_of(job)!r}), {plain(job)!r})",
        f"options = {options!r}",
        f"print(precalib_ray.submit(job, address={head.address!r}, **options))",
    )


def ended(process: subprocess.Popen[str]) -> tuple[submission.Submitted, str]:
    """What was returned, and the log."""
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, ""), out + err
    *log, last = out.splitlines()
    return eval(last, {"Submitted": submission.Submitted}), "\n".join(log)


@pytest.mark.ray
def test_a_wrong_token_and_none(head: Head) -> None:
    told = []
    for environment in (ours(head) | {"RAY_AUTH_TOKEN": "0" * 32}, machine()):
        process = run(
            environment | {"PYTHONPATH": str(REPOSITORY)},
            "from tests.cluster.test_submission import refused",
            f"print(refused({head.address!r}))",
        )
        told.append(process.communicate(timeout=100))
    assert told[0][0].startswith(f"{head.address}: Authentication failed"), told
    assert told[1][0].startswith(f"{head.address}: Authentication required"), told
    assert "RAY_AUTH_MODE=token" in told[1][0]


@pytest.mark.ray
def test_a_job_is_followed_to_its_end(head: Head, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = JobSubmissionClient(head.address, headers={"Authorization": f"Bearer {head.token}"})
    job = config(storage=str(tmp_path), tracking={"uri": store})
    process = given(head, job)
    assert process.stdout is not None
    assert any("noise pretraining: started" in line for line in process.stdout)
    assert [found.status for found in client.list_jobs()] == [JobStatus.RUNNING]
    done, log = ended(process)
    assert (done.status, done.exit_code) == ("SUCCEEDED", 0), log
    assert done.model_uri == "models:/mlp-k10-precalibrated/1"

    # Given again, while every CPU is taken; and by another job, in other words.
    taken = client.submit_job(entrypoint="sleep 600", entrypoint_num_cpus=1)
    try:
        wait(client, taken, JobStatus.RUNNING)
        again, _ = ended(given(head, job, follow=False))
        wait(client, again.id, JobStatus.SUCCEEDED)
        assert "has finished already" in client.get_job_logs(again.id)
        known = load.validate(
            RegisterConfig, {"path": str(tmp_path / "given" / "final"), "tracking": {"uri": store}}
        )
        assert ended(given(head, known))[0].model_uri == done.model_uri
    finally:
        client.stop_job(taken)

    # What is refused on the cluster is told by its exit code.
    other, log = ended(given(head, config(storage=str(tmp_path), tracking={"uri": store}, seed=1)))
    assert (other.status, other.exit_code, other.model_uri) == ("FAILED", 2, None)
    assert "seed: 1: was 0 in that run" in log


def wait(client: JobSubmissionClient, job_id: str, wanted: JobStatus) -> None:
    deadline = time.monotonic() + 60
    while (status := client.get_job_status(job_id)) is not wanted:
        assert time.monotonic() < deadline, status
        assert not status.is_terminal(), client.get_job_logs(job_id)
        time.sleep(0.2)


@pytest.mark.ray
def test_a_folder_goes_with_the_job(head: Head, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit(77)\n")
    (tmp_path / ".git").mkdir()
    job = config(noise={"kind": "function", "name": "mine:noise"}, tracking={"offline": True})
    done, log = ended(given(head, job, working_dir=str(tmp_path)))
    assert done.exit_code == 77, log
    _, told = given(head, job, working_dir=str(tmp_path / "nowhere")).communicate(timeout=100)
    assert "ValueError: directory" in told


@pytest.mark.ray
def test_from_a_shell_with_a_checkout_and_with_the_package_alone(
    head: Head, tmp_path: Path
) -> None:
    where = "python -c 'import precalib_ray; print(precalib_ray.__file__)'"
    fields = "name=shell noise.kind=gaussian model.kind=mlp model.num_classes=3 duration.steps=1"
    job = f"python -m precalib_ray pretrain {fields} model.input_shape=[8] --print-config"
    alone = submit(head, tmp_path, job, where)
    assert "name: shell" in alone
    assert "/installed/precalib_ray/" in alone

    job = "python jobs/pretrain.py configs/pretrain_mlp.yaml --print-config"
    checkout = submit(head, tmp_path, job, where, working_dir=REPOSITORY)
    assert "name: mlp-k10" in checkout
    assert "/working_dir_files/" in checkout


def submit(head: Head, folder: Path, *commands: str, working_dir: Path | None = None) -> str:
    """``ray job submit`` of commands, in a folder; returns what it shows."""
    options = [] if working_dir is None else ["--working-dir", str(working_dir)]
    done = subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--address", head.address, *options, "--",
         "bash", "-ec", "; ".join(commands)],
        cwd=folder, env=machine() | head.environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
