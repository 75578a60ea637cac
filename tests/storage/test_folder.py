"""Folders on local and on remote file systems."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs
import pytest

from precalib_ray.storage.folder import Folder, absolute


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
