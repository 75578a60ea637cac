"""A folder of small files on any file system that pyarrow knows: local, NFS, S3 and others."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import uuid
from pathlib import Path

import pyarrow.fs


class Folder:
    """Files that are written whole or not at all."""

    def __init__(self, files: pyarrow.fs.FileSystem, path: str) -> None:
        """``path`` as the file system takes it, without a scheme."""
        self._files, self._path = files, path.rstrip("/")

    @classmethod
    def at(cls, uri: str) -> Folder:
        """The folder of a URI or an absolute path, which is made if need be.

        Raises:
            OSError, ValueError: it cannot be.
        """
        folder = cls(*pyarrow.fs.FileSystem.from_uri(uri))
        folder.make()
        return folder

    def make(self) -> None:
        """Make the folder, if it is not there."""
        self._files.create_dir(self._path, recursive=True)

    def __truediv__(self, name: str) -> Folder:
        """A folder in this one, made with the first file in it."""
        return Folder(self._files, f"{self._path}/{name}")

    @property
    def local(self) -> Path | None:
        """The folder's path, where the file system is that of the machine."""
        own = isinstance(self._files, pyarrow.fs.LocalFileSystem)
        return Path(self._path) if own else None

    def write(self, name: str, text: str) -> None:
        """Replace a file; a reader sees the old one or the new one."""
        if self.local is None:  # an object store shows a file once its stream is closed
            with self._files.open_output_stream(f"{self._path}/{name}") as stream:
                stream.write(text.encode())
            return
        self.local.mkdir(parents=True, exist_ok=True)
        written = self.local / f".{name}.{uuid.uuid4().hex[:8]}.new"
        try:
            written.write_text(text)
            written.replace(self.local / name)
        finally:
            written.unlink(missing_ok=True)

    def read(self, name: str) -> str | None:
        """What a file holds; None if there is none."""
        try:
            with self._files.open_input_stream(f"{self._path}/{name}") as stream:
                return str(stream.read().decode())
        except FileNotFoundError:
            return None

    def names(self, ending: str) -> list[str]:
        """The files whose names end so, sorted; what is still being written is none of them."""
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True)
        found = (info.base_name for info in self._files.get_file_info(selector))
        return sorted(n for n in found if n.endswith(ending) and not n.startswith("."))

    def modified(self, name: str) -> datetime.datetime | None:
        """When a file was written, by the clock of its file system; None if there is none."""
        info = self._files.get_file_info(f"{self._path}/{name}")
        missing = info.type == pyarrow.fs.FileType.NotFound
        return None if missing else info.mtime

    def download(self, name: str) -> Path:
        """Where a folder of this one is, or a copy of it if this one is not on the machine.

        Raises:
            OSError: there is none.
        """
        if self.local is not None:
            return self.local / name
        copy = Path(tempfile.mkdtemp(prefix="precalib-")) / name
        copy.mkdir()  # an object store has no folders that would be copied
        pyarrow.fs.copy_files(
            f"{self._path}/{name}",
            str(copy),
            source_filesystem=self._files,
            destination_filesystem=pyarrow.fs.LocalFileSystem(),
        )
        return copy

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(f"{self._path}/{name}")

    def __str__(self) -> str:
        """For people."""
        return self._path
