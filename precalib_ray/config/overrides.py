"""Dotted overrides of the command line: ``a.b=value``."""

from __future__ import annotations

import dataclasses
from typing import Any

from precalib_ray.config import document
from precalib_ray.config.fieldtypes import Types, child, is_mapping, is_text
from precalib_ray.core.spec import Section, default, plain
from precalib_ray.errors import ConfigError, Problem


def apply(cls: type[Section], content: dict[str, Any], *overrides: str) -> None:
    """Apply overrides to plain data, in their order.

    An override of a ``kind`` drops the settings of the previous kind, and keeps those that earlier
    overrides have set.

    Raises:
        ConfigError: one has another form, its path leads through a value, or its value is refused.
    """
    places: list[list[str]] = []
    for override in overrides:
        _apply(cls, content, override, places)


def _apply(
    cls: type[Section], content: dict[str, Any], override: str, places: list[list[str]]
) -> None:
    path, equals, word = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError([Problem("override", override, "must be of the form a.b=value")])
    if len(keys) > document.MAX_DEPTH:
        allowed = f"has more than {document.MAX_DEPTH} names"
        raise ConfigError([Problem("override", override, allowed)])
    _spell_out_default(cls, content, keys[0])
    at: Any = content
    types: Types = (cls,)
    place: list[str] = []
    while True:
        key, keys = _split(at, types, keys, path)
        types = child(types, key, at.get("kind") if isinstance(at, dict) else None)
        where: Any = _index(at, key, path) if isinstance(at, list) else key
        place.append(key)
        if not keys:
            break
        if isinstance(at, dict) and at.get(where) is None:
            at[where] = {}
        at = at[where]
        if not isinstance(at, dict | list):
            value = document.read_word(word, (), path)
            parent = ".".join(place)
            raise ConfigError([Problem(path, value, f"{parent} is a value and holds no fields")])
    value = document.read_word(word, types, path)
    if key == "kind" and at.get("kind") not in (None, value):
        parents = [given[: len(place)] for given in places]
        for name in [name for name in at if [*place[:-1], name] not in parents]:
            del at[name]
    at[where] = value
    places.append(place)


def _spell_out_default(cls: type[Section], content: dict[str, Any], name: str) -> None:
    """Fill in the defaults of a section, one field of which is overridden."""
    if content.get(name) is not None:
        return
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name == name and isinstance(default(field), Section):
            content[name] = plain(default(field))


def _split(at: Any, types: Types, keys: list[str], path: str) -> tuple[str, list[str]]:
    """The first key, and those after it; a key of the user's, such as a label's, may hold dots."""
    if not isinstance(at, dict) or not is_mapping(types):
        return keys[0], keys[1:]
    if is_text(child(types, "", None)):
        return ".".join(keys), []
    known = [n for n in range(1, len(keys) + 1) if ".".join(keys[:n]) in at]
    if len(known) > 1:
        names = " and ".join(".".join(keys[:n]) for n in known)
        raise ConfigError([Problem("override", path, f"may mean {names}; change the file instead")])
    end = known[0] if known else 1
    return ".".join(keys[:end]), keys[end:]


def _index(items: list[Any], key: str, path: str) -> int:
    is_number = key.isascii() and key.isdecimal() and len(key) < 10
    if not is_number or int(key) >= len(items):
        raise ConfigError([Problem(path, key, f"must be an index below {len(items)}")])
    return int(key)
