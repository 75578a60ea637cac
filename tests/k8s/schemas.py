"""Objects against the schemas of their kinds, unknown fields refused."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from tests.e2e.conftest import REPOSITORY
from tests.k8s.manifests import Object, pods

VERSIONS = ("1.30", "1.34")
"""Of Kubernetes, an old one and a new one."""

CRDS = Path(os.environ.get("KUBERAY_CRD_DIR", REPOSITORY.parent / "shared" / "kuberay-crds"))
_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}


def problems(objects: list[Object], version: str) -> Iterator[str]:
    """One line for each violation of a schema, also in the pods that objects describe."""
    for found in objects:
        where = f"{found['kind']}/{found['metadata']['name']}"
        if found["apiVersion"].partition("/")[0] == "ray.io":
            yield from _told(_custom(found["kind"], found["apiVersion"]), found, where)
            meta = {"apiVersion": "v1", "kind": "Namespace", "metadata": found["metadata"]}
            yield from _told(_builtin("Namespace", "v1", version), meta, where)
        else:
            yield from _told(_builtin(found["kind"], found["apiVersion"], version), found, where)
    for pod in pods(objects):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": pod.metadata, "spec": pod.spec}
        yield from _told(_builtin("Pod", "v1", version), whole, pod.where)


def _told(validator: Any, found: Object, where: str) -> Iterator[str]:
    for error in validator.iter_errors(found):
        yield f"{where} {error.json_path}: {error.message}"


@functools.cache
def _builtin(kind: str, api_version: str, version: str) -> Any:
    """Kubernetes' own schema, in its strict form, of the package kubernetes-validate."""
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    folder = folder / f"v{version}.0-local-strict"
    group, _, number = api_version.rpartition("/")
    prefix = f"{group.partition('.')[0]}-" if group else ""
    schema = json.loads((folder / f"{kind.lower()}-{prefix}{number}.json").read_text())
    return jsonschema.Draft202012Validator(schema, registry=_definitions(version))


@functools.cache
def _definitions(version: str) -> Any:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    text = (folder / f"v{version}.0-local-strict" / "_definitions.json").read_text()
    return Resource.from_contents(json.loads(text)) @ Registry()


@functools.cache
def _custom(kind: str, api_version: str) -> Any:
    """KubeRay's schema, of its CRD."""
    file = CRDS / f"ray.io_{_KINDS[kind]}.yaml"
    if not file.exists():
        pytest.skip(f"needs KubeRay's CRDs: no {file.name} in KUBERAY_CRD_DIR")
    definition = yaml.load(file.read_text(), yaml.CSafeLoader)
    version = api_version.rpartition("/")[2]
    (schema,) = (
        v["schema"]["openAPIV3Schema"]
        for v in definition["spec"]["versions"]
        if v["name"] == version
    )
    return jsonschema.Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    """An ``openAPIV3Schema`` as JSON Schema that refuses what the API server would prune."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    for key in ("items", "additionalProperties", "anyOf", "allOf", "oneOf", "not"):
        if key in made:
            made[key] = strict(made[key])
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable"):
        made = {"anyOf": [made, {"type": "null"}]}
    if "properties" in schema:
        made["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made
