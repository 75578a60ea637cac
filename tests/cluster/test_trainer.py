"""The error behind a failed run, as a user sees it."""

from __future__ import annotations

import pytest
import ray.exceptions
import ray.train

from precalib_ray.cluster.trainer import _cause
from precalib_ray.errors import ClusterError, DivergedError


def test_a_users_mistake_is_raised_as_it_is() -> None:
    mistake = DivergedError("the loss became nan")
    assert _cause(ray.train.WorkerGroupError("failed", {0: ValueError("x"), 1: mistake})) is mistake


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ray.train.WorkerGroupError("failed", {1: ray.exceptions.RayActorError()}),
            "workers were lost more often than scaling.max_failures allows; most recently "
            "rank 1. Submitted again",
        ),
        (
            ray.train.ControllerError(ray.exceptions.TaskPlacementGroupRemoved()),
            "Ray's controller of the run failed: The placement group corresponding to this task",
        ),
        (ray.exceptions.RayActorError(), "Ray's controller of the run was lost more often"),
    ],
)
def test_what_is_lost_is_the_clusters(error: Exception, message: str) -> None:
    found = _cause(error)
    assert isinstance(found, ClusterError)
    assert str(found).startswith(message)


@pytest.mark.parametrize(
    "defect",
    [
        ray.train.WorkerGroupError("failed", {0: KeyError("a")}),
        ray.train.ControllerError(AttributeError("no such attribute")),
    ],
)
def test_a_defect_is_unchanged(defect: Exception) -> None:
    assert _cause(defect) is defect
