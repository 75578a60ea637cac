"""How many workers there are, on which nodes, and whether the cluster can provide them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.train import ScalingConfig

from precalib_ray.cluster import ray_private
from precalib_ray.cluster.session import cpus_per_worker
from precalib_ray.errors import ClusterError

if TYPE_CHECKING:
    from precalib_ray.config.sections import Scaling

RESIZE_INTERVAL_S = 10.0
"""Seconds between checks for new nodes, which get workers of an elastic job."""
JOIN_S = 20.0
"""Seconds to wait for nodes that are just starting."""

Node = Mapping[str, Any]
"""As ``ray.nodes()`` describes one."""


@dataclass(frozen=True)
class Request:
    """The workers of a job, all alike."""

    num_workers: int | tuple[int, int]
    """Or (min, max)."""
    cpus: float
    gpus: float = 0.0
    placement: str = "PACK"
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, scaling: Scaling, *, local: bool) -> Self:
        """The request of a job's ``scaling``."""
        return cls(
            scaling.num_workers,
            cpus_per_worker(scaling.max_workers, scaling.cpus_per_worker, local=local),
            float(scaling.use_gpu),
            scaling.placement,
            scaling.accelerator_type,
            scaling.labels,
        )

    def scaling_config(self) -> ScalingConfig:
        """The same for Ray Train."""
        return ScalingConfig(
            num_workers=self.num_workers,
            use_gpu=bool(self.gpus),
            resources_per_worker={"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {}),
            placement_strategy=self.placement,
            accelerator_type=self.accelerator_type,
            label_selector=self.selector or None,
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        )

    @property
    def selector(self) -> dict[str, str]:
        """The labels for Ray, to which a space after a comma is a part of the next value."""
        return {name: wanted.replace(", ", ",") for name, wanted in self.labels.items()}

    @property
    def least(self) -> int:
        """Minimum number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    def fits(self, node: Node) -> int:
        """Number of workers that fit on a node while nothing else runs there."""
        resources = node["Resources"]
        kind = self.accelerator_type
        if not node["Alive"] or (kind and f"accelerator_type:{kind}" not in resources):
            return 0
        if not ray_private.labels_match(node["Labels"], self.selector):
            return 0
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        # Ray counts in units of 1/10,000.
        each = [
            round(resources.get(name, 0) * 10_000) // round(amount * 10_000)
            for name, amount in needed.items()
            if amount
        ]
        return int(min(each))

    def capacity(self, nodes: Sequence[Node]) -> int:
        """Number of workers that fit on nodes together, under the placement."""
        each = [fits for node in nodes if (fits := self.fits(node))]
        if self.placement == "STRICT_PACK":
            return max(each, default=0)
        return len(each) if self.placement == "STRICT_SPREAD" else sum(each)

    def __str__(self) -> str:
        """For messages."""
        workers = self.num_workers
        text = f"{workers}" if isinstance(workers, int) else f"{workers[0]} to {workers[1]}"
        each = f"{self.cpus:g} CPU"
        if self.gpus:
            each += f" and {self.gpus:g} GPU"
        if self.accelerator_type:
            each += f" ({self.accelerator_type})"
        if self.labels:
            each += f" on nodes with {_pairs(self.labels)}"
        return f"{text} x {each}, placement {self.placement}"


def require(request: Request, *, local: bool, notify: Callable[[str], None]) -> None:
    """Refuse a request that the cluster can never satisfy; waits for nodes that are just starting.

    Args:
        request: the workers.
        local: whether the cluster was started here, and so has fixed resources.
        notify: called with a message before waiting.

    Raises:
        ClusterError: with the request and the resources of the cluster.
    """
    deadline = time.monotonic() + (0 if local else JOIN_S)
    notified = False
    while request.capacity(nodes := ray.nodes()) < request.least:
        limits = None if local else ray_private.autoscaler_limits()
        if limits is not None:
            _require_within(request, limits)
        if not local and (limits is not None or ray_private.is_autoscaled() is not False):
            return
        if time.monotonic() >= deadline:
            raise ClusterError(_too_small(request, nodes))
        if not notified:
            notify(f"waiting up to {JOIN_S:.0f} s for nodes: no capacity yet for {request}")
            notified = True
        time.sleep(1.0)


def _require_within(request: Request, limits: Mapping[str, float]) -> None:
    """Refuse a request above the limits that an autoscaler reports."""
    needed = {"CPU": request.cpus * request.least, "GPU": request.gpus * request.least}
    for name, amount in needed.items():
        if amount > limits.get(name, 0):
            raise ClusterError(
                f"the cluster can never run this job: {request}; the autoscaler goes up to "
                f"{limits.get(name, 0):g} {name}"
            )


def _too_small(request: Request, nodes: Sequence[Node]) -> str:
    kinds = Counter(_kind(request, node) for node in nodes if node["Alive"])
    lines = "\n".join(
        f"  {number} node{'s' if number > 1 else ''} of {kind}" for kind, number in kinds.items()
    )
    return (
        f"the cluster can never run this job: {request}; it has capacity for "
        f"{request.capacity(nodes)} on\n{lines}"
    )


def _kind(request: Request, node: Node) -> str:
    resources = node["Resources"]
    text = f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"
    prefix = "accelerator_type:"
    kinds = sorted(name.removeprefix(prefix) for name in resources if name.startswith(prefix))
    if kinds:
        text += f" ({', '.join(kinds)})"
    labels = {name: node["Labels"][name] for name in request.labels if name in node["Labels"]}
    if request.labels:
        text += f", {_pairs(labels) or 'none of the labels'}"
    return text


def _pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())
