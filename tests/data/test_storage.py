"""Folders that are on the machine, and folders that are not."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs
import pytest

from precalib_ray.data.storage import Folder


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """Remote is whatever pyarrow does not call local; this one has its files in ``tmp_path``."""
    files: pyarrow.fs.FileSystem = pyarrow.fs.LocalFileSystem()
    if request.param == "remote":
        return Folder(pyarrow.fs.SubTreeFileSystem(str(tmp_path), files), "run")
    return Folder(files, str(tmp_path / "run"))


def test_a_folder_is_had_on_the_machine(folder: Folder, tmp_path: Path) -> None:
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
