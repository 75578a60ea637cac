"""Reading a job's config: one YAML and dotted overrides, checked before anything starts."""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from precalib_ray.errors import ConfigError, Problem

AS_NOISE = "(as noise)"
"""Ends the description of a field whose own fields are those of ``noise``, listed there."""


@dataclass(frozen=True)
class Flag:
    """A word of the command line that stands for an override."""

    name: str
    override: str
    choice: str | None = None
    """What must follow the name, if anything."""


class Strict(BaseModel):
    """A part of a config: unknown fields are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    flags: ClassVar[tuple[Flag, ...]] = ()
    """Of a job: what its command line takes beside overrides."""


class ContradictionError(ValueError):
    """Settings that do not go together, raised by validators with the paths that are to blame."""

    def __init__(self, path: str, value: object, allowed: str, hint: str = "") -> None:
        self.problem = Problem(path, value, allowed, hint)
        super().__init__(allowed)


T = TypeVar("T", bound=Strict)


def load(cls: type[T], path: Path | str | None, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply ``a.b=value`` overrides, and check the result.

    An override of a ``kind`` drops the settings of the kind that stood there.

    Raises:
        ConfigError: with one problem per line.
    """
    content: Any = {}
    if path is not None:
        file = Path(path)
        try:
            content = yaml.safe_load(file.read_text()) or {}
        except OSError:
            near = difflib.get_close_matches(
                str(file), [str(p) for p in file.parent.glob("*.y*ml")]
            )
            hint = near[0] if near else ""
            problem = Problem("config file", str(path), "cannot be read", hint)
            raise ConfigError([problem]) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = " ".join(str(error).split())
            raise ConfigError(
                [Problem("config file", str(path), f"is not YAML: {where}")]
            ) from None
    if not isinstance(content, dict):
        raise ConfigError([Problem("config file", str(path), "must hold a mapping")])
    for override in overrides:
        _put_default(cls, content, override.partition(".")[0])
        _apply(content, override)
    return validate(cls, content)


def validate(cls: type[T], content: dict[str, Any]) -> T:
    """Check plain data; raises ConfigError with one problem per line."""
    try:
        return cls.model_validate(content)
    except pydantic.ValidationError as error:
        problems: dict[str, Problem] = {}  # by path: of a union, the first member speaks
        for detail in error.errors(include_url=False):
            problem = _problem(cls, detail)
            problems.setdefault(problem.path, problem)
        raise ConfigError(list(problems.values())) from None


def to_yaml(
    config: Strict, *, exclude: set[str] | None = None, exclude_defaults: bool = False
) -> str:
    """The resolved config, which ``load`` reads back; ``exclude`` names top-level fields."""
    content = config.model_dump(mode="json", exclude=exclude, exclude_defaults=exclude_defaults)
    return yaml.safe_dump(content, sort_keys=False)


