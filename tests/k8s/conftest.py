"""Overlays, built once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest

from tests.k8s.manifests import K8S, Object, kustomize


@pytest.fixture(scope="session")
def overlay() -> Callable[[str], list[Object]]:
    """The objects of an overlay, to be changed as one likes."""
    build = functools.cache(lambda name: kustomize(K8S / "overlays" / name))
    return lambda name: copy.deepcopy(build(name))
