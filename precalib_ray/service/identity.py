"""A run is known by its name and config: submitted again, it goes on or returns what it made.

``run.json`` beside the checkpoints says under which config a name was used, which MLflow run it
writes, and what came of it.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow.fs

from precalib_ray.cluster.trainer import storage_path
from precalib_ray.config.base import Strict
from precalib_ray.config.jobs import NOT_IDENTITY
from precalib_ray.errors import ConfigError, Problem

_FILE = "run.json"


class Identity:
    """The record of a run on its storage."""

    def __init__(self, config: Strict, *, name: str, storage: str) -> None:
        """Find the record, or begin one.

        Raises:
            ConfigError: storage cannot be written, or another config has the name.
        """
        self._config = config.model_dump(mode="json", exclude=NOT_IDENTITY)
        try:
            self._files, root = pyarrow.fs.FileSystem.from_uri(storage_path(storage))
            self._directory = f"{root.rstrip('/')}/{name}"
            self._files.create_dir(self._directory, recursive=True)
            self.record = self._read()
            if not self.record:
                self.record = {"config": self._config}  # written once the run begins
        except (OSError, ValueError) as error:
            raise ConfigError(
                [Problem("storage", storage, f"cannot be written: {error}")]
            ) from None
        differences = _differences(self.record["config"], self._config)
        if differences:
            raise ConfigError(
                [
                    Problem(
                        "name", name, "is taken by a run with another config; choose another name"
                    ),
                    *(
                        Problem(path, new, f"was {old!r} in that run")
                        for path, old, new in differences
                    ),
                ]
            )

    @property
    def run_id(self) -> str | None:
        """The MLflow run that an earlier submission began."""
        return self.record.get("run_id")

    @property
    def result(self) -> dict[str, Any] | None:
        """What a finished run returned."""
        return self.record.get("result")

    def update(self, **values: Any) -> None:
        """Add to the record."""
        self.record |= values
        self.write(_FILE, json.dumps(self.record, indent=2))

    def write(self, file: str, text: str) -> None:
        """Replace a file of the run's folder, whole or not at all."""
        folder, _, name = f"{self._directory}/{file}".rpartition("/")
        self._files.create_dir(folder, recursive=True)
        with self._files.open_output_stream(f"{folder}/.{name}.new") as stream:
            stream.write(text.encode())
        self._files.move(f"{folder}/.{name}.new", f"{folder}/{name}")

    def read_all(self, folder: str) -> list[dict[str, Any]]:
        """The JSON files of a folder in the run's folder, by name."""
        selector = pyarrow.fs.FileSelector(f"{self._directory}/{folder}", allow_not_found=True)
        files = sorted(f.path for f in self._files.get_file_info(selector) if f.extension == "json")
        return [self._load(file) for file in files]

    def _read(self) -> dict[str, Any]:
        path = f"{self._directory}/{_FILE}"
        if self._files.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
            return {}
        return self._load(path)

    def _load(self, path: str) -> dict[str, Any]:
        with self._files.open_input_stream(path) as stream:
            record: dict[str, Any] = json.loads(stream.read())
        return record


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [(path, old, new)]
