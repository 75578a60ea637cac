"""What only code and data can tell about a config, asked before a cluster is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precalib_ray.core import models
from precalib_ray.core import noise as noises
from precalib_ray.data import parquet
from precalib_ray.data.dataset import Split
from precalib_ray.data.transforms import to_input
from precalib_ray.errors import ConfigError, Problem

_STATISTICS_SAMPLES = 4096


def check_model(spec: Mapping[str, Any], path: str = "model") -> None:
    """Build the model without values and push its input shape through it.

    Raises:
        ConfigError: it cannot be built, refuses the shape, or has no last layer of K outputs.
    """
    try:
        models.check_input(spec)
        models.find_head(models.build(spec, device="meta"), spec["num_classes"])
    except (ValueError, TypeError, ImportError) as error:
        refused = "refuses inputs" in str(error)
        where, value = (
            ("input_shape", list(spec["input_shape"])) if refused else ("", spec.get("name"))
        )
        raise ConfigError([Problem(f"{path}.{where}".rstrip("."), value, str(error))]) from None


def check_trainable(spec: Mapping[str, Any], trainable: str | list[str]) -> None:
    """See that patterns of parameter names match; raises ConfigError."""
    try:
        models.select_trainable(models.build(spec, device="meta"), spec["num_classes"], trainable)
    except ValueError as error:
        raise ConfigError([Problem("trainable", trainable, str(error))]) from None


def check_noise(spec: Mapping[str, Any], shape: tuple[int, ...], path: str = "noise") -> None:
    """Draw a little noise; raises ConfigError if it has another shape or is not finite."""
    try:
        drawn = noises.draw(spec, (2, *shape), generator=torch.Generator().manual_seed(0))
        if not drawn.isfinite().all():
            raise ValueError("it gives values that are NaN or infinite")
    except Exception as error:  # a user's function may raise anything
        told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError([Problem(path, spec.get("name", spec["kind"]), told)]) from None


def matched_sources(noise: Mapping[str, Any]) -> set[str]:
    """The data sets that ``matched`` noise is taken from, in a noise spec."""
    if noise["kind"] == "mixture":
        return set().union(*(matched_sources(part["noise"]) for part in noise["parts"]))
    return {noise["data"]} if noise["kind"] == "matched" else set()


def read_statistics(noise: list[Mapping[str, Any]], shape: tuple[int, ...]) -> dict[str, Any]:
    """What ``matched`` noise needs, by data set, measured on training images as the model sees
    them. Raises DataError.
    """
    return {
        path: noises.statistics(read_inputs(path, "train", shape, limit=_STATISTICS_SAMPLES))
        for path in sorted(set().union(*(matched_sources(spec) for spec in noise)))
    }


def read_inputs(path: str, split: str, shape: tuple[int, ...], *, limit: int) -> Tensor:
    """The first images of a split as model inputs (N, *shape).

    Raises:
        DataError: the split cannot be read.
        ConfigError: its images cannot be brought to the shape.
    """
    read = parquet.read_split(parquet.split_path(Path(path), split), limit=limit)
    return to_shape(read, shape, path)


def to_shape(
    split: Split, shape: tuple[int, ...], path: str, *, limit: int | None = None
) -> Tensor:
    """Images of a split as model inputs; raises ConfigError if they cannot be brought to it."""
    try:
        return to_input(split.images[:limit], shape=shape, mean=split.info.mean, std=split.info.std)
    except ValueError as error:
        raise ConfigError([Problem("model.input_shape", list(shape), f"{path}: {error}")]) from None
