"""Folders on local and on remote file systems."""

from __future__ import annotations

import errno
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest

from precalib_ray.errors import StorageError
from precalib_ray.storage.folder import Folder, absolute, storage_errors


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """Remote is every file system but pyarrow's local one; this one is a folder in ``tmp_path``."""
    files: pyarrow.fs.FileSystem = pyarrow.fs.LocalFileSystem()
    if request.param == "remote":
        return Folder(pyarrow.fs.SubTreeFileSystem(str(tmp_path), files), "run")
    return Folder(files, str(tmp_path / "run"))


def test_a_folder_is_downloaded_if_it_is_remote(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "run" / "final" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "final" / "a.bin").write_bytes(b"123")
    (tmp_path / "run" / "final" / "deep" / "b.txt").write_text("x")
    found = folder.download("final")
    assert found.name == "final"
    assert (found / "a.bin").read_bytes() == b"123"
    assert (found / "deep" / "b.txt").read_text() == "x"
    assert (found == tmp_path / "run" / "final") == (folder.local is not None)
    if folder.local is None:
        with pytest.raises(OSError, match="gone"):
            folder.download("gone")


def test_files_are_replaced_listed_and_deleted(folder: Folder) -> None:
    folder.make()
    assert folder.read("a.json") is None
    folder.write("a.json", "1")
    folder.write("a.json", "2")
    folder.write("b.txt", "3")
    assert folder.read("a.json") == "2"
    assert folder.names(".json") == ["a.json"]
    assert folder.modified("a.json") is not None
    folder.delete("a.json")
    folder.delete("a.json")
    assert folder.names(".json") == []
    assert folder.modified("a.json") is None
    (folder / "deeper").make()
    (folder / "deeper").write("c", "4")
    assert (folder / "deeper").read("c") == "4"


def test_storage_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("runs") == f"{tmp_path}/runs"
    assert absolute("/srv/runs") == "/srv/runs"
    assert absolute("s3://bucket/runs") == "s3://bucket/runs"


def closed(tmp_path: Path) -> str:
    """An object store whose endpoint nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return f"s3://k:s@b/runs?scheme=http&endpoint_override=127.0.0.1:{port}"


@pytest.mark.parametrize(
    "uri",
    ["gs3://b/x", "s3://k:s@b/x?endpoint_override=localhost:port", "s3:///x", "file://host/x",
     "{}/file", "{}/file/deeper", "/proc/no/such",
     "{}/" + "x" * 300, "{}/\udcff", closed],
)  # fmt: skip
def test_storage_that_cannot_be_used(uri: str | Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uri = uri.format(tmp_path) if isinstance(uri, str) else uri(tmp_path)
    started = time.monotonic()
    with pytest.raises(StorageError) as error:
        Folder.at(uri)
    assert time.monotonic() - started < 10
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)
    assert str(error.value)


def refuse(*_: Any) -> None:
    """As some file systems of pyarrow, which raise an error of their own."""
    raise pa.ArrowException("Unknown error: the token\nhas expired")


def test_errors_of_a_file_system() -> None:
    methods = dict.fromkeys(pyarrow.fs.FileSystemHandler.__abstractmethods__, refuse)
    handler = type("Odd", (pyarrow.fs.FileSystemHandler,), methods)
    folder = Folder(pyarrow.fs.PyFileSystem(handler()), "run")
    for use in (
        folder.make,
        lambda: folder.write("a", "b"),
        lambda: folder.read("a"),
        lambda: folder.names(".json"),
        lambda: folder.modified("a"),
        lambda: folder.download("a"),
        lambda: folder.delete("a"),
    ):
        with pytest.raises(StorageError, match=r"^run.*: Unknown error: the token has expired$"):
            use()


def test_a_full_disk() -> None:
    with pytest.raises(StorageError) as refused, storage_errors("run"):
        Path("/dev/full").write_text("x")
    assert str(refused.value) == "run: [Errno 28] No space left on device"
    assert refused.value.errno == errno.ENOSPC
    received = pickle.loads(pickle.dumps(refused.value))  # noqa: S301  as Ray sends it
    assert (type(received), str(received)) == (StorageError, str(refused.value))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"\0\0", b"[" * 100_000])
def test_a_file_that_is_no_json(content: bytes, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"run/a\.json: truncated, or not JSON: "):
        folder.read_json("a.json")
    (tmp_path / "run" / "a.json").write_bytes(b"")
    assert folder.read_json("a.json") is None
    assert folder.read_json("b.json") is None
