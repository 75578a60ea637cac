"""Every overlay is what it should be, and every check sees a defect that is planted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy

from precalib_ray.config import load
from tests.e2e.conftest import CLASSES, REPOSITORY
from tests.k8s import checks, image, schemas
from tests.k8s.manifests import OVERLAYS, Object, pods, ray_jobs

pytestmark = pytest.mark.k8s

Build = Callable[[str], list[Object]]
HERE_ONLY = {
    "benchmark": "measures the machine that it is started on",
    "promote": "decided on by a person, and given to the standing cluster",
    "register": "as promote",
    "sync": "as promote",
    "quickstart": "starts Ray and MLflow of its own, for a first look without a cluster",
}
"""Jobs that have no manifest, and why."""


def test_the_overlays() -> None:
    assert OVERLAYS == ["dev-cpu", "gpu", "gpu-spot"]


@pytest.mark.parametrize("version", schemas.VERSIONS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_no_field_is_unknown_or_of_another_type(name: str, version: str, overlay: Build) -> None:
    assert list(schemas.problems(overlay(name), version)) == []


@pytest.mark.parametrize("check", checks.ALL)
@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_is_amiss(name: str, check: str, overlay: Build) -> None:
    assert list(checks.ALL[check](overlay(name))) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_job_has_a_manifest_and_a_config_that_it_takes(name: str, overlay: Build) -> None:
    objects = overlay(name)
    jobs = {path.stem for path in (REPOSITORY / "jobs").glob("*.py")}
    made = checks.names(objects, "RayJob") | checks.names(objects, "Job")
    assert made == jobs - HERE_ONLY.keys()
    for file, text in checks.config_files(objects).items():
        job = file.removesuffix(".yaml")
        (REPOSITORY / "jobs" / f"{job}.py").stat()
        path = REPOSITORY / "k8s" / "overlays" / name / "configs" / file
        assert path.read_text() == text
        config = load.load(CLASSES[job], path)
        storage = getattr(config, "storage", "runs")
        assert storage == "runs" or storage.startswith("s3://")  # both outlive a pod


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_job_that_is_asked_for_fits_the_groups(name: str, overlay: Build) -> None:
    objects = overlay(name)
    room = {
        pod.labels["ray.io/group"]: pod.spec["containers"][0]["resources"]["requests"]
        for pod in pods(objects)
        if pod.where.startswith("RayCluster/") and "ray.io/group" in pod.labels
    }
    limits = {
        group["groupName"]: group["maxReplicas"]
        for found in objects
        if found["kind"] == "RayCluster"
        for group in found["spec"]["workerGroupSpecs"]
    }
    for file, text in checks.config_files(objects).items():
        job = file.removesuffix(".yaml")
        config = load.validate(CLASSES[job], schemas.yaml.safe_load(text))
        scaling = getattr(config, "scaling", None)
        if scaling is None:
            continue
        group = "gpu" if scaling.use_gpu else "cpu"
        given = room[group]
        fit = int(float(given["cpu"]) // (scaling.cpus_per_worker or 1))
        if scaling.use_gpu:
            fit = min(fit, int(given["nvidia.com/gpu"]))
        assert fit * limits[group] >= scaling.max_workers, file


def test_the_database_has_a_driver_in_the_image(overlay: Build) -> None:
    for _, address in checks.addresses(overlay("dev-cpu")):
        if address.startswith("postgresql"):
            driver = sqlalchemy.create_engine(address).dialect.driver
            assert driver in image.pins(), address


def _ray_cluster(objects: list[Object]) -> Object:
    (found,) = (f["spec"] for f in objects if f["kind"] == "RayCluster")
    return found


def _named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (f for f in objects if (f["kind"], f["metadata"]["name"]) == (kind, name))
    return found


def _container(objects: list[Object], kind: str, name: str) -> Object:
    return _named(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


def _worker(objects: list[Object]) -> Object:
    return _ray_cluster(objects)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]


def _head(objects: list[Object]) -> Object:
    return _ray_cluster(objects)["headGroupSpec"]["template"]["spec"]


def _policy(objects: list[Object], name: str) -> Object:
    return _named(objects, "NetworkPolicy", name)["spec"]


UNKNOWN: dict[str, tuple[Callable[[list[Object]], object], str]] = {
    "a field of KubeRay": (
        lambda o: _ray_cluster(o).update(enableAutoscaling=True), "'enableAutoscaling'"),
    "a field of a job": (
        lambda o: ray_jobs(o)["pretrain"].update(retries=3), "'retries'"),
    "a field of a cron job": (
        lambda o: ray_jobs(o)["nightly-search"].update(retries=3), "'retries'"),
    "a value that is none of those allowed": (
        lambda o: _ray_cluster(o)["authOptions"].update(mode="tokens"), "'tokens'"),
    "a field of a worker's container": (
        lambda o: _worker(o).update(volumes=[]), "'volumes'"),
    "a field of a submitter": (
        lambda o: ray_jobs(o)["train"]["submitterPodTemplate"]["spec"].update(retries=1),
        "'retries'"),
    "a field of Kubernetes": (
        lambda o: _container(o, "Deployment", "mlflow").update(readiness={}), "'readiness'"),
    "a type": (
        lambda o: _container(o, "Deployment", "mlflow")["env"].append(
            {"name": "MLFLOW_WORKERS", "value": 2}), "2 is not of type"),
    "metadata": (
        lambda o: _named(o, "RayJob", "train")["metadata"].update(label={}), "'label'"),
    "what is required": (
        lambda o: _named(o, "RayCronJob", "nightly-search")["spec"].pop("schedule"),
        "'schedule' is a required property"),
}  # fmt: skip


@pytest.mark.parametrize("defect", UNKNOWN)
def test_the_schemas_see(defect: str, overlay: Build) -> None:
    plant, told = UNKNOWN[defect]
    objects = overlay("gpu")
    plant(objects)
    assert any(told in line for line in schemas.problems(objects, schemas.VERSIONS[-1]))


PLANTED: list[tuple[str, Callable[[list[Object]], object], str]] = [
    ("namespaces", lambda o: _named(o, "RayJob", "train")["metadata"].pop("namespace"),
     "RayJob/train is in namespace None"),
    ("references", lambda o: o.remove(_named(o, "ConfigMap", "job-configs")),
     "RayJob/pretrain head: no ConfigMap job-configs"),
    ("references", lambda o: _head(o)["containers"][0]["envFrom"].append(
        {"secretRef": {"name": "mlflow"}}), "RayCluster/precalib head: no Secret mlflow"),
    ("references", lambda o: _container(o, "StatefulSet", "postgres")["env"][-1]["valueFrom"][
        "secretKeyRef"].update(key="PASSWORD"), "no key PASSWORD in Secret postgres"),
    ("references", lambda o: o.remove(_named(o, "PersistentVolumeClaim", "runs")),
     "no PersistentVolumeClaim runs"),
    ("references", lambda o: o.remove(_named(o, "ServiceAccount", "ray-head")),
     "no ServiceAccount ray-head"),
    ("references", lambda o: _head(o)["volumes"].pop(0), "RayCluster/precalib head: no volume tmp"),
    ("references", lambda o: _worker(o)["volumeMounts"].pop(), "volume data is mounted nowhere"),
    ("services", lambda o: _named(o, "Service", "mlflow")["spec"]["selector"].update(a="b"),
     "Service/mlflow selects no pod"),
    ("services", lambda o: _named(o, "Service", "mlflow")["spec"]["ports"][0].update(
        targetPort="web"), "Deployment/mlflow has no port web"),
    ("services", lambda o: _named(o, "ConfigMap", "mlflow-client")["data"].update(
        MLFLOW_TRACKING_URI="http://mlflow-server:5000"), "no Service at mlflow-server:5000"),
    ("services", lambda o: o.remove(_named(o, "Service", "postgres")),
     "ConfigMap/mlflow-auth"),
    ("images", lambda o: _worker(o).update(image="precalib-ray:latest"), "the images are"),
    ("images", lambda o: _container(o, "StatefulSet", "postgres").update(image="postgres"),
     "the images are"),
    ("entrypoints", lambda o: _named(o, "ConfigMap", "job-configs")["data"].pop("train.yaml"),
     "RayJob/train head: cluster/train.yaml is neither in the image nor mounted"),
    ("entrypoints", lambda o: ray_jobs(o)["search"].update(
        entrypoint="python jobs/serach.py cluster/search.yaml"),
     "jobs/serach.py is not in the image"),
    ("entrypoints", lambda o: ray_jobs(o)["train"].pop("rayClusterSpec"), "train has no cluster"),
    ("queues", lambda o: _named(o, "RayJob", "train")["metadata"]["labels"].update(
        {"kueue.x-k8s.io/queue-name": "gpus"}), "RayJob/train: no queue gpus"),
    ("queues", lambda o: _worker(o)["resources"]["requests"].update({"amd.com/gpu": "1"}),
     "has no quota of amd.com/gpu"),
    ("queues", lambda o: _named(o, "RayJob", "train")["metadata"].pop("annotations"),
     "RayJob/train: Kueue refuses"),
    ("kuberay", lambda o: ray_jobs(o)["train"].update(clusterSelector={"ray.io/cluster": "x"}),
     "train: a job on a shared cluster"),
    ("kuberay", lambda o: _named(o, "RayCronJob", "nightly-search")["metadata"].update(
        name="a-search-that-is-run-in-every-night-of-the-year"), "the name is not one"),
    ("kuberay", lambda o: _ray_cluster(o)["authOptions"].update(mode="disabled"),
     "RayCluster/precalib: token authentication is not on"),
    ("kuberay", lambda o: _ray_cluster(o).update(rayVersion="2.59.0"), "rayVersion"),
    ("kuberay", lambda o: ray_jobs(o)["train"].pop("backoffLimit"), "train: is not retried"),
    ("kuberay", lambda o: ray_jobs(o)["train"].pop("ttlSecondsAfterFinished"), "cluster stays"),
    ("kuberay", lambda o: ray_jobs(o)["train"].update(submissionMode="HTTPMode"), "K8sJobMode"),
    ("kuberay", lambda o: ray_jobs(o)["train"].update(entrypointNumCpus=1), "leave the head"),
    ("kuberay", lambda o: _ray_cluster(o)["autoscalerOptions"].update(version="v1"), "v2"),
    ("kuberay", lambda o: _ray_cluster(o)["headGroupSpec"].update(serviceType="LoadBalancer"),
     "open to the outside"),
    ("kuberay", lambda o: _ray_cluster(o)["headGroupSpec"]["rayStartParams"].clear(),
     "on the head"),
    ("kuberay", lambda o: _ray_cluster(o)["workerGroupSpecs"][0].update(minReplicas=9),
     "out of range"),
    ("kuberay", lambda o: _ray_cluster(o)["workerGroupSpecs"][0].update(groupName="gpu"),
     "two groups"),
    ("secrets", lambda o: o.append({"apiVersion": "v1", "kind": "Secret",
                                    "metadata": {"name": "postgres"}}), "Secret/postgres"),
    ("secrets", lambda o: _container(o, "Deployment", "mlflow")["env"].append(
        {"name": "PGPASSWORD", "value": "x"}), "PGPASSWORD is written out"),
    ("secrets", lambda o: _container(o, "Deployment", "mlflow")["env"].append(
        {"name": "URI", "value": "postgresql://a:b@postgres:5432/x"}), "URI holds a password"),
    ("restricted", lambda o: _worker(o)["securityContext"].update(privileged=True), "privileged"),
    ("restricted", lambda o: _worker(o).pop("securityContext"), "allowPrivilegeEscalation"),
    ("restricted", lambda o: _worker(o)["securityContext"].update(
        capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]}), "capabilities"),
    ("restricted", lambda o: _head(o)["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
    ("restricted", lambda o: _head(o)["securityContext"].update(runAsUser=0), "runAsUser"),
    ("restricted", lambda o: _head(o)["securityContext"].pop("seccompProfile"), "seccompProfile"),
    ("restricted", lambda o: _head(o).update(hostNetwork=True), "hostNetwork"),
    ("restricted", lambda o: _head(o)["volumes"].append(
        {"name": "d", "hostPath": {"path": "/"}}), "volume d is of a kind"),
    ("restricted", lambda o: _ray_cluster(o)["autoscalerOptions"].pop("securityContext"),
     "autoscaler: allowPrivilegeEscalation"),
    ("restricted", lambda o: ray_jobs(o)["train"]["submitterPodTemplate"]["spec"].pop(
        "securityContext"), "RayJob/train submitter ray-job-submitter: seccompProfile"),
    ("restricted", lambda o: _named(o, "Namespace", checks.NAMESPACE)["metadata"].update(labels={}),
     "does not enforce"),
    ("restricted", lambda o: _worker(o)["ports"][0].update(hostPort=80), "hostPort"),
    ("hardened", lambda o: _worker(o)["securityContext"].pop("readOnlyRootFilesystem"), "written"),
    ("hardened", lambda o: _worker(o)["resources"]["limits"].pop("memory"), "no limits of memory"),
    ("hardened", lambda o: _head(o).update(automountServiceAccountToken=False), "automount"),
    ("hardened", lambda o: _ray_cluster(o)["workerGroupSpecs"][1]["template"]["spec"].pop(
        "tolerations"), "no toleration of GPU nodes"),
    ("selectors", lambda o: _policy(o, "mlflow")["podSelector"].update(
        matchLabels={"app": "mlflow"}), "NetworkPolicy/mlflow selects no pod"),
    ("selectors", lambda o: _named(o, "PodDisruptionBudget", "ray-head")["spec"]["selector"][
        "matchLabels"].update({"ray.io/cluster": "ray"}), "PodDisruptionBudget/ray-head selects"),
    ("network", lambda o: o.remove(_named(o, "NetworkPolicy", "default-deny")),
     "convert is open to other namespaces"),
    ("network", lambda o: _policy(o, "mlflow")["ingress"].append({}) or
        _policy(o, "s3")["egress"].append({}), "mlflow:5000 is reached by"),
    ("network", lambda o: _policy(o, "ray-head")["egress"].pop(0), "mlflow:5000 is reached by []"),
    ("network", lambda o: _policy(o, "postgres")["ingress"].clear(), "postgres:5432"),
    ("network", lambda o: o.remove(_named(o, "NetworkPolicy", "dns")), "cannot ask for names"),
    ("network", lambda o: _policy(o, "ray-head")["ingress"][0]["from"].pop(), "the operator"),
    ("network", lambda o: _policy(o, "ray")["ingress"].append({}), "open to other namespaces"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "plant", "told"), PLANTED, ids=[f"{check}: {told}" for check, _, told in PLANTED]
)
def test_a_check_sees(check: str, plant: Callable, told: str, overlay: Build) -> None:
    objects = overlay("gpu-spot")
    plant(objects)
    found = list(checks.ALL[check](objects))
    assert any(told in line for line in found), found


def test_every_check_has_been_seen_to_fail() -> None:
    assert {check for check, *_ in PLANTED} == checks.ALL.keys()
