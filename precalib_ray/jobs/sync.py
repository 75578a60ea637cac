"""The job ``sync``: send what was buffered while MLflow was unreachable; no Ray, no training."""

from __future__ import annotations

import importlib
from typing import Any

from precalib_ray.config import jobs, load
from precalib_ray.config.jobs.sync import SyncConfig
from precalib_ray.runs import lifecycle
from precalib_ray.runs.console import console


def sync(config: SyncConfig) -> lifecycle.Result | None:
    """Send the outbox in order, and register what has finished; returns the result, if any.

    Raises:
        PrecalibError: any of its subclasses.
    """
    config = load.validate(SyncConfig, config)
    result = lifecycle.sync(config, _job_class)
    uri = getattr(result, "model_uri", None)
    if uri:
        console.print(f"registered: {uri}")
    return result


def _job_class(phase: str) -> type[lifecycle.Job[Any, Any]] | None:
    if phase in jobs.NAMES:
        importlib.import_module(f"precalib_ray.jobs.{phase}")
    return lifecycle.Job.phases.get(phase)
