"""The record of a run on its storage: ``run.json`` next to the checkpoints.

It holds the config under which a name was used, the MLflow run, and the result. Submitted again
under the same name and config, a job finds it and resumes, or returns the result.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from precalib_ray.config.load import identity
from precalib_ray.config.sections import Stored
from precalib_ray.core.spec import plain
from precalib_ray.errors import CheckpointError, ConfigError, Problem, StorageError
from precalib_ray.runs.console import console
from precalib_ray.runs.lease import Lease
from precalib_ray.storage.folder import Folder, absolute

_FILE = "run.json"


class RunRecord:
    """The record of one run."""

    def __init__(self, config: Stored) -> None:
        """Find the record, or begin one, which is written with the first ``update``.

        Raises:
            ConfigError: storage cannot be written, or the name is taken by another config.
        """
        self._config = config
        self._lease: Lease | None = None
        self.folder = open_folder(config.storage, config.name)
        self._load()

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Be the only submission of the run that works on it; waits while another does.

        Inside, the record holds what that other submission wrote.

        Raises:
            ConfigError: the name was taken by another config meanwhile.
            ClusterError: this process was suspended, and another submission has taken over.
        """
        with Lease(self.folder, name=self._config.name, notify=console.print) as lease:
            self._lease = lease
            try:
                self._load()
                yield
            finally:
                self._lease = None

    @property
    def superseded(self) -> bool:
        """Whether another submission has taken over."""
        return self._lease is not None and self._lease.lost

    @property
    def run_id(self) -> str | None:
        """The MLflow run, on the server of the last submission."""
        return self.content.get("run_id")

    @property
    def run_ids(self) -> list[str]:
        """The MLflow runs of all submissions, on any server, the last first."""
        others = self.content.get("other_runs", {})
        return [run_id for run_id in (self.run_id, *others) if run_id is not None]

    @property
    def key(self) -> str | None:
        """The idempotency key of the version that the run registers: its first MLflow run."""
        return self.content.get("key", self.run_id)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, as plain data."""
        return self.content.get("result")

    @property
    def synced(self) -> bool:
        """Whether the MLflow run has everything of a finished run, its end included."""
        return bool(self.content.get("synced"))

    def checkpoint(self, name: str) -> Path:
        """A checkpoint of the run, or a copy of it if storage is remote.

        Raises:
            CheckpointError: there is none.
        """
        try:
            return self.folder.download(name)
        except OSError as error:
            raise CheckpointError(f"{self.folder}/{name}: {error}") from None

    def update(self, **values: Any) -> None:
        """Add to the record; raises ClusterError if another submission has taken over."""
        if self._lease is not None:
            self._lease.require()
        self.content |= values
        self.folder.write(_FILE, json.dumps(self.content, indent=2))

    def select(self, run_id: str) -> None:
        """Make an MLflow run the one of the last submission; as ``update``, raises ClusterError."""
        if run_id == self.run_id:
            return
        key, others = self.key or run_id, dict(self.content.get("other_runs", {}))
        if self.run_id is not None:
            others[self.run_id] = self.synced
        self.content.pop("synced", None)
        synced = {"synced": True} if others.pop(run_id, False) else {}
        self.update(run_id=run_id, key=key, other_runs=others, **synced)

    def begin(self, phase: str, *, run_id: str | None = None) -> None:
        """Record how the run was submitted, so that ``sync`` can rebuild its config.

        Args:
            phase: of the job.
            run_id: the MLflow run; None if the job is offline.
        """
        settings = plain(self._config)
        where = {name: settings[name] for name in sorted(self._config.not_identity)}
        self.update(phase=phase, settings=where)
        if run_id is not None:
            self.select(run_id)

    def _load(self) -> None:
        wanted = identity(self._config)
        self.content = read(self.folder, self._config.storage) or {"config": wanted}
        differences = _differences(self.content["config"], wanted)
        if differences:
            taken = "is taken by a run with another config; choose another name"
            raise ConfigError(
                [
                    Problem("name", self._config.name, taken),
                    *(
                        Problem(path, new, f"was {old!r} in that run")
                        for path, old, new in differences
                    ),
                ]
            )


def open_folder(storage: str, name: str, *, make: bool = True) -> Folder:
    """The folder of a run; raises ConfigError if storage cannot be written."""
    try:
        folder = Folder.at(absolute(storage)) / name
        if make:
            folder.make()
    except StorageError as error:
        raise ConfigError([Problem("storage", storage, f"cannot be written: {error}")]) from None
    return folder


def read(folder: Folder, storage: str) -> dict[str, Any]:
    """The content of ``run.json``, empty if there is none; raises ConfigError."""
    try:
        content = folder.read_json(_FILE) or {}
        if content and not (isinstance(content, dict) and isinstance(content.get("config"), dict)):
            raise StorageError(f"{folder}/{_FILE}: not written by precalib_ray")
    except StorageError as error:
        raise ConfigError([Problem("storage", storage, f"cannot be read: {error}")]) from None
    if "told" in content:  # the key of version 0.1.0
        content["synced"] = content.pop("told")
    return content


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Path, old and new value of each field in which two plain configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [(path, old, new)]
