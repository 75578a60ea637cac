"""Spaces: what they hold, what is asked for where, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precalib_ray.config import space
from precalib_ray.errors import ConfigError

NOISE = {
    "noise": {
        "choice": [
            {"kind": "gaussian"},
            {"kind": "pink", "alpha": {"uniform": [0.5, 3.0]}},
            {"kind": "pink", "alpha": 2.0},
        ]
    },
    "batch_size": {"choice": [16, 32]},
    "parts": [{"steps": {"quniform": [10, 30, 10]}}],
    "name": "kept",
}


def test_what_lies_in_an_option_is_asked_for_only_where_it_is_chosen() -> None:
    point = {"noise": "gaussian", "batch_size": "32", "parts.0.steps": 20}
    assert space.at(NOISE, point) == {
        "noise": {"kind": "gaussian"},
        "batch_size": 32,
        "parts": [{"steps": 20}],
        "name": "kept",
    }
    with pytest.raises(KeyError, match=r"noise\.pink\.alpha"):
        space.at(NOISE, point | {"noise": "pink"})
    chosen = space.at(NOISE, point | {"noise": "pink", "noise.pink.alpha": 1.5})
    assert chosen["noise"] == {"kind": "pink", "alpha": 1.5}
    assert space.at(NOISE, point | {"noise": "pink#2"})["noise"] == {"kind": "pink", "alpha": 2.0}


def test_corners_take_every_option_and_both_ends() -> None:
    points = list(space.corners(NOISE))
    for path, values in {
        "noise": {"gaussian", "pink", "pink#2"},
        "noise.pink.alpha": {0.5, 3.0},
        "batch_size": {"16", "32"},
        "parts.0.steps": {10, 30},
    }.items():
        assert {p[path] for p in points if path in p} == values
    for point in points:
        space.at(NOISE, point)


def test_grid_is_every_combination_once() -> None:
    finite = NOISE | {"noise": {"choice": [{"kind": "gaussian"}, {"kind": "pink", "alpha": {
        "choice": [1, 2]}}]}}  # fmt: skip
    points = list(space.grid(finite))
    assert len(points) == 3 * 2 * 3
    assert len({tuple(sorted(p.items())) for p in points}) == len(points)
    assert {p["parts.0.steps"] for p in points} == {10, 20, 30}
    with pytest.raises(ConfigError, match=r"recipe\.noise\.pink\.alpha\.uniform.*enumerated"):
        list(space.grid(NOISE))


@pytest.mark.parametrize(
    ("domains", "told"),
    [
        ([{"randint": [1, 10**12]}], r"recipe\.d0\.randint: .* has more than 100,000 values"),
        ([{"quniform": [0, 1, 1e-300]}], r"recipe\.d0\.quniform: .* has more than 100,000 values"),
        ([{"randint": [1, 400]}] * 2, "recipe: .* has more than 100,000 points as a grid"),
    ],
)
def test_a_grid_of_too_many_points(domains: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list(space.grid({f"d{number}": domain for number, domain in enumerate(domains)}))


def test_a_space_of_too_many_corners() -> None:
    choice = {"choice": list(range(500))}
    assert len(list(space.corners({"a": choice, "b": choice}))) == 999
    with pytest.raises(ConfigError, match=r"recipe: .* has more than 1,000 values of choices"):
        list(space.corners({"a": choice, "b": choice, "c": {"choice": [1, 2, 3]}}))


@given(st.integers(-5, 5), st.integers(1, 9))
def test_grid_of_integers_holds_both_ends(low: int, width: int) -> None:
    values = [p["n"] for p in space.grid({"n": {"randint": [low, low + width]}})]
    assert values == list(range(low, low + width + 1))


@pytest.mark.parametrize(
    ("domain", "told"),
    [
        ({"choice": []}, r"x\.choice: \[\]: must be a list of one value or more"),
        ({"choice": 3}, r"x\.choice.*must be a list"),
        ({"kind": {"choice": ["a", "b"]}, "of_b": {"uniform": [1, 2]}}, r"x\.kind.*belong"),
        ({"uniform": [1]}, r"must be \[low, high\]"),
        ({"uniform": [2, 1]}, "low must be < high"),
        ({"uniform": ["a", 1]}, r"must be \[low, high\]"),
        ({"loguniform": [0, 1]}, "low must be > 0"),
        ({"quniform": [0, 1]}, r"must be \[low, high, q\]"),
        ({"quniform": [0, 1, 0]}, "q must be > 0"),
        ({"randint": [0.5, 2]}, "must be integers"),
        ({"uniform": [float("nan"), 1]}, "must be finite"),
        ({"quniform": [0, 1, float("inf")]}, "must be finite"),
        ({"randint": [0, 10**400]}, "must be finite"),
        ({"choice": [1] * 1001}, "must be at most 1,000 values"),
        ({"choice": [{"kind": "a", "b": {"uniform": [2, 1]}}]}, r"x\.a\.b\.uniform"),
    ],
)
def test_malformed_domains_are_refused(domain: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        space.check({"x": domain})


def test_a_label_scheme_of_the_same_name_is_no_domain() -> None:
    assert not space.is_domain({"kind": "uniform"})
    assert space.resolve({"labels": {"kind": "uniform"}}, lambda *_: None) == {
        "labels": {"kind": "uniform"}
    }
