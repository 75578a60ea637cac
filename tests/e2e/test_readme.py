"""The documentation: commands are accepted, examples run, links and named files exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

from precalib_ray.config import load
from precalib_ray.config.jobs import NAMES, config_class
from precalib_ray.errors import ConfigError
from precalib_ray.version import __version__
from tests.e2e.conftest import REPOSITORY

DOCUMENTS = {
    name: (REPOSITORY / name).read_text()
    for name in (
        "README.md",
        "jobs/README.md",
        "configs/README.md",
        "precalib_ray/README.md",
        "k8s/README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    )
}
CURRENT = {name: text for name, text in DOCUMENTS.items() if name != "CHANGELOG.md"}
"""Documents that describe the present; the changelog names what is gone."""

MAX_LINES = 200
EXAMPLES = {"stripes", "describe"}
"""Modules that CONTRIBUTING.md adds as examples."""
REFUSED = "batch_sise"
"""In the command that is shown to be refused."""
FLAGS = {"--register best": "register_best=true", "--rollback": "rollback=true"}

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_JOB = re.compile(r"(?:python jobs/(\w+)\.py|python -m precalib_ray (\w+)|^precalib (\w+))")
_PATH = re.compile(r"`((?:\.\./)?(?:[\w.-]+/)+[\w.-]+\.(?:py|ya?ml|md|j2|txt))`")


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return [body for language, body in _FENCED.findall(text) if language in languages]


def prose(text: str) -> str:
    """The text without fenced blocks."""
    return _FENCED.sub("", text)


def lines_of(text: str) -> list[str]:
    """The lines of shell blocks, continuation lines joined."""
    return [
        line.removeprefix("$ ").strip()
        for block in blocks(text, "bash", "console")
        for line in re.sub(r"\\\n\s*", " ", block).splitlines()
    ]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found


COMMANDS = [
    (name, line) for name, text in CURRENT.items() for line in lines_of(text) if _JOB.search(line)
]


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_command_is_accepted(document: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    match = _JOB.search(line)
    assert match is not None
    job = next(filter(None, match.groups()))
    rest = line[match.end() :]
    for flag, override in FLAGS.items():
        rest = rest.replace(flag, override)
    arguments = shlex.split(rest, comments=True)
    file = arguments.pop(0) if arguments and "=" not in arguments[0] else None
    if file is not None and file.startswith("cluster/"):  # a volume of the pods
        file = f"k8s/overlays/dev-cpu/configs/{file.removeprefix('cluster/')}"
    if REFUSED not in line:
        load.load(config_class(job), file, arguments)
        return
    with pytest.raises(ConfigError) as error:
        load.load(config_class(job), file, arguments)
    for problem in str(error.value).splitlines():
        assert f"\n{job}.py: {problem}\n" in DOCUMENTS[document], problem


def test_a_refusal_is_shown() -> None:
    assert any(REFUSED in line for _, line in COMMANDS)


def test_every_job_is_shown() -> None:
    assert {path.stem for path in (REPOSITORY / "jobs").glob("*.py")} == set(NAMES)
    jobs = DOCUMENTS["jobs/README.md"]
    for name in NAMES:
        assert any(f"python jobs/{name}.py" in line for line in lines_of(jobs)), name
        assert f"\n### {name}\n" in jobs
        assert f"](jobs/README.md#{name})" in DOCUMENTS["README.md"], name


def test_every_recipe_is_described() -> None:
    for file in (REPOSITORY / "configs").glob("*.yaml"):
        assert f"]({file.name})" in DOCUMENTS["configs/README.md"], file.name


def test_the_readme_is_short() -> None:
    assert len(DOCUMENTS["README.md"].splitlines()) <= MAX_LINES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures_exist(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose(DOCUMENTS[document])):
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / document).parent / path if path else REPOSITORY / document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("document", CURRENT)
def test_named_files_exist(document: str) -> None:
    folders = [REPOSITORY, (REPOSITORY / document).parent, REPOSITORY / "precalib_ray"]
    for named in _PATH.findall(prose(CURRENT[document])):
        path = Path(named)
        if path.stem in EXAMPLES or path.stem.isupper():
            continue
        assert any((folder / path).exists() for folder in folders), named


@pytest.mark.parametrize("document", CURRENT)
def test_named_modules_exist(document: str) -> None:
    for name in re.findall(r"python -m (precalib_ray[\w.]*\w)", CURRENT[document]):
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("document", CURRENT)
def test_python_compiles_and_imports_what_there_is(document: str) -> None:
    for block in blocks(CURRENT[document], "python"):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if not node.module.startswith("precalib_ray"):
                continue
            if node.module.rpartition(".")[2] in EXAMPLES:
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("document", CURRENT)
def test_yaml_is_valid(document: str) -> None:
    for block in blocks(CURRENT[document], "yaml"):
        content = yaml.safe_load(block)
        if "recipe" in content:
            load.validate(config_class("search"), {"name": "example"} | content)
        elif "model" in content and "duration" in content:
            load.validate(config_class("pretrain"), {"name": "example"} | content)


def test_the_recipe_that_is_shown_is_the_one_of_its_file() -> None:
    shown, *_ = blocks(DOCUMENTS["configs/README.md"], "yaml")
    file = REPOSITORY / "configs" / "pretrain_mlp.yaml"
    assert yaml.safe_load(shown) == yaml.safe_load(file.read_text())


def run_python(script: str, folder: Path) -> None:
    """Run a script in a process of its own: registering a family member is for good."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def example(start: str) -> str:
    """The Python example of CONTRIBUTING.md that begins with these words."""
    (found,) = [b for b in blocks(DOCUMENTS["CONTRIBUTING.md"], "python") if b.startswith(start)]
    return found


