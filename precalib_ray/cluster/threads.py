"""Work that shall not run in the thread that asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_thread(
    work: Callable[[], Any], *, on_interrupt: Callable[[Future[Any]], None] | None = None
) -> Any:
    """Run in a thread: in the main one Ray would take over Ctrl-C, and end the process its way.

    Args:
        work: what to run.
        on_interrupt: called with what ``work`` will return when this thread is interrupted; it may
            wait for it. This thread is interrupted all the same.
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
