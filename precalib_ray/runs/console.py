"""The terminal output of jobs: progress and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# A log has no width of its own; 80 columns would cut tables.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
_LINE_EVERY_S = 10.0


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
        self._live = console.is_terminal
        self._last_line = time.monotonic()

    def __enter__(self) -> Display:
        """Show the bar."""
        if self._live:
            self._bar.start()
        else:
            console.print(f"{self._title}: started")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop updating the bar."""
        if self._live:
            self._bar.stop()

    def update(self, step: int, text: str) -> None:
        """Show the position of the run."""
        self._bar.update(self._task, completed=step, text=text)
        if self._live or time.monotonic() - self._last_line < _LINE_EVERY_S:
            return
        self._last_line = time.monotonic()
        of = f"/{self._total}" if self._total else ""
        left = self._bar.tasks[0].time_remaining
        eta = f", {left:.0f} s left" if left else ""
        console.print(f"{self._title}: {step}{of} {text}{eta}")


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Show a stage of the work, and how long it took."""
    started = time.monotonic()
    if console.is_terminal:
        with console.status(text + " …"):
            yield
    else:
        yield
    console.print(f"{text}: {time.monotonic() - started:.1f} s", style="dim")


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
