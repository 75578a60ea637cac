"""``python -m precalib_ray.cluster.drain SECONDS``: run on a node that is about to be preempted.

It notifies Ray, as a cloud's preemption notice would: training on this node writes a checkpoint
and, if it is elastic, continues on the other nodes. ``k8s/components/spot`` calls it before a pod
is terminated.
"""

from __future__ import annotations

import os
import sys
import time

import psutil
from ray.util import get_node_ip_address

from precalib_ray.cluster import ray_private
from precalib_ray.cluster.session import require_answer
from precalib_ray.errors import ClusterError


def main(seconds: float) -> None:
    """Drain this machine's node, and wait up to ``seconds`` while it runs training workers.

    The cluster is that of ``RAY_ADDRESS``, which KubeRay sets.

    Raises:
        ClusterError: Ray refuses, or there is none at ``RAY_ADDRESS``.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    require_answer(address)
    ray_private.drain_node(
        address,
        get_node_ip_address(address),
        deadline_ms=int((time.time() + seconds) * 1000),
        reason="the node is being preempted",
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _is_training():
        time.sleep(0.5)


def _is_training() -> bool:
    processes = psutil.process_iter(["cmdline"])
    return any(ray_private.TRAIN_WORKER in " ".join(p.info["cmdline"] or []) for p in processes)


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]))
    except ClusterError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
