"""The README's commands are ones that can be given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from precalib_ray.config import base
from precalib_ray.errors import ConfigError
from tests.e2e.conftest import CLASSES, REPOSITORY

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|console)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ").strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if "python jobs/" in line
]


def test_every_job_is_shown() -> None:
    assert {path.stem for path in (REPOSITORY / "jobs").glob("*.py")} == set(CLASSES)
    for name in CLASSES:
        assert f"python jobs/{name}.py" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(command[command.index("python jobs/") :])
    job, arguments = Path(words[1]).stem, words[2:]
    if arguments[-2:] == ["--register", "best"]:
        arguments[-2:] = ["register_best=true"]  # what it is short for
    file = arguments.pop(0) if arguments and "=" not in arguments[0] else None
    refused = "batch_sise" in command  # the one that is shown to be refused
    if refused:
        with pytest.raises(ConfigError) as error:
            base.load(CLASSES[job], file, arguments)
        for line in str(error.value).splitlines():
            assert f"pretrain.py: {line}" in README
    else:
        base.load(CLASSES[job], file, arguments)


def test_pictures_and_files_exist() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_test_command_is_the_one_of_ci() -> None:
    command = "pip install -e '.[dev]' && pytest"
    assert command in README
    assert command in (REPOSITORY / ".ci" / "run").read_text()
