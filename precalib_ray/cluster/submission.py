"""Submitting a job to a cluster from Python, as ``ray job submit`` does from a shell."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from precalib_ray import result_line
from precalib_ray.cluster.session import NO_TOKEN, require_answer
from precalib_ray.cluster.threads import in_thread
from precalib_ray.config import document, load
from precalib_ray.config.jobs import name_of
from precalib_ray.config.sections import JobConfig
from precalib_ray.core.spec import plain
from precalib_ray.errors import ClusterError, one_line

_LEVELS = {  # silence Ray's notices on an upload, and at the end of a log
    "ray._private.runtime_env.packaging": logging.WARNING,
    "ray._private.runtime_env.working_dir": logging.ERROR,
    "ray.dashboard.modules.dashboard_sdk": logging.WARNING,
    "ray.dashboard.modules.job.sdk": logging.WARNING,
}
_NO_AGENT = (
    "; the head's agent did not start: where two heads share a machine, the second needs "
    "ray start --dashboard-agent-listen-port=PORT; dashboard_agent.log of its session says more."
)
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
_POLL_S = 0.5
_ANSWER_S = 5.0
_SILENCE_S = 20.0


@dataclass(frozen=True)
class Submitted:
    """A job on a cluster, with its result if it was followed to its end."""

    id: str
    status: str
    """Ray's: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``."""
    exit_code: int | None = None
    """The job's exit code: 0, or that of its error (``precalib_ray.errors``)."""
    model_uri: str | None = None
    """``models:/NAME/VERSION`` that the job has registered."""


def command(config: JobConfig) -> str:
    """The shell command that runs a config where the package is installed."""
    fields = plain(config, sparse=True)
    words = [f"{name}={_inline_yaml(value)}" for name, value in fields.items()]
    return shlex.join(["python", "-m", "precalib_ray", name_of(config), *words])


def submit(
    config: JobConfig,
    *,
    address: str | None = None,
    working_dir: Path | str | None = None,
    follow: bool = True,
    on_log: Callable[[str], None] = lambda text: print(text, end="", flush=True),
) -> Submitted:
    """Run a job on a cluster. Submitted again it resumes, or returns its result, as any job does.

    The driver requests no CPU, so that it also starts on a busy head. Ray's token is read from
    ``RAY_AUTH_TOKEN`` or from Ray's file.

    Args:
        config: of any job.
        address: of the cluster's dashboard, such as ``http://127.0.0.1:8265``; None for
            ``RAY_API_SERVER_ADDRESS``, or the cluster of this machine.
        working_dir: a folder to upload as the job's working directory, for a cluster without
            ``precalib_ray`` (upload a checkout of the repository) or without your functions. The
            config's relative paths lie in it, and Ray deletes it after the job.
        follow: whether to stream the log and wait for the end; else return at once.
        on_log: called with the log as it arrives, in whole lines.

    Returns:
        the job, even if it has failed.

    Raises:
        ClusterError: the cluster cannot be reached, or refuses; a job that has started continues.
        ValueError: ``working_dir`` is not a folder, or ``config`` is not that of a job.
    """
    config = load.validate(type(config), config)
    environment: dict[str, Any] = {} if working_dir is None else {"working_dir": str(working_dir)}
    job = name_of(config)
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    where = address or os.environ.get(_ADDRESS) or os.environ.get("RAY_ADDRESS")
    _require_answer(where, given=address is not None)
    try:
        with _preferred(address):
            client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=f"{result_line.VARIABLE}=1 {command(config)}",
            entrypoint_num_cpus=0,
            submission_id=f"{job}-{uuid.uuid4().hex[:12]}",
            runtime_env=environment,
            metadata={"precalib.job": job},
        )
    except ValueError as error:
        if working_dir is not None and not Path(working_dir).is_dir():
            raise
        raise _refused(where, error) from None
    except Exception as error:  # of requests, aiohttp, ssl and Ray's own
        raise _refused(where, error) from None
    try:
        if not follow:
            return Submitted(job_id, client.get_job_status(job_id).value)
        on_log(f"{job_id}: submitted\n")
        return _follow(client, job_id, on_log)
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        raise ClusterError(
            f"{job_id} was submitted, and cannot be followed: {one_line(error)}"
        ) from None


