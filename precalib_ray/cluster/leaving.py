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


def main(seconds: float) -> None:
    """Have Ray plan without this machine's node, and wait while something is trained here.

    It does not join the cluster: a driver may count as another node's. ``RAY_ADDRESS`` is what
    KubeRay sets.

    Raises:
        RuntimeError: Ray does not let the node go.
    """
    address = os.environ["RAY_ADDRESS"]
    cluster, here = GcsClient(address=address), get_node_ip_address(address)
    for node in cluster.get_all_node_info().values():
        if node.state != GcsNodeInfo.ALIVE or node.node_manager_address != here:
            continue
        accepted, reason = cluster.drain_node(
            node.node_id.hex(),
            DRAIN_NODE_REASON_PREEMPTION,
            "the node will be taken away",
            int((time.time() + seconds) * 1000),  # until then it is there
        )
        if not accepted:
            raise RuntimeError(f"Ray does not let this node go: {reason}")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _trains():
        time.sleep(0.5)


def _trains() -> bool:
    processes = psutil.process_iter(["cmdline"])
    return any("RayTrainWorker" in " ".join(p.info["cmdline"] or []) for p in processes)


if __name__ == "__main__":
    main(float(sys.argv[1]))
