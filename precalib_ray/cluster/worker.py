"""What the workers of a trainer run: they train, save and report, and know nothing of MLflow."""

from __future__ import annotations

import itertools
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
from ray.train import Checkpoint, CheckpointUploadMode
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

_STEP = r"step-\d{8}(-\d+)?"
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
    storage = _Storage(log, on_error=config["on_save_error"])

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
    return {"outcome": to_plain(outcome)}


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
    """The run's folder, as all ranks use it together; rank 0 writes."""

    def __init__(self, log: Log, *, on_error: str) -> None:
        self._log, self._on_error = log, on_error
        self._context = ray.train.get_context()
        storage = self._context.get_storage()
        self._files, self._folder = storage.storage_filesystem, storage.experiment_fs_path
        self._last_good = ""

    def resume(self, resume: Callable[[Path], None], tell: Callable[[str], None]) -> str:
        """Go on from the newest checkpoint that can be read; returns where it is, if there is one.

        Raises:
            CheckpointError: there are some, and none can be read.
        """
        error = None
        for path in self._candidates():
            checkpoint = Checkpoint(path, self._files)
            with checkpoint.as_directory() as directory:
                try:
                    resume(Path(directory))
                except CheckpointError as found:
                    tell(f"checkpoint not usable, going back one: {found}")
                    error = error or found
                else:
                    self._last_good = path
                    return path
        if error is not None:
            raise error
        return ""

    def _candidates(self) -> list[str]:
        """Checkpoints, the newest first: those that Ray has noted, or all if its note is lost."""
        latest = ray.train.get_checkpoint()
        if latest is not None:
            reported = reversed(ray.train.get_all_reported_checkpoints())
            return list(dict.fromkeys([latest.path, *(r.checkpoint.path for r in reported)]))
        there = self._files.get_file_info(pyarrow.fs.FileSelector(self._folder))
        found = [
            (*map(int, re.findall(r"\d+", i.base_name)), i.path)
            for i in there
            if re.fullmatch(_STEP, i.base_name)
        ]
        return [path for *_, path in sorted(found, reverse=True)]

    def save(
        self,
        write: Callable[[Path], None],
        name: str,
        progress: Progress,
        *,
        end: bool = False,
    ) -> str:
        """Put a checkpoint on storage; every rank calls this, rank 0 writes and names it.

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
        path, failure = "", ""
        if self._context.get_world_rank() == 0:
            path = f"{self._folder}/{self._free_name(name)}"
            try:
                self._put(write, path)
            except OSError as error:
                failure = f"{path}: cannot be written: {error}"[:500]
        told: tuple[str, str] = broadcast_from_rank_zero((path, failure))
        path, failure = told
        if failure:
            last = self._last_good or "none was written yet"
            failure += f"; last good checkpoint: {last}"
            if end or self._on_error == "stop":
                raise CheckpointError(failure)
            self._log.warning(failure, step=progress.step)
            return self._last_good
        written = Checkpoint(path, self._files) if self._context.get_world_rank() == 0 else None
        ray.train.report(
            {"step": progress.step},
            checkpoint=written,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )
        if written is not None:
            self._log.info("checkpoint", step=progress.step, checkpoint=path)
        self._last_good = path
        return path

    def _put(self, write: Callable[[Path], None], path: str) -> None:
        """Write a checkpoint whole. An object store cannot move folders: there it counts as one
        once Ray has noted it.
        """
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

    def _free_name(self, name: str) -> str:
        """The name, or with a number if it is taken.

        A run that passed over a damaged checkpoint comes by its step again; under the same name,
        Ray would delete the new one when the old one's time is over.
        """
        candidates = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
        missing = pyarrow.fs.FileType.NotFound
        kinds = ((c, self._files.get_file_info(f"{self._folder}/{c}").type) for c in candidates)
        return next(c for c, found in kinds if found == missing)


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
