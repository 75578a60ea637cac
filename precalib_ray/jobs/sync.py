"""The job ``sync``: send what MLflow did not take of a run, without Ray and without training."""

from __future__ import annotations

from precalib_ray.config.jobs.sync import SyncConfig
from precalib_ray.runs import lifecycle
from precalib_ray.runs.console import console


def sync(config: SyncConfig) -> lifecycle.Result | None:
    """Send the outbox in order, and register what has finished; returns the result, if any.

    Raises:
        PrecalibError: see its families.
    """
    result = lifecycle.sync(config)
    uri = getattr(result, "model_uri", None)
    if uri:
        console.print(f"registered: {uri}")
    return result
