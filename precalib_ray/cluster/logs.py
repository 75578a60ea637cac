"""The log of workers: one JSON object a line, with the run's name and the worker's rank.

Ray keeps the lines in its log directory, where collectors read them, and shows them in
``ray job logs``.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

_LOGGER = "precalib_ray.run"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        return json.dumps(line | getattr(record, "fields", {}))


class Log:
    """The log of one worker."""

    def __init__(self, **fields: Any) -> None:
        """``fields`` are on every line."""
        self._fields = fields
        self._logger = logging.getLogger(_LOGGER)
        if not self._logger.handlers:  # Ray may reuse the process for another worker
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_JsonLines())
            self._logger.addHandler(handler)
            self._logger.setLevel(logging.INFO)
            self._logger.propagate = False

    def info(self, message: str, **fields: Any) -> None:
        """Log an event of normal operation."""
        self._logger.info(message, extra={"fields": self._fields | fields})

    def warning(self, message: str, **fields: Any) -> None:
        """Log a problem."""
        self._logger.warning(message, extra={"fields": self._fields | fields})
