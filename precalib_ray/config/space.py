"""Search spaces: plain data in which any value may be a domain.

A domain is a mapping of one key, its kind::

    {choice: [a, b]}            one of the values, which may hold domains of their own
    {uniform: [low, high]}      a float
    {loguniform: [low, high]}   a float, uniform in its logarithm
    {randint: [low, high]}      an integer, both ends included
    {quniform: [low, high, q]}  a multiple of q from low; an integer if all three are

A point of a space is a flat mapping of paths to values. Domains inside a value of a ``choice`` are
part of a point only if that value is chosen: ``noise.pink.alpha`` where the noise is ``pink``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from precalib_ray.errors import ConfigError, Problem

KINDS = ("choice", "uniform", "loguniform", "randint", "quniform")

_HUGE = 1e300
"""Bounds whose difference is finite; NaN is not below it."""

MOST_OPTIONS = 1000
"""Values of a choice."""
MOST_CORNERS = 1000
"""Configs that are validated for a search."""
MOST_POINTS = 100_000
"""Trials of a grid."""

Point = dict[str, Any]
Choose = Callable[[str, str, list[Any]], Any]
"""Returns the value of the domain with this path, kind and arguments; of a choice, its name."""


class SpaceOf:
    """Marks plain data as a space: it is of this type, and any value in it may be a domain."""

    def __init__(self, type_: Any) -> None:
        self.type = type_


def resolve(space: Any, choose: Choose, path: str = "") -> Any:
    """Plain data: the space with every domain replaced by the chosen value."""
    if is_domain(space):
        ((kind, arguments),) = space.items()
        if kind != "choice":
            return choose(path, kind, arguments)
        names = option_names(arguments)
        name = choose(path, kind, names)
        return resolve(arguments[names.index(name)], choose, f"{path}.{name}")
    if isinstance(space, Mapping):
        return {
            key: resolve(value, choose, f"{path}.{key}" if path else str(key))
            for key, value in space.items()
        }
    if isinstance(space, list):
        return [resolve(value, choose, f"{path}.{index}") for index, value in enumerate(space)]
    return space


def at(space: Any, point: Mapping[str, Any]) -> Any:
    """Plain data at a point; raises KeyError if the point belongs to another space."""
    return resolve(space, lambda path, kind, arguments: point[path])


def is_domain(value: Any) -> bool:
    """Whether this is a mapping of one key, which names a kind of domain."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in KINDS


def option_names(options: Sequence[Any]) -> list[str]:
    """Short, unique names of a choice's values: their ``kind``, or the values themselves."""
    names: list[str] = []
    numbers: Counter[str] = Counter()
    for option in options:
        name = str(option.get("kind", "option") if isinstance(option, Mapping) else option)
        numbers[name] += 1
        names.append(name if numbers[name] == 1 else f"{name}#{numbers[name]}")
    return names


def check(space: Any, path: str = "") -> None:
    """Check that every domain is well formed; raises ConfigError."""
    if is_domain(space):
        ((kind, arguments),) = space.items()
        wrong = _wrong(kind, arguments)
        if wrong:
            raise ConfigError([Problem(f"{path}.{kind}", arguments, wrong)])
        if kind == "choice":
            for name, option in zip(option_names(arguments), arguments, strict=True):
                check(option, f"{path}.{name}")
    elif isinstance(space, Mapping):
        if is_domain(space.get("kind")) and len(space) > 1:
            allowed = (
                "settings belong inside each kind: {choice: [{kind: a}, {kind: b, setting: ...}]}"
            )
            raise ConfigError([Problem(f"{path}.kind", space["kind"], allowed)])
        for key, value in space.items():
            check(value, f"{path}.{key}" if path else str(key))
    elif isinstance(space, list):
        for index, value in enumerate(space):
            check(value, f"{path}.{index}")


