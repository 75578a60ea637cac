"""The fields of a config, for ``--help``."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from precalib_ray.core.spec import Family, Section, default, hints, is_family, is_section, plain

AS_NOISE = "(as noise)"
"""Ends the description of a field whose own fields are those of ``noise``, listed there."""


@dataclass(frozen=True)
class Line:
    """A field; without a type, one of the kinds to choose from."""

    path: str
    type: str
    default: str
    meaning: str


def describe(cls: type[Section], prefix: str = "") -> Iterator[Line]:
    """Every field, those of sections after their own.

    A family's common fields come first, and once.
    """
    yield from _describe(cls, prefix, {field.name for field in _fields(cls)})


def _describe(cls: Any, prefix: str, names: set[str]) -> Iterator[Line]:
    for field in _fields(cls):
        if field.name not in names:
            continue
        path, annotation = f"{prefix}{field.name}", hints(cls)[field.name]
        meaning = field.metadata.get("description", "")
        yield Line(path, _type_name(annotation, field.metadata), _default(field), meaning)
        if meaning.endswith(AS_NOISE):
            continue
        section = _section(annotation)
        if section is None:
            continue
        common = {field.name for field in _fields(section)}
        yield from _describe(section, f"{path}.", common)
        for kind, member in getattr(section, "members", {}).items() if is_family(section) else ():
            summary = (member.__doc__ or "").partition("\n")[0]
            yield Line(f"{path}.kind={kind}", "", "", summary)
            own = {field.name for field in _fields(member)} - common
            yield from _describe(member, f"{path}.", own)


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """The fields, without the discriminator of a family."""
    return [f for f in dataclasses.fields(cls) if f.name != "kind" or "description" in f.metadata]


def _section(annotation: Any) -> Any:
    """The section that an annotation may hold, if any."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    found = (_section(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)


def _type_name(annotation: Any, metadata: typing.Mapping[str, Any]) -> str:
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    bounds = [f"{sign} {metadata[name]}" for name, sign in signs if name in metadata]
    return " ".join([_annotation_name(annotation), *bounds])


def _annotation_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is typing.Annotated:
        return _annotation_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return "|".join("null" if a is type(None) else _annotation_name(a) for a in arguments)
    if origin in (list, tuple):
        return f"list of {_annotation_name(arguments[0])}"
    if origin is dict:
        return f"mapping of name to {_annotation_name(arguments[1])}"
    if is_family(annotation):
        return "kind: " + "|".join(annotation.members)
    if is_section(annotation):
        return "section"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: dataclasses.Field[Any]) -> str:
    value = default(field)
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, Family):
        return f"kind: {value.kind}"
    if isinstance(value, Section):
        return ""
    return json.dumps(plain(value, sparse=True))
