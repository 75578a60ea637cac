"""Tiers, the order in which two workers of pytest-xdist take tests, and those that run alone."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

TIERS = {"unit", "ray", "server", "faults", "k8s", "e2e"}
GROUPS = ("faults", "jobs", "entrypoints", "searches", "registry", "submission", "placement")
"""Tests that share a cluster or servers, and so a worker: the longest group first, so that both
workers end at about the same time. Ungrouped tests fill the gaps.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its tier, ``unit`` where it has no other, and sort by group."""
    for item in items:
        tiers = {mark.name for mark in item.iter_markers()} & TIERS
        if len(tiers) > 1:
            raise pytest.UsageError(f"{item.nodeid}: more than one tier: {sorted(tiers)}")
        if not tiers:
            item.add_marker("unit")
    items.sort(key=_order)


def _order(item: pytest.Item) -> tuple[int, bool]:
    mark = item.get_closest_marker("xdist_group")
    name = mark.args[0] if mark else ""
    position = GROUPS.index(name) if name in GROUPS else len(GROUPS)
    return position, item.get_closest_marker("unit") is not None


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
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the locks of this run."""
    run = getattr(session.config, "workerinput", {}).get("testrunuid")
    if run is not None:
        for end in ("turnstile", "lock"):
            Path(tempfile.gettempdir(), f"precalib-{run}.{end}").unlink(missing_ok=True)
