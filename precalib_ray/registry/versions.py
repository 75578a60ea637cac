"""One version per key, under concurrent publishers.

MLflow numbers versions, but accepts any number of versions of one run. A version therefore carries
its idempotency key in its tags. A publisher that has created a version searches for the key
afterwards: of several versions with one key the first is kept, and each of the others is deleted by
its creator. A version is visible before a later number can be given, so no two publishers find
themselves first.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Mapping
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

CANDIDATE = "candidate"
KEY_TAG, DIGEST_TAG = "precalib.key", "precalib.sha256"
MODEL_TAG = "precalib.logged_model"
"""Id of the logged model that a version is made from: MLflow's database does not store it."""

_TRIES = 40  # MLflow itself gives up after three collisions with other publishers


def find(client: MlflowClient, name: str, *, tag: str, value: str) -> list[ModelVersion]:
    """The versions with a tag, oldest first."""
    found = client.search_model_versions(f"name='{name}' and tags.`{tag}` = '{value}'")
    return sorted(found, key=lambda version: int(version.version))


def create(
    client: MlflowClient,
    name: str,
    *,
    key: str,
    source: str,
    run_id: str,
    model_id: str,
    tags: Mapping[str, Any],
) -> str:
    """The version of a key, created if there is none; raises what MLflow raises."""
    with contextlib.suppress(MlflowException):  # it exists already
        client.create_registered_model(name)
    created: ModelVersion | None = None
    for attempt in range(_TRIES):
        if find(client, name, tag=KEY_TAG, value=key):
            break
        try:
            created = client.create_model_version(
                name,
                source=source,
                run_id=run_id,
                model_id=model_id,
                tags={**{k: str(v) for k, v in tags.items()}, KEY_TAG: key, MODEL_TAG: model_id},
            )
        except MlflowException as error:
            if "Giving up" not in str(error) or attempt == _TRIES - 1:
                raise
            time.sleep(random.uniform(0.0, 0.5))
        else:
            break
    kept = find(client, name, tag=KEY_TAG, value=key)[0]
    if created is not None and str(created.version) != str(kept.version):
        client.delete_model_version(name, str(created.version))
    if kept.tags[MODEL_TAG] != model_id:
        client.delete_logged_model(model_id)
    return str(kept.version)


def point_candidate(client: MlflowClient, name: str) -> None:
    """Move ``candidate`` to the newest version; safe under concurrent publishers."""
    while True:
        newest = _newest(client, name)
        aliases = client.get_registered_model(name).aliases
        if newest is None or str(aliases.get(CANDIDATE)) == newest:
            return
        client.set_registered_model_alias(name, CANDIDATE, newest)


def _newest(client: MlflowClient, name: str) -> str | None:
    """The newest version that its creator is not about to delete as a duplicate."""
    versions: list[ModelVersion] = client.search_model_versions(
        f"name='{name}'", max_results=200, order_by=["version_number DESC"]
    )
    for version in versions:
        key = version.tags.get(KEY_TAG)
        first = version if key is None else find(client, name, tag=KEY_TAG, value=key)[0]
        if first.version == version.version:
            return str(version.version)
    return None
