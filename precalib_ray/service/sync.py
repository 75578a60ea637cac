"""The job ``sync``: send what MLflow did not take of a run, without Ray and without training."""

from __future__ import annotations

from typing import Any

from precalib_ray.config import base
from precalib_ray.config.jobs import Named, PretrainConfig, SyncConfig, TrainConfig
from precalib_ray.config.search import SearchConfig
from precalib_ray.errors import ConfigError, Problem, TrackingError
from precalib_ray.service import pretrain, search, train
from precalib_ray.service.identity import Identity, open_folder, read_record
from precalib_ray.service.job import open_run
from precalib_ray.service.terminal import console

_PHASES: dict[str, tuple[type[Named], Any]] = {
    pretrain.PHASE: (PretrainConfig, pretrain.sync),
    train.PHASE: (TrainConfig, train.sync),
    search.PHASE: (SearchConfig, search.sync),
}


def sync(config: SyncConfig) -> str | None:
    """Send what was kept, in order, and register what has finished; returns the version, if any.

    Raises:
        PrecalibError: see its families.
    """
    folder = open_folder(config.storage, config.name, make=False)
    record = read_record(folder, config.storage)
    if record.get("phase") not in _PHASES:
        raise ConfigError(
            [Problem("name", config.name, f"there is no such run in {config.storage}")]
        )
    settings = record["settings"] | {"storage": config.storage}
    if config.tracking is not None:
        settings["tracking"] = settings["tracking"] | config.tracking.model_dump(exclude_unset=True)
    cls, finish = _PHASES[record["phase"]]
    job = base.validate(cls, {**record["config"], **settings})
    if job.tracking.offline:
        allowed = "the run was made offline; say where to with tracking.offline=false"
        raise ConfigError([Problem("tracking", None, allowed)])
    identity = Identity(job, name=job.name, storage=job.storage)
    with identity.lease():
        if identity.told and config.tracking is None:
            console.print(f"{job.name}: MLflow has had everything before")
            return (identity.result or {}).get("model_uri")
        run = open_run(job, identity, phase=record["phase"])
        assert run is not None, "it is not offline"
        status = run.last_status or "FAILED"
        try:
            version: str | None = finish(job, identity, run)
            if identity.result is not None:
                status = "FINISHED"
        finally:
            sent = run.end(status, wait_s=job.tracking.max_wait)
        if not sent:
            raise TrackingError(f"MLflow does not take what is kept: {run.last_error}")
        if status == "FINISHED":
            identity.update(told=True)
    console.print(f"{job.name}: MLflow has everything ({status.lower()})")
    if version:
        console.print(f"registered: {version}")
    return version
