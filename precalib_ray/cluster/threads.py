"""Work in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_thread(
    work: Callable[[], Any], *, on_interrupt: Callable[[Future[Any]], None] | None = None
) -> Any:
    """Run in a thread, and wait: in the main thread Ray would handle Ctrl-C, and end the process.

    Args:
        work: what to run.
        on_interrupt: called with the future of ``work`` when this thread is interrupted; it may
            wait for it. The interrupt is raised afterwards.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result()
    except KeyboardInterrupt:
        if on_interrupt is not None:
            on_interrupt(outcome)
        raise
