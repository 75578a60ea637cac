"""The Dockerfile, as far as it can be judged without an engine to build it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.e2e.conftest import REPOSITORY
from tests.k8s import image

pytestmark = pytest.mark.k8s

IGNORE = (image.FOLDER / "Dockerfile.dockerignore").read_text()


def _lint(dockerfile: str) -> str:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [str(linter), "-"], input=dockerfile, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_hadolint_has_nothing_to_say() -> None:
    assert _lint(image.DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("FROM python:${PYTHON}\nRUN", "FROM python\nRUN"),
        ("WORKDIR /app\n", "RUN cd /app\n"),
    ],
)
def test_hadolint_sees(text: str, instead: str) -> None:
    assert text in image.DOCKERFILE
    assert _lint(image.DOCKERFILE.replace(text, instead)) != ""


def test_the_context_is_what_is_copied() -> None:
    sources = {source for found, *_ in image.copies() for source in found}
    for source in sources:
        assert (REPOSITORY / source).exists(), source
    first, *rest = [line for line in IGNORE.splitlines() if not line.startswith("#")]
    assert first == "*"
    assert {line[1:] for line in rest if line.startswith("!")} == sources
    tracked = subprocess.run(
        ["git", "ls-files", "--", *sources], cwd=REPOSITORY, capture_output=True, text=True,
        check=True,
    ).stdout.split()  # fmt: skip
    assert sum((REPOSITORY / file).stat().st_size for file in tracked) < 1_000_000


def test_jobs_and_configs_are_in_the_image() -> None:
    for folder, pattern in (("jobs", "*.py"), ("configs", "*.yaml")):
        for path in (REPOSITORY / folder).glob(pattern):
            assert f"{folder}/{path.name}" in image.files()


def test_it_runs_as_a_user_and_from_tags_that_stay() -> None:
    stages = re.split(r"^FROM ", image.DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert re.search(r"^USER 1000:1000$", stages[-1], re.MULTILINE)
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", image.DOCKERFILE, re.MULTILINE)
    assert all(stage.startswith("python:${PYTHON}") for stage in stages)


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(r) for r in (*project["dependencies"], *extras["server"], *extras["timm"])
    ]
    pins = image.pins()
    assert len(pins) == sum("==" in line for line in image.CONSTRAINTS.splitlines())
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(pins[name]), requirement
