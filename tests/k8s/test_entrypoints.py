"""The jobs of the overlay dev-cpu, as their manifests start them, on a Ray that runs as KubeRay's.

A folder stands for the container's /app: what the Dockerfile copies there, and what the head's pod
mounts. Ray's head and MLflow's server are started with the environment and the commands of their
containers, but for addresses, passwords, the database and the number of processes. Entry points are
given to `ray job submit` in the very shell line that KubeRay makes, unchanged.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import secrets
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import REPOSITORY
from tests.k8s import image
from tests.k8s.checks import config_files
from tests.k8s.manifests import OVERLAYS, Object, ray_jobs
from tests.ray_head import BIN, Head, answers, machine, ray_head
from tests.registry.servers import SETTINGS, end, free_port

pytestmark = pytest.mark.k8s


@dataclass
class Cluster:
    """What stands for the cluster: the container's /app, and servers on this machine."""

    objects: list[Object]
    app: Path
    mlflow: str = ""
    password: dict[str, str] = field(default_factory=dict)
    head: Head = field(init=False)

    def submit(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a RayJob's entry point to its end, as KubeRay's submitter does."""
        entrypoint = ray_jobs(self.objects)[name]["entrypoint"]
        line = f"ray job submit --address {self.head.address} --log-color false -- {entrypoint}"
        environment = machine() | self.head.environment | {"HOME": str(self.app.parent / "tmp")}
        return subprocess.run(
            ["bash", "-ec", line], env=environment, cwd="/", capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip

    def api(self, path: str, content: object = None) -> Object:
        """Ask the MLflow server as its admin; a GET without content."""
        request = urllib.request.Request(
            f"{self.mlflow}/api/2.0/mlflow/{path}",
            data=None if content is None else json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        word = base64.b64encode(f"admin:{self.password['admin']}".encode()).decode()
        request.add_header("Authorization", f"Basic {word}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


def _variables(container: Object) -> dict[str, str]:
    return {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}


def _only(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (f for f in objects if (f["kind"], f["metadata"]["name"]) == (kind, name))
    return found


@pytest.fixture(scope="module")
def cluster(
    overlay: Callable[[str], list[Object]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    made = Cluster(overlay("dev-cpu"), tmp_path_factory.mktemp("container") / "app")
    _fill(made)
    with contextlib.ExitStack() as servers:
        mlflow = _start_mlflow(made)
        servers.callback(end, mlflow)
        assert answers(f"{made.mlflow}/health", mlflow), (
            made.app.parent / "mlflow.log"
        ).read_text()
        made.api("users/create", {"username": "jobs", "password": made.password["jobs"]})
        made.head = servers.enter_context(_ray(made))
        yield made


def _fill(made: Cluster) -> None:
    """Lay out /app: the image's files, and the head's mounts."""
    for file in image.files():
        path = made.app / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, path)
    pod = _only(made.objects, "RayCluster", "precalib")["spec"]["headGroupSpec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in pod["containers"][0]["volumeMounts"]:
        path = made.app.parent / mount["mountPath"].lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        if "configMap" in volumes[mount["name"]]:
            name = volumes[mount["name"]]["configMap"]["name"]
            for file, text in _only(made.objects, "ConfigMap", name)["data"].items():
                (path / file).write_text(text)


def _start_mlflow(made: Cluster) -> subprocess.Popen[bytes]:
    """The Deployment's command and environment; loopback and SQLite instead of PostgreSQL."""
    template = _only(made.objects, "Deployment", "mlflow")["spec"]["template"]["spec"]
    (container,) = template["containers"]
    folder = made.app.parent / "mlflow"
    folder.mkdir()
    (auth,) = (
        f["data"]["basic_auth.ini"]
        for f in made.objects
        if f["kind"] == "ConfigMap" and f["metadata"]["name"].startswith("mlflow-auth")
    )
    database = "postgresql://mlflow@postgres:5432/mlflow"
    assert database in auth
    (folder / "basic_auth.ini").write_text(auth.replace(database, f"sqlite:///{folder}/auth.db"))
    made.password = {"admin": secrets.token_hex(16), "jobs": secrets.token_hex(16)}
    port = free_port()
    made.mlflow = f"http://127.0.0.1:{port}"
    environment = machine() | SETTINGS | _variables(container) | {
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": made.password["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "HOME": str(folder),
    }  # fmt: skip
    command = [str(BIN / container["command"][0]), *container["command"][1:]]
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def _ray(made: Cluster) -> contextlib.AbstractContextManager[Head]:
    """A head in /app with the environment of the head's container, and two CPUs of a worker's."""
    template = _only(made.objects, "RayCluster", "precalib")["spec"]["headGroupSpec"]["template"]
    container = template["spec"]["containers"][0]
    client = _only(made.objects, "ConfigMap", "mlflow-client")["data"]
    assert client.keys() == {"MLFLOW_TRACKING_URI"}
    environment = _variables(container) | {
        "MLFLOW_TRACKING_URI": made.mlflow,
        "MLFLOW_TRACKING_USERNAME": "jobs",
        "MLFLOW_TRACKING_PASSWORD": made.password["jobs"],
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(made.app.parent / "tmp"),
    }
    return ray_head(made.app, environment, num_cpus=2)


def test_the_other_overlays_give_the_same_commands(
    overlay: Callable[[str], list[Object]],
) -> None:
    wanted = {name: job["entrypoint"] for name, job in ray_jobs(overlay("dev-cpu")).items()}
    for name in OVERLAYS:
        objects = overlay(name)
        assert {key: job["entrypoint"] for key, job in ray_jobs(objects).items()} == wanted
        assert config_files(objects).keys() == config_files(overlay("dev-cpu")).keys()


def test_convert(cluster: Cluster) -> None:
    template = _only(cluster.objects, "Job", "convert")["spec"]["template"]["spec"]
    (container,) = template["containers"]
    environment = machine() | {"PYTHONPATH": str(REPOSITORY), "HOME": str(cluster.app.parent)}
    done = subprocess.run(
        container["command"], cwd=cluster.app, env=environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (cluster.app / "data" / "digits" / "train.parquet").exists()


def test_a_stranger_is_refused(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.head.address}/api/jobs/", timeout=10)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(
            f"{cluster.mlflow}/api/2.0/mlflow/registered-models/search", timeout=10
        )


def test_pretrain_then_its_retry(cluster: Cluster) -> None:
    done = cluster.submit("pretrain")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "registered: models:/mlp-digits-precalibrated/1" in done.stdout
    assert (cluster.app / "runs" / "mlp-digits" / "final" / "model.safetensors").exists()
    again = cluster.submit("pretrain")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "mlp-digits has finished already" in again.stdout
    versions = cluster.api("model-versions/search")["model_versions"]
    assert [(v["name"], v["version"]) for v in versions] == [("mlp-digits-precalibrated", "1")]


def test_train_from_what_pretrain_has_registered(cluster: Cluster) -> None:
    done = cluster.submit("train")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting from models:/mlp-digits-precalibrated/1" in done.stdout
    assert (cluster.app / "runs" / "digits-precalibrated" / "run.json").exists()


def test_search(cluster: Cluster) -> None:
    done = cluster.submit("search")
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load((cluster.app / "runs" / "search-mlp-digits" / "best.yaml").read_text())


def test_nightly_search_has_the_name_of_the_day(cluster: Cluster) -> None:
    days = {datetime.datetime.now(datetime.UTC).date()}
    done = cluster.submit("nightly-search")
    days.add(datetime.datetime.now(datetime.UTC).date())
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (cluster.app / "runs").glob("nightly-search-*")
    assert made.name in {f"nightly-search-{day}" for day in days}


def test_a_job_that_fails_fails_its_submission(cluster: Cluster) -> None:
    moved = cluster.app / "cluster" / "train.yaml"
    moved.rename(moved.with_suffix(".away"))
    try:
        done = cluster.submit("train")
    finally:
        moved.with_suffix(".away").rename(moved)
    assert done.returncode != 0
    assert "config file: 'cluster/train.yaml': cannot be read" in done.stdout


def test_nothing_was_written_where_the_root_file_system_is_read_only(cluster: Cluster) -> None:
    mounted = ("cluster/", "data/", "runs/")
    there = {
        str(path.relative_to(cluster.app))
        for path in cluster.app.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in there if not path.startswith(mounted)} == image.files()
