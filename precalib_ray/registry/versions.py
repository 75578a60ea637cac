"""One version per key, under concurrent publishers.

MLflow numbers versions, but accepts any number of versions of one run. A version therefore carries
its idempotency key in its tags. A publisher that has created a version searches for the key
afterwards: of several versions with one key the first is kept, and each of the others is deleted by
its creator. A version is visible before a later number can be given, so no two publishers find
themselves first.
"""

from __future__ import annotations

import difflib
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

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter of an alias
_TRIES = 40  # MLflow itself gives up after three collisions with other publishers


def find(client: MlflowClient, name: str, *, tag: str, value: str) -> list[ModelVersion]:
    """The versions with a tag, oldest first."""
    found = client.search_model_versions(f"name='{name}' and tags.`{tag}` = '{value}'")
    return sorted(found, key=lambda version: int(version.version))


def get(client: MlflowClient, name: str, wanted: str) -> ModelVersion:
    """A version by its number or alias; raises LookupError with what the registry has instead."""
    try:
        if wanted.isdigit():
            return client.get_model_version(name, wanted)
        return client.get_model_version_by_alias(name, wanted)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
    aliases = require_model(client, name)
    found = client.search_model_versions(f"name='{name}'", order_by=["version_number ASC"])
    numbers = [str(version.version) for version in found]
    if not numbers:
        raise LookupError(
            f"every version of {name} was deleted; a job that registered one registers it again "
            "when it is submitted again"
        )
    has = f"{name} has version {', '.join(numbers[-10:])}"
    if aliases:
        has += f" and alias {', '.join(sorted(aliases))}"
    if wanted.isdigit():
        raise LookupError(f"there is no version {wanted}, or it was deleted; {has}")
    mend = (
        "the job of a version, submitted again, sets it to the newest"
        if wanted == CANDIDATE
        else f"python jobs/promote.py name={name} version={numbers[-1]} sets champion"
    )
    raise LookupError(f"no version has alias {wanted}, or it was deleted; {has}; {mend}")


def require_model(client: MlflowClient, name: str) -> dict[str, str]:
    """The aliases of a registered model; raises LookupError if there is no such model."""
    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
    names = [model.name for model in client.search_registered_models(max_results=1000)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise LookupError(f"the registry has no model {name}{hint}")


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
    try:
        client.create_registered_model(name)
    except MlflowException:  # it exists already
        if not client.search_registered_models(f"name='{name}'"):
            raise
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
