"""Pulling a checkpoint directory out of a registry."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from precalib_ray.core import checkpoint
from precalib_ray.errors import CheckpointError, TrackingError
from precalib_ray.registry.tracking import require_reachable, resolve_uri

EXTRA_FILES = "extra_files"


def pull(uri: str, *, tracking_uri: str | None = None) -> Path:
    """Download the checkpoint directory of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        TrackingError: the server cannot be reached, or has no such model.
        CheckpointError: the version was not published by precalib_ray.
    """
    tracking_uri = resolve_uri(tracking_uri)
    require_reachable(tracking_uri)
    try:
        directory = Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=tracking_uri))
    except (MlflowException, OSError) as error:
        raise TrackingError(f"{uri} cannot be pulled: {error}") from None
    extra = directory / EXTRA_FILES
    if not (extra / checkpoint.MODEL_FILE).exists():
        raise CheckpointError(f"{uri} holds no precalib_ray checkpoint")
    return extra
