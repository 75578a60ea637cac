"""Classifiers that start at chance confidence: noise pretraining on Ray, checkpoints in MLflow."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from precalib_ray.version import __version__

if TYPE_CHECKING:
    from torch import nn

__all__ = ["__version__", "load_pretrained"]


def load_pretrained(
    uri: str, *, tracking_uri: str | None = None, trust_code: bool = False
) -> nn.Module:
    """A trainable module from a registry, a run or a folder.

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or a checkpoint directory.
        tracking_uri: the MLflow server; None for ``MLFLOW_TRACKING_URI``, or SQLite in this folder.
        trust_code: run the function that a ``module:function`` model names.

    Raises:
        TrackingError: the registry does not have it, or cannot be reached.
        CheckpointError: it is damaged, or made by code that is not trusted.
    """
    from precalib_ray.core.checkpoint import load_model

    if not uri.startswith("models:/"):
        return load_model(uri, trust_code=trust_code)
    from precalib_ray.registry.loading import pull

    with tempfile.TemporaryDirectory() as directory:
        pull(uri, directory, tracking_uri=tracking_uri)
        return load_model(directory, trust_code=trust_code)
