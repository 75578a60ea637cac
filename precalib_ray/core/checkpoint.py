"""The checkpoint directory.

``model.safetensors`` (weights), ``model.json`` (how to build the model, what its inputs are, and
with which versions it was made), ``trainer_state.pt`` (optimizer and progress, read with
``weights_only=True``) and ``metrics.json``. Written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from precalib_ray.core.models import Model
from precalib_ray.core.spec import from_plain, hints, plain
from precalib_ray.errors import CheckpointError, one_line
from precalib_ray.version import __version__

MODEL_FILE, SPEC_FILE = "model.safetensors", "model.json"
STATE_FILE, METRICS_FILE = "trainer_state.pt", "metrics.json"


def save(
    directory: Path | str,
    *,
    model: nn.Module,
    settings: Model,
    metrics: Mapping[str, Any],
    normalization: Mapping[str, Any] | None = None,
    trainer_state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; an earlier one is replaced once the new one is complete.

    Args:
        directory: path of the checkpoint; its parent is created.
        model: its weights are written without the wrapper of a distributed or compiled model.
        settings: the model's.
        metrics: plain data.
        normalization: mean and std per channel that inputs in [0, 1] are standardized with; None
            for a model that has seen no data: standardize with those of your own.
        trainer_state: tensors and plain data, needed to resume training.

    Raises:
        OSError: it cannot be written; no partial checkpoint is left.
    """
    directory = Path(directory).absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        safetensors.torch.save_model(model, str(written / MODEL_FILE))
        description = {
            "format": 1,
            "model": plain(settings),
            "normalization": dict(normalization) if normalization else None,
            "versions": {"precalib_ray": __version__, "torch": torch.__version__},
        }
        (written / SPEC_FILE).write_text(json.dumps(description, indent=2) + "\n")
        (written / METRICS_FILE).write_text(json.dumps(dict(metrics), indent=2) + "\n")
        if trainer_state is not None:
            with (written / STATE_FILE).open("wb") as file:
                torch.save(dict(trainer_state), file)
        written.chmod(0o755)
        if directory.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
            os.replace(directory, old)
            try:
                os.replace(written, directory)
            except BaseException:
                os.replace(old, directory)
                raise
            shutil.rmtree(old)
        else:
            os.replace(written, directory)
    except BaseException as error:
        shutil.rmtree(written, ignore_errors=True)
        if isinstance(error, safetensors.SafetensorError):
            raise OSError(f"{directory}: {error}") from error
        if isinstance(error.__context__, OSError):  # torch raises its own error instead
            raise error.__context__ from None
        raise
    return directory


@dataclass(frozen=True)
class Description:
    """The content of ``model.json``."""

    model: Model
    normalization: Mapping[str, Any] | None
    versions: Mapping[str, str]


def read_description(directory: Path | str) -> Description:
    """``model.json``; raises CheckpointError if it is absent, foreign, or names no valid model."""
    file = Path(directory) / SPEC_FILE
    content = _read_json(file)
    spec = content.get("model")
    keys = ("kind", "num_classes", "input_shape")
    if not isinstance(spec, dict) or any(key not in spec for key in keys):
        raise CheckpointError(f"{file}: not written by precalib_ray")
    if not isinstance(spec["kind"], str) or spec["kind"] not in Model.members:
        raise CheckpointError(f"{file}: unknown kind {spec['kind']!r}")
    arguments = spec.get("args") or {}
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{file}: args: {arguments!r} is not a mapping")
    known = hints(Model.members[spec["kind"]])  # fields of later versions are ignored
    fields = {name: value for name, value in spec.items() if name in known}
    if "args" in known:
        fields["args"] = arguments
    try:
        model: Model = from_plain(Model, fields)  # type: ignore[type-abstract]
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be built: {error}") from error
    return Description(model, content.get("normalization"), content.get("versions") or {})


def read_metrics(directory: Path | str) -> dict[str, Any]:
    """``metrics.json``; raises CheckpointError if it is absent or truncated."""
    return _read_json(Path(directory) / METRICS_FILE)


def load_model(directory: Path | str, *, trust_code: bool = False) -> nn.Module:
    """The model of a checkpoint, on the CPU, in train mode.

    Args:
        directory: a checkpoint directory.
        trust_code: import and run the function that a ``module:function`` model names.

    Raises:
        CheckpointError: a file is absent, truncated or foreign, or code is not trusted.
    """
    directory = Path(directory)
    settings = read_description(directory).model
    file = directory / SPEC_FILE
    if settings.runs_code and not trust_code:
        raise CheckpointError(
            f"{file}: the model is built by code, {settings.architecture!r}, which runs only with "
            "trust_code=True"
        )
    try:
        model = settings.build()
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"{file}: cannot be built: {one_line(error)}") from error
    load_weights(directory, model)
    return model.train()


def load_weights(directory: Path | str, model: nn.Module) -> None:
    """Fill a model from ``model.safetensors``; raises CheckpointError if the file does not fit."""
    file = Path(directory) / MODEL_FILE
    try:
        safetensors.torch.load_model(model, str(file))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: there is no such file") from None
    except Exception as error:  # safetensors' own, torch's, the system's: all mean an unusable file
        raise CheckpointError(
            f"{file}: truncated, or of another model: {one_line(error)}"
        ) from error


def load_trainer_state(directory: Path | str) -> dict[str, Any]:
    """``trainer_state.pt``; raises CheckpointError if it is absent, truncated or holds code."""
    file = Path(directory) / STATE_FILE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: there is no such file") from None
    except Exception as error:  # zip, pickle or torch errors: all mean an unusable file
        raise CheckpointError(
            f"{file}: truncated, or not written by precalib_ray: {one_line(error, 200)}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: not written by precalib_ray")
    return state


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{file}: there is no such file") from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{file}: truncated, or not JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not written by precalib_ray")
    return content
