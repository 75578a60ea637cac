"""What the workers of a trainer run: they train, save and report, and know nothing of MLflow."""

from __future__ import annotations

import os
import re
import socket
import tempfile
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
from precalib_ray.core.engine import Call, Progress
from precalib_ray.core.pretraining import Outcome, Pretraining
from precalib_ray.data.training import DataTraining
from precalib_ray.errors import CheckpointError, DivergedError, InterruptedRunError

_STEP = r"step-\d{8,}"
"""Names of checkpoints on the way."""


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
    storage = _Storage(log, last=last, keep=payload["keep"], on_error=config["on_save_error"])

    def tell(message: str, **fields: Any) -> None:
        """Say something, on rank 0 to the driver too."""
        log.warning(message, **fields)
        if context.get_world_rank() == 0:
            sender.send({"told": message})

    try:
        resumed = storage.resume(run.resume, tell)
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

    def __init__(self, log: Log, *, last: str, keep: int, on_error: str) -> None:
        self._log, self._last, self._keep, self._on_error = log, last, keep, on_error
        self._is_writer = ray.train.get_context().get_world_rank() == 0
        storage = ray.train.get_context().get_storage()
        self._files, self._folder = storage.storage_filesystem, storage.experiment_fs_path
        self._damaged: set[str] = set()
        self._last_good = ""

    def resume(self, resume: Callable[[Path], None], tell: Callable[[str], None]) -> str:
        """Go on from the newest checkpoint that can be read.

        Returns:
            where it is; empty if there is none.

        Raises:
            CheckpointError: there are some, and none can be read.
        """
        found, failure = "", ""
        if self._is_writer:  # who decides for all: on NFS, others may not see the newest yet
            for name in self._names():
                try:
                    self._load(resume, name)
                except CheckpointError as error:
                    tell(f"checkpoint not usable, going back one: {error}")
                    self._damaged.add(name)
                    failure = failure or str(error)[:500]
                else:
                    found, failure = name, ""
                    break
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
            self._log.warning(failure, step=progress.step)
            return self._last_good
        self._last_good = path
        if self._is_writer:
            self._log.info("checkpoint", step=progress.step, checkpoint=path)
        return path

    def _put(self, write: Callable[[Path], None], path: str) -> None:
        """Write a checkpoint; locally it appears whole, on an object store file by file."""
        if isinstance(self._files, pyarrow.fs.LocalFileSystem):
            write(Path(path))
            return
        with tempfile.TemporaryDirectory() as directory:
            whole = Path(directory) / "checkpoint"
            write(whole)
            self._files.create_dir(path)
            pyarrow.fs.copy_files(
                str(whole),
                path,
                source_filesystem=pyarrow.fs.LocalFileSystem(),
                destination_filesystem=self._files,
            )

    def _prune(self) -> None:
        """Delete what is older than the newest, and what could not be read."""
        good = [name for name in self._names() if name not in self._damaged]
        for name in [*good[self._keep :], *self._damaged]:
            try:
                self._files.delete_dir(f"{self._folder}/{name}")
            except OSError as error:
                self._log.warning(f"{self._folder}/{name}: cannot be deleted: {error}")
        self._damaged.clear()

    def _names(self) -> list[str]:
        """Checkpoints, the newest first."""
        there = self._files.get_file_info(pyarrow.fs.FileSelector(self._folder))
        names = [info.base_name for info in there]
        on_the_way = sorted((name for name in names if re.fullmatch(_STEP, name)), reverse=True)
        return [name for name in names if name == self._last] + on_the_way


class _Calls:
    """Calls from outside: of the driver that the run shall end, of Ray that a node will be gone."""

    def __init__(self, sender: Sender, tell: Callable[[str], None]) -> None:
        self._sender, self._tell = sender, tell
        self._answered: set[str] = set()

    def __call__(self) -> Call:
        """The same on every rank."""
        if broadcast_from_rank_zero(self._sender.ending):
            return "stop"
        notice = ray.train.get_preemption_info()
        if notice is None or set(notice.preempted_node_ids) <= self._answered:
            return ""
        self._answered |= set(notice.preempted_node_ids)
        ranks = ", ".join(map(str, notice.preempted_ranks))
        self._tell(f"the node of rank {ranks} will be taken away: writing a checkpoint")
        return "save"


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
