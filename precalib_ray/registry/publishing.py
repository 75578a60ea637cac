"""From a checkpoint directory to a version of a registered model.

A version holds the checkpoint's ``model.safetensors``, ``model.json`` and ``metrics.json``, from
which training goes on, and MLflow's PyTorch flavor in its pickle-free ``pt2`` format, exported with
a dynamic batch, for ``mlflow.pytorch.load_model`` and serving.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pytorch
import numpy as np
import safetensors
import torch
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from precalib_ray.core import checkpoint
from precalib_ray.errors import CheckpointError, TrackingError
from precalib_ray.registry.tracking import Run, set_global_uri

CANDIDATE = "candidate"
CARD_FILE = "card.html"
_LOGGED = "model"  # the logged model's name within its run
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

    A run has one version of a name: published again, also after an interruption half-way, it is
    returned.

    Returns:
        The version.

    Raises:
        TrackingError: the server refused, or the model cannot be exported; the checkpoint stays.
        CheckpointError: the directory is damaged.
    """
    registered = _registered(run, name)
    if registered is not None:
        return registered
    try:
        model_id = _logged(run) or _log(run, directory, trust_code=trust_code)
        with contextlib.suppress(MlflowException):  # it exists already
            run.client.create_registered_model(name)
        version = run.client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run.run_id,
            model_id=model_id,
            tags={key: str(value) for key, value in tags.items()},
            description=description,
        )
        run.client.set_registered_model_alias(name, CANDIDATE, version.version)
    except CheckpointError:
        raise
    except Exception as error:  # export and transport fail in too many ways to list
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(
            f"the model could not be registered: {reason}; its checkpoint is whole: {directory}"
        ) from error
    return str(version.version)


def describe(run: Run, name: str, version: str, *, description: str, card: str) -> None:
    """Give a version its description, and its HTML card as an artifact of run and model.

    Raises:
        TrackingError: the server refused.
    """
    try:
        model_id = _logged(run)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / CARD_FILE
            file.write_text(card)
            if model_id is not None:
                run.client.log_model_artifact(model_id, str(file))
            run.client.log_artifact(run.run_id, str(file))
        run.client.update_model_version(name, version, description=description)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(f"version {version} of {name} has no card yet: {reason}") from error


def _log(run: Run, directory: Path, *, trust_code: bool) -> str:
    """Log the checkpoint as a model of the run; returns its id."""
    spec = checkpoint.read_description(directory)["model"]
    model = checkpoint.load_model(directory, trust_code=trust_code).eval()
    example = np.zeros((2, *spec["input_shape"]), dtype=np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(example.dtype, (-1, *spec["input_shape"]))]),
        outputs=Schema([TensorSpec(example.dtype, (-1, spec["num_classes"]))]),
    )
    set_global_uri(run.uri)
    with _quiet(), mlflow.start_run(run_id=run.run_id):
        info = mlflow.pytorch.log_model(
            model,
            name=_LOGGED,
            signature=signature,
            input_example=example,
            extra_files=[str(directory / file) for file in _FILES],
            pip_requirements=[f"{name}=={version}" for name, version in versions().items()],
            serialization_format="pt2",
        )
    return str(info.model_id)


def _logged(run: Run) -> str | None:
    """The model that an earlier try logged whole, and did not come to register."""
    experiment = run.client.get_run(run.run_id).info.experiment_id
    found = run.client.search_logged_models(
        [experiment], f"source_run_id = '{run.run_id}' AND name = '{_LOGGED}'"
    )
    whole = [str(m.model_id) for m in found if m.status == LoggedModelStatus.READY]
    return whole[0] if whole else None


def _registered(run: Run, name: str) -> str | None:
    """The version that an earlier try of the run has registered, and perhaps ended there."""
    try:
        found = run.client.search_model_versions(f"name='{name}'")
        mine = [int(v.version) for v in found if v.run_id == run.run_id]
        if mine and max(mine) == max(int(v.version) for v in found):
            run.client.set_registered_model_alias(name, CANDIDATE, str(max(mine)))
    except Exception as error:
        raise TrackingError(f"the model could not be registered: {error}") from error
    return str(min(mine)) if mine else None


def versions() -> dict[str, str]:
    """What a version is made with, and what loading it needs; this package is not among it."""
    import torchvision

    found = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "safetensors": safetensors.__version__,
        "numpy": np.__version__,
        "mlflow": mlflow.__version__,
    }
    return {name: str(version).partition("+")[0] for name, version in found.items()}


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
