"""Between the driver of a run and its rank 0: messages one way, the request to stop the other."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class Report:
    """Progress of a run."""

    step: int
    samples: int
    seconds: float
    """Spent in training steps."""
    evaluations: list[Any]
    """``Probing`` or ``Epoch`` objects since the last report."""
    loss: float
    """Mean over the steps since the last report."""
    learning_rate: float
    samples_per_second: float


@dataclass(frozen=True)
class Notice:
    """A message to show to the user at once."""

    text: str


Message = Report | Notice


class _Mailbox:
    """Holds pickled messages: unpickling them would import PyTorch into the actor."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        self._stopping = False

    async def put(self, message: bytes) -> None:
        self._messages.put_nowait(message)

    async def take(self, seconds: float) -> bytes | None:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._messages.get(), seconds)
        return None

    async def request_stop(self) -> None:
        self._stopping = True

    async def stop_requested(self) -> bool:
        return self._stopping


class Channel:
    """The driver's side; its actor runs on the driver's node, so no other node's loss ends it."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox)
        self.mailbox = actor.remote()

    def take(self, seconds: float) -> Message | None:
        """The next message; None if there is none for so long.

        Raises:
            RayError: the cluster is lost.
        """
        message = ray.get(self.mailbox.take.remote(seconds))
        loaded: Message | None = None if message is None else cloudpickle.loads(message)
        return loaded

    def request_stop(self) -> None:
        """Have the run write a checkpoint and end."""
        self.mailbox.request_stop.remote()

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.mailbox)


class Sender:
    """Rank 0's side; losing the driver does not stop training."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._sending: ray.ObjectRef | None = None

    def stop_requested(self) -> bool:
        """Whether the driver has requested the run to stop."""
        with contextlib.suppress(ray.exceptions.RayError):
            return bool(ray.get(self._mailbox.stop_requested.remote()))
        return False

    def send(self, message: Message) -> None:
        """Send a message once the last one has arrived, without waiting for this one."""
        self.flush()
        with contextlib.suppress(ray.exceptions.RayError):
            self._sending = self._mailbox.put.remote(cloudpickle.dumps(message))

    def flush(self) -> None:
        """Wait until the last message has arrived."""
        if self._sending is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._sending)
            self._sending = None
