"""Private symbols of Ray: each is there and behaves, and each function copes without it."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions

from precalib_ray.cluster import ray_private
from precalib_ray.errors import ClusterError, DivergedError


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The symbols that ``ray_private`` imports do not exist."""
    real = builtins.__import__

    def refuse(
        name: str, globals_: Mapping[str, Any] | None = None, *rest: Any, **named: Any
    ) -> Any:
        ours = (globals_ or {}).get("__name__") == ray_private.__name__
        if ours and name.startswith("ray."):
            raise ImportError(f"no module {name}")
        return real(name, globals_, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)


SELECTORS = ["a", "b", "!a", "!b", "in(a)", "in(a, b)", "in(c,a)", "!in(a)", "!in(b, a)", "!in(c)"]
LABELS: list[dict[str, str]] = [{}, {"zone": "a"}, {"zone": "b"}, {"zone": "c"}, {"other": "a"}]
PAIRS = list(itertools.product(LABELS, SELECTORS))


def matches() -> list[bool]:
    return [ray_private.labels_match(labels, {"zone": wanted}) for labels, wanted in PAIRS]


def test_labels_are_matched_as_ray_matches_them() -> None:
    from ray._raylet import node_labels_match_selector

    found = [node_labels_match_selector(labels, {"zone": wanted}) for labels, wanted in PAIRS]
    assert matches() == found
    assert {True, False} == set(found)
    assert ray_private.labels_match({"a": "1", "b": "2"}, {"a": "1", "b": "!3"})
    assert not ray_private.labels_match({"a": "1", "b": "2"}, {"a": "1", "b": "3"})


@pytest.mark.parametrize(("cpus", "none"), [(0, True), (0.5, True), (1, False), (64, False)])
def test_a_limit_below_one_cpu(
    cpus: float, none: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: cpus)
    assert ray_private.counts_no_cpu() == none
    request.getfixturevalue("gone")
    assert not ray_private.counts_no_cpu()


def test_labels_are_matched_alike_without_ray(request: pytest.FixtureRequest) -> None:
    found = matches()
    request.getfixturevalue("gone")
    assert matches() == found
    assert ray_private.labels_match({}, {})
    assert not ray_private.labels_match({"a": "1", "b": "2"}, {"a": "1", "b": "3"})


def test_the_autoscaler_is_read_from_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.state import state

    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: {"CPU": 8})
    assert ray_private.autoscaler_limits() == {"CPU": 8.0}
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)
    assert ray_private.autoscaler_limits() is None


@pytest.mark.parametrize(
    ("is_v2", "report", "autoscaled"),
    [
        (True, None, True),
        (False, None, False),
        (False, b'{"autoscaler_report": null}', False),
        (False, b'{"autoscaler_report": {"active_nodes": {"node_1f": 1, "node_2a": 1}}}', False),
        (False, b'{"autoscaler_report": {"active_nodes": {"gpu-group": 1}}}', True),
    ],
)
def test_what_is_autoscaled(
    monkeypatch: pytest.MonkeyPatch, is_v2: bool, report: bytes | None, autoscaled: bool
) -> None:
    monkeypatch.setattr("ray.autoscaler.v2.utils.is_autoscaler_v2", lambda **_: is_v2)
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: report)
    assert ray_private.is_autoscaled() is autoscaled


@pytest.mark.usefixtures("gone")
def test_without_the_symbols_nobody_knows_whether_it_is_autoscaled() -> None:
    assert ray_private.autoscaler_limits() is None
    assert ray_private.is_autoscaled() is None


class Gcs:
    """Ray's client of a cluster of two nodes, one of them dead."""

    drained: list[tuple[Any, ...]]
    answer = (True, "")

    def __init__(self, address: str) -> None:
        assert address == "10.0.0.1:6379"

    def get_all_node_info(self) -> dict[int, Any]:
        from ray.core.generated.gcs_pb2 import GcsNodeInfo

        states = [GcsNodeInfo.ALIVE, GcsNodeInfo.DEAD, GcsNodeInfo.ALIVE]
        addresses = ["10.0.0.2", "10.0.0.2", "10.0.0.3"]
        return {
            index: SimpleNamespace(
                state=state, node_manager_address=address, node_id=bytes([index])
            )
            for index, (state, address) in enumerate(zip(states, addresses, strict=True))
        }

    def drain_node(self, *arguments: Any) -> tuple[bool, str]:
        self.drained.append(arguments)
        return self.answer


def drain() -> None:
    ray_private.drain_node("10.0.0.1:6379", "10.0.0.2", deadline_ms=1234, reason="spot")


def test_a_node_is_drained_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    monkeypatch.setattr(Gcs, "drained", [], raising=False)
    monkeypatch.setattr("ray._raylet.GcsClient", Gcs)
    drain()
    assert Gcs.drained == [("00", DRAIN_NODE_REASON_PREEMPTION, "spot", 1234)]
    monkeypatch.setattr(Gcs, "answer", (False, "it is idle"))
    with pytest.raises(ClusterError, match="Ray refuses to drain this node: it is idle"):
        drain()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_real_cluster_answers() -> None:
    """That a node is drained is shown by the fault tests: this cluster has one."""
    from ray._raylet import GcsClient

    address = ray.get_runtime_context().gcs_address
    (node,) = GcsClient(address=address).get_all_node_info().values()
    assert node.node_id.hex() == ray.get_runtime_context().get_node_id()
    assert node.node_manager_address == ray.nodes()[0]["NodeManagerAddress"]
    assert callable(GcsClient(address=address).drain_node)
    ray_private.drain_node(address, "192.0.2.1", deadline_ms=0, reason="no node has this address")
    assert [each["Alive"] for each in ray.nodes()] == [True]
    assert ray_private.autoscaler_limits() is None
    assert ray_private.is_autoscaled() is False


@pytest.mark.usefixtures("gone")
def test_without_the_symbols_a_drain_fails_clearly() -> None:
    with pytest.raises(ClusterError, match=rf"Ray {ray.__version__} cannot drain a node this way"):
        drain()


TRAINER = SimpleNamespace(train_run_context=SimpleNamespace(run_id="abc"))


def test_a_reservation_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.context import TrainRunContext
    from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

    assert "run_id" in TrainRunContext.__dataclass_fields__
    client = autoscaling_coordinator_client.TrainAutoscalingCoordinatorClient
    released: list[str] = []
    monkeypatch.setattr(
        client, "cancel_resource_request", lambda self: released.append(self._requester_id)
    )
    ray_private.release_reservation(TRAINER)
    assert released == ["train-abc"]


@pytest.mark.usefixtures("gone")
def test_without_the_symbol_a_reservation_expires_by_itself() -> None:
    ray_private.release_reservation(TRAINER)


def test_failures_of_workers_are_unwrapped() -> None:
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    lost, diverged = ray.exceptions.RayActorError(), DivergedError("inf")
    wrapped = WorkerHealthCheckFailedError("unhealthy", lost)
    error = WorkerGroupError("two failed", {0: diverged, 1: wrapped})
    assert ray_private.worker_failures(error) == {0: diverged, 1: lost}
    assert ray_private.worker_failures(ValueError("another")) == {}


def test_the_name_of_workers_is_that_of_their_class() -> None:
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    assert RayTrainWorker.__name__ == ray_private.TRAIN_WORKER
