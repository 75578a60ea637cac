"""The lifecycle of a job: check → lease → earlier result → MLflow run → work → log → show.

A job supplies only its own parts; resubmission, lease, outbox, waiting for MLflow and ``sync`` are
the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from precalib_ray.config import jobs, load
from precalib_ray.config.jobs.sync import SyncConfig
from precalib_ray.config.sections import Named
from precalib_ray.core.spec import plain
from precalib_ray.errors import ConfigError, PrecalibError, Problem, TrackingError
from precalib_ray.registry import tracking
from precalib_ray.runs import record as records
from precalib_ray.runs.console import console
from precalib_ray.runs.record import RunRecord
from precalib_ray.runs.tracked import complete, find_finished, open_run, tracked


class Result(Protocol):
    """What a job returns and ``run.json`` keeps."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, which ``Job.load_result`` reads."""


C = TypeVar("C", bound=Named)
R = TypeVar("R", bound=Result)


class Job(ABC, Generic[C, R]):
    """One submission; a subclass registers itself under its phase when it is defined."""

    phase: ClassVar[str]
    """The name of the job, in ``run.json`` and in MLflow's tag ``precalib.phase``."""
    phases: ClassVar[dict[str, type[Job[Any, Any]]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Job.phases[cls.phase] = cls

    def __init__(self, config: C) -> None:
        self.config = config

    def check(self) -> None:
        """Check what needs the model's code or the data, before anything is written."""

    def prepare(self, record: RunRecord) -> None:
        """Check what an unfinished run needs, before the MLflow run begins."""

    @abstractmethod
    def work(self, record: RunRecord, run: tracking.Run | None) -> R:
        """Compute the result."""

    @abstractmethod
    def load_result(self, record: RunRecord) -> R | None:
        """The result of an earlier submission, if the run has finished."""

    @abstractmethod
    def log(self, result: R, record: RunRecord, run: tracking.Run) -> R:
        """Log the result to MLflow, idempotently, and return it with what MLflow added.

        Raises:
            TrackingError: the server is unreachable, or refused.
        """

    def find_logged(self, result: R, record: RunRecord, run: tracking.KnownRun) -> R | None:
        """The result with what MLflow has of it now; None if something is missing there, which
        ``log`` then adds. Raises TrackingError.
        """
        return result

    def log_partial(self, record: RunRecord, run: tracking.Run) -> None:
        """Log what a run without a result has, idempotently; for ``sync``."""

    @abstractmethod
    def show(self, result: R) -> None:
        """Print the result."""

    def conclude(self, result: R, record: RunRecord) -> R:
        """What follows a logged result, such as promotion; idempotent."""
        return result


JobClass = Callable[[str], type[Job[Any, Any]] | None]


def run(job: Job[C, R]) -> R:
    """Run a job, resume it, or return the result of an earlier submission.

    Raises:
        PrecalibError: any of its subclasses.
    """
    config = job.config = load.validate(type(job.config), job.config)
    job.check()
    record = RunRecord(config)
    with record.lease():
        result = job.load_result(record)
        try:
            known = None if result is None else _known(job, result, record)
        except TrackingError as error:
            assert result is not None, "else MLflow is not asked"
            job.show(result)
            raise TrackingError(
                f"{error}; tracking.offline=true returns it without MLflow"
            ) from None
        if known is not None:
            console.print(f"{config.name} has finished already; returning its result")
            result = known
        else:
            if result is not None:
                console.print(f"{config.name} has finished already; logging it to MLflow")
            result = _finish(job, result, record)
        job.show(result)
        try:
            return job.conclude(result, record)
        except PrecalibError as error:
            error.model_uri = error.model_uri or getattr(result, "model_uri", None)
            raise


def _known(job: Job[C, R], result: R, record: RunRecord) -> R | None:
    """A finished result with what the named server has of it now; None if that is not all.

    Raises:
        TrackingError: the server does not answer within seconds, or refused.
    """
    config = job.config
    if config.tracking.offline:
        return result
    try:
        run = find_finished(config, record)
        return None if run is None else job.find_logged(result, record, run)
    except TrackingError as error:
        raise TrackingError(
            f"{error}\n{config.name} has finished, and its result is kept in {record.folder}; "
            "whether MLflow has it is not known"
        ) from None


def _finish(job: Job[C, R], result: R | None, record: RunRecord) -> R:
    if result is None:
        job.prepare(record)
    with tracked(job.config, record, phase=job.phase) as mlflow_run:
        if result is None:
            result = job.work(record, mlflow_run)
            record.update(result=result.to_json())
        if mlflow_run is None:
            return result
        try:
            return _log(job, result, record, mlflow_run)
        except TrackingError:
            job.show(result)  # it is computed, and kept
            raise


def _log(job: Job[C, R], result: R, record: RunRecord, mlflow_run: tracking.Run) -> R:
    logged = complete(mlflow_run, job.config, record, lambda: job.log(result, record, mlflow_run))
    record.update(result=logged.to_json())
    return logged


def sync(config: SyncConfig, job_class: JobClass) -> Result | None:
    """Send the outbox of a run and log its result, without Ray and without training.

    Args:
        config: names the run.
        job_class: gives the job of a phase; None if there is none.

    Returns:
        The result, if the run has finished.

    Raises:
        PrecalibError: any of its subclasses.
    """
    content = records.read(
        records.open_folder(config.storage, config.name, make=False), config.storage
    )
    job = _recorded_job(config, content, job_class)
    if job.config.tracking.offline:
        allowed = "the run was made offline; set tracking.offline=false"
        raise ConfigError([Problem("tracking", None, allowed)])
    record = RunRecord(job.config)
    with record.lease():
        result = job.load_result(record)
        if result is not None and config.tracking is None:
            known: Result | None = _known(job, result, record)
            if known is not None:
                console.print(f"{config.name}: MLflow has everything already")
                return known
        mlflow_run = open_run(job.config, record, phase=job.phase)
        assert mlflow_run is not None, "it is not offline"
        status = mlflow_run.last_status or "FAILED"
        try:
            if result is None:
                complete(
                    mlflow_run, job.config, record, lambda: job.log_partial(record, mlflow_run)
                )
            else:
                result = _log(job, result, record, mlflow_run)
                status = "FINISHED"
        finally:
            sent = mlflow_run.end(status, wait_s=job.config.tracking.max_wait)
        if not sent:
            raise TrackingError(f"MLflow did not accept the outbox: {mlflow_run.last_error}")
        if result is not None:
            record.update(synced=True)
    console.print(f"{config.name}: MLflow has everything ({status.lower()})")
    return result


def _recorded_job(
    config: SyncConfig,
    content: Mapping[str, Any],
    job_class: JobClass,
) -> Job[Any, Any]:
    """The job that a run record belongs to."""
    phase = content.get("phase", "")
    found = job_class(phase)
    if found is None:
        allowed = f"there is no such run in {config.storage}"
        raise ConfigError([Problem("name", config.name, allowed)])
    settings = dict(content["settings"]) | {"storage": config.storage}
    if config.tracking is not None:
        settings["tracking"] = settings["tracking"] | plain(config.tracking, sparse=True)
    recorded = load.validate(jobs.config_class(phase), {**content["config"], **settings})
    return found(recorded)
