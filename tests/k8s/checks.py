"""What must be true of an overlay beyond its schemas; each check names what is wrong."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tests.k8s import image
from tests.k8s.manifests import K8S, README, Object, Pod, load, pods, ray_jobs

NAMESPACE = "precalib-ray"
_ELSEWHERE = "namespaceSelector"  # of a policy's peer: pods that are not ours


def declared_secrets() -> dict[str, set[str]]:
    """Secrets that k8s/README.md says how to create, with their keys."""
    joined = README.replace("\\\n", " ")
    commands = re.findall(r"create secret generic (\S+)(.*)", joined)
    return {name: set(re.findall(r"--from-literal=(\w+)=", rest)) for name, rest in commands}


def names(objects: list[Object], kind: str) -> set[str]:
    return {found["metadata"]["name"] for found in objects if found["kind"] == kind}


# ---- references


def namespaces(objects: list[Object]) -> Iterator[str]:
    """Everything is in the one namespace."""
    for found in objects:
        where = f"{found['kind']}/{found['metadata']['name']}"
        if found["kind"] != "Namespace" and found["metadata"].get("namespace") != NAMESPACE:
            yield f"{where} is in namespace {found['metadata'].get('namespace')}"
    if names(objects, "Namespace") != {NAMESPACE}:
        yield f"the namespaces are {names(objects, 'Namespace')}"


def references(objects: list[Object]) -> Iterator[str]:
    """ConfigMaps, Secrets, claims, service accounts and volumes that pods name are there."""
    config_maps = {
        f["metadata"]["name"]: set(f.get("data", {})) for f in objects if f["kind"] == "ConfigMap"
    }
    secrets = declared_secrets()
    for pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        claimed = {
            template["metadata"]["name"]
            for found in objects
            if f"{found['kind']}/{found['metadata']['name']}" == pod.where
            for template in found["spec"].get("volumeClaimTemplates", [])
        }
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes.keys() | claimed:
                    yield f"{pod.where}: no volume {mount['name']}"
        mounted = {m["name"] for c in pod.containers for m in c.get("volumeMounts", [])}
        for name in volumes.keys() - mounted:
            yield f"{pod.where}: volume {name} is mounted nowhere"
        for kind, reference in references_of(pod):
            name, key = reference["name"], reference.get("key")
            known = config_maps if kind == "ConfigMap" else secrets
            if kind in ("ConfigMap", "Secret"):
                if name not in known:
                    yield f"{pod.where}: no {kind} {name}"
                elif key is not None and key not in known[name]:
                    yield f"{pod.where}: no key {key} in {kind} {name}"
            elif name not in names(objects, kind):
                yield f"{pod.where}: no {kind} {name}"


def references_of(pod: Pod) -> Iterator[tuple[str, Object]]:
    yield "ServiceAccount", {"name": pod.spec.get("serviceAccountName", "default")}
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", {"name": volume["configMap"]["name"]}
            for item in volume["configMap"].get("items", []):
                yield "ConfigMap", {"name": volume["configMap"]["name"], "key": item["key"]}
        if "secret" in volume:
            yield "Secret", {"name": volume["secret"]["secretName"]}
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", {"name": volume["persistentVolumeClaim"]["claimName"]}
    for container in pod.containers:
        for source in container.get("envFrom", []):
            for kind in ("configMap", "secret"):
                if f"{kind}Ref" in source:
                    yield kind[0].upper() + kind[1:], source[f"{kind}Ref"]
        for variable in container.get("env", []):
            for kind in ("configMap", "secret"):
                if f"{kind}KeyRef" in variable.get("valueFrom", {}):
                    yield kind[0].upper() + kind[1:], variable["valueFrom"][f"{kind}KeyRef"]


def services(objects: list[Object]) -> Iterator[str]:
    """Services lead to a port of a pod, and every address that is configured leads to one."""
    ports = {}
    for found in objects:
        if found["kind"] != "Service":
            continue
        name, spec = found["metadata"]["name"], found["spec"]
        chosen = [pod for pod in pods(objects) if _matches(spec["selector"], pod.labels)]
        if not chosen:
            yield f"Service/{name} selects no pod"
        for port in spec["ports"]:
            ports[name, port["port"]] = port
            for pod in chosen:
                opened = [p for c in pod.containers for p in c.get("ports", [])]
                target = port.get("targetPort", port["port"])
                if not any(target in (p.get("name"), p["containerPort"]) for p in opened):
                    yield f"Service/{name}: {pod.where} has no port {target}"
    for where, address in addresses(objects):
        parts = urlsplit(address)
        if (parts.hostname, parts.port) not in ports:
            yield f"{where}: no Service at {parts.hostname}:{parts.port}"
    for found in objects:
        if found["kind"] == "StatefulSet" and found["spec"]["serviceName"] not in names(
            objects, "Service"
        ):
            yield f"StatefulSet/{found['metadata']['name']}: no Service of its serviceName"


def addresses(objects: list[Object]) -> Iterator[tuple[str, str]]:
    for pod in pods(objects):
        for container in pod.containers:
            for variable in container.get("env", []):
                if re.match(r"(https?|postgresql)://", str(variable.get("value"))):
                    yield pod.where, variable["value"]
    for found in objects:
        for key, value in found.get("data", {}).items() if found["kind"] == "ConfigMap" else ():
            where = f"ConfigMap/{found['metadata']['name']} {key}"
            if value.startswith("http"):
                yield where, value
            elif key.endswith(".ini"):
                parser = configparser.ConfigParser()
                parser.read_string(value)
                yield where, parser["mlflow"]["database_uri"]


def images(objects: list[Object]) -> Iterator[str]:
    """One image of ours and one of PostgreSQL, each with one tag that is no moving one."""
    found = {container["image"] for pod in pods(objects) for container in pod.containers}
    ours = {name for name in found if name.rpartition("/")[2].startswith("precalib-ray:")}
    theirs = {name for name in found if name.startswith("postgres:")}
    if found != ours | theirs or len(ours) != 1 or len(theirs) != 1:
        yield f"the images are {sorted(found)}"
    for name in found:
        if name.rpartition(":")[2] in ("", "latest") or ":" not in name:
            yield f"{name} has no tag that stays"


def entrypoints(objects: list[Object]) -> Iterator[str]:
    """Scripts are in the image, and configs in it or mounted where the entry point looks."""
    in_image = image.files()
    config_maps = {f["metadata"]["name"]: f for f in objects if f["kind"] == "ConfigMap"}
    every = list(pods(objects))
    commands = [
        (pod, shlex.join(container["command"]))
        for pod in every
        for container in pod.containers
        if container.get("command", [""])[0] == "python"
    ]
    for name, job in ray_jobs(objects).items():
        heads = [pod for pod in every if re.fullmatch(rf"Ray(Cron)?Job/{name} head", pod.where)]
        if not heads:
            yield f"{name} has no cluster"
        commands += [(head, job["entrypoint"]) for head in heads]
    for pod, command in commands:
        mounted = {
            f"{mount['mountPath'].removeprefix('/app/')}/{file}"
            for mount in pod.spec["containers"][0].get("volumeMounts", [])
            for volume in pod.spec.get("volumes", [])
            if volume["name"] == mount["name"] and "configMap" in volume
            for file in config_maps.get(volume["configMap"]["name"], {}).get("data", {})
        }
        words = command.split()
        if words[0] != "python" or words[1] not in in_image:
            yield f"{pod.where}: {words[1]} is not in the image"
        if words[2] not in in_image | mounted:
            yield f"{pod.where}: {words[2]} is neither in the image nor mounted"


def queues(objects: list[Object]) -> Iterator[str]:
    """Queues that are named are those of k8s/kueue, which are consistent."""
    made = load((K8S / "kueue" / "queues.yaml").read_text())
    local = {q["metadata"]["name"] for q in made if q["kind"] == "LocalQueue"}
    for queue in (q for q in made if q["kind"] == "LocalQueue"):
        if queue["metadata"]["namespace"] != NAMESPACE:
            yield f"LocalQueue/{queue['metadata']['name']} is in another namespace"
        if queue["spec"]["clusterQueue"] not in names(made, "ClusterQueue"):
            yield f"LocalQueue/{queue['metadata']['name']}: no such ClusterQueue"
    for queue in (q for q in made if q["kind"] == "ClusterQueue"):
        for group in queue["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                if flavor["name"] not in names(made, "ResourceFlavor"):
                    yield f"ClusterQueue/{queue['metadata']['name']}: no flavor {flavor['name']}"
                if [r["name"] for r in flavor["resources"]] != group["coveredResources"]:
                    yield f"ClusterQueue/{queue['metadata']['name']}: covers other resources"
            asked = {
                resource
                for pod in pods(objects)
                for container in pod.containers
                for resource in container.get("resources", {}).get("requests", {})
            }
            for resource in asked - set(group["coveredResources"]):
                yield f"ClusterQueue/{queue['metadata']['name']} has no quota of {resource}"
    for found in objects:
        where, metadata = f"{found['kind']}/{found['metadata']['name']}", found["metadata"]
        queue = metadata.get("labels", {}).get("kueue.x-k8s.io/queue-name")
        if queue is not None and queue not in local:
            yield f"{where}: no queue {queue}"
        elastic = metadata.get("annotations", {}).get("kueue.x-k8s.io/elastic-job")
        if queue is not None and found["apiVersion"] == "ray.io/v1" and elastic != "true":
            yield f"{where}: Kueue refuses a cluster with an autoscaler that is not elastic"
    if "default" in local:
        yield "LocalQueue/default takes the jobs of RayCronJobs, which Kueue refuses"


# ---- what KubeRay itself refuses, or what would not work with it


def kuberay(objects: list[Object]) -> Iterator[str]:
    """The operator's own rules (its validation.go), and those of our jobs."""
    longest = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}
    clusters = []
    for found in objects:
        kind, name = found["kind"], found["metadata"]["name"]
        if kind not in longest:
            continue
        if len(name) > longest[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            yield f"{kind}/{name}: the name is not one that KubeRay takes"
        if kind == "RayCluster":
            clusters.append((f"{kind}/{name}", found["spec"]))
    for name, job in ray_jobs(objects).items():
        if job.get("clusterSelector"):
            yield f"{name}: a job on a shared cluster is neither retried nor queued"
        if "rayClusterSpec" in job:
            clusters.append((name, job["rayClusterSpec"]))
        if job.get("submissionMode") != "K8sJobMode":
            yield f"{name}: submissionMode is not K8sJobMode"
        if not job.get("backoffLimit"):
            yield f"{name}: is not retried"
        if not job.get("shutdownAfterJobFinishes") or not job.get("ttlSecondsAfterFinished"):
            yield f"{name}: its cluster stays"
        if any(key in job for key in ("entrypointNumCpus", "entrypointNumGpus")):
            yield f"{name}: the driver would leave the head, which alone reaches MLflow"
    for where, spec in clusters:
        if spec.get("authOptions", {}).get("mode") != "token":
            yield f"{where}: token authentication is not on"
        if spec.get("rayVersion") != image.pins()["ray"]:
            yield f"{where}: rayVersion is not that of the image"
        options = spec.get("autoscalerOptions", {})
        if not spec.get("enableInTreeAutoscaling") or options.get("version") != "v2":
            yield f"{where}: autoscaler v2 is not on"
        if spec["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
            yield f"{where}: the head's service is open to the outside"
        if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
            yield f"{where}: training would run on the head"
        groups = spec["workerGroupSpecs"]
        if len({group["groupName"] for group in groups}) != len(groups):
            yield f"{where}: two groups have one name"
        for group in groups:
            if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
                yield f"{where} {group['groupName']}: replicas are out of range"


# ---- security


def secrets(objects: list[Object]) -> Iterator[str]:
    """No Secret is contained, and no value is one."""
    for name in names(objects, "Secret"):
        yield f"Secret/{name} is in the manifests"
    for pod in pods(objects):
        for container in pod.containers:
            for variable in container.get("env", []):
                secret = re.search(r"PASSWORD|SECRET|TOKEN|_KEY", variable["name"])
                if secret and "value" in variable:
                    yield f"{pod.where}: {variable['name']} is written out"
                if "@" in (parts := urlsplit(str(variable.get("value")))).netloc and parts.password:
                    yield f"{pod.where}: {variable['name']} holds a password"


def restricted(objects: list[Object]) -> Iterator[str]:
    """The pod-security standard "restricted", where a namespace claims it."""
    (namespace,) = (found for found in objects if found["kind"] == "Namespace")
    for mode in ("enforce", "audit", "warn"):
        if namespace["metadata"]["labels"].get(f"pod-security.kubernetes.io/{mode}") != (
            "restricted"
        ):
            yield f"the namespace does not {mode} restricted"
    for pod in pods(objects):
        spec, whole = pod.spec, pod.spec.get("securityContext", {})
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                yield f"{pod.where}: {field}"
        for volume in spec.get("volumes", []):
            kinds = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected",
                     "downwardAPI", "ephemeral", "csi"}  # fmt: skip
            if not volume.keys() - {"name"} <= kinds:
                yield f"{pod.where}: volume {volume['name']} is of a kind that is not allowed"
        if whole.get("sysctls"):
            yield f"{pod.where}: sysctls"
        for container in pod.containers:
            own = container.get("securityContext", {})
            where = f"{pod.where} {container['name']}"
            if own.get("privileged"):
                yield f"{where}: privileged"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{where}: allowPrivilegeEscalation"
            capabilities = own.get("capabilities", {})
            if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
                yield f"{where}: capabilities"
            if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
                yield f"{where}: runAsNonRoot"
            if not own.get("runAsUser", whole.get("runAsUser")):
                yield f"{where}: runAsUser"
            profile = own.get("seccompProfile", whole.get("seccompProfile", {}))
            if profile.get("type") != "RuntimeDefault":
                yield f"{where}: seccompProfile"
            if own.get("procMount", "Default") != "Default":
                yield f"{where}: procMount"
            if any(port.get("hostPort") for port in container.get("ports", [])):
                yield f"{where}: hostPort"


def hardened(objects: list[Object]) -> Iterator[str]:
    """What we claim beyond the standard."""
    for pod in pods(objects):
        for container in pod.containers:
            where = f"{pod.where} {container['name']}"
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{where}: the root file system can be written"
            given = container.get("resources", {})
            for part in ("requests", "limits"):
                for resource in ("cpu", "memory"):
                    if resource not in given.get(part, {}):
                        yield f"{where}: no {part} of {resource}"
        token = pod.spec.get("automountServiceAccountToken")
        if token is not (pod.labels.get("precalib/role") == "ray-head"):
            yield f"{pod.where}: automountServiceAccountToken is {token}"
        gpus = any("nvidia.com/gpu" in c["resources"]["limits"] for c in pod.containers)
        tolerated = {toleration["key"] for toleration in pod.spec.get("tolerations", [])}
        if gpus and "nvidia.com/gpu" not in tolerated:
            yield f"{pod.where}: no toleration of GPU nodes"


def selectors(objects: list[Object]) -> Iterator[str]:
    """Selectors of policies and budgets match pods that there are."""
    every = list(pods(objects))
    for found in objects:
        where, spec = f"{found['kind']}/{found['metadata']['name']}", found.get("spec", {})
        chosen = []
        if found["kind"] == "NetworkPolicy":
            chosen = [spec["podSelector"]]
            for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
                peers = [*rule.get("from", []), *rule.get("to", [])]
                chosen += [p["podSelector"] for p in peers if "podSelector" in p
                           and _ELSEWHERE not in p]  # fmt: skip
        elif found["kind"] == "PodDisruptionBudget":
            chosen = [spec["selector"]]
        for selector in chosen:
            if not any(_selects(selector, pod.labels) for pod in every):
                yield f"{where} selects no pod: {selector}"


def network(objects: list[Object]) -> Iterator[str]:
    """Who can reach whom, by all policies together, is what is wanted and no more."""
    by_role: dict[str, Pod] = {}
    for pod in pods(objects):
        role = pod.labels.get("precalib/role")
        if role is None:
            yield f"{pod.where} has no role"
        else:
            by_role[role] = pod
    ray = {"ray-head", "ray-worker"}
    wanted = {
        ("mlflow", 5000): {"ray-head"},
        ("postgres", 5432): {"mlflow"},
        ("ray-head", 8265): ray | {"ray-submitter"},
        ("ray-head", 6379): ray,
        ("ray-head", 8080): ray,
        ("ray-worker", 12345): ray,
        ("ray-submitter", 80): set(),
        ("convert", 80): set(),
    }
    for (target, port), expected in wanted.items():
        reached = {
            role
            for role, pod in by_role.items()
            if _open(objects, pod, "Egress", by_role[target], port)
            and _open(objects, by_role[target], "Ingress", pod, port)
        }
        if reached != expected:
            yield f"{target}:{port} is reached by {sorted(reached)}, not {sorted(expected)}"
    for role, pod in by_role.items():
        if not _open(objects, pod, "Egress", None, 53, outside={"k8s-app": "kube-dns"}):
            yield f"{role} cannot ask for names"
    if not _open(objects, by_role["ray-head"], "Ingress", None, 8265,
                 outside={"app.kubernetes.io/name": "kuberay-operator"}):  # fmt: skip
        yield "the operator cannot reach the dashboard"
    for role, pod in by_role.items():
        if role != "ray-head" and _open(objects, pod, "Ingress", None, 8265, outside={"x": "y"}):
            yield f"{role} is open to other namespaces"


def _open(
    objects: list[Object], pod: Pod, direction: str, peer: Pod | None, port: int, *,
    outside: dict[str, str] | None = None,
) -> bool:  # fmt: skip
    """Whether the policies of a pod let a peer through, one of ours or with labels elsewhere."""
    side, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    policies = [
        found["spec"]
        for found in objects
        if found["kind"] == "NetworkPolicy"
        and _selects(found["spec"]["podSelector"], pod.labels)
        and direction in found["spec"]["policyTypes"]
    ]
    if not policies:
        return True
    for rule in (rule for policy in policies for rule in policy.get(side, [])):
        if "ports" in rule and port not in [p["port"] for p in rule["ports"]]:
            continue
        if peers not in rule:
            return True
        for allowed in rule[peers]:
            selector = allowed.get("podSelector")
            if selector is None or (_ELSEWHERE in allowed) != (peer is None):
                continue
            if _selects(selector, outside or {} if peer is None else peer.labels):
                return True
    return False


def _matches(wanted: dict[str, str], labels: dict[str, str]) -> bool:
    return wanted.items() <= labels.items()


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    if not selector.keys() <= {"matchLabels", "matchExpressions"}:
        raise ValueError(f"not a selector: {selector}")
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise ValueError(f"not known here: {expression}")
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return _matches(selector.get("matchLabels", {}), labels)


ALL: dict[str, Callable[[list[Object]], Iterator[str]]] = {
    check.__name__: check
    for check in (
        namespaces, references, services, images, entrypoints, queues, kuberay, secrets, restricted,
        hardened, selectors, network,
    )
}  # fmt: skip


def config_files(objects: list[Object]) -> dict[str, str]:
    """The configs of the jobs, by file name."""
    (found,) = (
        f for f in objects if f["kind"] == "ConfigMap" and f["metadata"]["name"] == "job-configs"
    )
    return dict(found["data"])
