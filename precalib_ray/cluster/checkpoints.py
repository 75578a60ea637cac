"""The checkpoints of a run, used by all its ranks together; rank 0 decides and writes.

Ray Train does not manage them: its index of checkpoints is a file that a full disk truncates, that
another version of Ray does not read, and without which they are lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ray.train
from ray.train.collective import broadcast_from_rank_zero

from precalib_ray.cluster.logs import Log
from precalib_ray.core.progress import Progress
from precalib_ray.errors import CheckpointError, StorageError
from precalib_ray.storage.checkpoints import CheckpointStore
from precalib_ray.storage.folder import file_system


class Notify(Protocol):
    """Logs a problem with its fields; on rank 0 the driver gets the message too."""

    def __call__(self, message: str, **fields: Any) -> None: ...


class Checkpoints:
    """One rank's part in loading and saving; every method is collective."""

    def __init__(
        self, folder: str, *, last: str, keep: int, on_error: str, log: Log, notify: Notify
    ) -> None:
        """A store in the run's folder.

        Args:
            folder: of the run, absolute or a URI: workers have working directories of their own.
            last: name of the checkpoint of a finished run.
            keep: newest checkpoints to keep.
            on_error: ``stop`` or ``continue`` if one cannot be written.
            log: of this rank.
            notify: of this rank.
        """
        self._is_writer = ray.train.get_context().get_world_rank() == 0
        files, path = file_system(folder)
        self._store = CheckpointStore(files, path, last=last, keep=keep)
        self._on_error, self._log, self._notify = on_error, log, notify
        self._last_good = ""

    def resume(self, resume: Callable[[Path], None]) -> str:
        """Load the newest checkpoint that is usable.

        Returns:
            its path; empty if there is none.

        Raises:
            CheckpointError: there are some, and none is usable.
        """
        found, failure = "", ""
        if self._is_writer:  # on NFS, other ranks may not see the newest yet
            self._store.remove_unfinished()
            try:
                found = self._store.load_newest(resume, warn=self._notify) or ""
            except CheckpointError as error:
                failure = str(error)
        found, failure = broadcast_from_rank_zero((found, failure))
        if failure:
            raise CheckpointError(failure)
        if not found:
            return ""
        if not self._is_writer:
            try:
                self._store.load(found, resume)
            except CheckpointError as error:  # a StorageError makes Ray restart all workers
                raise StorageError(
                    f"rank 0 can read a checkpoint that this rank cannot: {error}"
                ) from None
        self._last_good = self._store.path(found)
        return self._last_good

    def save(
        self,
        name: str,
        write: Callable[[Path], None],
        progress: Progress[Any],
        *,
        required: bool = False,
    ) -> str:
        """Write a checkpoint.

        Args:
            name: of the checkpoint.
            write: writes it to a local path; called on rank 0.
            progress: the run's.
            required: whether to fail without it, despite ``on_error``.

        Returns:
            The path of the last good one: this one, unless it could not be written.

        Raises:
            CheckpointError: it could not be written; on every rank.
        """
        path, failure = self._store.path(name), ""
        if self._is_writer:
            try:
                self._store.put(name, write)
            except OSError as error:
                failure = str(error)[:500]
            else:
                self._prune()
        failure = str(broadcast_from_rank_zero(failure))
        if failure:
            last = self._last_good or "none was written yet"
            failure = f"{path}: cannot be written: {failure}; last good checkpoint: {last}"
            if required or self._on_error == "stop":
                raise CheckpointError(failure)
            self._notify(failure, step=progress.step)
            return self._last_good
        self._last_good = path
        if self._is_writer:
            self._log.info("checkpoint", step=progress.step, checkpoint=path)
        return path

    def _prune(self) -> None:
        try:
            self._store.prune()
        except OSError as error:  # retried after the next checkpoint
            self._log.warning(f"old checkpoints cannot be deleted: {error}")
