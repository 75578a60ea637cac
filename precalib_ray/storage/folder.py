"""A folder of small files on any file system that pyarrow supports: local, NFS, S3 and others."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import tempfile
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.fs

from precalib_ray.errors import MissingError, StorageError, one_line

_ANSWER_S = 5.0


def absolute(storage: str) -> str:
    """The URI or absolute path of a config's ``storage``: a relative path is made absolute."""
    return storage if "://" in storage else str(Path(storage).absolute())


@contextlib.contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Raise StorageError for what a file system raises: the system's errors, and pyarrow's own,
    which some file systems raise in their place.
    """
    try:
        yield
    except StorageError:
        raise
    except (OSError, pa.ArrowException, UnicodeError) as error:
        kind = MissingError if isinstance(error, FileNotFoundError) else StorageError
        refused = kind(f"{path}: {one_line(error)}")
        refused.errno = getattr(error, "errno", None)
        raise refused from error


def file_system(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a URI or an absolute path, and the path in it.

    Raises:
        StorageError: pyarrow knows no such file system, or nothing answers at its endpoint.
    """
    with storage_errors(uri):
        files, path = pyarrow.fs.FileSystem.from_uri(uri)
        if "://" in uri:
            _require_answer(uri)
    return files, path


def _require_answer(uri: str) -> None:
    """Fail fast: a client of S3 tries an endpoint that does not answer for minutes."""
    parts = urllib.parse.urlsplit(uri)
    settings = dict(urllib.parse.parse_qsl(parts.query))
    endpoint = settings.get("endpoint_override", "")
    if not endpoint:
        return
    default = "http" if settings.get("scheme") == "http" else "https"
    at = urllib.parse.urlsplit(endpoint if "://" in endpoint else f"{default}://{endpoint}")
    try:
        port = at.port or (80 if at.scheme == "http" else 443)
        socket.create_connection((at.hostname, port), timeout=_ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise StorageError(f"no answer at {at.netloc}: {error}") from error


class Folder:
    """Files that are written atomically; where no other is named, errors are StorageError."""

    def __init__(self, files: pyarrow.fs.FileSystem, path: str) -> None:
        """``path`` is the file system's, without a scheme."""
        self._files, self._path = files, path.rstrip("/")

    @classmethod
    def at(cls, uri: str) -> Self:
        """The folder of a URI or an absolute path; created if it does not exist.

        Raises:
            StorageError: it cannot be created, or the URI is not supported.
        """
        folder = cls(*file_system(uri))
        folder.make()
        return folder

    def make(self) -> None:
        """Create the folder; idempotent."""
        with storage_errors(self._path):
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
        with storage_errors(f"{self._path}/{name}"):
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
        with storage_errors(f"{self._path}/{name}"):
            try:
                with self._files.open_input_stream(f"{self._path}/{name}") as stream:
                    return str(stream.read().decode(errors="replace"))
            except FileNotFoundError:
                return None

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; None if it does not exist, or is empty."""
        text = self.read(name)
        try:
            return json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{self._path}/{name}: truncated, or not JSON: {error}") from error

    def names(self, ending: str) -> list[str]:
        """Names of files with an ending, sorted; unfinished writes are left out."""
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True)
        with storage_errors(self._path):
            found = [info.base_name for info in self._files.get_file_info(selector)]
        return sorted(n for n in found if n.endswith(ending) and not n.startswith("."))

    def modified(self, name: str) -> datetime.datetime | None:
        """Modification time of a file, by the clock of its file system; None without a file."""
        with storage_errors(f"{self._path}/{name}"):
            info = self._files.get_file_info(f"{self._path}/{name}")
        missing = info.type == pyarrow.fs.FileType.NotFound
        return None if missing else info.mtime

    def download(self, name: str) -> Path:
        """The local path of a folder in this one: its own, or that of a copy if it is remote.

        Raises:
            StorageError: it does not exist.
        """
        if self.local is not None:
            return self.local / name
        copy = Path(tempfile.mkdtemp(prefix="precalib-")) / name
        download(self._files, f"{self._path}/{name}", copy)
        return copy

    def delete(self, name: str) -> None:
        """Delete a file; idempotent."""
        with storage_errors(f"{self._path}/{name}"), contextlib.suppress(FileNotFoundError):
            self._files.delete_file(f"{self._path}/{name}")

    def __str__(self) -> str:
        return self._path


def is_local(files: pyarrow.fs.FileSystem) -> bool:
    """Whether a file system is that of this machine."""
    return isinstance(files, pyarrow.fs.LocalFileSystem)


def download(files: pyarrow.fs.FileSystem, path: str, copy: Path) -> None:
    """Copy a remote folder to this machine; raises StorageError if it does not exist."""
    with storage_errors(path):
        copy.mkdir(parents=True)  # copy_files creates none for a source without folders
        pyarrow.fs.copy_files(
            path,
            str(copy),
            source_filesystem=files,
            destination_filesystem=pyarrow.fs.LocalFileSystem(),
        )
