"""The config of ``benchmark``."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.config.sections import JobConfig
from precalib_ray.core.spec import setting


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(JobConfig):
    """The cost of drawing noise and of running on Ray, as ratios measured on this machine."""

    recipe: str = setting(
        "configs/pretrain_mlp.yaml",
        path=True,
        description="config of the pretraining to measure",
    )
    steps: int = setting(500, ge=1, description="steps of each pretraining")
    cpus: int = setting(1, ge=1, description="threads of the plain process, and CPUs of the worker")
    repeats: int = setting(3, ge=1, le=100, description="measurements, the best of which counts")
