"""Submitted twice, one result: with a job that works in no time, on a real store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mlflow.entities import Run as MLflowRun

from precalib_ray.config.jobs.sync import SyncConfig, TrackingChanges
from precalib_ray.config.sections import Named, Tracking
from precalib_ray.core.spec import Section, setting
from precalib_ray.errors import ClusterError, ConfigError, TrackingError
from precalib_ray.registry import tracking
from precalib_ray.registry.server import client_of
from precalib_ray.runs import lifecycle
from precalib_ray.runs.record import RunRecord

OTHER_OWNER = {"token": "other", "machine": "elsewhere", "pid": 1, "started": 0.0, "shown": "p"}


@dataclass(frozen=True, kw_only=True)
class Part(Section):
    size: int = setting(1, ge=1, description="size")


@dataclass(frozen=True, kw_only=True)
class FakeConfig(Named):
    number: int = setting(1, ge=0, description="what the job doubles")
    part: Part = setting(Part(), description="a section")


@dataclass(frozen=True)
class Doubled:
    value: int
    uri: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "uri": self.uri}


def nothing(record: RunRecord, run: tracking.Run | None) -> None:
    pass


class Fake(lifecycle.Job[FakeConfig, Doubled]):
    """Writes down which of its parts were called."""

    phase: ClassVar[str] = "fake"
    calls: ClassVar[list[str]] = []
    in_work: ClassVar[Callable[[RunRecord, tracking.Run | None], None]] = staticmethod(nothing)
    in_log: ClassVar[Callable[[RunRecord, tracking.Run | None], None]] = staticmethod(nothing)
    registry: ClassVar[bool] = True
    """Whether the registry has what the run registered."""

    def check(self) -> None:
        self.calls.append("check")

    def prepare(self, record: RunRecord) -> None:
        self.calls.append("prepare")

    def work(self, record: RunRecord, run: tracking.Run | None) -> Doubled:
        self.calls.append("work")
        if run is not None:
            run.log_metrics({"loss": 0.5}, step=1)
        type(self).in_work(record, run)
        return Doubled(2 * self.config.number)

    def load_result(self, record: RunRecord) -> Doubled | None:
        return None if record.result is None else Doubled(**record.result)

    def log(self, result: Doubled, record: RunRecord, run: tracking.Run) -> Doubled:
        self.calls.append("log")
        type(self).in_log(record, run)
        run.set_tags({"value": result.value})
        return replace(result, uri=f"models:/fake/{result.value}")

    def find_logged(
        self, result: Doubled, record: RunRecord, run: tracking.KnownRun
    ) -> Doubled | None:
        return result if self.registry else None

    def log_partial(self, record: RunRecord, run: tracking.Run) -> None:
        self.calls.append("log_partial")

    def show(self, result: Doubled) -> None:
        self.calls.append("show")

    def conclude(self, result: Doubled, record: RunRecord) -> Doubled:
        self.calls.append("conclude")
        return result


WHOLE = ["check", "prepare", "work", "log", "show", "conclude"]


@pytest.fixture(autouse=True)
def fake_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry of jobs find ``FakeConfig``, as ``sync`` asks it to."""
    monkeypatch.setitem(sys.modules, "precalib_ray.config.jobs.fake", sys.modules[__name__])
    monkeypatch.setitem(lifecycle.Job.phases, "fake", Fake)
    monkeypatch.setattr(Fake, "calls", [])
    monkeypatch.setattr(Fake, "in_work", staticmethod(nothing))
    monkeypatch.setattr(Fake, "in_log", staticmethod(nothing))


@pytest.fixture
def config(tmp_path: Path, store: str) -> FakeConfig:
    settings = Tracking(uri=store, experiment="e", max_wait=0.0)
    return FakeConfig(name="n", storage=str(tmp_path / "runs"), number=4, tracking=settings)


def submit(config: FakeConfig) -> Doubled:
    Fake.calls.clear()
    return lifecycle.run(Fake(config))


def sync(config: FakeConfig, **changes: Any) -> lifecycle.Result | None:
    Fake.calls.clear()
    changed = TrackingChanges(**changes) if changes else None
    given = SyncConfig(name=config.name, storage=config.storage, tracking=changed)
    return lifecycle.sync(given, lifecycle.Job.phases.get)


def recorded(config: FakeConfig) -> dict[str, Any]:
    """``run.json``."""
    content: dict[str, Any] = json.loads(
        (Path(config.storage) / config.name / "run.json").read_text()
    )
    return content


