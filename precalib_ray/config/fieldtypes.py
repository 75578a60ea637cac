"""The types that a value may have at a place of a config, by which its words are read."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal, get_args, get_origin

from precalib_ray.config.space import KINDS, SpaceOf
from precalib_ray.core.spec import hints, is_family, is_section

Types = tuple[Any, ...]
"""The alternatives; none, if a config has no such place."""


def types_of(annotation: Any) -> Types:
    """The alternatives of an annotation: the members of a union."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        spaces = tuple(data for data in arguments[1:] if isinstance(data, SpaceOf))
        return spaces or types_of(arguments[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(found for argument in arguments for found in types_of(argument))
    return (annotation,)


def child(parent: Types, key: str, kind: object) -> Types:
    """The types of the value at a key.

    Args:
        parent: the types of the mapping or list.
        key: of a list, anything.
        kind: the ``kind`` in the mapping, if it has one: without it, a field of a family has the
            types that it has in all members.
    """
    return tuple(dict.fromkeys(found for at in parent for found in _child(at, key, kind)))


def _child(at: Any, key: str, kind: object) -> Types:
    origin, arguments = get_origin(at), get_args(at)
    if isinstance(at, SpaceOf):
        if key in KINDS:
            return (list[at] if key == "choice" else list[float],)
        return tuple(SpaceOf(found) for found in _child(at.type, key, kind))
    if is_family(at):
        known = isinstance(kind, str) and kind in at.members
        members = [at.members[kind]] if known else at.members.values()
        return tuple(found for member in members for found in _child(member, key, None))
    if is_section(at):
        field = hints(at).get(key)
        return () if field is None else types_of(field)
    if origin is dict:
        return types_of(arguments[1])
    if origin in (list, tuple):
        return types_of(arguments[0])
    return (Any,) if at is Any else ()


def is_text(places: Types) -> bool:
    """Whether a scalar is text as it stands: it may be text, and neither a number nor a bool."""
    plain = [_without_space(at) for at in places]
    return any(at is str or get_origin(at) is Literal for at in plain) and not any(
        at in (int, float, bool, Any) for at in plain
    )


def is_mapping(places: Types) -> bool:
    """Whether the place is a mapping whose keys are the user's, not fields."""
    return any(get_origin(_without_space(at)) is dict for at in places)


def is_list(places: Types) -> bool:
    """Whether a value may be a list."""
    return any(get_origin(_without_space(at)) in (list, tuple) for at in places)


def is_space(places: Types) -> bool:
    """Whether a value may be a domain."""
    return any(isinstance(at, SpaceOf) for at in places)


def may_be(places: Types, *wanted: Any) -> bool:
    """Whether a value may be of one of these types."""
    return any(_without_space(at) in wanted for at in places)


def _without_space(at: Any) -> Any:
    return at.type if isinstance(at, SpaceOf) else at