@pytest.mark.e2e
def test_the_noise_of_the_guide_works_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "stripes.py").write_text(example('"""``stripes`` noise.'))
    run_python(
        """
        import sys

        sys.path.insert(0, sys.argv[1])
        import stripes
        import torch

        from precalib_ray.config import load
        from precalib_ray.config.jobs import config_class

        overrides = ["noise={kind: stripes, width: 3}"]
        config = load.load(config_class("pretrain"), "configs/pretrain_mlp.yaml", overrides)
        assert config.noise == stripes.Stripes(width=3)
        for shape in ((4096, 2, 5, 9), (4096, 31)):
            out = config.noise.fill(torch.empty(shape), torch.Generator().manual_seed(0))
            assert out.unique().tolist() == [-1.0, 1.0]
            assert out.mean(0).abs().max() < 0.1
        """,
        tmp_path,
    )


@pytest.mark.e2e
def test_the_job_of_the_guide_works_as_it_is(tmp_path: Path) -> None:
    for folder, start in (
        ("config", '"""Settings of the job ``describe``'),
        ("jobs", '"""The job ``describe``'),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "describe.py").write_text(example(start))
    run_python(
        """
        import sys

        import precalib_ray.config.jobs
        import precalib_ray.jobs

        precalib_ray.config.jobs.__path__.append(f"{sys.argv[1]}/config")
        precalib_ray.jobs.__path__.append(f"{sys.argv[1]}/jobs")
        from precalib_ray.config import load
        from precalib_ray.config.jobs.describe import DescribeConfig
        from precalib_ray.errors import CheckpointError
        from precalib_ray.jobs.describe import describe

        config = load.load(DescribeConfig, None, [f"path={sys.argv[1]}"])
        try:
            describe(config)
        except CheckpointError:
            pass
        else:
            raise AssertionError("an empty folder is no checkpoint")
        """,
        tmp_path,
    )


@pytest.mark.e2e
def test_core_runs_as_the_architecture_shows(tmp_path: Path) -> None:
    (script,) = blocks(DOCUMENTS["precalib_ray/README.md"], "python")
    unwanted = "{'ray', 'mlflow', 'pydantic', 'pyarrow', 'matplotlib', 'rich'}"
    run_python(f"{script}\nimport sys\nassert not {unwanted} & set(sys.modules)", tmp_path)


def test_test_command_is_the_one_of_ci() -> None:
    command = "pip install -e '.[dev]' && pytest"
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        assert command in (REPOSITORY / name).read_text(), name


def test_tiers_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    declared = {m.partition(":")[0] for m in project["tool"]["pytest"]["ini_options"]["markers"]}
    for text in CURRENT.values():
        for expression in re.findall(r"pytest -m ('[^']+'|\"[^\"]+\"|\w+)", text):
            named = set(re.findall(r"\w+", expression)) - {"and", "or", "not"}
            assert named <= declared, expression


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == __version__