def corners(space: Any) -> Iterator[Point]:
    """Points that together take every value of every choice and both ends of every range.

    Raises:
        ConfigError: there are more than ``MOST_CORNERS``.
    """
    num_corners = 0
    pending: list[Point] = [{}]
    seen: set[tuple[str, Any]] = set()
    while pending:
        forced = pending.pop(0)
        point: Point = {}

        def choose(
            path: str, kind: str, arguments: list[Any], forced: Point = forced, point: Point = point
        ) -> Any:
            values = arguments if kind == "choice" else arguments[:2]
            point[path] = forced.get(path, values[0])
            seen.add((path, point[path]))
            for value in values:
                if (path, value) not in seen:
                    seen.add((path, value))
                    pending.append({**point, path: value})
            return point[path]

        resolve(space, choose)
        num_corners += 1
        if num_corners > MOST_CORNERS:
            allowed = f"has more than {MOST_CORNERS:,} values of choices and ends of ranges"
            raise ConfigError([Problem("recipe", "{...}", allowed)])
        yield point


def grid(space: Any) -> Iterator[Point]:
    """Every point of a space of choices, ``randint`` and ``quniform``.

    Raises:
        ConfigError: a range has no steps to enumerate, or there are more than ``MOST_POINTS``.
    """
    num_points = 0
    pending: deque[Point] = deque([{}])
    while pending:
        decided = pending.popleft()

        def choose(path: str, kind: str, arguments: list[Any], decided: Point = decided) -> Any:
            if path in decided:
                return decided[path]
            raise _UndecidedError(path, kind, arguments)

        try:
            resolve(space, choose)
        except _UndecidedError as domain:
            values = _enumerate(domain.path, domain.kind, domain.arguments)
            pending.extendleft({**decided, domain.path: value} for value in reversed(values))
        else:
            num_points += 1
            if num_points > MOST_POINTS:
                allowed = f"has more than {MOST_POINTS:,} points as a grid"
                raise ConfigError([Problem("recipe", "{...}", allowed)])
            yield decided


class _UndecidedError(Exception):
    def __init__(self, path: str, kind: str, arguments: list[Any]) -> None:
        self.path, self.kind, self.arguments = path, kind, arguments
        super().__init__(path)


def _enumerate(path: str, kind: str, arguments: list[Any]) -> list[Any]:
    if kind == "choice":
        return arguments
    allowed = "cannot be enumerated; use choice, randint or quniform, or another algorithm"
    if kind in ("randint", "quniform"):
        low, high, step = arguments if kind == "quniform" else (*arguments, 1)
        steps = (high - low) / step + 1e-9
        if steps < MOST_POINTS:
            return [low + step * index for index in range(int(steps) + 1)]
        allowed = f"has more than {MOST_POINTS:,} values"
    raise ConfigError([Problem(f"recipe.{path}.{kind}", arguments, allowed)])


def _wrong(kind: str, arguments: Any) -> str:
    """Why the arguments of a domain are refused; empty if they are not."""
    if not isinstance(arguments, list) or not arguments:
        return "must be a list of one value or more"
    if kind == "choice":
        return "" if len(arguments) <= MOST_OPTIONS else f"must be at most {MOST_OPTIONS:,} values"
    numbers = all(isinstance(a, int | float) and not isinstance(a, bool) for a in arguments)
    if numbers and not all(abs(a) < _HUGE for a in arguments):
        return "must be finite, and less than 1e300"
    if not numbers or len(arguments) != (3 if kind == "quniform" else 2):
        return "must be [low, high, q]" if kind == "quniform" else "must be [low, high]"
    if arguments[0] >= arguments[1]:
        return "low must be < high"
    if kind == "loguniform" and arguments[0] <= 0:
        return "low must be > 0"
    if kind == "quniform" and arguments[2] <= 0:
        return "q must be > 0"
    if kind == "randint" and not all(isinstance(a, int) for a in arguments):
        return "must be integers"
    return ""
