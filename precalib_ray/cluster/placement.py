"""How many workers there are, on which nodes, and whether the cluster can have them."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray._raylet import node_labels_match_selector  # type: ignore[attr-defined]
from ray.autoscaler._private.util import format_readonly_node_type
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get
from ray.train import ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from precalib_ray.cluster.session import cpus_per_worker
from precalib_ray.errors import ClusterError, ConfigError, Problem

RESIZE_INTERVAL_S = 10.0
"""How soon a new node gets a worker of an elastic job."""
JOIN_S = 20.0
"""How long nodes that are just starting are waited for."""
ANSWER_S = 30.0
"""How long a node has to say whether it sees storage."""

Node = Mapping[str, Any]
"""As ``ray.nodes()`` describes one."""


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

    @property
    def least(self) -> int:
        """Workers without which nothing begins."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    def room(self, node: Node) -> int:
        """Workers that a node has room for while nothing else runs there."""
        there = node["Resources"]
        kind = self.accelerator_type
        if not node["Alive"] or (kind and f"accelerator_type:{kind}" not in there):
            return 0
        if not node_labels_match_selector(node["Labels"], dict(self.labels)):
            return 0
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        # Ray counts in units of 1/10,000.
        rooms = [
            round(there.get(name, 0) * 10_000) // round(amount * 10_000)
            for name, amount in needed.items()
            if amount
        ]
        return int(min(rooms))

    def capacity(self, nodes: Sequence[Node]) -> int:
        """Workers that nodes have room for together, placed as is asked."""
        rooms = [room for node in nodes if (room := self.room(node))]
        if self.placement == "STRICT_PACK":
            return max(rooms, default=0)
        return len(rooms) if self.placement == "STRICT_SPREAD" else sum(rooms)

    def __str__(self) -> str:
        """What is asked for, for people."""
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


def require(request: Request, *, local: bool, tell: Callable[[str], None]) -> None:
    """Refuse what the cluster can never give; nodes that are just starting are waited for.

    Args:
        request: the workers.
        local: whether the cluster was started here, and stays as it is.
        tell: says what is waited for.

    Raises:
        ClusterError: with what was asked for and what there is.
    """
    deadline = time.monotonic() + (0 if local else JOIN_S)
    told = False
    while request.capacity(nodes := ray.nodes()) < request.least:
        limits = None if local else state.get_max_resources_from_cluster_config()
        if limits is not None:
            _require_within(request, limits)
        if not local and (limits is not None or _autoscaled()):
            return
        if time.monotonic() >= deadline:
            raise ClusterError(_too_small(request, nodes))
        if not told:
            tell(f"waiting up to {JOIN_S:.0f} s for nodes: there is no room yet for {request}")
            told = True
        time.sleep(1.0)


def require_shared(request: Request, *, storage: str, folder: str) -> None:
    """Refuse a folder that a node which may get workers does not see.

    A node that does not answer is not blamed.

    Args:
        request: the workers.
        storage: as the config says.
        folder: the run's, absolute, or a URI.

    Raises:
        ConfigError: with the nodes.
    """
    folder = folder.removeprefix("file://")
    here = ray.get_runtime_context().get_node_id()
    others = [n for n in ray.nodes() if n["NodeID"] != here and request.room(n)]
    if "://" in folder or not others:
        return

    def sees(marker: str) -> bool:  # in here, so that it travels whole
        import os
        import time

        for _ in range(10):
            if os.path.exists(marker):
                return True
            time.sleep(0.2)
        return False

    with _marker(Path(folder)) as marker:
        task = ray.remote(num_cpus=0, max_retries=0)(sees)
        asked = {
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(marker)): node
            for node in others
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        blind = []
        for answer in answered:
            with contextlib.suppress(ray.exceptions.RayError):
                if not ray.get(answer):
                    blind.append(asked[answer])
    if blind:
        names = ", ".join(sorted(f"{n['NodeManagerAddress']} ({n['NodeID'][:8]})" for n in blind))
        allowed = (
            f"is not seen by {len(blind)} of {len(others) + 1} nodes: {names}; it must be a folder "
            "that all nodes share, or a URI such as s3://BUCKET/runs"
        )
        raise ConfigError([Problem("storage", storage, allowed)])


@contextlib.contextmanager
def _marker(folder: Path) -> Iterator[Path]:
    """A hidden file."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


def _autoscaled() -> bool:
    """Whether something may add nodes.

    Version 2 of Ray's autoscaler is there only where it is asked for. Version 1 reports on every
    cluster; where it adds no nodes, each node is a type of its own.
    """
    if is_autoscaler_v2(fetch_from_server=True):
        return True
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    active = (report.get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not kind.startswith(format_readonly_node_type("")) for kind in active)


def _require_within(request: Request, limits: Mapping[str, float]) -> None:
    """Refuse what is over the limits of an autoscaler that reports them."""
    needed = {"CPU": request.cpus * request.least, "GPU": request.gpus * request.least}
    for name, amount in needed.items():
        if amount > limits.get(name, 0):
            raise ClusterError(
                f"the cluster can never run this job: {request}; the autoscaler goes up to "
                f"{limits.get(name, 0):g} {name}"
            )


def _too_small(request: Request, nodes: Sequence[Node]) -> str:
    kinds = Counter(_kind(request, node) for node in nodes if node["Alive"])
    there = "\n".join(
        f"  {number} node{'s' if number > 1 else ''} of {kind}" for kind, number in kinds.items()
    )
    return (
        f"the cluster can never run this job: {request}; there is room for "
        f"{request.capacity(nodes)} on\n{there}"
    )


def _kind(request: Request, node: Node) -> str:
    there = node["Resources"]
    text = f"{there.get('CPU', 0):g} CPU, {there.get('GPU', 0):g} GPU"
    prefix = "accelerator_type:"
    accelerators = sorted(name.removeprefix(prefix) for name in there if name.startswith(prefix))
    if accelerators:
        text += f" ({', '.join(accelerators)})"
    labels = {name: node["Labels"][name] for name in request.labels if name in node["Labels"]}
    if request.labels:
        text += f", {_pairs(labels) or 'none of the labels'}"
    return text


def _pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())
