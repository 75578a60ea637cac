"""What `kubectl kustomize` makes of an overlay, and the pods that follow from it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import REPOSITORY

K8S = REPOSITORY / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
README = (K8S / "README.md").read_text()
_OLDEST_KUBECTL = 27  # its kustomize is 5.0

Object = dict[str, Any]


def kustomize(folder: Path) -> list[Object]:
    """Build a kustomization; skips the test where there is no kubectl to do it."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl (1.27 or newer) on the PATH")
    told = subprocess.run(
        [kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True
    )
    minor = json.loads(told.stdout)["clientVersion"]["minor"]
    if int(re.match(r"\d+", minor)[0]) < _OLDEST_KUBECTL:
        pytest.skip(f"needs kubectl 1.27 or newer, found 1.{minor}")
    built = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return load(built.stdout)


def load(text: str) -> list[Object]:
    """The objects of a YAML stream."""
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


@dataclass(frozen=True)
class Pod:
    """A pod that an object leads to."""

    where: str
    labels: dict[str, str]
    metadata: Object
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(objects: list[Object]) -> Iterator[Pod]:
    """All of them, with the labels and the sidecar that KubeRay adds."""
    for found in objects:
        spec, where = found.get("spec", {}), f"{found['kind']}/{found['metadata']['name']}"
        match found["kind"]:
            case "Deployment" | "StatefulSet" | "Job":
                yield _pod(where, spec["template"])
            case "RayCluster":
                yield from _ray_pods(where, spec, cluster=found["metadata"]["name"])
            case "RayJob" | "RayCronJob":
                job = spec if found["kind"] == "RayJob" else spec["jobTemplate"]
                yield from _ray_pods(where, job.get("rayClusterSpec", {}), cluster="made-by-a-job")
                yield _pod(f"{where} submitter", job["submitterPodTemplate"])


def ray_jobs(objects: list[Object]) -> dict[str, Object]:
    """Specs of RayJobs, and of those that RayCronJobs make, by name."""
    return {
        found["metadata"]["name"]: found["spec"].get("jobTemplate", found["spec"])
        for found in objects
        if found["kind"] in ("RayJob", "RayCronJob")
    }


def _pod(where: str, template: Object, labels: dict[str, str] | None = None) -> Pod:
    metadata = template.get("metadata", {})
    return Pod(where, metadata.get("labels", {}) | (labels or {}), metadata, template["spec"])


def _ray_pods(where: str, spec: Object, *, cluster: str) -> Iterator[Pod]:
    added = {"ray.io/cluster": cluster, "ray.io/is-ray-node": "yes"}
    if head := spec.get("headGroupSpec"):
        pod = _pod(f"{where} head", head["template"], added | {"ray.io/node-type": "head"})
        options = spec.get("autoscalerOptions", {})
        if spec.get("enableInTreeAutoscaling"):
            image = options.get("image", pod.spec["containers"][0]["image"])
            known = ("env", "envFrom", "resources", "securityContext", "volumeMounts")
            sidecar = {"name": "autoscaler", "image": image}
            sidecar |= {key: options[key] for key in known if key in options}
            spec_with = pod.spec | {"containers": [*pod.spec["containers"], sidecar]}
            pod = Pod(pod.where, pod.labels, pod.metadata, spec_with)
        yield pod
    for group in spec.get("workerGroupSpecs", []):
        added_here = added | {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
        yield _pod(f"{where} {group['groupName']}", group["template"], added_here)
