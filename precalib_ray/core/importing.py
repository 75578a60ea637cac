"""The user's own functions, named ``module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

FUNCTION_NAME = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""Pattern of a function's name, ``module:function``."""


def load_function(name: str) -> Callable[..., Any]:
    """Import ``module:function``.

    Raises:
        ValueError: the name has another form, the module does not import, or it has no such
            callable; the message says which.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise ValueError(f"{name!r} is not of the form 'module:function'")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ValueError(
            f"module {module_name!r} does not import: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"module {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]