def digest(config: Strict, *, exclude: set[str] | None = None) -> str:
    """SHA-256 of the resolved config, 16 hex digits; ``exclude`` names top-level fields."""
    content = json.dumps(config.model_dump(mode="json", exclude=exclude), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def describe(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Path, type, default and meaning of every field, those of nested parts after their own.

    Of parts that are chosen by ``kind``, what all have in common comes first and once.
    """
    yield from _describe_fields(cls, prefix, set(cls.model_fields))


def _describe_fields(
    cls: type[BaseModel], prefix: str, names: set[str]
) -> Iterator[tuple[str, str, str, str]]:
    for name, field in cls.model_fields.items():
        if name not in names or (name == "kind" and _tag(cls) is not None):
            continue
        path = f"{prefix}{name}"
        meaning = field.description or ""
        yield path, _type_name(field), _default(field), meaning
        if meaning.endswith(AS_NOISE):
            continue
        parts = list(_parts(field.annotation))
        common = set.intersection(*(set(part.model_fields) for part in parts)) if parts else set()
        if parts:
            yield from _describe_fields(
                parts[0], f"{path}.", common - {"kind"} if len(parts) > 1 else common
            )
        if len(parts) > 1:
            for part in parts:
                summary = (part.__doc__ or "").partition("\n")[0]
                yield f"{path}.kind={_tag(part)}", "", "", summary
                yield from _describe_fields(part, f"{path}.", set(part.model_fields) - common)


def _put_default(cls: type[BaseModel], content: dict[str, Any], name: str) -> None:
    """Spell out the default of a part of which one field is overridden."""
    field = cls.model_fields.get(name)
    if content.get(name) is None and field is not None and isinstance(field.default, BaseModel):
        content[name] = field.default.model_dump(mode="json")


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError([Problem("override", override, "must be of the form a.b=value")])
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError([Problem(path, text, "is not a YAML value")]) from None
    at: Any = content
    for depth, key in enumerate(keys[:-1]):
        if isinstance(at, list):
            at = at[_index(at, key, path)]
        else:
            if at.get(key) is None:
                at[key] = {}
            at = at[key]
        if not isinstance(at, dict | list):
            parent = ".".join(keys[: depth + 1])
            raise ConfigError([Problem(path, value, f"{parent} is a value and holds no fields")])
    if isinstance(at, list):
        at[_index(at, keys[-1], path)] = value
        return
    if keys[-1] == "kind" and at.get("kind") not in (None, value):
        at.clear()
    at[keys[-1]] = value


def _index(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError([Problem(path, key, f"must be an index below {len(items)}")])
    return int(key)


def _problem(cls: type[BaseModel], error: Any) -> Problem:
    location, context = error["loc"], error.get("ctx", {})
    path, part = _walk(cls, location)
    value = error["input"]
    cause = context.get("error")
    if isinstance(cause, ContradictionError):
        inner = cause.problem
        joined = ".".join(p for p in (path, inner.path) if p)
        return Problem(joined, inner.value, inner.allowed, inner.hint)
    if error["type"] == "extra_forbidden":
        names = list(part.model_fields) if part is not None else []
        near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        return Problem(
            path, value, "there is no such field" if near else f"allowed here: {', '.join(names)}",
            near[0] if near else "",
        )  # fmt: skip
    if error["type"] == "union_tag_invalid":
        tags = [t.strip("'") for t in context["expected_tags"].split(", ")]
        near = difflib.get_close_matches(str(context["tag"]), tags, n=1, cutoff=0.5)
        allowed = f"must be one of {', '.join(tags)}"
        return Problem(f"{path}.kind", context["tag"], allowed, near[0] if near else "")
    if error["type"] == "union_tag_not_found":
        return Problem(path, value, "needs a kind")
    if error["type"] == "literal_error":
        allowed = context["expected"].replace("'", "").replace(" or ", ", ")
        near = difflib.get_close_matches(str(value), allowed.split(", "), n=1, cutoff=0.5)
        return Problem(path, value, f"must be one of {allowed}", near[0] if near else "")
    if error["type"] == "missing":
        return Problem(path, None, "is required")
    return Problem(path, value, error["msg"].replace("Input should", "must"))


def _walk(
    cls: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[str, type[BaseModel] | None]:
    """The dotted path of an error, without the tags of unions, and the part it lies in."""
    keys: list[str] = []
    part: type[BaseModel] | None = cls
    candidates: list[type[BaseModel]] = [cls]
    named = False  # whether the key is a name in a mapping, which may be that of a kind too
    for key in location:
        if named:
            keys.append(str(key))
            named = False
            continue
        tagged = [c for c in candidates if _tag(c) == key]
        if tagged and (len(candidates) > 1 or key not in candidates[0].model_fields):
            candidates, part = tagged, tagged[0]
            continue
        if isinstance(key, str) and ("[" in key or not candidates):
            continue  # the name of a union's member, such as list[str]
        keys.append(str(key))
        part = candidates[0] if len(candidates) == 1 else part
        if part is not None and key in part.model_fields:
            annotation = part.model_fields[str(key)].annotation
            candidates = list(_parts(annotation))
            named = get_origin(annotation) is dict
    return ".".join(keys), part


def _tag(part: type[BaseModel]) -> str | None:
    kind = part.model_fields.get("kind")
    tags = get_args(kind.annotation) if kind is not None else ()
    return str(tags[0]) if len(tags) == 1 else None


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config parts that an annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            if argument is not type(None):
                yield from _parts(argument)


def _type_name(field: FieldInfo) -> str:
    annotation = field.annotation
    bounds = [
        f"{sign} {getattr(m, attribute)}"
        for m in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if getattr(m, attribute, None) is not None
    ]
    return " ".join([_annotation_name(annotation), *bounds])


def _annotation_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(str(a) for a in arguments)
    if origin is typing.Annotated:
        return _annotation_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        tags = [_tag(a) for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        if tags and all(tags):
            return "kind: " + "|".join(str(t) for t in tags)
        return "|".join("null" if a is type(None) else _annotation_name(a) for a in arguments)
    if origin in (list, tuple):
        return f"list of {_annotation_name(arguments[0])}"
    if origin is dict:
        return f"mapping of name to {_annotation_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return "" if not _tag(type(default)) else f"kind: {_tag(type(default))}"
    return json.dumps(default)
