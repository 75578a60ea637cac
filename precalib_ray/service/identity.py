"""A run is known by its name and config: submitted again, it goes on or returns what it made.

``run.json`` beside the checkpoints says under which config a name was used, which MLflow run it
writes, and what came of it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from precalib_ray.cluster.trainer import storage_path
from precalib_ray.config.base import Strict
from precalib_ray.config.jobs import NOT_IDENTITY
from precalib_ray.data.storage import Folder
from precalib_ray.errors import CheckpointError, ConfigError, Problem
from precalib_ray.service.lease import Lease
from precalib_ray.service.terminal import console

_FILE = "run.json"


class Identity:
    """The record of a run on its storage."""

    def __init__(self, config: Strict, *, name: str, storage: str) -> None:
        """Find the record, or begin one.

        Raises:
            ConfigError: storage cannot be written, or another config has the name.
        """
        self._name, self._storage = name, storage
        self._lease: Lease | None = None
        self._config = config.model_dump(mode="json", exclude=NOT_IDENTITY)
        self.folder = open_folder(storage, name)
        self._load()

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Be the only submission of the run that works on it; waits while another does.

        What the other has left is in the record then.

        Raises:
            ConfigError: another config has taken the name meanwhile.
            ClusterError: this process was held up, and another submission has taken over.
        """
        with Lease(self.folder, name=self._name, tell=console.print) as lease:
            self._lease = lease
            try:
                self._load()
                yield
            finally:
                self._lease = None

    @property
    def lost(self) -> bool:
        """Whether another submission has taken over."""
        return self._lease is not None and self._lease.lost

    @property
    def run_id(self) -> str | None:
        """The MLflow run that an earlier submission began."""
        return self.record.get("run_id")

    @property
    def result(self) -> dict[str, Any] | None:
        """What a finished run returned."""
        return self.record.get("result")

    @property
    def told(self) -> bool:
        """Whether MLflow has all of a finished run, its end included."""
        return bool(self.record.get("told"))

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
        self.record |= values
        self.folder.write(_FILE, json.dumps(self.record, indent=2))

    def _load(self) -> None:
        self.record = read_record(self.folder, self._storage)
        if not self.record:
            self.record = {"config": self._config}  # written once the run begins
        differences = _differences(self.record["config"], self._config)
        if differences:
            taken = "is taken by a run with another config; choose another name"
            raise ConfigError(
                [
                    Problem("name", self._name, taken),
                    *(
                        Problem(path, new, f"was {old!r} in that run")
                        for path, old, new in differences
                    ),
                ]
            )


def open_folder(storage: str, name: str, *, make: bool = True) -> Folder:
    """The folder of a run; raises ConfigError if storage cannot be written."""
    try:
        folder = Folder.at(storage_path(storage)) / name
        if make:
            folder.make()
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("storage", storage, f"cannot be written: {error}")]) from None
    return folder


def read_record(folder: Folder, storage: str) -> dict[str, Any]:
    """What ``run.json`` holds, nothing if there is none; raises ConfigError."""
    try:
        return dict(json.loads(folder.read(_FILE) or "{}"))
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("storage", storage, f"cannot be read: {error}")]) from None


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [(path, old, new)]
