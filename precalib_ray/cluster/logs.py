"""What workers say: one JSON object a line, with the run's name and the worker's rank.

Ray keeps the lines in its log directory, from where collectors take them, and shows them in
``ray job logs``.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

_LOGGER = "precalib_ray.run"


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = getattr(record, "fields", {})
        said = {"time": at.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        return json.dumps(said | {"message": record.getMessage()} | fields)


class Log:
    """The log of one worker."""

    def __init__(self, **fields: Any) -> None:
        """``fields`` are on every line."""
        self._fields = fields
        self._logger = logging.getLogger(_LOGGER)
        if not self._logger.handlers:  # a process has one worker after another
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_Lines())
            self._logger.addHandler(handler)
            self._logger.setLevel(logging.INFO)
            self._logger.propagate = False

    def info(self, message: str, **fields: Any) -> None:
        """Say what is as it should be."""
        self._logger.info(message, extra={"fields": self._fields | fields})

    def warning(self, message: str, **fields: Any) -> None:
        """Say what somebody might look into."""
        self._logger.warning(message, extra={"fields": self._fields | fields})