def _refused(address: str | None, error: Exception) -> ClusterError:
    hint = ""
    if isinstance(error, AuthenticationError):
        hint = NO_TOKEN
    elif "No available agent" in str(error):
        hint = _NO_AGENT
    return ClusterError(f"{address or 'the cluster'}: {one_line(error)}{hint}")


def _require_answer(address: str | None, *, given: bool) -> None:
    """Fail fast: Ray's client waits for minutes.

    Args:
        address: of a dashboard; that of a head if it is not ``given``; None where Ray looks for
            the cluster of this machine.
        given: by the caller, and not by the environment.
    """
    if address is None:
        return
    if not address.startswith(("http://", "https://")):
        if address.startswith("ray://") and not given:
            return  # Ray's client asks there for the dashboard
        if given:  # Ray reads HOST:PORT as something else
            raise ClusterError(f"{address}: must be that of the dashboard, http://HOST:PORT")
        require_answer(address)
        return
    try:  # as Ray's client does, so that its certificates and proxies count; any status answers
        requests.get(address, timeout=_ANSWER_S, stream=True).close()
    except (requests.RequestException, ValueError) as error:
        reason = one_line(error)
        raise ClusterError(f"{address}: no Ray dashboard answers: {reason}") from None


@contextlib.contextmanager
def _preferred(address: str | None) -> Iterator[None]:
    """Have Ray's client use an address although the environment names another."""
    before = os.environ.get(_ADDRESS)
    if address is not None:
        os.environ[_ADDRESS] = address
    try:
        yield
    finally:
        if before is not None:
            os.environ[_ADDRESS] = before
        elif address is not None:
            del os.environ[_ADDRESS]


def _follow(client: JobSubmissionClient, job_id: str, on_log: Callable[[str], None]) -> Submitted:
    log = _Log(on_log)

    async def say_pending() -> None:
        while True:
            await asyncio.sleep(_SILENCE_S)
            status = await asyncio.to_thread(client.get_job_status, job_id)
            on_log(f"{job_id}: {status.value}\n")

    async def stream() -> None:
        pending = asyncio.create_task(say_pending())
        async for piece in client.tail_job_logs(job_id):
            pending.cancel()  # from here on the job itself says something every 30 seconds
            log.add(piece)

    in_thread(lambda: asyncio.run(stream()))  # a notebook's thread has an event loop of its own
    log.close()
    while (info := client.get_job_info(job_id)).status not in _ENDED:  # a job ends after its log
        time.sleep(_POLL_S)
    if not log.result:  # the stream may have been cut off
        complete = _Log(lambda text: None)
        complete.add(client.get_job_logs(job_id))
        complete.close()
        log = complete
    return Submitted(job_id, info.status.value, info.driver_exit_code, log.result.get("model_uri"))


class _Log:
    """Separates the line with the result from the log, which arrives in pieces of any length."""

    def __init__(self, on_log: Callable[[str], None]) -> None:
        self._on_log, self._line = on_log, ""
        self.result: dict[str, Any] = {}

    def add(self, piece: str) -> None:
        """Pass on the lines that are complete."""
        *lines, self._line = (self._line + piece).split("\n")
        self._pass_on([f"{line}\n" for line in lines])

    def close(self) -> None:
        """Pass on a last line that does not end."""
        line, self._line = self._line, ""
        self._pass_on([line])

    def _pass_on(self, lines: list[str]) -> None:
        shown = ""
        for line in lines:
            result = result_line.parse(line)
            if result is None:
                shown += line
            else:
                self.result = result
        if shown:
            self._on_log(shown)


def _inline_yaml(value: Any) -> str:
    text = document.dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