def runs(config: FakeConfig) -> list[MLflowRun]:
    """The runs in MLflow."""
    client = client_of(str(config.tracking.uri))
    found = client.get_experiment_by_name("e")
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def logged(config: FakeConfig) -> MLflowRun:
    """The one run in MLflow."""
    (found,) = runs(config)
    return found


def cut_off(config: FakeConfig) -> Callable[[RunRecord, tracking.Run | None], None]:
    """Put something else where the database is, so that it cannot be opened."""
    database = Path(str(config.tracking.uri).removeprefix("sqlite:///"))

    def act(record: RunRecord, run: tracking.Run | None) -> None:
        assert run is not None
        assert run.flush()  # else the sender is in the middle of it
        database.rename(database.with_suffix(".aside"))
        database.mkdir()

    return act


def restore(config: FakeConfig) -> None:
    database = Path(str(config.tracking.uri).removeprefix("sqlite:///"))
    database.rmdir()
    database.with_suffix(".aside").rename(database)


def refuse(record: RunRecord, run: tracking.Run | None) -> None:
    raise TrackingError("refused")


def test_a_fresh_run_and_the_same_submitted_again(config: FakeConfig) -> None:
    assert submit(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == WHOLE
    run = logged(config)
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, run.data.tags["precalib.phase"]) == ("n", "fake")
    assert (run.data.tags["value"], run.data.metrics) == ("8", {"loss": 0.5})
    assert (run.data.params["number"], run.data.params["part.size"]) == ("4", "1")
    content = recorded(config)
    assert content["config"] == {"name": "n", "number": 4, "part": {"size": 1}}
    assert content["result"] == {"value": 8, "uri": "models:/fake/8"}
    assert content["run_id"] == run.info.run_id
    assert content["synced"] is True

    assert submit(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == ["check", "show", "conclude"]
    assert recorded(config) == content
    assert logged(config).info.end_time == run.info.end_time
    assert sync(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == []  # MLflow has everything already
    assert not (Path(config.storage) / "n" / "lease.json").exists()


def test_what_mlflow_refuses_is_kept_and_logged_without_work(
    config: FakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "in_log", staticmethod(refuse))
    with pytest.raises(TrackingError, match=r"^refused$"):
        submit(config)
    assert Fake.calls == ["check", "prepare", "work", "log", "show"]  # computed: shown all the same
    assert recorded(config)["result"] == {"value": 8, "uri": None}
    assert "synced" not in recorded(config)
    assert logged(config).info.status == "FAILED"

    monkeypatch.setattr(Fake, "in_log", staticmethod(nothing))
    assert submit(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == ["check", "log", "show", "conclude"]
    assert recorded(config)["result"] == {"value": 8, "uri": "models:/fake/8"}
    assert recorded(config)["synced"] is True
    run = logged(config)  # the same one
    assert (run.info.status, run.data.tags["value"]) == ("FINISHED", "8")


@pytest.mark.parametrize("again", [submit, sync])
def test_a_result_without_its_server_is_sent_later(
    config: FakeConfig, again: Callable[[FakeConfig], Doubled], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "in_work", staticmethod(cut_off(config)))
    with pytest.raises(TrackingError, match=r"Nothing is lost.*\n?.*sync\.py name=n storage="):
        submit(config)
    assert Fake.calls == ["check", "prepare", "work", "show"]
    assert recorded(config)["result"] == {"value": 8, "uri": None}
    with pytest.raises(TrackingError, match="cannot be opened"):
        again(config)
    assert "synced" not in recorded(config)

    restore(config)
    assert again(config) == Doubled(8, "models:/fake/8")
    assert [call for call in Fake.calls if call in ("work", "log")] == ["log"]
    run = logged(config)
    assert (run.info.status, run.data.tags["value"]) == ("FINISHED", "8")
    assert run.data.metrics == {"loss": 0.5}
    assert recorded(config)["synced"] is True
    assert submit(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == ["check", "show", "conclude"]


def test_work_that_is_interrupted(config: FakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(record: RunRecord, run: tracking.Run | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fake, "in_work", staticmethod(interrupt))
    with pytest.raises(KeyboardInterrupt):
        submit(config)
    assert Fake.calls == ["check", "prepare", "work"]
    run = logged(config)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 0.5})
    assert "result" not in recorded(config)

    assert sync(config) is None  # nothing has finished, and what there is goes to MLflow
    assert Fake.calls == ["log_partial"]
    assert "synced" not in recorded(config)
    assert logged(config).info.status in ("KILLED", "FAILED")

    monkeypatch.setattr(Fake, "in_work", staticmethod(nothing))
    assert submit(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == WHOLE
    assert logged(config).info.run_id == run.info.run_id
    assert logged(config).info.status == "FINISHED"


def test_work_that_fails(config: FakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(record: RunRecord, run: tracking.Run | None) -> None:
        raise ClusterError("no room")

    monkeypatch.setattr(Fake, "in_work", staticmethod(fail))
    with pytest.raises(ClusterError, match="no room"):
        submit(config)
    assert logged(config).info.status == "FAILED"
    assert "result" not in recorded(config)


def test_a_name_that_another_config_has(config: FakeConfig) -> None:
    submit(config)
    other = replace(config, number=5, part=Part(size=2))
    with pytest.raises(ConfigError) as error:
        submit(other)
    assert str(error.value).splitlines() == [
        "name: 'n': is taken by a run with another config; choose another name",
        "number: 5: was 4 in that run",
        "part.size: 2: was 1 in that run",
    ]
    assert Fake.calls == ["check"]
    assert len(runs(config)) == 1
    moved = replace(config, tracking=replace(config.tracking, max_wait=1.0))  # not what it is
    assert submit(moved) == Doubled(8, "models:/fake/8")


def test_offline(config: FakeConfig) -> None:
    offline = replace(config, tracking=Tracking(offline=True))
    assert submit(offline) == Doubled(8)
    assert Fake.calls == ["check", "prepare", "work", "show", "conclude"]
    assert runs(config) == []
    assert submit(offline) == Doubled(8)
    assert Fake.calls == ["check", "show", "conclude"]
    with pytest.raises(ConfigError, match=r"tracking\.offline=false"):
        sync(config)
    found = sync(config, offline=False, uri=config.tracking.uri, experiment="e")
    assert found == Doubled(8, "models:/fake/8")
    assert Fake.calls == ["log"]
    assert logged(config).info.status == "FINISHED"


def test_a_run_that_was_made_offline_is_logged_when_it_is_submitted_online(
    config: FakeConfig,
) -> None:
    submit(replace(config, tracking=Tracking(offline=True)))
    assert submit(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == ["check", "log", "show", "conclude"]
    assert logged(config).info.status == "FINISHED"


def test_sync_to_another_place(config: FakeConfig) -> None:
    submit(config)
    found = sync(config, experiment="f", tags={"a": "b"})
    assert found == Doubled(8, "models:/fake/8")
    assert recorded(config)["settings"]["tracking"]["tags"] == {"a": "b"}
    assert recorded(config)["settings"]["tracking"]["uri"] == config.tracking.uri  # as it was


def test_who_is_superseded_records_nothing_and_leaves_the_run_to_the_other(
    config: FakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_replaced(record: RunRecord, run: tracking.Run | None) -> None:
        record.folder.write("lease.json", json.dumps(OTHER_OWNER))

    monkeypatch.setattr(Fake, "in_work", staticmethod(be_replaced))
    with pytest.raises(ClusterError, match="another submission of n has taken over"):
        submit(config)
    assert Fake.calls == ["check", "prepare", "work"]
    assert "result" not in recorded(config)
    assert logged(config).info.status == "RUNNING"
    assert json.loads((Path(config.storage) / "n" / "lease.json").read_text()) == OTHER_OWNER


def test_a_config_is_checked_before_anything_is_written(config: FakeConfig) -> None:
    with pytest.raises(ConfigError, match="number: -1: must be greater than or equal to 0"):
        submit(replace(config, number=-1))
    assert Fake.calls == []
    assert not Path(config.storage).exists()


def test_sync_of_no_run(config: FakeConfig) -> None:
    with pytest.raises(ConfigError, match="name: 'n': there is no such run in"):
        sync(config)
    assert not (Path(config.storage) / "n").exists()


# A finished run, and what the named server has of it.

LOGGED = ["check", "log", "show", "conclude"]
RETURNED = ["check", "show", "conclude"]


def elsewhere(config: FakeConfig, uri: str | None) -> FakeConfig:
    return replace(config, tracking=replace(config.tracking, uri=uri))


def test_another_server_gets_the_run_once(config: FakeConfig, empty_store: Path) -> None:
    submit(config)
    first = logged(config)
    other = elsewhere(config, f"sqlite:///{shutil.copy(empty_store, Path(config.storage))}")
    for given, calls in ((other, LOGGED), (other, RETURNED), (config, RETURNED), (other, RETURNED)):
        assert submit(given) == Doubled(8, "models:/fake/8")
        assert Fake.calls == calls
        assert sync(given) == Doubled(8, "models:/fake/8")
        assert Fake.calls == []
    assert logged(config).info.end_time == first.info.end_time
    run = logged(other)
    assert (run.info.status, run.data.tags["value"]) == ("FINISHED", "8")
    assert run.data.params["number"] == "4"
    assert RunRecord(config).key == first.info.run_id  # under which a version is registered


def test_the_environment_names_another_server(
    config: FakeConfig, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = elsewhere(config, None)
    for name in ("a", "b"):
        uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / name)}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        submit(given)
        assert "log" in Fake.calls
        assert logged(elsewhere(config, uri)).info.status == "FINISHED"


@pytest.mark.parametrize("again", [submit, sync])
def test_the_default_database_is_that_of_the_working_directory(
    config: FakeConfig,
    again: Callable[[FakeConfig], Doubled],
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    given = elsewhere(config, None)
    for name, action in (("a", submit), ("b", again)):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(empty_store, folder / "mlflow.db")
        monkeypatch.chdir(folder)
        action(given)
        assert "log" in Fake.calls
        found = logged(elsewhere(config, f"sqlite:///{folder}/mlflow.db"))
        assert found.info.status == "FINISHED"


def delete_run(config: FakeConfig) -> None:
    client_of(str(config.tracking.uri)).delete_run(logged(config).info.run_id)


def empty_the_database(config: FakeConfig) -> None:
    file = Path(str(config.tracking.uri).removeprefix("sqlite:///"))
    file.unlink()
    shutil.copy(file.with_name("empty.db"), file)


def unregister(config: FakeConfig) -> None:
    Fake.registry = False


@pytest.mark.parametrize("again", [submit, sync])
@pytest.mark.parametrize("change", [delete_run, empty_the_database, unregister])
def test_what_the_server_no_longer_has_is_logged_again(
    config: FakeConfig,
    again: Callable[[FakeConfig], Doubled],
    change: Callable[[FakeConfig], None],
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fake, "registry", True)
    shutil.copy(empty_store, Path(config.storage).with_name("empty.db"))
    submit(config)
    change(config)
    assert again(config) == Doubled(8, "models:/fake/8")
    assert [call for call in Fake.calls if call in ("work", "log")] == ["log"]
    assert logged(config).info.status == "FINISHED"
    Fake.registry = True
    submit(config)
    assert Fake.calls == RETURNED


@pytest.mark.parametrize("again", [submit, sync])
def test_a_finished_run_whose_server_is_away(
    config: FakeConfig, again: Callable[[FakeConfig], Doubled]
) -> None:
    submit(config)
    content = recorded(config)
    away = elsewhere(config, "http://127.0.0.1:9")
    if again is sync:
        Path(config.storage, "n", "run.json").write_text(
            json.dumps(content).replace(str(config.tracking.uri), "http://127.0.0.1:9")
        )
    with pytest.raises(TrackingError) as error:
        again(away)
    where, kept = str(error.value).splitlines()
    assert where.startswith("no MLflow server answers at http://127.0.0.1:9: ")
    assert kept.startswith(f"n has finished, and its result is kept in {config.storage}/n")
    assert ("tracking.offline=true" in kept) == ("show" in Fake.calls) == (again is submit)
    assert recorded(config)["run_id"] == content["run_id"]
    offline = replace(config, tracking=replace(away.tracking, offline=True))
    assert submit(offline).value == 8


def test_a_finished_run_whose_database_is_locked(config: FakeConfig) -> None:
    """To look something up is not to write."""
    submit(config)
    file = str(config.tracking.uri).removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert submit(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == RETURNED


@pytest.mark.server
def test_a_deleted_experiment_is_restored_with_the_command_that_is_named(
    config: FakeConfig,
) -> None:
    submit(config)
    run = logged(config)
    client_of(str(config.tracking.uri)).delete_experiment(run.info.experiment_id)
    with pytest.raises(TrackingError, match="the experiment e was deleted in MLflow") as error:
        submit(config)
    named = re.search(r"MLFLOW_TRACKING_URI=(\S+) mlflow (.*?), or", str(error.value))
    assert named is not None
    command = [sys.executable, "-m", "mlflow", *shlex.split(named[2])]
    subprocess.run(command, env=os.environ | {"MLFLOW_TRACKING_URI": named[1]}, check=True)
    assert submit(config) == Doubled(8, "models:/fake/8")
    assert Fake.calls == RETURNED
    assert logged(config).info.run_id == run.info.run_id
