"""The outbox: what MLflow has not accepted yet, on storage next to the checkpoints.

Numbered files, each written before its entries are sent and removed once the server has accepted
them.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from precalib_ray.errors import StorageError
from precalib_ray.storage.folder import Folder

Entry = dict[str, Any]
"""``{"metric": [key, value, timestamp, step]}``, or ``{"status": ...}``."""

_MAX_ENTRIES = 1000  # per segment, which is rewritten with each entry that is added

_logger = logging.getLogger(__name__)


@dataclass
class Segment:
    """One file."""

    name: str
    entries: list[Entry] = field(default_factory=list)


class Outbox:
    """The files of one run; not thread-safe."""

    def __init__(self, folder: Folder | None) -> None:
        """Read what an earlier process left; without a folder, keep entries in memory only.

        Raises:
            StorageError: a file cannot be read.
        """
        self._folder = folder
        self.segments: list[Segment] = []
        for name in folder.names(".json") if folder else ():
            entries = (folder.read_json(name) if folder else None) or []
            if not isinstance(entries, list):
                raise StorageError(f"{folder}/{name}: not a list of entries")
            self.segments.append(Segment(name, entries))
        self._next = 1 + max((int(s.name.partition(".")[0]) for s in self.segments), default=0)

    def __len__(self) -> int:
        """The number of entries."""
        return sum(len(segment.entries) for segment in self.segments)

    @property
    def entries(self) -> list[Entry]:
        """All entries, in order."""
        return [entry for segment in self.segments for entry in segment.entries]

    def drop_status(self) -> str | None:
        """Remove the status entries in memory; returns the last one."""
        statuses = [entry["status"] for entry in self.entries if "status" in entry]
        for segment in self.segments:
            segment.entries = [entry for entry in segment.entries if "status" not in entry]
        return statuses[-1] if statuses else None

    def add(self, entries: list[Entry], *, after: Segment | None = None) -> None:
        """Append entries; to a new segment if the last is ``after``, which is in flight."""
        last = self.segments[-1] if self.segments else None
        if last is None or last is after or len(last.entries) + len(entries) > _MAX_ENTRIES:
            last = Segment(f"{self._next:08d}.json")
            self._next += 1
            self.segments.append(last)
        last.entries += entries
        if self._folder is not None:
            try:
                self._folder.write(last.name, json.dumps(last.entries))
            except OSError as error:  # the entries are still in memory
                _logger.warning("MLflow's outbox could not be written: %s", error)

    def remove(self, num: int) -> None:
        """Remove the first segments, whose entries the server has accepted."""
        for segment in self.segments[:num]:
            if self._folder is not None:
                try:
                    self._folder.delete(segment.name)
                except OSError as error:
                    _logger.warning("a file of MLflow's outbox could not be removed: %s", error)
        del self.segments[:num]
