"""What the workers of a trainer run: they train, save and report, and know nothing of MLflow."""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device

from precalib_ray.cluster.channel import Sender
from precalib_ray.cluster.gauges import Gauges
from precalib_ray.cluster.logs import Log
from precalib_ray.cluster.stragglers import Stragglers
from precalib_ray.core.checkpoint import STATE_FILE
from precalib_ray.core.engine import Call, Progress
from precalib_ray.core.pretraining import Outcome, Pretraining
from precalib_ray.data.training import DataTraining
from precalib_ray.errors import CheckpointError, DivergedError, InterruptedRunError

_PASSING = {errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT, errno.ENOTCONN}
"""What storage says when it fails, perhaps for a moment; a damaged file gives others too."""

LAST_CALL_S = 10.0
"""How long before a node is taken away a last checkpoint is written."""


def pretrain(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Noise pretraining on one worker.

    Returns:
        ``outcome``, or ``error``: one that Ray would not mend by starting the workers again.
    """
    return _work("pretrain", Pretraining, payload, last="final", to_plain=Outcome.to_json)


def train(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Data training on one worker; returns what ``pretrain`` does."""
    return _work("train", DataTraining, payload, last="best", to_plain=dict)


def _work(
    name: str,
    phase: Callable[..., Any],
    payload: Mapping[str, Any],
    *,
    last: str,
    to_plain: Callable[[Any], dict[str, Any]],
) -> dict[str, Any]:
    """Build a phase, go on where it was, run it to its end, and report the ``last`` checkpoint."""
    config = payload["config"]
    context = ray.train.get_context()
    log = Log(run=config["name"], phase=name, rank=context.get_world_rank())
    run = phase(config, **_shared(payload), device=_prepare(payload))
    sender = Sender(payload["mailbox"])

    def tell(message: str, **fields: Any) -> None:
        """Say something, on rank 0 to the driver too."""
        log.warning(message, **fields)
        if context.get_world_rank() == 0:
            sender.send({"told": message})

    storage = _Storage(log, tell, last=last, keep=payload["keep"], on_error=config["on_save_error"])
    try:
        resumed = storage.resume(run.resume)
        log.info(
            "training begins",
            world_size=context.get_world_size(),
            node=socket.gethostname(),
            device=str(run.engine.device),
            step=run.progress.step,
            checkpoint=resumed,
        )
        publish = _Publisher(sender, Gauges(run=config["name"], phase=name))
        stragglers = Stragglers(
            _names(), lambda text, rank, factor: tell(text, straggler=rank, factor=factor)
        )
        outcome = run.run(
            save=lambda progress: storage.save(run.write, f"step-{progress.step:08d}", progress),
            on_progress=publish,
            on_work=stragglers.add,
            call=_Calls(sender, tell),
        )
        storage.save(lambda directory: run.write(directory, outcome), last, run.progress, end=True)
    except (DivergedError, CheckpointError, InterruptedRunError) as error:
        log.warning(str(error), error=type(error).__name__, step=run.progress.step)
        return {"error": error}
    finally:
        sender.flush()
    log.info("training has ended", step=run.progress.step, stop_reason=run.progress.stop_reason)
    return {"outcome": to_plain(outcome), "checkpoint": last}


def _prepare(payload: Mapping[str, Any]) -> torch.device:
    """Use all the cores that were asked for."""
    torch.set_num_threads(max(1, int(payload["cpus"])))
    device: torch.device = get_device()
    return device


def _shared(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ray.get(reference) for name, reference in payload["shared"].items()}


def _names() -> list[str]:
    """Where each rank runs."""
    name = f"process {os.getpid()} on {socket.gethostname()}"
    if not dist.is_initialized():
        return [name]
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, name)
    return names


