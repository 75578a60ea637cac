"""A folder of small files on any file system that pyarrow supports: local, NFS, S3 and others."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import uuid
from pathlib import Path
from typing import Self

import pyarrow.fs


def absolute(storage: str) -> str:
    """The URI or absolute path of a config's ``storage``: a relative path is made absolute."""
    return storage if "://" in storage else str(Path(storage).absolute())


class Folder:
    """Files that are written atomically."""

    def __init__(self, files: pyarrow.fs.FileSystem, path: str) -> None:
        """``path`` is the file system's, without a scheme."""
        self._files, self._path = files, path.rstrip("/")

    @classmethod
    def at(cls, uri: str) -> Self:
        """The folder of a URI or an absolute path; created if it does not exist.

        Raises:
            OSError, ValueError: it cannot be created, or the URI is not supported.
        """
        folder = cls(*pyarrow.fs.FileSystem.from_uri(uri))
        folder.make()
        return folder

    def make(self) -> None:
        """Create the folder; idempotent."""
        self._files.create_dir(self._path, recursive=True)

    def __truediv__(self, name: str) -> Folder:
        """A folder in this one, created with the first file in it."""
        return Folder(self._files, f"{self._path}/{name}")

    @property
    def local(self) -> Path | None:
        """The path on this machine; None if the file system is remote."""
        return Path(self._path) if is_local(self._files) else None

    def write(self, name: str, text: str) -> None:
        """Replace a file; a reader sees the old content or the new, never a part."""
        if self.local is None:  # an object store shows a file once its stream is closed
            with self._files.open_output_stream(f"{self._path}/{name}") as stream:
                stream.write(text.encode())
            return
        self.local.mkdir(parents=True, exist_ok=True)
        temporary = self.local / f".{name}.{uuid.uuid4().hex[:8]}.new"
        try:
            temporary.write_text(text)
            temporary.replace(self.local / name)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> str | None:
        """The content of a file; None if it does not exist."""
        try:
            with self._files.open_input_stream(f"{self._path}/{name}") as stream:
                return str(stream.read().decode())
        except FileNotFoundError:
            return None

    def names(self, ending: str) -> list[str]:
        """Names of files with an ending, sorted; unfinished writes are left out."""
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True)
        found = (info.base_name for info in self._files.get_file_info(selector))
        return sorted(n for n in found if n.endswith(ending) and not n.startswith("."))

    def modified(self, name: str) -> datetime.datetime | None:
        """Modification time of a file, by the clock of its file system; None without a file."""
        info = self._files.get_file_info(f"{self._path}/{name}")
        missing = info.type == pyarrow.fs.FileType.NotFound
        return None if missing else info.mtime

    def download(self, name: str) -> Path:
        """The local path of a folder in this one: its own, or that of a copy if it is remote.

        Raises:
            OSError: it does not exist.
        """
        if self.local is not None:
            return self.local / name
        copy = Path(tempfile.mkdtemp(prefix="precalib-")) / name
        download(self._files, f"{self._path}/{name}", copy)
        return copy

    def delete(self, name: str) -> None:
        """Delete a file; idempotent."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(f"{self._path}/{name}")

    def __str__(self) -> str:
        return self._path


def is_local(files: pyarrow.fs.FileSystem) -> bool:
    """Whether a file system is that of this machine."""
    return isinstance(files, pyarrow.fs.LocalFileSystem)


def download(files: pyarrow.fs.FileSystem, path: str, copy: Path) -> None:
    """Copy a remote folder to this machine; raises OSError if it does not exist."""
    copy.mkdir(parents=True)  # copy_files creates none for a source without folders
    pyarrow.fs.copy_files(
        path,
        str(copy),
        source_filesystem=files,
        destination_filesystem=pyarrow.fs.LocalFileSystem(),
    )
