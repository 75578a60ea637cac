"""Every private symbol of Ray that the package uses.

A private symbol may be missing in another version of Ray. Each is imported where it is used, and
each function documents its fallback.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from precalib_ray.errors import ClusterError, one_line

_LOGGER = logging.getLogger(__name__)
_VALUES = re.compile(r"(!?)in\(([^)]*)\)")


def labels_match(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels match a selector, as Ray's scheduler decides it.

    Without the private symbol the four forms of a selector's values are evaluated here: ``value``,
    ``!value``, ``in(a,b)`` and ``!in(a,b)``.
    """
    try:
        from ray._raylet import node_labels_match_selector  # type: ignore[attr-defined]

        return bool(node_labels_match_selector(dict(labels), dict(selector)))
    except (ImportError, AttributeError, TypeError) as error:
        _LOGGER.debug("Ray's label matching is not available: %r", error)
    return all(_value_matches(labels.get(key), wanted) for key, wanted in selector.items())


def _value_matches(value: str | None, wanted: str) -> bool:
    """A node without the label matches the negated forms only."""
    form = _VALUES.fullmatch(wanted)
    if form is not None:
        return (value in form[2].split(",")) != (form[1] == "!")
    if wanted.startswith("!"):
        return value != wanted[1:]
    return value == wanted


def autoscaler_limits() -> dict[str, float] | None:
    """The autoscaler's limit of each resource.

    None if no autoscaler reports them, or without the private symbol.
    """
    try:
        from ray._private.state import state

        limits = state.get_max_resources_from_cluster_config()
    except Exception as error:  # also Ray's own, whose answer differs by version
        _LOGGER.debug("the autoscaler's limits are not available: %r", error)
        return None
    return None if limits is None else {name: float(most) for name, most in limits.items()}


def is_autoscaled() -> bool | None:
    """Whether something may add nodes to the cluster; None without the private symbols.

    Version 2 of Ray's autoscaler runs only if it is enabled. Version 1 reports on every
    cluster; where it adds no nodes, each node is a type of its own.
    """
    try:
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
        from ray.autoscaler._private.util import format_readonly_node_type
        from ray.autoscaler.v2.utils import is_autoscaler_v2
        from ray.experimental.internal_kv import _internal_kv_get

        if is_autoscaler_v2(fetch_from_server=True):
            return True
        report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
        active = (report.get("autoscaler_report") or {}).get("active_nodes") or {}
        return any(not kind.startswith(format_readonly_node_type("")) for kind in active)
    except Exception as error:  # also Ray's own, whose answer differs by version
        _LOGGER.warning("Ray does not say whether the cluster is autoscaled: %r", error)
        return None


def counts_no_cpu() -> bool:
    """Whether Ray would give a node of this machine no CPU: it rounds a container's limit down.

    Without the private symbol a limit below one CPU is refused as too small for any worker.
    """
    try:
        from ray._private.utils import get_num_cpus

        return int(get_num_cpus(override_docker_cpu_warning=True)) == 0
    except (ImportError, AttributeError, TypeError) as error:
        _LOGGER.debug("Ray's count of CPUs is not available: %r", error)
        return False


def drain_node(address: str, ip: str, *, deadline_ms: int, reason: str) -> None:
    """Ask Ray to stop scheduling on the nodes at an IP address, which end at a deadline.

    Args:
        address: of the cluster; this process does not join it, as a driver may count as a node.
        ip: the nodes'.
        deadline_ms: since the epoch.
        reason: shown by Ray.

    Raises:
        ClusterError: Ray refuses, or the private symbols are missing.
    """
    import ray

    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
        from ray.core.generated.gcs_pb2 import GcsNodeInfo

        cluster = GcsClient(address=address)
        for node in cluster.get_all_node_info().values():
            if node.state != GcsNodeInfo.ALIVE or node.node_manager_address != ip:
                continue
            accepted, why = cluster.drain_node(
                node.node_id.hex(), DRAIN_NODE_REASON_PREEMPTION, reason, deadline_ms
            )
            if not accepted:
                raise ClusterError(f"Ray refuses to drain this node: {why}")
    except ClusterError:
        raise
    except Exception as error:  # a private symbol is missing, or Ray's own, which differ by version
        raise ClusterError(
            f"Ray {ray.__version__} cannot drain a node this way: {one_line(error)}"
        ) from error


def release_reservation(trainer: Any) -> None:
    """Release what a ``TorchTrainer`` whose controller is lost had reserved.

    Without the private symbol an elastic run waits until the reservation expires, for 3 minutes.
    """
    try:
        from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

        run = trainer.train_run_context.run_id
        client = autoscaling_coordinator_client.TrainAutoscalingCoordinatorClient(f"train-{run}")
        client.cancel_resource_request()
    except Exception as error:  # the run still starts, only later
        _LOGGER.debug("the reservation of the lost controller is not released: %r", error)


def worker_failures(error: BaseException) -> dict[int, BaseException]:
    """The errors behind a failed training run, by rank; empty without the attribute.

    Ray Train wraps what a worker's health check raised; it is unwrapped.
    """
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    return {
        rank: getattr(failure, "health_check_failure", failure)
        for rank, failure in failures.items()
    }


TRAIN_WORKER = "RayTrainWorker"
"""Part of the process title of Ray Train's workers."""
