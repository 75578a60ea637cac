"""The audit log of the gate: every decision, as a tag of the registered model.

The tag's key is ``precalib.gate.TIME``, so that keys sort by time; its value is JSON.
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import socket
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

TAG_PREFIX = "precalib.gate."


def new_key() -> str:
    """The tag's key of a decision made now."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{TAG_PREFIX}{now:%Y%m%dT%H%M%S.%fZ}.{uuid.uuid4().hex[:4]}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return f"{os.environ.get('MLFLOW_TRACKING_USERNAME', user)}@{socket.gethostname()}"


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One decision; user and time default to the current ones."""

    when: str = field(default_factory=_now)
    """UTC, ISO 8601."""
    who: str = field(default_factory=_user)
    """User and host."""
    action: str
    """``promote`` or ``rollback``."""
    before: str | None
    """The champion at that time; ``from`` in JSON."""
    to: str
    """The version to become champion."""
    decision: str
    """``accepted`` or ``refused``."""
    deviation: float | None = None
    worst: str | None = None
    tolerance: float | None = None
    champion_deviation: float | None = None
    reason: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the alias was moved."""
        return self.decision == "accepted"

    def to_json(self) -> dict[str, Any]:
        """Plain data; fields of measurements only where there are any."""
        content = {"from" if k == "before" else k: v for k, v in asdict(self).items()}
        return {k: v for k, v in content.items() if v is not None or k == "from"}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``; ignores fields of later versions."""
        known = {f.name for f in fields(cls)}
        return cls(before=content["from"], **{k: v for k, v in content.items() if k in known})


def read(tags: Mapping[str, str]) -> list[AuditEntry]:
    """The entries among the tags of a registered model, oldest first."""
    keys = sorted(key for key in tags if key.startswith(TAG_PREFIX))
    return [AuditEntry.from_json(json.loads(tags[key])) for key in keys]


def champions(entries: Iterable[AuditEntry]) -> list[str]:
    """The champions in order, without those that were rolled back."""
    stack: list[str] = []
    for entry in entries:
        if not entry.accepted:
            continue
        if entry.action == "rollback":
            while stack and stack[-1] != entry.to:
                stack.pop()
            continue
        if entry.before is not None and stack[-1:] != [entry.before]:
            stack.append(entry.before)  # the alias was set by other means
        stack.append(entry.to)
    return stack
