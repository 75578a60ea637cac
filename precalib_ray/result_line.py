"""The line of a job's output that holds its result as JSON, for programs.

``precalib_ray.submit`` asks for it with an environment variable, and reads it from the job's log.
"""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "PRECALIB_RESULT"
"""Set for a job that is to print the line."""

_PREFIX = "precalib-result "


def emit(job: str, result: object) -> None:
    """Print the line, if it was asked for."""
    if os.environ.get(VARIABLE):
        content = {"job": job, "model_uri": getattr(result, "model_uri", None)}
        print(_PREFIX + json.dumps(content), flush=True)


def parse(line: str) -> dict[str, Any] | None:
    """The content of the line, empty if it was cut off; None if this is another line."""
    if not line.startswith(_PREFIX):
        return None
    try:
        return dict(json.loads(line.removeprefix(_PREFIX)))
    except ValueError:
        return {}
