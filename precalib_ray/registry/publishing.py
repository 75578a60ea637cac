"""From a checkpoint directory to a version of a registered model.

A version holds the checkpoint's ``model.safetensors``, ``model.json`` and ``metrics.json``, from
which training goes on, and MLflow's PyTorch flavor in its pickle-free ``pt2`` format, exported with
a dynamic batch, for ``mlflow.pytorch.load_model`` and serving.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Schema, TensorSpec

from precalib_ray.core import checkpoint
from precalib_ray.errors import CheckpointError, TrackingError
from precalib_ray.registry import versions
from precalib_ray.registry.tracking import Run, one_line, set_global_uri

CANDIDATE = versions.CANDIDATE
_FILES = (checkpoint.MODEL_FILE, checkpoint.SPEC_FILE, checkpoint.METRICS_FILE)


def default_name(spec: Mapping[str, Any]) -> str:
    """One registered model per architecture and K: ``resnet18-k10-precalibrated``."""
    architecture = str(spec.get("name", spec["kind"])).replace(":", "-").replace("/", "-")
    return f"{architecture}-k{spec['num_classes']}-precalibrated"


def publish(
    run: Run,
    directory: Path,
    *,
    name: str,
    tags: Mapping[str, Any],
    description: str,
    trust_code: bool = False,
    key: str | None = None,
) -> str:
    """Register a checkpoint directory as a version; the newest has the alias ``candidate``.

    A key has one version of a name: published again, or by many at once, it is returned.

    Args:
        run: where the version is from.
        directory: the checkpoint.
        name: of the registered model.
        tags: of the version.
        description: of the version.
        trust_code: as ``checkpoint.load_model`` takes it.
        key: what there shall be one version of; None for the run.

    Returns:
        The version.

    Raises:
        TrackingError: the server refused, or the model cannot be exported; the checkpoint stays.
        CheckpointError: the directory is damaged.
    """
    registered = _registered(run, name, key)
    if registered is not None:
        return registered
    spec = checkpoint.read_description(directory)["model"]
    model = checkpoint.load_model(directory, trust_code=trust_code).eval()
    example = torch.zeros(2, *spec["input_shape"])
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, *spec["input_shape"]))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, spec["num_classes"]))]),
    )
    set_global_uri(run.uri)
    try:
        with _quiet(), mlflow.start_run(run_id=run.run_id):
            info = mlflow.pytorch.log_model(
                model,
                name="model",
                signature=signature,
                input_example=example.numpy(),
                extra_files=[str(directory / file) for file in _FILES],
                pip_requirements=_requirements(),
                serialization_format="pt2",
            )
        version = versions.create(
            run.client,
            name,
            key=key or run.run_id,
            source=info.model_uri,
            run_id=run.run_id,
            model_id=info.model_id,
            tags={**tags, versions.DIGEST_TAG: digest(directory)},
            description=description,
        )
        versions.point_candidate(run.client, name)
    except Exception as error:  # export and transport fail in too many ways to list
        raise TrackingError(
            f"the model could not be registered: {one_line(error)}; its checkpoint is whole: "
            f"{directory}"
        ) from None
    return version


def digest(directory: Path) -> str:
    """SHA-256 of what a version holds of a checkpoint; raises CheckpointError."""
    sha = hashlib.sha256()
    for name in _FILES:
        try:
            content = (directory / name).read_bytes()
        except OSError:
            raise CheckpointError(f"{directory / name}: there is no such file") from None
        sha.update(f"{name} {len(content)} ".encode() + content)
    return sha.hexdigest()


def find_digest(uri: str, name: str, sha256: str) -> str | None:
    """The version that holds a checkpoint with a digest; raises TrackingError."""
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = versions.find(client, name, tag=versions.DIGEST_TAG, value=sha256)
    except Exception as error:
        raise TrackingError(f"{name} cannot be looked up: {one_line(error)}") from None
    return found[0] if found else None


def _registered(run: Run, name: str, key: str | None) -> str | None:
    """The version that an earlier try has registered, which may have ended there."""
    try:
        found = versions.find(run.client, name, tag=versions.KEY_TAG, value=key or run.run_id)
        if found:
            versions.point_candidate(run.client, name)
    except Exception as error:
        raise TrackingError(f"the model could not be registered: {one_line(error)}") from None
    return found[0] if found else None


def _requirements() -> list[str]:
    import torchvision

    return [
        f"torch=={torch.__version__.partition('+')[0]}",
        f"torchvision=={torchvision.__version__.partition('+')[0]}",
        f"numpy=={np.__version__}",
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices of torch.export and MLflow that a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
