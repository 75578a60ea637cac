"""k8s/README.md: what it tells one to type refers to what there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest

from tests.e2e.conftest import REPOSITORY
from tests.k8s import checks
from tests.k8s.manifests import K8S, OVERLAYS, README, Object, pods

pytestmark = pytest.mark.k8s

BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()
]


def test_files_and_folders_exist() -> None:
    named = set(re.findall(r"\b(k8s/[\w./-]+\w)", " ".join(COMMANDS)))
    named |= {f"k8s/{path}" for path in re.findall(r"\b((?:base|components|overlays|kueue|"
              r"observability|operator)/[\w./-]*\w)", README)}  # fmt: skip
    named = {path.replace("k8s/k8s/", "k8s/") for path in named}
    assert len(named) > 10
    for path in named:
        assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("command", [c for c in COMMANDS if "precalib/job" in c])
def test_selectors_choose_something_and_not_everything(
    command: str, overlay: Callable[[str], list[Object]]
) -> None:
    words = shlex.split(command)
    folder, selector = words[words.index("-k") + 1], words[words.index("-l") + 1]
    objects = overlay(folder.rpartition("/")[2])
    key, _, value = selector.lstrip("!").partition("=")
    labels = [found["metadata"].get("labels", {}) for found in objects]
    if selector.startswith("!"):
        chosen = [f for f, have in zip(objects, labels, strict=True) if key not in have]
        assert not {"RayJob", "RayCronJob", "Job"} & {found["kind"] for found in chosen}
        assert {"Namespace", "RayCluster", "Deployment"} <= {found["kind"] for found in chosen}
    else:
        chosen = [f for f, have in zip(objects, labels, strict=True) if have.get(key) == value]
        assert [found["metadata"]["name"] for found in chosen] == [value]


def test_jobs_and_overlays_are_in_the_tables(overlay: Callable[[str], list[Object]]) -> None:
    for name in OVERLAYS:
        assert f"| `overlays/{name}` |" in README
    for found in overlay("gpu"):
        if found["kind"] in ("RayJob", "RayCronJob", "Job"):
            assert f"| `{found['metadata']['name']}` | {found['kind']} |" in README


def test_every_secret_that_is_told_is_used(overlay: Callable[[str], list[Object]]) -> None:
    used = {
        reference["name"]
        for name in OVERLAYS
        for pod in pods(overlay(name))
        for kind, reference in checks.references_of(pod)
        if kind == "Secret"
    }
    assert used == checks.declared_secrets().keys()


def test_the_main_readme_leads_here() -> None:
    assert "](k8s/README.md)" in (REPOSITORY / "README.md").read_text()
    assert (K8S / "README.md").exists()
