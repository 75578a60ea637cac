"""Between the driver of a run and its rank 0: records one way, the wish to end the other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class _Mailbox:
    def __init__(self) -> None:
        self._records: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._ending = False

    async def put(self, record: dict[str, Any]) -> None:
        self._records.put_nowait(record)

    async def take(self, seconds: float) -> dict[str, Any] | None:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._records.get(), seconds)
        return None

    async def end(self) -> None:
        self._ending = True

    async def ending(self) -> bool:
        return self._ending


class Channel:
    """The driver's side. It lives on the driver's node: no other node can take it away."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox)
        self.mailbox = actor.remote()

    def take(self, seconds: float) -> dict[str, Any] | None:
        """The next record; None if there was none for so long.

        Raises:
            RayError: Ray is gone.
        """
        record: dict[str, Any] | None = ray.get(self.mailbox.take.remote(seconds))
        return record

    def ask_to_end(self) -> None:
        """Have the run write a checkpoint and end."""
        self.mailbox.end.remote()

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.mailbox)


class Sender:
    """Rank 0's side. A driver that is gone stops no training."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._sending: ray.ObjectRef | None = None

    def ending(self) -> bool:
        """Whether the driver wants the run to end."""
        with contextlib.suppress(ray.exceptions.RayError):
            return bool(ray.get(self._mailbox.ending.remote()))
        return False

    def send(self, record: dict[str, Any]) -> None:
        """Send a record, once the last one has arrived; training does not wait for this one."""
        self.flush()
        with contextlib.suppress(ray.exceptions.RayError):
            self._sending = self._mailbox.put.remote(record)

    def flush(self) -> None:
        """Wait until the last record has arrived."""
        if self._sending is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._sending)
            self._sending = None
