"""How many workers there are, and on which nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ray.train import ScalingConfig

from precalib_ray.cluster.session import cpus_per_worker

RESIZE_INTERVAL_S = 10.0
"""How soon a new node gets a worker of an elastic job."""


@dataclass(frozen=True)
class Request:
    """Workers that Ray is asked for, all alike."""

    num_workers: int | tuple[int, int]
    """Or the least and the most."""
    cpus: float
    gpus: float = 0.0
    placement: str = "PACK"
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, scaling: Mapping[str, Any], *, local: bool) -> Self:
        """What a job's ``scaling`` asks for."""
        workers = scaling["num_workers"]
        workers = workers if isinstance(workers, int) else tuple(workers)
        most = workers if isinstance(workers, int) else workers[1]
        return cls(
            workers,
            cpus_per_worker(most, scaling["cpus_per_worker"], local=local),
            float(scaling["use_gpu"]),
            scaling["placement"],
            scaling["accelerator_type"],
            scaling["labels"],
        )

    def scaling_config(self) -> ScalingConfig:
        """The same in Ray's words."""
        return ScalingConfig(
            num_workers=self.num_workers,
            use_gpu=bool(self.gpus),
            resources_per_worker={"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {}),
            placement_strategy=self.placement,
            accelerator_type=self.accelerator_type,
            label_selector=dict(self.labels) or None,
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        )


def require(request: Request, *, local: bool) -> None:
    """Refuse what the cluster can never give; raises ClusterError."""
