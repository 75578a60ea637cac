"""Paths and URIs of a config: the home folder and environment variables that they name."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"\$(?:(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[^}]*)\}|[({$])", re.ASCII)
_HOME = re.compile(r"(?:(?P<scheme>sqlite[\w+]*|file):///?)?(?P<home>~[^/]*)")
"""``~`` or ``~USER`` where a path begins; elsewhere, as in an object's key, it is a character."""


def expand(text: str) -> str:
    """A path or URI with ``~``, ``~USER``, ``$NAME`` and ``${NAME}`` replaced.

    Raises:
        ValueError: it is empty, holds a NUL, or what it names is not there; the arguments are the
            part that is wrong, and why.
    """
    if not text:
        raise ValueError(text, "must not be empty")
    if "\0" in text:
        raise ValueError(text, "must not hold a NUL character")
    text = _VARIABLE.sub(_value, text)
    again = _VARIABLE.search(text)
    if again is not None:  # a config is validated more than once
        raise ValueError(again[0], "must not come from the value of another variable")
    home = _HOME.match(text)
    if home is None:
        return text
    path = f"{_folder(home['home'])}{text[home.end() :]}"
    if home["scheme"] is None:
        return path
    return (
        f"{home['scheme']}://{path}" if home["scheme"] == "file" else f"{home['scheme']}:///{path}"
    )


def _value(match: re.Match[str]) -> str:
    name = match["name"] or match["braced"] or ""
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(match[0], "in a path, only $NAME and ${NAME} are expanded")
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(match[0], "this environment variable is not set, or empty")
    return value


def _folder(name: str) -> str:
    folder = os.path.expanduser(name)
    if folder == name:
        allowed = f"there is no such home folder; write ./{name} for a folder of this name"
        raise ValueError(name, allowed)
    return folder
