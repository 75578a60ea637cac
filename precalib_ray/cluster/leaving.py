"""``python -m precalib_ray.cluster.leaving SECONDS``: what a node runs that will be taken away.

It tells Ray, as a cloud's notice would: training that runs here writes a checkpoint and, where it
is elastic, goes on with the other nodes. ``k8s/components/spot`` calls it before a pod is ended.
"""

from __future__ import annotations

import os
import sys
import time

import psutil
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.util import get_node_ip_address


def announce(node_id: str, *, address: str, seconds: float) -> None:
    """Have Ray plan without a node.

    Args:
        node_id: the node, in hexadecimal.
        address: of the cluster, ``HOST:PORT``.
        seconds: how long it still is there.

    Raises:
        RuntimeError: Ray refuses.
    """
    deadline_ms = int((time.time() + seconds) * 1000)
    accepted, reason = GcsClient(address=address).drain_node(
        node_id, DRAIN_NODE_REASON_PREEMPTION, "the node will be taken away", deadline_ms
    )
    if not accepted:
        raise RuntimeError(f"Ray does not let node {node_id} go: {reason}")


def main(seconds: float) -> None:
    """Announce that this machine's node leaves, and wait while something is trained here.

    It does not join the cluster: a driver may count as another node's. ``RAY_ADDRESS`` is what
    KubeRay sets.
    """
    cluster = os.environ["RAY_ADDRESS"]
    here = get_node_ip_address(cluster)
    for node in GcsClient(address=cluster).get_all_node_info().values():
        if node.state == GcsNodeInfo.ALIVE and node.node_manager_address == here:
            announce(node.node_id.hex(), address=cluster, seconds=seconds)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _trains():
        time.sleep(0.5)


def _trains() -> bool:
    processes = psutil.process_iter(["cmdline"])
    return any("RayTrainWorker" in " ".join(p.info["cmdline"] or []) for p in processes)


if __name__ == "__main__":
    main(float(sys.argv[1]))
