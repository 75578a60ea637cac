"""Checks that every node that may get workers can access a run's folder."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from precalib_ray.cluster.placement import Request
from precalib_ray.errors import ConfigError, Problem

ANSWER_S = 30.0
"""Timeout of a node's answer."""


def require_shared(request: Request, *, storage: str, folder: str) -> None:
    """Refuse a folder that a node with capacity for workers cannot access.

    A node that does not answer counts as one that does.

    Args:
        request: the workers.
        storage: that of the config.
        folder: the run's, absolute, or a URI.

    Raises:
        ConfigError: with the nodes.
    """
    folder = folder.removeprefix("file://")
    here = ray.get_runtime_context().get_node_id()
    others = [n for n in ray.nodes() if n["NodeID"] != here and request.fits(n)]
    if "://" in folder or not others:
        return

    def sees(marker: str) -> bool:  # a closure is pickled by value: nodes need no package for it
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
    """A hidden file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)
