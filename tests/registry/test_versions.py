"""What the registry has now, and what mends it if that is not what was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from precalib_ray.errors import TrackingError
from precalib_ray.registry import loading, publishing, versions
from precalib_ray.registry.gate import Gate
from precalib_ray.registry.server import client_of


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """A registry with versions 1 to 3 of model ``mlp``; version 3 has alias ``candidate``."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    client = client_of(uri)
    client.create_registered_model("mlp")
    for number in range(1, 4):
        tags = {versions.KEY_TAG: f"key-{number}"}
        client.create_model_version("mlp", source=str(tmp_path), tags=tags)
    versions.point_candidate(client, "mlp")
    return uri


def one(client: MlflowClient) -> None:
    client.delete_model_version("mlp", "3")


def every(client: MlflowClient) -> None:
    for number in "123":
        client.delete_model_version("mlp", number)


def champion(client: MlflowClient) -> None:
    client.set_registered_model_alias("mlp", "champion", "2")
    client.delete_model_version("mlp", "2")


def rename(client: MlflowClient) -> None:
    client.rename_registered_model("mlp", "mlp2")


def nothing(client: MlflowClient) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "wanted", "said"),
    [
        (one, "candidate", r"deleted; mlp has version 1, 2; the job of a version, submitted again"),
        (one, "3", r"no version 3, or it was deleted; mlp has version 1, 2$"),
        (champion, "champion", r"alias candidate; python jobs/promote.py name=mlp version=3 sets"),
        (every, "candidate", r"every version of mlp was deleted; a job .* registers it again"),
        (every, "1", r"every version of mlp was deleted"),
        (rename, "candidate", r"the registry has no model mlp \(did you mean mlp2\?\)"),
        (nothing, "4", r"no version 4, .*; mlp has version 1, 2, 3 and alias candidate"),
        (nothing, "production", r"no version has alias production"),
    ],
)
def test_a_version_that_is_not_there(
    store: str, tmp_path: Path, change: Callable[[MlflowClient], None], wanted: str, said: str
) -> None:
    change(client_of(store))
    uri = f"models:/mlp/{wanted}" if wanted.isdigit() else f"models:/mlp@{wanted}"
    with pytest.raises(TrackingError, match=said) as pulled:
        loading.pull(uri, tmp_path / "pulled", tracking_uri=store)
    with pytest.raises(TrackingError, match=said):
        Gate("mlp", tracking_uri=store).version(wanted)
    assert "\n" not in str(pulled.value)


def test_the_aliases_are_those_of_now(store: str) -> None:
    client = client_of(store)

    def find(key: str) -> str:
        return str(publishing.find(client, "mlp", tag=publishing.KEY_TAG, value=key))

    assert find("key-3") == "models:/mlp/3 (alias candidate)"
    assert find("key-2") == "models:/mlp/2"
    client.set_registered_model_alias("mlp", "candidate", "2")  # by hand; it is the newest one's
    client.set_registered_model_alias("mlp", "champion", "3")
    assert find("key-3") == "models:/mlp/3 (alias candidate, champion)"
    client.delete_registered_model_alias("mlp", "candidate")
    assert find("key-3") == "models:/mlp/3 (alias candidate, champion)"
    client.delete_model_version("mlp", "3")
    assert find("key-3") == "None"
    assert find("key-2") == "models:/mlp/2 (alias candidate)"


def test_a_number_that_was_given_again_is_another_version(store: str, tmp_path: Path) -> None:
    """MLflow counts from 1 again if the registered model was deleted."""
    client = client_of(store)
    client.delete_registered_model("mlp")
    client.create_registered_model("mlp")
    client.create_model_version("mlp", source=str(tmp_path), tags={versions.KEY_TAG: "another"})
    assert publishing.find(client, "mlp", tag=publishing.KEY_TAG, value="key-1") is None
