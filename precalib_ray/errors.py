"""What a user can get wrong, as exceptions: each family has the exit code a job ends with.

These carry a message for people and never show a traceback; any other exception is a defect of
this package and does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PrecalibError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config: where, what was given, what is allowed, and a near name."""

    path: str
    value: object
    allowed: str
    hint: str = ""

    def __str__(self) -> str:
        line = f"{self.path or 'config'}: {self.value!r}: {self.allowed}"
        return f"{line} (did you mean {self.hint}?)" if self.hint else line


class ConfigError(PrecalibError):
    """A config that cannot run; one line per problem."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = [] if isinstance(problems, str) else list(problems)
        super().__init__(
            problems if isinstance(problems, str) else "\n".join(str(p) for p in problems)
        )


class DataError(PrecalibError):
    """A data set that cannot be read, with file, row group and row where one row is to blame."""

    exit_code = 3


class CheckpointError(DataError):
    """A checkpoint directory that is truncated, foreign, or asks for code it may not run."""


class TrackingError(PrecalibError):
    """The MLflow server cannot be reached or refused what was sent."""

    exit_code = 4


class DivergedError(PrecalibError):
    """The loss became NaN or infinite."""

    exit_code = 5


class InterruptedRunError(PrecalibError):
    """A run has ended before its time, as it was asked to; it goes on from its last checkpoint."""

    exit_code = 130


class ClusterError(PrecalibError):
    """Ray cannot give what was asked for, or the job ran out of retries."""

    exit_code = 6


class GateError(PrecalibError):
    """The gate refused a version, with the numbers; what was champion is champion still."""

    exit_code = 7