class _Storage:
    """The checkpoints in the run's folder, as all ranks use them together; rank 0 writes.

    Ray Train would keep a note of them too, in a file that a full disk truncates, that another
    version of Ray does not read, and without which its checkpoints are lost. A folder's name says
    all that must be known, and what is not whole is not loaded; so Ray is told of none.
    """

    def __init__(
        self, log: Log, tell: Callable[..., None], *, last: str, keep: int, on_error: str
    ) -> None:
        self._log, self._tell, self._keep, self._on_error = log, tell, keep, on_error
        self._is_writer = ray.train.get_context().get_world_rank() == 0
        storage = ray.train.get_context().get_storage()
        self._files, self._folder = storage.storage_filesystem, storage.experiment_fs_path
        # The second number is of versions that did not write over a damaged one.
        self._pattern = re.compile(rf"(?:step-(\d{{8,}})|{re.escape(last)})(?:-(\d+))?")
        self._unfinished = re.compile(rf"\.(?:step-\d{{8,}}|{re.escape(last)})\..*")
        self._damaged: set[str] = set()
        self._last_good = ""

    def resume(self, resume: Callable[[Path], None]) -> str:
        """Go on from the newest checkpoint that can be read.

        Returns:
            where it is; empty if there is none.

        Raises:
            CheckpointError: there are some, and none can be read.
        """
        found, failure = "", ""
        if self._is_writer:  # who decides for all: on NFS, others may not see the newest yet
            found, failure = self._find(resume)
        found, failure = broadcast_from_rank_zero((found, failure))
        if failure:
            raise CheckpointError(failure)
        if not found:
            return ""
        if not self._is_writer:
            try:
                self._load(resume, found)
            except CheckpointError as error:  # Ray starts all again
                raise OSError(
                    f"rank 0 can read a checkpoint that this rank cannot: {error}"
                ) from None
        self._last_good = f"{self._folder}/{found}"
        return self._last_good

    def _find(self, resume: Callable[[Path], None]) -> tuple[str, str]:
        """Load the newest that can be; its name, or what is wrong with the newest."""
        failure = ""
        for info in self._files.get_file_info(pyarrow.fs.FileSelector(self._folder)):
            if self._unfinished.fullmatch(info.base_name):  # who wrote it was killed
                self._files.delete_dir(info.path)
        for name in self._names():
            path = f"{self._folder}/{name}"
            state = self._files.get_file_info(f"{path}/{STATE_FILE}")
            if state.type == pyarrow.fs.FileType.NotFound:  # written last: there is none yet
                self._damaged.add(name)
                continue
            try:
                self._load(resume, name)
            except CheckpointError as error:
                if getattr(error.__cause__, "errno", None) in _PASSING:
                    raise OSError(f"{path}: {error}") from error  # Ray starts all again
                told = f"{path}: not usable: {error}"[:500]
                self._tell(f"{told}; going back one")
                self._damaged.add(name)
                failure = failure or told
            else:
                return name, ""
        return "", failure

    def _load(self, resume: Callable[[Path], None], name: str) -> None:
        with Checkpoint(f"{self._folder}/{name}", self._files).as_directory() as directory:
            resume(Path(directory))

    def save(
        self, write: Callable[[Path], None], name: str, progress: Progress, *, end: bool = False
    ) -> str:
        """Put a checkpoint on storage; every rank calls this, rank 0 writes.

        Args:
            write: writes it to a folder.
            name: of the checkpoint.
            progress: the run's.
            end: whether it is the run's last, which cannot be done without.

        Returns:
            Where the last good one is: this one, unless it could not be written and the run goes on
            without.

        Raises:
            CheckpointError: on every rank, it could not be written.
        """
        path, failure = f"{self._folder}/{name}", ""
        if self._is_writer:
            try:
                self._put(write, path)
            except OSError as error:
                failure = str(error)[:500]
            else:
                self._damaged.discard(name)
                self._prune()
        failure = str(broadcast_from_rank_zero(failure))
        if failure:
            last = self._last_good or "none was written yet"
            failure = f"{path}: cannot be written: {failure}; last good checkpoint: {last}"
            if end or self._on_error == "stop":
                raise CheckpointError(failure)
            self._tell(failure, step=progress.step)
            return self._last_good
        self._last_good = path
        if self._is_writer:
            self._log.info("checkpoint", step=progress.step, checkpoint=path)
        return path

    def _put(self, write: Callable[[Path], None], path: str) -> None:
        """Write a checkpoint; locally it appears whole, on an object store file by file, and that
        without which it is none last.
        """
        if isinstance(self._files, pyarrow.fs.LocalFileSystem):
            write(Path(path))
            return
        with tempfile.TemporaryDirectory() as directory:
            whole = Path(directory) / "checkpoint"
            write(whole)
            self._files.create_dir(path)
            names = sorted((f.name for f in whole.iterdir()), key=lambda name: name == STATE_FILE)
            for name in names:
                pyarrow.fs.copy_files(
                    str(whole / name),
                    f"{path}/{name}",
                    source_filesystem=pyarrow.fs.LocalFileSystem(),
                    destination_filesystem=self._files,
                )

    def _prune(self) -> None:
        """Delete what is older than the newest, and what could not be read."""
        try:
            good = [name for name in self._names() if name not in self._damaged]
            for name in [*good[self._keep :], *self._damaged]:
                self._files.delete_dir(f"{self._folder}/{name}")
            self._damaged.clear()
        except OSError as error:  # it is tried again after the next checkpoint
            self._log.warning(f"old checkpoints cannot be deleted: {error}")

    def _names(self) -> list[str]:
        """Checkpoints, the newest first."""
        there = self._files.get_file_info(pyarrow.fs.FileSelector(self._folder))
        matches = [self._pattern.fullmatch(info.base_name) for info in there]
        found = [(m[1] is None, int(m[1] or 0), int(m[2] or 1), m[0]) for m in matches if m]
        return [name for *_, name in sorted(found, reverse=True)]


