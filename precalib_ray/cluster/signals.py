"""Control signals of a run: the driver's request to stop, and Ray's preemption notices."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray.train
from ray.train.collective import broadcast_from_rank_zero

from precalib_ray.cluster.channel import Sender
from precalib_ray.core.loop import Signal

LAST_SAVE_S = 10.0
"""Seconds before a node is preempted at which a last checkpoint is written."""


class Signals:
    """One rank's view of the control signals."""

    def __init__(self, sender: Sender, *, notify: Callable[[str], None]) -> None:
        self._sender, self._notify = sender, notify
        self._is_rank_zero = ray.train.get_context().get_world_rank() == 0
        self._announced: set[str] = set()
        self._last_saves: set[int] = set()

    def current(self) -> Signal:
        """The control signal, the same on every rank; collective.

        Rank 0 decides on what may differ between ranks: the driver's request, and the time.
        """
        mine = (self._is_rank_zero and self._sender.stop_requested(), time.time())
        stop, now = broadcast_from_rank_zero(mine)
        if stop:
            return "stop"
        notice = ray.train.get_preemption_info()
        if notice is None:
            return ""
        signal: Signal = ""
        deadline_ms = notice.deadline_ms
        near = deadline_ms is not None and deadline_ms / 1000 - now <= LAST_SAVE_S
        if near and deadline_ms not in self._last_saves:
            self._last_saves.add(deadline_ms)
            signal = "save"
        if not set(notice.preempted_node_ids) <= self._announced:
            self._announced |= set(notice.preempted_node_ids)
            ranks = ", ".join(map(str, notice.preempted_ranks))
            self._notify(f"the node of rank {ranks} is being preempted: writing a checkpoint")
            signal = "save"
        return signal
