"""The dashboard and the scraping, held against names and ports that there are."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.k8s import checks
from tests.k8s.manifests import K8S, Object, kustomize, load, pods

pytestmark = pytest.mark.k8s

FOLDER = K8S / "observability"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
OURS = {"samples_per_second", "deviation", "step_seconds", "probe_share"}
"""Gauges of the jobs, `ray_precalib_` before their names, with the labels run and phase."""


def test_the_dashboard_shows_our_gauges_by_run_and_phase() -> None:
    found = set()
    for query in QUERIES:
        for name, labels in re.findall(r"ray_precalib_(\w+)\{(.*?)\}", query):
            found.add(name)
            assert labels == 'run=~"$run",phase=~"$phase"'
    assert found == OURS
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == variables == {"datasource", "run", "phase"}


def test_other_names_are_those_that_ray_exports() -> None:
    spec = importlib.util.find_spec("ray.dashboard.modules.reporter.reporter_agent")
    source = Path(spec.origin).read_text()
    theirs = set(re.findall(r"\bray_(?!precalib_|io_)(\w+)", " ".join(QUERIES)))
    assert theirs
    for name in theirs:
        assert f'"{name}": Gauge(' in source, name


def test_panels_have_places_and_names_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["description"]


@pytest.fixture
def ray_ports(overlay: Callable[[str], list[Object]]) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for pod in pods(overlay("gpu"))
        if pod.labels["precalib/role"].startswith("ray-")
        for container in pod.containers
        for port in container.get("ports", [])
    }


def test_what_is_scraped_is_there_and_let_through(
    ray_ports: dict[str, int], overlay: Callable[[str], list[Object]]
) -> None:
    objects = kustomize(FOLDER)
    by_kind = {found["kind"]: found for found in objects}
    monitor = by_kind["PodMonitor"]["spec"]
    assert monitor["namespaceSelector"] == {"matchNames": [checks.NAMESPACE]}
    names = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
    assert names == {name for name in ray_ports if name.endswith("metrics")}
    policy = by_kind["NetworkPolicy"]
    (rule,) = policy["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == {ray_ports[name] for name in names}
    assert policy["spec"]["podSelector"] == monitor["selector"]
    assert list(checks.selectors([*overlay("gpu"), policy])) == []
    (scrape,) = yaml.safe_load((FOLDER / "prometheus-scrape.yaml").read_text())
    kept = {r["source_labels"][0]: r["regex"] for r in scrape["relabel_configs"] if "regex" in r}
    assert set(kept["__meta_kubernetes_pod_container_port_name"].split("|")) == names
    (expression,) = monitor["selector"]["matchExpressions"]
    assert kept["__meta_kubernetes_pod_label_precalib_role"] == "|".join(expression["values"])
    data = by_kind["ConfigMap"]["data"]
    assert json.loads(data["precalib-ray.json"]) == DASHBOARD


def test_no_overlay_needs_the_prometheus_operator(overlay: Callable[[str], list[Object]]) -> None:
    for name in ("dev-cpu", "gpu", "gpu-spot"):
        assert not any("monitoring.coreos" in found["apiVersion"] for found in overlay(name))
    assert load((FOLDER / "pod-monitor.yaml").read_text())