class _Calls:
    """Calls from outside: of the driver that the run shall end, of Ray that a node will be gone."""

    def __init__(self, sender: Sender, tell: Callable[[str], None]) -> None:
        self._sender, self._tell = sender, tell
        self._is_first = ray.train.get_context().get_world_rank() == 0
        self._announced: set[str] = set()
        self._last_calls: set[int] = set()

    def __call__(self) -> Call:
        """The same on every rank: of the driver and of the time, rank 0's answer counts."""
        mine = (self._is_first and self._sender.ending(), time.time())
        ending, now = broadcast_from_rank_zero(mine)
        if ending:
            return "stop"
        notice = ray.train.get_preemption_info()
        if notice is None:
            return ""
        called: Call = ""
        deadline_ms = notice.deadline_ms
        near = deadline_ms is not None and deadline_ms / 1000 - now <= LAST_CALL_S
        if near and deadline_ms not in self._last_calls:
            self._last_calls.add(deadline_ms)
            called = "save"
        if not set(notice.preempted_node_ids) <= self._announced:
            self._announced |= set(notice.preempted_node_ids)
            ranks = ", ".join(map(str, notice.preempted_ranks))
            self._tell(f"the node of rank {ranks} will be taken away: writing a checkpoint")
            called = "save"
        return called


class _Publisher:
    """Sends what the driver shows and logs."""

    def __init__(self, sender: Sender, gauges: Gauges) -> None:
        self._sender, self._gauges = sender, gauges
        self._num_sent = 0

    def __call__(self, progress: Progress, metrics: dict[str, float]) -> None:
        """Send a record of progress."""
        record = {
            "step": progress.step,
            "samples": progress.samples,
            "seconds": progress.seconds,
            "evaluations": progress.history[self._num_sent :],
            **metrics,
        }
        self._num_sent = len(progress.history)
        self._gauges.set(progress, metrics)
        self._sender.send(record)
