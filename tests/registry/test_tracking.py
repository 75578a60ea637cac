"""A real MLflow server that comes and goes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.errors import CheckpointError, TrackingError
from precalib_ray.registry import loading, sending, server, tracking
from precalib_ray.storage.folder import Folder
from tests.registry.servers import MLflowServer

pytestmark = pytest.mark.server


def history(client: MlflowClient, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run_id, key)]


def test_metrics_survive_a_server_that_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_RETRY_AFTER_S", 0.5)
    mlflow = MLflowServer(tmp_path / "server")
    outbox = Folder.at(str(tmp_path / "outbox"))
    try:
        server.require_reachable(mlflow.uri)
        start = {"uri": mlflow.uri, "experiment": "e", "name": "r", "tags": {"a": "b"}}
        run = tracking.Run(**start, outbox=outbox)
        run.log_params({"noise": {"kind": "pink", "parts": []}, "seed": 1})
        run.log_metrics({"loss": 3.0}, step=1)
        assert run.flush()
        assert outbox.names(".json") == []
        mlflow.stop()
        started = time.monotonic()
        run.log_metrics({"loss": 2.0}, step=2)
        assert time.monotonic() - started < 0.2  # training is not held up
        assert not run.flush()
        mlflow.start()
        run.log_metrics({"loss": 1.0}, step=3)
        run.log_metrics({"loss": 1.5}, step=2)  # a worker that was lost comes by a step again
        assert run.flush(wait_s=20)
        client = MlflowClient(tracking_uri=mlflow.uri)
        assert history(client, run.run_id) == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert client.get_run(run.run_id).data.params["noise.kind"] == "pink"

        with pytest.raises(TrackingError, match="models:/nothing@candidate cannot be pulled"):
            loading.pull("models:/nothing@candidate", tmp_path, tracking_uri=mlflow.uri)

        mlflow.stop()
        for step in range(4, 2504):
            run.log_metrics({"loss": 0.5}, step=step)
        assert not run.end("FINISHED")
        assert 3 <= len(outbox.names(".json")) < 20  # of 1,000 entries each, but for the first ones
        mlflow.start()  # the next process goes on with the run
        again = tracking.Run(**start, outbox=outbox, run_id=run.run_id)
        assert again.run_id == run.run_id
        assert again.last_status == "FINISHED"
        again.log_metrics({"loss": 0.25}, step=2504)
        assert again.end("FINISHED", wait_s=20)
        assert [step for step, _ in history(client, run.run_id)] == list(range(1, 2505))
        assert client.get_run(run.run_id).info.status == "FINISHED"
        assert outbox.names(".json") == []
    finally:
        mlflow.stop()


def test_what_was_in_flight_when_the_job_was_killed_is_there_once(
    store: str, tmp_path: Path
) -> None:
    """The server has taken it, and the file that says that it has not is still there."""
    outbox = Folder.at(str(tmp_path / "outbox"))
    start = {"uri": store, "experiment": "e", "name": "r", "tags": {}}
    run = tracking.Run(**start, outbox=outbox)
    run.log_metrics({"loss": 3.0, "accuracy": 0.5}, step=1)
    assert run.flush()
    entries = [{"metric": ["loss", 3.0, 1, 1]}, {"metric": ["loss", 2.0, 2, 2]}]
    outbox.write("00000001.json", json.dumps(entries))
    (tmp_path / "outbox" / ".00000002.json.ab.new").write_text('[{"met')  # killed while writing
    again = tracking.Run(**start, outbox=outbox, run_id=run.run_id)
    again.log_metrics({"loss": 3.5, "accuracy": 0.6}, step=1)  # a step that is done again
    assert again.end("FINISHED")
    client = MlflowClient(tracking_uri=store)
    assert sorted(history(client, run.run_id)) == [(1, 3.0), (2, 2.0)]
    assert history(client, run.run_id, "accuracy") == [(1, 0.5)]


def test_a_name_that_mlflow_refuses_holds_up_no_other(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    outbox = Folder.at(str(tmp_path / "outbox"))
    run = tracking.Run(uri=store, experiment="e", name="r", tags={}, outbox=outbox)
    run.log_metrics({"loss": 3.0, "what?*": 1.0, "accuracy": 0.5}, step=1)
    assert run.end("FINISHED")
    metrics = MlflowClient(tracking_uri=store).get_run(run.run_id).data.metrics
    assert metrics == {"loss": 3.0, "accuracy": 0.5}


def test_a_foreign_model_version_is_refused(store: str, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "weights.bin").write_bytes(b"0")
    client = MlflowClient(tracking_uri=store)
    client.create_registered_model("foreign")
    run = tracking.Run(uri=store, experiment="e", name="r", tags={})
    run.log_file(foreign / "weights.bin", "model")
    source = f"{client.get_run(run.run_id).info.artifact_uri}/model"
    client.create_model_version("foreign", source=source, run_id=run.run_id)
    with pytest.raises(CheckpointError, match="models:/foreign/1 holds no precalib_ray checkpoint"):
        loading.pull("models:/foreign/1", tmp_path, tracking_uri=store)
    with pytest.raises(TrackingError, match="neither models:/NAME@ALIAS nor"):
        loading.pull("models:/foreign", tmp_path, tracking_uri=store)


def test_sqlite_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"database .* cannot be opened"):
        server.require_reachable(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_children_are_found_by_a_tag_with_their_status(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    parent = tracking.Run(uri=store, experiment="e", name="parent", tags={})
    ended, begun = (  # ``tracking.experiment`` has changed since the parent was begun
        tracking.Run(uri=store, experiment="f", name=key, tags={"key": key}, parent=parent)
        for key in ("ended", "begun")
    )
    tracking.Run(uri=store, experiment="e", name="a stranger", tags={"key": "stranger"})
    ended.end("FAILED")
    assert parent.children("key") == {
        "ended": (ended.run_id, "FAILED"), "begun": (begun.run_id, "RUNNING")
    }  # fmt: skip


def test_a_deleted_run_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In MLflow's pages, between submissions and in the middle; metrics are kept, not refused."""
    monkeypatch.setattr(sending, "_RETRY_AFTER_S", 0.1)
    store, outbox = f"sqlite:///{tmp_path / 'mlflow.db'}", Folder.at(str(tmp_path / "outbox"))
    start = {"uri": store, "experiment": "e", "name": "r", "tags": {}}
    run = tracking.Run(**start, outbox=outbox)
    run.log_metrics({"loss": 3.0}, step=1)
    assert run.flush()
    run.client.delete_run(run.run_id)
    run.log_metrics({"loss": 2.0}, step=2)
    assert not run.flush()
    assert "It was deleted in MLflow: submitted again, the job begins another" in run.last_error
    assert not run.end("FINISHED")

    again = tracking.Run(**start, run_id=run.run_id, outbox=outbox)
    assert again.run_id != run.run_id
    assert again.end("FINISHED")
    assert history(again.client, again.run_id) == [(2, 2.0)]


def test_the_registry_is_where_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path / 'another.db'}")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = tracking.Run(uri=store, experiment="e", name="r", tags={})
    run.client.create_registered_model("m")
    there = MlflowClient(tracking_uri=store, registry_uri=store)
    assert [m.name for m in there.search_registered_models()] == ["m"]
    with pytest.raises(TrackingError, match="m/1"):
        loading.pull("models:/m/1", tmp_path / "x", tracking_uri=store)
