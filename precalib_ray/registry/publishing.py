"""From a checkpoint directory to a version of a registered model.

A version holds the checkpoint's ``model.safetensors``, ``model.json`` and ``metrics.json``, from
which training goes on, and MLflow's PyTorch flavor in its pickle-free ``pt2`` format, exported with
a dynamic batch, for ``mlflow.pytorch.load_model`` and serving.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pytorch
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from precalib_ray.core import checkpoint
from precalib_ray.errors import TrackingError
from precalib_ray.registry.tracking import Run, set_global_uri

CANDIDATE = "candidate"
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
) -> str:
    """Register a checkpoint directory as the newest version, with the alias ``candidate``.

    A run has one version of a name: published again, it is returned.

    Returns:
        The version.

    Raises:
        TrackingError: the server refused, or the model cannot be exported; the checkpoint stays.
        CheckpointError: the directory is damaged.
    """
    registered = _registered(run, name)
    if registered is not None:
        run.client.set_registered_model_alias(name, CANDIDATE, registered)
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
        with contextlib.suppress(MlflowException):  # it exists already
            run.client.create_registered_model(name)
        version = run.client.create_model_version(
            name,
            source=info.model_uri,
            run_id=run.run_id,
            model_id=info.model_id,
            tags={key: str(value) for key, value in tags.items()},
            description=description,
        )
        run.client.set_registered_model_alias(name, CANDIDATE, version.version)
    except Exception as error:  # export and transport fail in too many ways to list
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(
            f"the model could not be registered: {reason}; its checkpoint is whole: {directory}"
        ) from error
    return str(version.version)


def _registered(run: Run, name: str) -> str | None:
    """The version that an earlier try of the same run has registered."""
    try:
        found = run.client.search_model_versions(f"name='{name}'")
    except Exception as error:
        raise TrackingError(f"the model could not be registered: {error}") from error
    versions = [v.version for v in found if v.run_id == run.run_id]
    return str(versions[0]) if versions else None


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
