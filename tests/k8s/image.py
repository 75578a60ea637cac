"""What the Dockerfile puts into the image."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.conftest import REPOSITORY

FOLDER = REPOSITORY / "k8s" / "image"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
CONSTRAINTS = (FOLDER / "constraints.txt").read_text()


def copies(dockerfile: str = DOCKERFILE) -> list[tuple[list[str], str, int]]:
    """COPY instructions from the context: sources, destination, and number of the stage."""
    found, stage = [], -1
    for line in dockerfile.replace("\\\n", " ").splitlines():
        words = line.split()
        if words[:1] == ["FROM"]:
            stage += 1
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            *sources, destination = words[1:]
            found.append((sources, destination, stage))
    return found


def files(dockerfile: str = DOCKERFILE) -> set[str]:
    """Files of the repository under /app in the image, by their path there."""
    last = max(stage for *_, stage in copies(dockerfile))
    found = set()
    for sources, destination, stage in copies(dockerfile):
        if stage == last:
            for source in sources:
                inside = (REPOSITORY / source).rglob("*")
                found |= {
                    str(Path(destination) / file.relative_to(REPOSITORY / source))
                    for file in inside
                    if file.is_file() and "__pycache__" not in file.parts
                }
    return found


def pins(constraints: str = CONSTRAINTS) -> dict[str, str]:
    """Versions by package."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE))
