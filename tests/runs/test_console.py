"""What moves on a terminal, what a log says, and that neither is silent."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from precalib_ray.runs import console
from precalib_ray.runs.console import Display, activity, stage

SCRIPT = """
from precalib_ray.runs.console import Display, console, stage
with stage("starting"):
    pass
with Display("training", 2) as display:
    display.update(1, "loss 1")
    console.print("a warning", style="yellow")
"""
MOVES, COLORS = ("\x1b[2K", "\x1b[?25l"), ("\x1b[33m",)


def environment(changes: dict[str, str]) -> dict[str, str]:
    """Ours, with nothing about terminals but ``changes``."""
    about = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {name: value for name, value in os.environ.items() if name not in about} | changes


def on_terminal(changes: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run(command, env=environment(changes), stdout=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the end
        pass
    finally:
        os.close(ours)
    return shown.decode()


def in_file(changes: dict[str, str], file: Path) -> str:
    with file.open("w") as out:
        command = [sys.executable, "-c", SCRIPT]
        subprocess.run(command, env=environment(changes), stdout=out, check=True)
    return file.read_text()


@pytest.mark.parametrize(
    ("changes", "colors"),
    [
        ({"TERM": "xterm"}, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, True),
        ({"TERM": "xterm", "TTY_COMPATIBLE": "1"}, True),
        ({"TERM": "xterm", "FORCE_COLOR": "1", "TTY_INTERACTIVE": "1"}, True),
        ({"TERM": "xterm", "FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False),
    ],
)
def test_nothing_moves_in_a_file(changes: dict[str, str], colors: bool, tmp_path: Path) -> None:
    shown = in_file(changes, tmp_path / "log")
    assert not any(code in shown for code in MOVES)
    assert any(code in shown for code in COLORS) == colors
    assert "starting ..." in shown
    assert "training: started" in shown


@pytest.mark.parametrize(
    ("changes", "moves", "colors"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "TTY_INTERACTIVE": "0"}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "unknown", "FORCE_COLOR": "1"}, False, False),
        ({}, False, True),
    ],
)
def test_a_terminal_moves_if_it_can(changes: dict[str, str], moves: bool, colors: bool) -> None:
    shown = on_terminal(changes)
    assert any(code in shown for code in MOVES) == moves
    assert any(code in shown for code in COLORS) == colors
    assert ("training: started" in shown) == (not moves)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is said every 30 seconds is said at once."""
    monkeypatch.setattr(console, "_SILENCE_S", 0.1)
    monkeypatch.setattr(console, "_TICK_S", 0.02)
    yield
    assert console._activities == []


@pytest.mark.usefixtures("impatient")
def test_a_log_is_never_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with activity(lambda: "pretrain: still running"):
        time.sleep(0.25)
        with stage("starting Ray"):
            time.sleep(0.25)
        with Display("training", 3) as display:
            time.sleep(0.25)
            display.update(2, "loss 1")
            time.sleep(0.25)
        time.sleep(0.25)
    lines = capsys.readouterr().out.splitlines()
    wanted = [
        "pretrain: still running",
        "starting Ray ...",
        "starting Ray: 0 s so far",
        "starting Ray: 0.",
        "training: started",
        "training: started; nothing new for 0 s",
        "training: 2/3 loss 1; nothing new for 0 s",
        "pretrain: still running",
    ]
    found = [line for before, line in zip(["", *lines], lines, strict=False) if line != before]
    assert len(found) == len(wanted), found
    assert all(line.startswith(start) for line, start in zip(found, wanted, strict=True)), found


@pytest.mark.usefixtures("impatient")
def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with activity(lambda: "at [fe80::1] [/x]"), stage("connecting to [fe80::1]:6379 [/x]"):
        pass
    with activity(lambda: "at [fe80::1] [/x]"):
        time.sleep(0.25)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "connecting to [fe80::1]:6379 [/x] ..."
    assert last == "at [fe80::1] [/x]"


@pytest.mark.usefixtures("impatient")
def test_who_speaks_is_not_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    with activity(lambda: "still running"):
        for _ in range(15):
            console.console.print("news")
            time.sleep(0.02)
    assert set(capsys.readouterr().out.splitlines()) == {"news"}


@pytest.mark.usefixtures("impatient")
def test_an_activity_that_fails_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), stage("failing"):
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), Display("failing", None):
        raise ValueError("no")
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().out == ""
