"""One local Ray for all tests of the folder; it starts in seconds, and is the real thing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from precalib_ray.cluster import session
from precalib_ray.data import convert


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    with session.connect():
        yield


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    convert.convert_digits(folder)
    return folder
