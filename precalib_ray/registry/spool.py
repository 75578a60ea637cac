"""What MLflow has not taken yet, kept on storage beside the checkpoints.

Numbered files, each written before its content is sent and removed when the server has taken it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from precalib_ray.data.storage import Folder

Entry = dict[str, Any]
"""``{"metric": [key, value, timestamp, step]}``, or ``{"status": ...}``."""

_MOST = 1000  # entries of a file, which is written anew with each that joins it

_logger = logging.getLogger(__name__)


@dataclass
class Segment:
    """One file."""

    name: str
    entries: list[Entry] = field(default_factory=list)


class Spool:
    """The files of one run; not for several threads at once."""

    def __init__(self, folder: Folder | None) -> None:
        """Read what an earlier process has left; without a folder, keep in memory only."""
        self._folder = folder
        self.segments: list[Segment] = []
        for name in folder.names(".json") if folder else ():
            text = folder.read(name) if folder else None
            self.segments.append(Segment(name, json.loads(text or "[]")))
        self._next = 1 + max((int(s.name.partition(".")[0]) for s in self.segments), default=0)

    def __len__(self) -> int:
        """The number of entries."""
        return sum(len(segment.entries) for segment in self.segments)

    def add(self, entries: list[Entry], *, after: Segment | None = None) -> None:
        """Keep entries; in a file of their own if the last is ``after``, which is being sent."""
        last = self.segments[-1] if self.segments else None
        if last is None or last is after or len(last.entries) + len(entries) > _MOST:
            last = Segment(f"{self._next:08d}.json")
            self._next += 1
            self.segments.append(last)
        last.entries += entries
        if self._folder is not None:
            try:
                self._folder.write(last.name, json.dumps(last.entries))
            except OSError as error:  # storage too is away: memory has it still
                _logger.warning("what is to be sent to MLflow could not be kept: %s", error)

    def remove(self, num: int) -> None:
        """Forget the first files: they have been sent."""
        for segment in self.segments[:num]:
            if self._folder is not None:
                try:
                    self._folder.delete(segment.name)
                except OSError as error:
                    _logger.warning("a file of the spool could not be removed: %s", error)
        del self.segments[:num]
