"""From a checkpoint directory to a version of a registered model.

A version holds the checkpoint's ``model.safetensors``, ``model.json`` and ``metrics.json``, to
continue training from, and MLflow's PyTorch flavor in its pickle-free ``pt2`` format, exported with
a dynamic batch, for ``mlflow.pytorch.load_model`` and serving.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pytorch
import numpy as np
import safetensors
import torch
from mlflow.entities import LoggedModelStatus
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Schema, TensorSpec

from precalib_ray.core import checkpoint
from precalib_ray.core.models import Model
from precalib_ray.errors import CheckpointError
from precalib_ray.registry import versions
from precalib_ray.registry.server import set_global_uri, tracking_errors
from precalib_ray.registry.tracking import Run

CANDIDATE = versions.CANDIDATE
KEY_TAG, DIGEST_TAG = versions.KEY_TAG, versions.DIGEST_TAG
CARD_FILE = "card.html"
_LOGGED_MODEL = "model"  # its name within the run
_EXPORT = threading.Lock()  # torch.export is not thread-safe
_FILES = (checkpoint.MODEL_FILE, checkpoint.SPEC_FILE, checkpoint.METRICS_FILE)


def default_name(model: Model) -> str:
    """One registered model per architecture and K: ``resnet18-k10-precalibrated``."""
    architecture = model.architecture.replace(":", "-").replace("/", "-")
    return f"{architecture}-k{model.num_classes}-precalibrated"


def publish(
    run: Run,
    directory: Path,
    *,
    name: str,
    tags: Mapping[str, Any],
    trust_code: bool = False,
    key: str | None = None,
) -> str:
    """Register a checkpoint directory as a version; the newest has the alias ``candidate``.

    Idempotent, also under concurrency and after an interruption half-way: a registered model has
    one version per key. ``describe`` adds the description.

    Args:
        run: the version's run.
        directory: the checkpoint.
        name: of the registered model.
        tags: of the version.
        trust_code: as ``checkpoint.load_model`` takes it.
        key: the idempotency key; None for the run's id.

    Returns:
        The number of the version.

    Raises:
        TrackingError: the server refused, or the model cannot be exported; the checkpoint stays.
        CheckpointError: the directory is damaged.
    """
    key = key or run.run_id
    registered = find(run.client, name, tag=versions.KEY_TAG, value=key)
    if registered is not None:
        return registered.version
    intact = f"its checkpoint is intact: {directory}"
    with tracking_errors("the model could not be registered", advice=intact):
        set_global_uri(run.uri)  # MLflow looks up logged models there, regardless of the client
        model_id = _logged_model(run) or _log_model(run, directory, trust_code=trust_code)
        version = versions.create(
            run.client,
            name,
            key=key,
            source=f"models:/{model_id}",
            run_id=run.run_id,
            model_id=model_id,
            tags={**tags, versions.DIGEST_TAG: digest(directory)},
        )
        versions.point_candidate(run.client, name)
    return version


def digest(directory: Path) -> str:
    """SHA-256 of a checkpoint's published files; raises CheckpointError."""
    sha = hashlib.sha256()
    for name in _FILES:
        try:
            content = (directory / name).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"{directory / name}: there is no such file") from None
        except OSError as error:
            raise CheckpointError(f"{directory / name}: cannot be read: {error}") from None
        sha.update(f"{name} {len(content)} ".encode() + content)
    return sha.hexdigest()


@dataclass(frozen=True)
class ExistingVersion:
    """A version as the registry has it now."""

    name: str
    version: str
    run_id: str
    key: str
    aliases: tuple[str, ...]
    described: bool
    """Whether it has its card: publishing may have been interrupted before."""

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"

    def __str__(self) -> str:
        """The URI, and the aliases that the version has."""
        if not self.aliases:
            return self.uri
        return f"{self.uri} (alias {', '.join(sorted(self.aliases))})"


def find(client: MlflowClient, name: str, *, tag: str, value: str) -> ExistingVersion | None:
    """The first version with a tag; raises TrackingError.

    Moves ``candidate`` as ``publish`` does, which may have been interrupted before.
    """
    with tracking_errors(f"{name} cannot be looked up"):
        found = versions.find(client, name, tag=tag, value=value)
        if not found:
            return None
        versions.point_candidate(client, name)
    return get(client, name, str(found[0].version))


def get(client: MlflowClient, name: str, version: str) -> ExistingVersion:
    """A version by its number; raises TrackingError."""
    with tracking_errors(f"models:/{name}/{version}"):
        found = versions.get(client, name, version)
        return ExistingVersion(
            name,
            version,
            run_id=found.run_id or "",
            key=found.tags[versions.KEY_TAG],
            aliases=tuple(found.aliases),
            described=bool(found.description),
        )


def describe(run: Run, name: str, version: str, *, description: str, card: str) -> None:
    """Give a version its description, and its HTML card as an artifact of run and model.

    Raises:
        TrackingError: the server refused.
    """
    with tracking_errors(f"version {version} of {name} has no card yet"):
        model_id = run.client.get_model_version(name, version).tags[versions.MODEL_TAG]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / CARD_FILE
            file.write_text(card)
            run.client.log_model_artifact(model_id, str(file))
            run.client.log_artifact(run.run_id, str(file))
        run.client.update_model_version(name, version, description=description)


def libraries() -> dict[str, str]:
    """Versions of the libraries that loading a model needs; this package is not among them."""
    import torchvision

    found = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "safetensors": safetensors.__version__,
        "numpy": np.__version__,
        "mlflow": mlflow.__version__,
    }
    return {name: str(version).partition("+")[0] for name, version in found.items()}


def _log_model(run: Run, directory: Path, *, trust_code: bool) -> str:
    """Log the checkpoint as a model of the run; returns its id."""
    settings = checkpoint.read_description(directory).model
    model = checkpoint.load_model(directory, trust_code=trust_code).eval()
    example = np.zeros((2, *settings.input_shape), dtype=np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(example.dtype, (-1, *settings.input_shape))]),
        outputs=Schema([TensorSpec(example.dtype, (-1, settings.num_classes))]),
    )
    with _EXPORT, _quiet(), mlflow.start_run(run_id=run.run_id):
        info = mlflow.pytorch.log_model(
            model,
            name=_LOGGED_MODEL,
            signature=signature,
            input_example=example,
            extra_files=[str(directory / file) for file in _FILES],
            pip_requirements=[f"{name}=={version}" for name, version in libraries().items()],
            serialization_format="pt2",
        )
    return str(info.model_id)


def _logged_model(run: Run) -> str | None:
    """The model that an earlier attempt logged completely, and did not register."""
    experiment = run.client.get_run(run.run_id).info.experiment_id
    found = run.client.search_logged_models(
        [experiment], f"source_run_id = '{run.run_id}' AND name = '{_LOGGED_MODEL}'"
    )
    ready = [str(m.model_id) for m in found if m.status == LoggedModelStatus.READY]
    return ready[0] if ready else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence notices of torch.export and MLflow that a user cannot act on."""
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
