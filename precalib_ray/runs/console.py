"""The terminal output of jobs: progress and tables."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_LINE_EVERY_S = 10.0
_SILENCE_S = 20.0
_TICK_S = 1.0


class _Console(Console):
    """Knows when it has printed last."""

    printed = 0.0
    """By ``time.monotonic``."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As the base class."""
        super().print(*objects, **options)
        self.printed = time.monotonic()


# A log has no width of its own; 80 columns would cut tables.
console = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
_activities: list[Callable[[], str]] = []
"""What the job is doing; the last one speaks."""


def moves() -> bool:
    """Whether standard output is a terminal that can rewrite its lines.

    Rich's ``is_terminal`` is about colors, which ``FORCE_COLOR`` asks for in a file, too.
    """
    return sys.stdout.isatty() and bool(os.environ.get("TERM")) and console.is_interactive


@contextmanager
def activity(describe: Callable[[], str]) -> Iterator[None]:
    """What the job is doing; a log says so whenever it would be silent for 30 seconds.

    Args:
        describe: a line; called in another thread.
    """
    ended = threading.Event()

    def speak() -> None:
        while not ended.wait(_TICK_S):
            silence = time.monotonic() - console.printed
            if silence >= _SILENCE_S and _activities[-1:] == [describe]:
                console.print(describe(), markup=False)

    speaker = threading.Thread(target=speak, daemon=True)
    _activities.append(describe)
    if not moves():
        speaker.start()
    try:
        yield
    finally:
        _activities.remove(describe)
        ended.set()


class Display:
    """A progress bar on a terminal; in a log, a line every ten seconds."""

    def __init__(self, title: str, total: int | None) -> None:
        """``total`` is the last step, if there is one."""
        self._title, self._total = title, total
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(title, total=total, text="")
        self._moves = moves()
        self._position = f"{title}: started"
        self._updated = self._last_line = time.monotonic()
        self._activity = activity(self._describe)

    def __enter__(self) -> Display:
        """Show the bar."""
        self._activity.__enter__()
        if self._moves:
            self._bar.start()
        else:
            console.print(self._position)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop updating the bar."""
        self._activity.__exit__(None, None, None)
        if self._moves:
            self._bar.stop()

    def update(self, step: int, text: str) -> None:
        """Show the position of the run."""
        self._bar.update(self._task, completed=step, text=text)
        of = f"/{self._total}" if self._total else ""
        left = self._bar.tasks[0].time_remaining
        eta = f", {left:.0f} s left" if left else ""
        self._position = f"{self._title}: {step}{of} {text}{eta}"
        self._updated = time.monotonic()
        if not self._moves and self._updated - self._last_line >= _LINE_EVERY_S:
            self._last_line = self._updated
            console.print(self._position)

    def _describe(self) -> str:
        return f"{self._position}; nothing new for {time.monotonic() - self._updated:.0f} s"


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Show a stage of the work, and how long it took."""
    started = time.monotonic()

    def seconds() -> float:
        return time.monotonic() - started

    with activity(lambda: f"{text}: {seconds():.0f} s so far"):
        if moves():
            with console.status(escape(f"{text} ...")):
                yield
        else:
            console.print(f"{text} ...", style="dim", markup=False)
            yield
    console.print(f"{text}: {seconds():.1f} s", style="dim", markup=False)


def warn(line: str) -> None:
    """Print what a user should know, although the job goes on."""
    console.print(line, style="yellow", markup=False)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: names to the left, numbers to the right."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(header):
        shown.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    console.print(shown)
