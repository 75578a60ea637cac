"""YAML, read by the types of a config.

Text is taken as it stands where a field is text: ``name: 007``, ``on``, ``2026-11-25``. Elsewhere a
value is YAML 1.1's, unless that differs from how it is written (``010`` is 8, ``12:30`` is 750) or
from YAML 1.2 (``on``, ``1e-4``) and no type decides. Keys are unique and text; anchors, aliases and
``<<`` are allowed, tags other than ``!!str`` are not.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from precalib_ray.config.fieldtypes import Types, child, is_list, is_space, is_text, may_be
from precalib_ray.config.space import KINDS
from precalib_ray.errors import ConfigError, Problem

MAX_DEPTH = 60
"""Levels of nesting, of values and of paths."""
_MAX_VALUES = 50_000
_MAX_NUMBER = 300
"""Characters of a number."""

_PREFIX = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _DATE, _TEXT, _LIST, _MAP, _MERGE = (
    _PREFIX + name
    for name in ("null", "bool", "int", "float", "timestamp", "str", "seq", "map", "merge")
)
_NUMBER_OF_1_2 = "number of YAML 1.2"
_NUMBER = re.compile(r"^(0o[0-7]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)$")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_QUOTE = "quote it if it is text"
_AMBIGUOUS = {
    _BOOL: f"is a bool in YAML 1.1 and text in 1.2; write true or false, or {_QUOTE}",
    _DATE: f"is a date in YAML; {_QUOTE}",
    _NUMBER_OF_1_2: "is text in YAML 1.1 and a number in 1.2; write a number as 1.0e-4 or decimal, "
    f"or {_QUOTE}",
}


class _Loader(yaml.SafeLoader):
    """Knows a number of YAML 1.2 that is none of 1.1, such as ``1e-4``; allows no tags."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag, wrong = getattr(event, "tag", None), ""
        if tag is not None and not (tag == _TEXT and isinstance(event, yaml.ScalarEvent)):
            wrong = "only the tag !!str is allowed"
        if self._depth > MAX_DEPTH:
            wrong = f"it is nested more than {MAX_DEPTH} deep"
        if wrong:
            raise yaml.MarkedYAMLError(problem=wrong, problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would not take for text."""


for _class in (_Loader, _Dumper):  # asked after those of YAML 1.1
    _class.add_implicit_resolver(_NUMBER_OF_1_2, _NUMBER, list("-+.0123456789"))


def dump(value: Any, **options: Any) -> str:
    """YAML of plain data, which is read back as the same data whatever types it has."""
    return str(yaml.dump(value, Dumper=_Dumper, **options))


def read_file(source: bytes, types: Types) -> Any:
    """The content of a file; None if it is empty.

    Raises:
        ConfigError: with one problem per line.
        ValueError: it is not YAML; the message says where and why.
    """
    node = _compose(source)
    return None if node is None else _Reader(in_file=True).read(node, types, "")


def read_word(word: str, types: Types, path: str) -> Any:
    """The value of an override: as it stands where it is text, else YAML.

    A field that is text may be given in quotes, as in YAML. Where it may be null too, ``null`` is
    null; where it may be a list or, in a search, a domain, ``[...]`` and ``{...}`` are. Without
    types, for a field that does not exist, what is not YAML is text.

    Raises:
        ConfigError: with one problem per line.
    """
    try:
        node = _compose(word)
    except ValueError:
        node = None
    if is_text(types) and not _is_marked(word, node, types):
        if not may_be(types, type(None)) or not (word == "" or (node and node.tag == _NULL)):
            return word
        allowed = "" if word == "null" else f"may be null or text: write null, or {_QUOTE}"
    elif node is not None and node.end_mark.index == len(word.rstrip()):
        allowed = ""
    elif not types:
        return word
    else:
        allowed = "is not a YAML value" if word.strip() else "is empty; write null for no value"
    if allowed:
        raise ConfigError([Problem(path, word, allowed)])
    assert node is not None, "it is neither empty nor refused"
    return _Reader(in_file=False).read(node, types, path)


def _is_marked(word: str, node: Node | None, types: Types) -> bool:
    """Whether all of a word for text is in quotes, or in the brackets of a list or a domain."""
    if node is None or node.end_mark.index != len(word):
        return False
    if isinstance(node, ScalarNode):
        return word[0] in ("'", '"')
    if isinstance(node, SequenceNode):
        return word[0] == "[" and is_list(types)
    keys = [key.value for key, _ in node.value]
    return word[0] == "{" and is_space(types) and len(keys) == 1 and keys[0] in KINDS


def _compose(source: str | bytes) -> Node | None:
    try:
        loader = _Loader(source)
        try:
            node: Node | None = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ": ".join(filter(None, (where, error.context, error.problem)))
        raise ValueError(re.sub("[<>]", "", reason)) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "it cannot be decoded")
        raise ValueError(f"position {getattr(error, 'position', 0)}: {reason}") from None
    return node


class _Reader:
    """Makes plain data of YAML's nodes."""

    def __init__(self, *, in_file: bool) -> None:
        """Problems tell lines ``in_file``."""
        self._in_file = in_file
        self._num_values = 0
        self._problems: list[Problem] = []

    def read(self, node: Node, types: Types, path: str) -> Any:
        """The data of a node; raises ConfigError."""
        value = self._value(node, types, path, depth=0)
        if self._problems:
            raise ConfigError(self._problems)
        return value

    def _refuse(self, path: str, node: Node, allowed: str) -> None:
        shown = node.value if isinstance(node, ScalarNode) else "{...}"
        where = f" (line {node.start_mark.line + 1})" if self._in_file else ""
        self._problems.append(Problem(path, shown, f"{allowed}{where}"))

    def _count(self, path: str, depth: int) -> None:
        """Aliases multiply values, and may recur."""
        self._num_values += 1
        if depth > MAX_DEPTH:
            raise ConfigError([Problem(path, "{...}", f"is nested more than {MAX_DEPTH} deep")])
        if self._num_values > _MAX_VALUES:
            allowed = f"holds more than {_MAX_VALUES:,} values, with those of aliases"
            raise ConfigError([Problem(path, "{...}", allowed)])

    def _value(self, node: Node, types: Types, path: str, *, depth: int) -> Any:
        self._count(path, depth)
        if isinstance(node, ScalarNode):
            return self._scalar(node, types, path)
        if isinstance(node, SequenceNode):
            items = child(types, "", None)
            return [
                self._value(item, items, _join(path, str(index)), depth=depth + 1)
                for index, item in enumerate(node.value)
            ]
        pairs = self._pairs(node, types, path, depth)
        kind = pairs["kind"].value if "kind" in pairs else None
        return {
            key: self._value(value, child(types, key, kind), _join(path, key), depth=depth + 1)
            for key, value in pairs.items()
        }

    def _pairs(self, node: Node, types: Types, path: str, depth: int) -> dict[str, Node]:
        """The values of a mapping by key; its own go before those that it merges."""
        own: dict[str, tuple[Node, Node]] = {}
        twice: dict[str, Problem] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            free = may_be(types, Any) and key.tag not in (_TEXT, _MERGE)
            if not isinstance(key, ScalarNode) or not key.value or free:
                self._refuse(path, key, "a key must be text, in quotes if YAML reads another type")
                continue
            here = _join(path, key.value)
            if key.value in own:
                first, last = (k.start_mark.line + 1 for k in (own[key.value][0], key))
                lines = f", in line {first}" if first == last else f", in lines {first} and {last}"
                shown = value.value if isinstance(value, ScalarNode) else "{...}"
                twice.setdefault(
                    here, Problem(here, shown, f"is given twice{lines if self._in_file else ''}")
                )
            elif key.tag == _MERGE:
                merged = self._merged(value, types, here, depth + 1)
            own.setdefault(key.value, (key, value))
        self._problems += twice.values()
        return merged | {name: v for name, (key, v) in own.items() if key.tag != _MERGE}

    def _merged(self, node: Node, types: Types, path: str, depth: int) -> dict[str, Node]:
        """The pairs of the mappings that ``<<`` names; the first that has a key decides."""
        found: dict[str, Node] = {}
        for part in node.value if isinstance(node, SequenceNode) else [node]:
            self._count(path, depth)
            if isinstance(part, MappingNode):
                found = self._pairs(part, types, path, depth) | found
            else:
                self._refuse(path, part, "must be a mapping, or a list of mappings")
        return found

    def _scalar(self, node: ScalarNode, types: Types, path: str) -> Any:
        text, tag = node.value, node.tag
        if node.style is not None:
            return text
        if tag == _NULL:
            if is_text(types) and not may_be(types, type(None)):
                self._refuse(path, node, f"is null in YAML; {_QUOTE}")
            return None
        if is_text(types):
            return text
        if tag in (_INT, _FLOAT):
            return self._number(node, types, path)
        if tag == _NUMBER_OF_1_2 and float in types:
            return float(text) if not text.startswith("0o") else text
        if tag == _BOOL and not _differs(text, types):
            return _YAML.construct_yaml_bool(node)
        if tag in _AMBIGUOUS and may_be(types, Any):
            self._refuse(path, node, _AMBIGUOUS[tag])
        return text

    def _number(self, node: ScalarNode, types: Types, path: str) -> int | float | str:
        text, wrong = node.value, ""
        if len(text) > _MAX_NUMBER:
            wrong = f"is a number of more than {_MAX_NUMBER} characters"
        elif ":" in text or _OCTAL.fullmatch(text):
            what = "minutes and seconds" if ":" in text else "octal"
            wrong = f"is {what} in YAML; write it decimal"
        if not wrong:
            is_int = node.tag == _INT
            return _YAML.construct_yaml_int(node) if is_int else _YAML.construct_yaml_float(node)
        if types:
            self._refuse(path, node, f"{wrong}, or {_QUOTE}" if may_be(types, Any) else wrong)
        return str(text)


_YAML = _Loader("")


def _differs(word: str, types: Types) -> bool:
    """Whether a word that is a bool in YAML 1.1 is something else in 1.2, or for its field."""
    if may_be(types, bool):
        return False
    return word.lower() not in ("true", "false") or may_be(types, int, float)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
