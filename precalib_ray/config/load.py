"""Reading a job's config: one YAML file and dotted overrides, validated before anything starts."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from precalib_ray.config import document
from precalib_ray.config import overrides as dotted
from precalib_ray.config.sections import JobConfig
from precalib_ray.core.spec import Family, Section, is_family, plain
from precalib_ray.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T", bound=Section)
_MAX_BYTES = 256 * 1024
"""Of a config file: larger ones are none."""


def load(cls: type[T], path: Path | str | None, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply ``a.b=value`` overrides, and validate the result.

    An override of a ``kind`` drops the settings of the previous kind.

    Raises:
        ConfigError: with one problem per line.
    """
    content = {} if path is None else _read(cls, Path(path))
    dotted.apply(cls, content, *overrides)
    return validate(cls, content)


def validate(cls: type[T], content: Mapping[str, Any] | T) -> T:
    """Validate plain data, or settings that were built in Python.

    Raises:
        ConfigError: with one problem per line.
    """
    import pydantic

    from precalib_ray.config.problems import problems

    try:
        adapter: TypeAdapter[T] = _adapter(cast(Any, cls))
        return adapter.validate_python(content)
    except pydantic.ValidationError as error:
        raise ConfigError(problems(cls, error)) from None


def to_yaml(config: Section, *, exclude: Collection[str] = (), sparse: bool = False) -> str:
    """The resolved config, which ``load`` reads back.

    Args:
        config: the config of any job.
        exclude: top-level fields to leave out.
        sparse: leave out fields that have their defaults.
    """
    content = {k: v for k, v in plain(config, sparse=sparse).items() if k not in exclude}
    return document.dump(content, sort_keys=False)


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    Family.__get_pydantic_core_schema__ = classmethod(_family_schema)  # type: ignore[attr-defined]
    return TypeAdapter(cls)


def _family_schema(cls: type[Family], source: Any, handler: Any) -> Any:
    """The schema of a family, for pydantic: it is the union of its members, by kind."""
    from typing import Annotated, Union

    from pydantic import Field

    if not is_family(cls):
        return handler(source)
    members: Any = Union[tuple(cls.members.values())]  # noqa: UP007  built at run time
    return handler.generate_schema(Annotated[members, Field(discriminator="kind")])


def _read(cls: type[Section], file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            source = stream.read(_MAX_BYTES + 1)
        if len(source) > _MAX_BYTES:
            allowed = f"is larger than {_MAX_BYTES // 1024} KiB"
            raise ConfigError([Problem("config file", str(file), allowed)])
        content = document.read_file(source, (cls,))
    except OSError:
        there = [str(p) for p in file.parent.glob("*.y*ml")]
        near = difflib.get_close_matches(str(file), there)
        problem = Problem("config file", str(file), "cannot be read", near[0] if near else "")
        raise ConfigError([problem]) from None
    except ValueError as error:
        raise ConfigError([Problem("config file", str(file), f"is not YAML: {error}")]) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([Problem("config file", str(file), "must hold a mapping")])
    return content


def identity(config: JobConfig) -> dict[str, Any]:
    """Plain data of the fields that identify a job: not where, nor on what, it runs.

    Fields that were added later are left out at their defaults.
    """
    content = plain(config, identity=True)
    return {name: content[name] for name in content if name not in config.not_identity}


def digest(config: JobConfig) -> str:
    """SHA-256 of the config's identity, 16 hex digits."""
    content = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
