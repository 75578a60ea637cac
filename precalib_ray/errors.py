"""Errors that a user can act on, and the exit code that a job ends with for each family of them.

A job prints their message without a traceback; any other exception is a defect of this package and
shows one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MAX_SHOWN = 200
"""Characters of a value in a message."""
_MAX_LINES = 50
"""Problems in a message."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of an error of another library, for a line of ours; its type if it has none."""
    return _shortened(" ".join(str(error).split()), limit) or type(error).__name__


class PrecalibError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 1
    model_uri: str | None = None
    """The version that a job had registered before it failed."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a config: its path, the value, what is allowed, and the nearest valid name."""

    path: str
    value: object
    allowed: str
    hint: str = ""

    def __str__(self) -> str:
        path, value = _shortened(self.path) or "config", _shortened(repr(self.value))
        line = f"{path}: {value}: {_shortened(self.allowed, 3 * _MAX_SHOWN)}"
        line = f"{line} (did you mean {self.hint}?)" if self.hint else line
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _shortened(text: str, length: int = _MAX_SHOWN) -> str:
    """The beginning and the end of a text that is longer.

    A URI is shown whole or not at all, so that credentials in it are still recognized as such.
    """
    if len(text) <= length:
        return text
    head, tail = text[: length // 2], text[-length // 2 :]
    if "://" in text:
        head, tail = re.sub(r"[^\s'\"]*$", "", head), re.sub(r"^[^\s'\"]*", "", tail)
    return f"{head}...{tail}"


class ConfigError(PrecalibError):
    """A config that cannot run; one line per problem."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = [] if isinstance(problems, str) else list(problems)
        lines = [str(problem) for problem in self.problems[:_MAX_LINES]]
        if len(self.problems) > _MAX_LINES:
            lines.append(f"and {len(self.problems) - _MAX_LINES:,} more problems")
        super().__init__(problems if isinstance(problems, str) else "\n".join(lines))


class SettingError(ValueError):
    """A setting that contradicts another, raised while a settings class is built.

    ``path`` is relative to the section that raises; ``config.load`` completes it.
    """

    def __init__(self, path: str, value: object, allowed: str, hint: str = "") -> None:
        self.problem = Problem(path, value, allowed, hint)
        super().__init__(str(self.problem))

    def __reduce__(self) -> tuple[Any, ...]:
        problem = self.problem
        return type(self), (problem.path, problem.value, problem.allowed, problem.hint)


class DataError(PrecalibError):
    """A data set that cannot be read; the message names file, row group and row."""

    exit_code = 3


class StorageError(DataError, OSError):
    """A run's storage refused: full, read-only, unreachable. Code that tolerates an OSError
    tolerates it too.
    """


class MissingError(StorageError, FileNotFoundError):
    """What should be on a run's storage is not there."""


class CheckpointError(DataError):
    """A checkpoint directory that is truncated, foreign, or asks for code it may not run."""


class TrackingError(PrecalibError):
    """The MLflow server cannot be reached or refused what was sent."""

    exit_code = 4


class DivergedError(PrecalibError):
    """The loss became NaN or infinite."""

    exit_code = 5


class InterruptedRunError(PrecalibError):
    """A run was interrupted; submitted again, it resumes from its last checkpoint."""

    exit_code = 130


class ClusterError(PrecalibError):
    """Ray cannot provide the resources, or workers were lost more often than allowed."""

    exit_code = 6


class GateError(PrecalibError):
    """The gate refused a version; the champion is unchanged."""

    exit_code = 7
