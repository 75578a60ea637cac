"""The checkpoints of a run, on local and on remote file systems, without Ray."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs
import pytest

from precalib_ray.core.checkpoint import STATE_FILE
from precalib_ray.errors import CheckpointError
from precalib_ray.storage.checkpoints import CheckpointStore, step_name


@dataclass
class Run:
    """A run's folder in ``tmp_path``, and what was loaded from it."""

    store: CheckpointStore
    folder: Path
    fails: dict[str, int | None] = field(default_factory=dict)
    """Contents that cannot be loaded, with the error number that their reading gives."""
    loaded: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def put(self, *steps: int | str) -> None:
        for step in steps:
            self.store.put(
                self.name(step), lambda directory, step=step: write(directory, str(step))
            )

    def newest(self) -> str | None:
        return self.store.load_newest(self.resume, warn=self.warnings.append)

    def resume(self, directory: Path) -> None:
        content = (directory / "model").read_text()
        self.loaded.append(content)
        if content in self.fails:
            number = self.fails[content]
            cause = None if number is None else OSError(number, "no")
            raise CheckpointError(f"{content} is damaged") from cause

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    @staticmethod
    def name(step: int | str) -> str:
        return step if isinstance(step, str) else step_name(step)


def write(directory: Path, content: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / STATE_FILE).write_text("state")
    (directory / "model").write_text(content)


@pytest.fixture(params=["local", "remote"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    files: pyarrow.fs.FileSystem = pyarrow.fs.LocalFileSystem()
    folder = path = str(tmp_path / "run")
    Path(folder).mkdir()
    if request.param == "remote":
        files, path = pyarrow.fs.SubTreeFileSystem(str(tmp_path), files), "run"
    return Run(CheckpointStore(files, path, last="final", keep=2), Path(folder))


def test_names_are_newest_first_and_others_are_ignored(run: Run) -> None:
    run.put(20, 100_000_000, 3, "final")
    for other in ("trials", "step-1", "step-00000005-2", "best", ".step-00000004.x"):
        (run.folder / other).mkdir()
    assert run.store.names() == ["final", "step-100000000", "step-00000020", "step-00000003"]


def test_the_newest_is_loaded(run: Run) -> None:
    assert run.newest() is None
    run.put(1, 2)
    assert run.newest() == "step-00000002"
    run.put("final")
    assert run.newest() == "final"
    assert run.loaded == ["2", "final"]
    assert run.warnings == []


def test_a_damaged_one_is_passed_over_and_pruned(run: Run) -> None:
    run.put(1, 2, 3)
    run.fails = {"3": None, "2": errno.EINVAL}
    assert run.newest() == "step-00000001"
    assert len(run.warnings) == 2
    assert "step-00000003: not usable: 3 is damaged; trying the one before" in run.warnings[0]
    assert run.store.damaged == {"step-00000003", "step-00000002"}
    run.put(2)  # written anew, and whole
    run.store.prune()
    assert run.names() == ["step-00000001", "step-00000002"]
    assert run.store.damaged == set()


def test_an_unfinished_upload_is_passed_over_and_pruned(run: Run) -> None:
    run.put(1, 2)
    (run.folder / "step-00000002" / STATE_FILE).unlink()
    assert run.newest() == "step-00000001"
    assert run.loaded == ["1"]
    run.store.prune()
    assert run.names() == ["step-00000001"]


def test_without_a_usable_one_the_newest_is_named(run: Run) -> None:
    run.put(1, 2)
    run.fails = {"1": None, "2": None}
    with pytest.raises(CheckpointError, match=r"step-00000002: not usable: 2 is damaged$"):
        run.newest()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT])
def test_a_transient_error_damages_none(run: Run, number: int) -> None:
    run.put(1, 2)
    run.fails = {"2": number}
    with pytest.raises(OSError, match="step-00000002: 2 is damaged"):
        run.newest()
    assert run.store.damaged == set()
    assert run.loaded == ["2"]


def test_a_storage_that_is_gone_is_no_new_run(run: Run) -> None:
    run.folder.rmdir()
    with pytest.raises(FileNotFoundError):
        run.newest()


def test_what_a_killed_writer_left_is_removed(run: Run) -> None:
    run.put(1)
    for name in (".step-00000002.abc", ".final.x", ".step-00000001.y", ".other.z"):
        (run.folder / name).mkdir()
        (run.folder / name / "model").touch()
    run.store.remove_unfinished()
    assert run.names() == [".other.z", "step-00000001"]


def test_prune_keeps_the_newest(run: Run) -> None:
    run.put(1, 2, 3, 10)
    run.store.prune()
    assert run.names() == ["step-00000003", "step-00000010"]
    run.put("final")
    run.store.prune()
    assert run.names() == ["final", "step-00000010"]


def test_a_failed_write_is_an_os_error_and_leaves_nothing(run: Run) -> None:
    def fail(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    run.put(1)
    with pytest.raises(OSError, match="full"):
        run.store.put("final", fail)
    assert run.names() == ["step-00000001"]


def test_an_upload_ends_with_the_trainer_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    def copy_files(source: str, target: str, **_: pyarrow.fs.FileSystem) -> None:
        copied.append(target)

    monkeypatch.setattr("precalib_ray.storage.checkpoints.pyarrow.fs.copy_files", copy_files)
    files = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    store = CheckpointStore(files, "", last="final", keep=1)

    def write_more(directory: Path) -> None:
        write(directory, "x")
        (directory / "z.json").touch()

    store.put("final", write_more)
    assert len(copied) == 3
    assert copied[-1].endswith(f"final/{STATE_FILE}")
