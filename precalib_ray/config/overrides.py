"""Dotted overrides of the command line: ``a.b=value``."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from precalib_ray.core.spec import Section, default, plain
from precalib_ray.errors import ConfigError, Problem


def apply(cls: type[Section], content: dict[str, Any], override: str) -> None:
    """Apply an override to plain data.

    Raises:
        ConfigError: it has another form, or its path leads through a value.
    """
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError([Problem("override", override, "must be of the form a.b=value")])
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError([Problem(path, text, "is not a YAML value")]) from None
    _spell_out_default(cls, content, keys[0])
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


def _spell_out_default(cls: type[Section], content: dict[str, Any], name: str) -> None:
    """Fill in the defaults of a section, one field of which is overridden."""
    if content.get(name) is not None:
        return
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name == name and isinstance(default(field), Section):
            content[name] = plain(default(field))


def _index(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError([Problem(path, key, f"must be an index below {len(items)}")])
    return int(key)
