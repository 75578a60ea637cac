"""Giving a job to a cluster from Python, as ``ray job submit`` does from a shell."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from precalib_ray.config.base import Strict
from precalib_ray.config.catalog import name_of
from precalib_ray.errors import ClusterError

_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
_REGISTERED = re.compile(r"^registered: (models:/\S+)", re.MULTILINE)
_POLL_S = 1.0
_START_S = 60.0


@dataclass(frozen=True)
class Submitted:
    """A job that was given to a cluster, and what became of it if it was followed to its end."""

    id: str
    status: str
    """As Ray names it: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``."""
    exit_code: int | None = None
    """Of the driver: 0, or that of the error's family."""
    model_uri: str | None = None
    """``models:/NAME/VERSION`` of what it has registered."""


def command(config: Strict) -> str:
    """The shell command that runs a config where the package is installed."""
    fields = config.model_dump(mode="json", exclude_defaults=True)
    words = [f"{name}={_in_one_line(value)}" for name, value in fields.items()]
    return shlex.join(["python", "-m", "precalib_ray", name_of(config), *words])


def submit(
    config: Strict,
    *,
    address: str | None = None,
    working_dir: Path | str | None = None,
    follow: bool = True,
    tell: Callable[[str], None] = lambda text: print(text, end="", flush=True),
) -> Submitted:
    """Run a job on a cluster; given again it goes on, or returns what it made, as any job.

    The driver takes no CPU: it starts on a head that is busy, too. Ray's token is read as Ray reads
    it, from ``RAY_AUTH_TOKEN`` or its file.

    Args:
        config: of any job.
        address: of the cluster's dashboard, ``http://127.0.0.1:8265``; None for
            ``RAY_API_SERVER_ADDRESS``, or the cluster of this machine.
        working_dir: a folder to be uploaded as the job's, for clusters that have no
            ``precalib_ray``, or not your functions; a checkout of the repository will do.
        follow: whether to stream the log and wait for the end; else return at once.
        tell: takes the log, piece by piece.

    Raises:
        ClusterError: the cluster cannot be reached, or refuses.
    """
    environment: dict[str, Any] = {} if working_dir is None else {"working_dir": str(working_dir)}
    try:
        client = JobSubmissionClient(address)
        job_id = f"{name_of(config)}-{uuid.uuid4().hex[:12]}"
        deadline = time.monotonic() + _START_S
        while True:
            try:
                client.submit_job(
                    entrypoint=command(config),
                    entrypoint_num_cpus=0,
                    submission_id=job_id,
                    runtime_env=environment,
                    metadata={"precalib.job": name_of(config)},
                )
                break
            except RuntimeError as error:  # a head that has just been started
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)
        if not follow:
            return Submitted(job_id, client.get_job_status(job_id).value)
        return _follow(client, job_id, tell)
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(f"{address or 'the cluster'}: {error}") from None


def _follow(client: JobSubmissionClient, job_id: str, tell: Callable[[str], None]) -> Submitted:
    async def stream() -> None:
        async for piece in client.tail_job_logs(job_id):
            tell(piece)

    asyncio.run(stream())
    while (info := client.get_job_info(job_id)).status not in _ENDED:  # it ends after its log
        time.sleep(_POLL_S)
    found = _REGISTERED.findall(client.get_job_logs(job_id))
    return Submitted(job_id, info.status.value, info.driver_exit_code, found[-1] if found else None)


def _in_one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return str(text).removesuffix("\n").removesuffix("\n...")
