"""pydantic's validation errors as problems: path, value, what is allowed, nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, get_args, get_origin

import pydantic

from precalib_ray.core.spec import Section, hints, is_family
from precalib_ray.errors import Problem, SettingError

_MAX_NAME = 100
"""Characters of what may be a misspelled name."""


def problems(cls: type[Section], error: pydantic.ValidationError) -> list[Problem]:
    """One problem per path; for a union, the error of its first member."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _problem(cls, detail)
        found.setdefault(problem.path, problem)
    return list(found.values())


def _problem(cls: type[Section], error: Any) -> Problem:
    place = _Place(cls, error["loc"])
    path, value, context = place.path, error["input"], error.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, SettingError):
        inner = cause.problem
        joined = ".".join(p for p in (path, inner.path) if p)
        return Problem(joined, inner.value, inner.allowed, inner.hint)
    if place.allowed:
        return Problem(path, value, place.allowed)
    kind = error["type"]
    if kind == "unexpected_keyword_argument":
        names = place.names
        near = _nearest(error["loc"][-1], names)
        allowed = "there is no such field" if near else f"allowed here: {', '.join(names)}"
        return Problem(path, value, allowed, near)
    if kind == "union_tag_invalid":
        tags = [tag.strip("'") for tag in context["expected_tags"].split(", ")]
        allowed = f"must be one of {', '.join(tags)}"
        return Problem(f"{path}.kind", context["tag"], allowed, _nearest(context["tag"], tags))
    if kind in ("union_tag_not_found", "model_attributes_type"):
        return Problem(path, value, "needs a kind")
    if kind in ("dataclass_type", "dict_type"):
        return Problem(path, value, "must be a mapping")
    if kind == "literal_error":
        allowed = context["expected"].replace("'", "").replace(" or ", ", ")
        near = _nearest(value, allowed.split(", "))
        return Problem(path, value, f"must be one of {allowed}", near)
    if kind == "missing" and place.length:
        return Problem(path.rpartition(".")[0], value, f"must have {place.length} items")
    if kind == "missing":
        return Problem(path, None, "is required")
    if kind in ("list_type", "tuple_type"):
        return Problem(path, value, "must be a list")
    return Problem(path, value, error["msg"].replace("Input should", "must"))


def _nearest(name: object, names: list[str]) -> str:
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        return ""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.5)), "")


class _Place:
    """Where an error is: pydantic's location, without the tags and labels of unions."""

    def __init__(self, cls: type[Section], location: tuple[int | str, ...]) -> None:
        self.allowed = ""
        """The permitted values, in the words of the field's own setting."""
        self.names: list[str] = []
        """The fields of the section that the error lies in."""
        self.length = 0
        """The number of items, if the error is at an item of a list of fixed length."""
        keys: list[str] = []
        annotation: Any = cls
        for key in location:
            annotation = _without_none(annotation)
            if is_family(annotation) and key in annotation.members:
                annotation = annotation.members[key]
                continue
            if _is_union(annotation):
                annotation = None  # the key is a label of one of its members
                continue
            keys.append(str(key))
            annotation = self._step(annotation, key)
            if self.allowed:
                break
        self.path = ".".join(keys)

    def _step(self, annotation: Any, key: int | str) -> Any:
        """The type of the value at a key."""
        self.length = 0
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            fields = {field.name: field for field in dataclasses.fields(annotation)}
            self.names = list(fields)
            if key in fields:
                extra = fields[str(key)].metadata.get("json_schema_extra", {})
                self.allowed = extra.get("allowed", "")
            return hints(annotation).get(str(key))
        arguments = get_args(annotation)
        if get_origin(annotation) is tuple and Ellipsis not in arguments:
            self.length = len(arguments)
        return arguments[-1] if get_origin(annotation) is dict else next(iter(arguments), None)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (typing.Union, types.UnionType)


def _without_none(annotation: Any) -> Any:
    """The type of an optional one; other unions are unchanged."""
    if _is_union(annotation):
        others = [a for a in get_args(annotation) if a is not type(None)]
        return others[0] if len(others) == 1 else annotation
    return annotation
