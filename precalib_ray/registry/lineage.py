"""The data sets that a run used, as MLflow's data-set lineage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.types.schema import Schema, TensorSpec

from precalib_ray.data import parquet
from precalib_ray.registry.server import tracking_errors
from precalib_ray.registry.tracking import Run

_MAX_DIGEST = 36  # characters that MLflow accepts


@dataclass(frozen=True)
class DatasetUse:
    """A split of a data set, and what it was used for."""

    path: str
    split: str
    context: str
    """``train``, ``val``, ``test``, ``probe`` or ``noise``."""

    @property
    def name(self) -> str:
        """Folder and split, in characters that MLflow allows."""
        return re.sub(r"[^\w.\- ]", "_", f"{Path(self.path).name}-{self.split}")


def log_data(run: Run, uses: Iterable[DatasetUse]) -> dict[DatasetUse, str]:
    """Log data sets as inputs of a run; idempotent.

    Returns:
        SHA-256 of each split that still exists: a model that outlives its data is registered
        without their digests.

    Raises:
        DataError: a split cannot be read.
        TrackingError: the server refused.
    """
    inputs: list[DatasetInput] = []
    digests: dict[DatasetUse, str] = {}
    for use in dict.fromkeys(uses):
        file = parquet.split_path(Path(use.path), use.split)
        if not file.exists():
            continue
        digests[use] = parquet.fingerprint(file)
        inputs.append(_input(use, file, digests[use]))
    with tracking_errors("MLflow did not accept the data sets"):
        if inputs:
            run.client.log_inputs(run.run_id, inputs)
    return digests


def _input(use: DatasetUse, file: Path, digest: str) -> DatasetInput:
    info = parquet.read_info(file)
    shape = info.shape if info else (-1, -1, -1)
    schema = TensorDatasetSchema(
        features=Schema([TensorSpec(np.dtype("uint8"), (-1, *shape), "image")]),
        targets=Schema([TensorSpec(np.dtype("int64"), (-1,), "label")]),
    )
    dataset = Dataset(
        name=use.name,
        digest=digest[:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": str(file)}),
        schema=json.dumps(schema.to_dict()),
        profile=json.dumps({"num_classes": info.num_classes if info else None}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", use.context)])
