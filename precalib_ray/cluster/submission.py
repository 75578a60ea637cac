"""Giving a job to a cluster from Python, as ``ray job submit`` does from a shell."""

from __future__ import annotations

import asyncio
import http.client
import logging
import re
import shlex
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from precalib_ray.cluster.threads import in_thread
from precalib_ray.config.base import Strict
from precalib_ray.config.catalog import name_of
from precalib_ray.errors import ClusterError

_QUIET = {  # Ray's own words on an upload, and on the end of a log
    "ray._private.runtime_env.packaging": logging.WARNING,
    "ray._private.runtime_env.working_dir": logging.ERROR,
    "ray.dashboard.modules.dashboard_sdk": logging.WARNING,
    "ray.dashboard.modules.job.sdk": logging.WARNING,
}
_NO_AGENT = (
    "\nThe head's agent did not start. Where two heads share a machine, the second needs "
    "ray start --dashboard-agent-listen-port=PORT; dashboard_agent.log of its session says more."
)
_NO_TOKEN = (
    "\nRAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token, "
    "are needed here as they are there."
)
_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
_REGISTERED = re.compile(r"^(?:.* is registered already|registered): (models:/\S+)", re.MULTILINE)
_POLL_S = 0.5
_ANSWER_S = 5.0


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
            ``precalib_ray``, or not your functions; a checkout of the repository will do. The
            config's relative paths lie in it, and Ray removes it after the job.
        follow: whether to stream the log and wait for the end; else return at once.
        tell: takes the log, piece by piece.

    Returns:
        what became of the job, its failure included.

    Raises:
        ClusterError: the cluster cannot be reached, or refuses; a job that has begun goes on.
        ValueError: ``working_dir`` is no folder, or ``config`` that of no job.
    """
    environment: dict[str, Any] = {} if working_dir is None else {"working_dir": str(working_dir)}
    job = name_of(config)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    try:
        if address is not None:
            _require_answer(address)
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=command(config),
            entrypoint_num_cpus=0,
            submission_id=f"{job}-{uuid.uuid4().hex[:12]}",
            runtime_env=environment,
            metadata={"precalib.job": job},
        )
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        hint = _NO_AGENT if "No available agent" in str(error) else ""
        raise ClusterError(f"{address or 'the cluster'}: {error}{hint}") from None
    except AuthenticationError as error:
        reason = str(error).partition("\n")[0]
        raise ClusterError(f"{address or 'the cluster'}: {reason}{_NO_TOKEN}") from None
    try:
        if not follow:
            return Submitted(job_id, client.get_job_status(job_id).value)
        return _follow(client, job_id, tell)
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        raise ClusterError(f"{job_id} was submitted, and cannot be followed: {error}") from None


def _require_answer(address: str) -> None:
    """Ray's client waits for minutes where nothing answers, and takes ``HOST:PORT`` for another."""
    if not address.startswith(("http://", "https://")):
        raise ClusterError(f"{address}: must be that of the dashboard, http://HOST:PORT")
    try:
        with urllib.request.urlopen(address, timeout=_ANSWER_S):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ClusterError(f"{address}: no Ray dashboard answers: {reason}") from None


def _follow(client: JobSubmissionClient, job_id: str, tell: Callable[[str], None]) -> Submitted:
    async def stream() -> None:
        async for piece in client.tail_job_logs(job_id):
            tell(piece)

    in_thread(lambda: asyncio.run(stream()))  # a notebook's thread has a loop of its own
    while (info := client.get_job_info(job_id)).status not in _ENDED:  # it ends after its log
        time.sleep(_POLL_S)
    found = _REGISTERED.findall(client.get_job_logs(job_id))
    return Submitted(job_id, info.status.value, info.driver_exit_code, found[-1] if found else None)


def _in_one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return str(text).removesuffix("\n").removesuffix("\n...")
