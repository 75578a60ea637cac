"""Tiers, the order in which two workers of pytest-xdist take tests, and those that run alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# Ray starts its workers at a nice value of 15: beside another busy test they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

TIERS = {"unit", "ray", "server", "faults", "k8s", "e2e"}
GROUPS = {
    "faults": ("cluster/test_faults.py",),
    "jobs": ("cluster/test_pretrain.py", "cluster/test_submissions.py"),
    "placement": ("cluster/test_placement.py",),
    "searches": ("cluster/test_train.py", "cluster/test_search.py", "cluster/test_gauges.py"),
    "entrypoints": ("k8s/test_entrypoints.py",),
    "registry": ("registry/",),
    "submission": ("cluster/test_submission.py",),
    "quickstart": ("e2e/test_quickstart.py", "e2e/test_browser.py"),
    "search": ("search/test_trials.py",),
    "compatibility": ("test_compatibility.py",),
}
"""What shares a cluster, servers or a run, and so a worker. They come first, the longest at the
top, and the tests of no group fill the gaps: so both workers end at about the same time.
"""


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with its tables, which take seconds to create."""
    from precalib_ray.registry.server import client_of

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    client_of(f"sqlite:///{file}").search_registered_models()
    return file


def group_of(nodeid: str) -> str:
    """The group of a test; its own name, if it is of none."""
    path = nodeid.removeprefix("tests/")
    return next((name for name, paths in GROUPS.items() if path.startswith(paths)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole groups to a worker. ``--dist loadgroup`` of xdist 3.8 does not, under pytest 9.2:
    it renames tests, which can no longer be renamed.
    """
    from xdist.scheduler import LoadScopeScheduling

    class LoadGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return LoadGroups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its tier, ``unit`` where it has no other, and sort by group."""
    for item in items:
        tiers = {mark.name for mark in item.iter_markers()} & TIERS
        if len(tiers) > 1:
            raise pytest.UsageError(f"{item.nodeid}: more than one tier: {sorted(tiers)}")
        if not tiers:
            item.add_marker("unit")
    names = [*GROUPS]
    items.sort(
        key=lambda item: (
            names.index(group) if (group := group_of(item.nodeid)) in GROUPS else len(names),
            item.get_closest_marker("unit") is not None,
        )
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run a test beside one of another worker, or alone where it is marked so."""
    run = getattr(item.config, "workerinput", {}).get("testrunuid")
    with contextlib.ExitStack() as stack:
        if run is not None:
            alone = item.get_closest_marker("alone") is not None
            stack.enter_context(_turn(Path(tempfile.gettempdir(), f"precalib-{run}"), alone=alone))
        return (yield)


@contextlib.contextmanager
def _turn(lock: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock that others may share, or not. The turnstile lets nobody overtake who waits."""
    with open(f"{lock}.turnstile", "w") as turnstile, open(f"{lock}.lock", "w") as held:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)  # closing would not do, if a test has forked


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the locks of this run."""
    run = getattr(session.config, "workerinput", {}).get("testrunuid")
    if run is not None:
        for end in ("turnstile", "lock"):
            Path(tempfile.gettempdir(), f"precalib-{run}.{end}").unlink(missing_ok=True)
