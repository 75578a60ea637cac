"""Classifiers that start at chance confidence: noise pretraining on Ray, checkpoints in MLflow."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from precalib_ray.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from precalib_ray.cluster.submission import submit

__all__ = ["__version__", "load_pretrained", "submit"]


def load_pretrained(
    uri: str,
    *,
    num_classes: int | None = None,
    tracking_uri: str | None = None,
    trust_code: bool = False,
) -> nn.Module:
    """A trainable module from a registry or a folder, on the CPU and in train mode.

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or a checkpoint directory.
        num_classes: if it differs from the checkpoint's, the last layer is reinitialized and
            brought to chance, which takes seconds; the other layers are unchanged.
        tracking_uri: the MLflow server; None for ``MLFLOW_TRACKING_URI``, or SQLite in this folder.
        trust_code: run the function that a ``module:function`` model names.

    Raises:
        TrackingError: the registry does not have it, or cannot be reached.
        CheckpointError: it is damaged, built by code that is not trusted, or cannot have so many
            classes.
        ValueError: ``num_classes`` is not an integer of at least 2.
    """
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 2):
        raise ValueError(f"num_classes: {num_classes!r}: must be an integer, 2 or more")
    from precalib_ray.core.checkpoint import load_model, read_description
    from precalib_ray.core.phases.reset_classifier import reset_classifier

    with tempfile.TemporaryDirectory() as folder:
        directory = uri
        if uri.startswith("models:/"):
            from precalib_ray.registry.loading import pull

            directory = folder
            pull(uri, directory, tracking_uri=tracking_uri)
        model = load_model(directory, trust_code=trust_code)
        settings = read_description(directory).model
    if num_classes is None or num_classes == settings.num_classes:
        return model
    return reset_classifier(model, settings, num_classes).model


def __getattr__(name: str) -> Any:
    """``submit`` is imported lazily, because it imports Ray."""
    if name == "submit":
        from precalib_ray.cluster.submission import submit

        return submit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
