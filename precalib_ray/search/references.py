"""Reference trials, with which a search compares its trials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from precalib_ray.config import space
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import Reference, SearchConfig
from precalib_ray.search.objective import Objective
from precalib_ray.search.trial import Trial

CONTROL: Reference = "untrained"
"""The reference trial that ``accuracy_loss`` is relative to."""


def key(name: Reference) -> str:
    """The key of a reference trial."""
    return f"reference-{name}"


def recipe(config: SearchConfig, name: Reference) -> PretrainConfig:
    """The job ``pretrain`` of a reference trial, with model and probes of the search."""
    first = space.at(config.recipe, next(iter(space.corners(config.recipe))))
    kept = {key: first[key] for key in ("model", "probes", "compute") if key in first}
    no_training = {"noise": {"kind": "gaussian"}, "duration": {"steps": 0}}
    own: dict[Reference, dict[str, Any]] = {
        "untrained": no_training,
        "zero_head": {**no_training, "head_scale": 0.0},
        "paper": {  # Cheon and Paik, arXiv 2412.17411
            "noise": {"kind": "gaussian"},
            "labels": {"kind": "hard"},
            "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
            "batch_size": 128,
            "duration": {"samples": config.paper_samples},
        },
    }
    return config.pretraining({**kept, **own[name]})


def comparable(objective: Objective, references: Iterable[Trial]) -> list[Trial]:
    """Reference trials whose scores are comparable with those of trials."""
    if not objective.scores_references:
        return []
    return [trial for trial in references if trial.deviation is not None]
