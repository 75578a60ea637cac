"""Downloads a checkpoint directory from a registry."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from precalib_ray.core import checkpoint
from precalib_ray.errors import CheckpointError, TrackingError
from precalib_ray.registry import versions
from precalib_ray.registry.server import client_of, require_reachable, tracking_errors
from precalib_ray.registry.uris import resolve_uri

EXTRA_FILES = "extra_files"
_FILES = (checkpoint.MODEL_FILE, checkpoint.SPEC_FILE, checkpoint.METRICS_FILE)
_URI = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


def pull(uri: str, directory: Path | str, *, tracking_uri: str | None = None) -> str:
    """Download the checkpoint directory of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    MLflow resolves such URIs on the process-wide server, even if a call passes another
    ``tracking_uri``. This function asks the server that it is given, and changes no global state.

    Args:
        uri: the version, by number or by alias.
        directory: where the files of a checkpoint go; no other artifact is fetched.
        tracking_uri: as ``resolve_uri`` takes it.

    Returns:
        ``models:/NAME/VERSION``, which is immutable; an alias is not.

    Raises:
        TrackingError: the server cannot be reached, or has no such model.
        CheckpointError: the version was not published by precalib_ray.
    """
    server = resolve_uri(tracking_uri)
    require_reachable(server)
    client = client_of(server)
    with tracking_errors(f"{uri} cannot be pulled"):
        version = _find(client, uri)
        source = client.get_model_version_download_uri(version.name, version.version)
        extra = f"{source}/{EXTRA_FILES}"
        listed = {
            Path(item.path).name
            for item in mlflow.artifacts.list_artifacts(artifact_uri=extra, tracking_uri=server)
            if not item.is_dir
        }
        if not listed >= {checkpoint.MODEL_FILE, checkpoint.SPEC_FILE}:
            raise CheckpointError(f"{uri} holds no precalib_ray checkpoint")
        for name in (file for file in _FILES if file in listed):
            _download(f"{extra}/{name}", Path(directory) / name, server=server)
    return f"models:/{version.name}/{version.version}"


def _download(uri: str, file: Path, *, server: str) -> None:
    """Fetch one file and nothing else, even if the server lists a folder or a link in its place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=server)
        downloaded = Path(folder) / file.name
        if downloaded.is_symlink() or not downloaded.is_file():
            raise CheckpointError(f"{uri} is not a regular file")
        downloaded.replace(file)


def _find(client: MlflowClient, uri: str) -> ModelVersion:
    match = _URI.fullmatch(uri)
    if match is None:
        raise TrackingError(f"{uri} is neither models:/NAME@ALIAS nor models:/NAME/VERSION")
    return versions.get(client, match["name"], match["alias"] or match["version"])
