"""A SQLite store for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The tracking URI of a store without runs."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
