"""Settings: the fields of configs, declared beside the code that uses them.

A settings class is a frozen dataclass that inherits :class:`Section`. Its fields carry their bounds
and help as metadata, named as in pydantic's ``Field``; ``config.load`` validates with them, and
nothing in ``core`` imports pydantic. What a config chooses by ``kind`` inherits :class:`Family`: a
subclass registers itself when it is defined.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import types
import typing
from abc import ABC
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from precalib_ray.core.paths import expand
from precalib_ray.errors import SettingError

T = TypeVar("T")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    description: str,
    allowed: str = "",
    path: bool = False,
    added: bool = False,
    **bounds: Any,
) -> Any:
    """A field of a settings class; required without ``default`` and ``factory``.

    Args:
        default: the default of the field.
        factory: returns the default.
        description: its meaning, for ``--help``.
        allowed: the permitted values in words, for error messages.
        path: whether it is a path or URI, in which ``~`` and ``$NAME`` are expanded.
        added: configs had digests before the field existed; at its default it is no part of their
            identity, so that they keep them.
        bounds: those of pydantic's ``Field``: ``ge``, ``gt``, ``le``, ``lt``, ``pattern``, ...
    """
    metadata = {"description": description, "path": path, "added": added, **bounds}
    if allowed:
        metadata["json_schema_extra"] = {"allowed": allowed}
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


class Section:
    """A part of a config: unknown fields are refused, and instances are immutable."""

    __pydantic_config__: ClassVar[dict[str, str | bool]] = {
        "extra": "forbid",
        "revalidate_instances": "always",
        "allow_inf_nan": False,
    }

    def __post_init__(self) -> None:
        """Expand paths; of subclasses: check fields against one another, raising SettingError."""
        cls: Any = type(self)
        for name in _paths(cls):
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    object.__setattr__(self, name, expand(value))
                except ValueError as error:
                    raise SettingError(name, *error.args) from None


class Family(Section, ABC):
    """Settings that are chosen by ``kind``."""

    kind: str
    members: ClassVar[dict[str, Any]]
    """Classes by kind."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Family in cls.__bases__:
            cls.members = {}
        elif "kind" in vars(cls):
            kind = vars(cls)["kind"]
            if kind in cls.members:
                raise TypeError(f"{cls.__name__}: {cls.members[kind].__name__} is {kind!r} already")
            cls.members[kind] = cls


def import_members(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, and so register the family members that it defines."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def is_family(annotation: Any) -> bool:
    """Whether this is a family, not a member of one."""
    return isinstance(annotation, type) and Family in annotation.__bases__


def is_section(annotation: Any) -> bool:
    """Whether this is a settings class."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def plain(value: Any, *, sparse: bool = False, identity: bool = False) -> Any:
    """JSON-ready data of settings and results: mappings, lists and scalars.

    Args:
        value: a dataclass, or a value of its fields.
        sparse: leave out fields that have their defaults.
        identity: leave out those of them that are ``added`` (see :func:`setting`).
    """

    def is_kept(field: dataclasses.Field[Any]) -> bool:
        is_added = field.metadata.get("added", False)
        may_go = (sparse and field.name != "kind") or (identity and is_added)
        return not may_go or bool(getattr(value, field.name) != default(field))

    inner = functools.partial(plain, sparse=sparse, identity=identity)
    if hasattr(value, "to_json") and not isinstance(value, type):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = filter(is_kept, dataclasses.fields(value))
        return {field.name: inner(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    return value


def default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; ``dataclasses.MISSING`` if it is required."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def required(cls: Any) -> list[str]:
    """The names of a settings class's fields that have no default."""
    return [f.name for f in dataclasses.fields(cls) if default(f) is dataclasses.MISSING]


def from_plain(annotation: type[T], value: Any) -> T:
    """Inverse of :func:`plain`; bounds are not checked, unlike in ``config.load``.

    Raises:
        KeyError: a family has no such kind.
        TypeError: a field is missing or unknown.
        ValueError: raised by ``__post_init__``.
    """
    return typing.cast(T, _from_plain(annotation, value))


def _from_plain(annotation: Any, value: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if value is None or annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _from_plain(next(a for a in arguments if a is not type(None)), value)
    if origin is list and isinstance(value, list):
        return [_from_plain(arguments[0], item) for item in value]
    if origin is tuple:
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_from_plain(a, item) for a, item in zip(each, value, strict=True))
    if origin is dict:
        return {key: _from_plain(arguments[1], item) for key, item in value.items()}
    if hasattr(annotation, "from_json"):
        return annotation.from_json(value)
    if is_family(annotation):
        return _from_plain(annotation.members[value["kind"]], value)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        known = hints(annotation)
        return annotation(**{k: _from_plain(known.get(k, Any), v) for k, v in value.items()})
    return value


@functools.cache
def _paths(cls: Any) -> list[str]:
    """The names of a settings class's fields that are paths."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get("path")]


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, resolved."""
    return typing.get_type_hints(cls, include_extras=True)
