"""A real MLflow server that comes and goes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.errors import CheckpointError, TrackingError
from precalib_ray.registry import loading, tracking

pytestmark = pytest.mark.slow


class Server:
    """``mlflow server`` on SQLite and a loopback port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
                "--port", str(self.port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}",
                "--artifacts-destination", str(self.folder / "artifacts"),
            ],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.uri + "/health", timeout=1).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise AssertionError("the MLflow server did not start")

    def stop(self) -> None:
        """Kill the server and its worker."""
        import psutil

        family = psutil.Process(self.process.pid)
        for process in [*family.children(recursive=True), family]:
            process.kill()
        self.process.wait()


def test_metrics_survive_a_server_that_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_RETRY_AFTER_S", 0.0)
    server = Server(tmp_path)
    try:
        tracking.require_reachable(server.uri)
        run = tracking.Run(uri=server.uri, experiment="e", name="r", tags={"a": "b"})
        run.log_params({"noise": {"kind": "pink", "parts": []}, "seed": 1})
        run.log_metrics({"loss": 3.0}, step=1)
        server.stop()
        run.log_metrics({"loss": 2.0}, step=2)
        server.start()
        run.log_metrics({"loss": 1.0}, step=3)

        client = MlflowClient(tracking_uri=server.uri)
        history = client.get_metric_history(run.run_id, "loss")
        assert [(m.step, m.value) for m in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert client.get_run(run.run_id).data.params["noise.kind"] == "pink"

        with pytest.raises(TrackingError, match="models:/nothing@candidate cannot be pulled"):
            loading.pull("models:/nothing@candidate", tmp_path, tracking_uri=server.uri)

        server.stop()
        run.log_metrics({"loss": 0.5}, step=4)
        spool = tmp_path / "runs" / "pending.jsonl"
        assert run.end("FINISHED", spool) == spool
        (line,) = [json.loads(text) for text in spool.read_text().splitlines()]
        assert (line["run_id"], line["key"], line["value"], line["step"]) == (
            run.run_id, "loss", 0.5, 4,
        )  # fmt: skip
    finally:
        if server.process.poll() is None:
            server.stop()


def test_a_foreign_model_version_is_refused(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "weights.bin").write_bytes(b"0")
    client = MlflowClient(tracking_uri=store)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", source=foreign.as_uri())
    with pytest.raises(CheckpointError, match="models:/foreign/1 holds no precalib_ray checkpoint"):
        loading.pull("models:/foreign/1", tmp_path, tracking_uri=store)
    with pytest.raises(TrackingError, match="neither models:/NAME@ALIAS nor"):
        loading.pull("models:/foreign", tmp_path, tracking_uri=store)


def test_sqlite_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"database .* cannot be opened"):
        tracking.require_reachable(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_children_that_never_ended_make_way(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    parent = tracking.Run(uri=store, experiment="e", name="parent", tags={})
    tags = {"mlflow.parentRunId": parent.run_id}
    ended, begun = (
        tracking.Run(uri=store, experiment="e", name=key, tags={**tags, "key": key})
        for key in ("ended", "begun")
    )
    ended.end("FAILED", tmp_path / "spool")
    assert parent.children("key") == {"ended"}
    client = MlflowClient(tracking_uri=store)
    assert client.get_run(begun.run_id).info.lifecycle_stage == "deleted"
    assert client.get_run(ended.run_id).info.lifecycle_stage == "active"
