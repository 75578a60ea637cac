"""The checkpoints in a run's folder.

There is no index of them, which a full disk could truncate: a checkpoint's name holds its step, and
one that is not complete is not loaded.
"""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs

from precalib_ray.core.checkpoint import STATE_FILE
from precalib_ray.errors import CheckpointError, StorageError
from precalib_ray.storage.folder import download, is_local, storage_errors

_TRANSIENT = {errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT, errno.ENOTCONN}
"""Transient errors of storage; reading a damaged file gives others."""


def step_name(step: int) -> str:
    """The name of the checkpoint after a step."""
    return f"step-{step:08d}"


class CheckpointStore:
    """The checkpoints of one run, on any file system that pyarrow supports; has one writer."""

    def __init__(self, files: pyarrow.fs.FileSystem, path: str, *, last: str, keep: int) -> None:
        """A store for the run whose folder is ``path``.

        Args:
            files: the file system.
            path: the run's folder, without a scheme.
            last: name of the checkpoint of a finished run.
            keep: newest checkpoints that ``prune`` keeps.
        """
        self._files, self._path, self._keep = files, path.rstrip("/"), keep
        name = rf"step-\d{{8,}}|{re.escape(last)}"
        self._last, self._name = last, re.compile(name)
        self._unfinished = re.compile(rf"\.(?:{name})\..*")
        self.damaged: set[str] = set()
        """Names of checkpoints that could not be loaded; ``prune`` deletes them."""

    def path(self, name: str) -> str:
        """Where a checkpoint is, without a scheme."""
        return f"{self._path}/{name}"

    def names(self) -> list[str]:
        """Checkpoints, newest first."""
        found = (name for name in self._listing() if self._name.fullmatch(name))
        return sorted(found, key=self._age)

    def remove_unfinished(self) -> None:
        """Delete what a killed writer left behind."""
        for name in self._listing():
            if self._unfinished.fullmatch(name):
                with storage_errors(self.path(name)):
                    self._files.delete_dir(self.path(name))

    def load_newest(
        self, resume: Callable[[Path], None], *, warn: Callable[[str], None]
    ) -> str | None:
        """Load the newest checkpoint that is usable.

        Args:
            resume: as ``load``.
            warn: called with a message for each checkpoint that is not.

        Returns:
            its name; None if there is none.

        Raises:
            CheckpointError: there are some, and none is usable.
            StorageError: the storage fails, possibly transiently.
        """
        failure = ""
        for name in self.names():
            with storage_errors(self.path(name)):
                state = self._files.get_file_info(f"{self.path(name)}/{STATE_FILE}")
            if state.type == pyarrow.fs.FileType.NotFound:  # written last: this one is unfinished
                self.damaged.add(name)
                continue
            try:
                self.load(name, resume)
            except CheckpointError as error:
                if getattr(error.__cause__, "errno", None) in _TRANSIENT:
                    raise StorageError(f"{self.path(name)}: {error}") from error
                message = f"{self.path(name)}: not usable: {error}"[:500]
                warn(f"{message}; trying the one before")
                self.damaged.add(name)
                failure = failure or message
            else:
                return name
        if failure:
            raise CheckpointError(failure)
        return None

    def load(self, name: str, resume: Callable[[Path], None]) -> None:
        """Call ``resume`` with the local path of a checkpoint, or of a copy of it.

        Raises:
            CheckpointError: as ``resume`` raises it.
            StorageError: the storage fails.
        """
        with self._local(name) as directory:
            resume(directory)

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Store a checkpoint; raises StorageError.

        On a local file system it appears complete, by a rename; on an object store file by file,
        the one that makes it a checkpoint last.

        Args:
            name: of the checkpoint.
            write: writes it to a local path, atomically.
        """
        with storage_errors(self.path(name)):
            if is_local(self._files):
                write(Path(self.path(name)))
            else:
                with tempfile.TemporaryDirectory() as directory:
                    written = Path(directory) / "checkpoint"
                    write(written)
                    self._upload(written, self.path(name))
        self.damaged.discard(name)

    def prune(self) -> None:
        """Delete all but the newest checkpoints, and the damaged ones; raises StorageError."""
        good = [name for name in self.names() if name not in self.damaged]
        for name in [*good[self._keep :], *self.damaged]:
            with storage_errors(self.path(name)):
                self._files.delete_dir(self.path(name))
        self.damaged.clear()

    def _upload(self, directory: Path, path: str) -> None:
        self._files.create_dir(path)
        names = [file.name for file in directory.iterdir()]
        for name in sorted(names, key=lambda name: name == STATE_FILE):
            pyarrow.fs.copy_files(
                str(directory / name),
                f"{path}/{name}",
                source_filesystem=pyarrow.fs.LocalFileSystem(),
                destination_filesystem=self._files,
            )

    @contextlib.contextmanager
    def _local(self, name: str) -> Iterator[Path]:
        if is_local(self._files):
            yield Path(self.path(name))
            return
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / name
            download(self._files, self.path(name), copy)
            yield copy

    def _listing(self) -> list[str]:
        # A missing folder is an error: it must not be mistaken for a fresh run.
        selector = pyarrow.fs.FileSelector(self._path)
        with storage_errors(self._path):
            return [info.base_name for info in self._files.get_file_info(selector)]

    def _age(self, name: str) -> tuple[bool, int]:
        """Sorts the newest first; the last one is the newest."""
        return name != self._last, -int(name.removeprefix("step-")) if name != self._last else 0
