"""A virtual environment with torch, torchvision, safetensors, MLflow, what they need, and no more.

Installing them anew takes minutes and gigabytes; what is installed already is linked into it, file
by file where several distributions share a folder, and nothing else is.
"""

from __future__ import annotations

import importlib.metadata
import sysconfig
import venv
from collections.abc import Sequence
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ALLOWED = ("torch", "torchvision", "safetensors", "mlflow")


def make(folder: Path, roots: Sequence[str] = ALLOWED) -> Path:
    """Make the environment; returns its ``bin``."""
    venv.create(folder, symlinks=True, with_pip=False)
    version = sysconfig.get_python_version()
    site = folder / "lib" / f"python{version}" / "site-packages"
    for distribution in closure(roots):
        for path in distribution.files or ():
            _link(distribution, path.parts, site)
        for script in distribution.entry_points.select(group="console_scripts"):
            _write_script(folder / "bin", script.name, script.module, script.attr)
    return folder / "bin"


def closure(roots: Sequence[str]) -> list[Distribution]:
    """The distributions and all that they require, extras that they ask for included."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in roots]
    while waiting:
        name, extra = waiting.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        distribution = found.setdefault(
            canonicalize_name(name), importlib.metadata.distribution(name)
        )
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, e) for e in ("", *requirement.extras)]
    return list(found.values())


def _link(distribution: Distribution, parts: tuple[str, ...], site: Path) -> None:
    """Link a file's top folder if it is a package, which has one owner; otherwise the file."""
    if parts[0] == ".." or "__pycache__" in parts:
        return
    source = Path(str(distribution.locate_file("")))
    whole = len(parts) > 1 and (
        (source / parts[0] / "__init__.py").exists() or parts[0].endswith((".dist-info", ".libs"))
    )
    relative = Path(parts[0]) if whole else Path(*parts)
    if not (site / relative).exists():
        (site / relative).parent.mkdir(parents=True, exist_ok=True)
        (site / relative).symlink_to(source / relative)


def _write_script(folder: Path, name: str, module: str, attribute: str) -> None:
    """What pip writes for a console script."""
    file = folder / name
    file.write_text(
        f"#!{folder / 'python'}\nimport sys\nfrom {module} import {attribute.partition('.')[0]}\n"
        f"sys.exit({attribute}())\n"
    )
    file.chmod(0o755)
