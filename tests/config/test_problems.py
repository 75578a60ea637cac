"""The paths of problems in every kind of nesting."""

from dataclasses import dataclass
from typing import Literal

import pytest

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core.spec import Family, Section, setting
from precalib_ray.errors import Problem, one_line
from precalib_ray.registry.secrets import redact
from tests.config.examples import PRETRAIN, RESNET, refused


@dataclass(frozen=True, kw_only=True)
class Side(Family):
    kind: str


@dataclass(frozen=True, kw_only=True)
class Left(Side):
    kind: Literal["left"] = "left"
    size: int = setting(1, ge=1, description="size")


@dataclass(frozen=True, kw_only=True)
class Right(Side):
    kind: Literal["right"] = "right"
    length: int = setting(1, ge=1, description="length")


@dataclass(frozen=True, kw_only=True)
class Nested(Section):
    side: Side
    named: dict[str, Side] = setting(factory=dict, description="by name")
    several: list[Side] = setting(factory=list, description="in order")
    inner: Left | None = setting(None, description="a member of its own")


def test_paths_of_problems():
    content = {
        "side": {"kind": "left", "sise": 1},
        "named": {"left": {"kind": "left", "size": 0}, "right": {"kind": "left", "size": "a"},
                  "size": {"kind": "righ"}, "other": {"kind": "right", "lenght": 2}},
        "several": [{"kind": "left"}, {"kind": "right", "length": 0}, {"size": 3}],
        "inner": {"kind": "left", "size": -1},
    }  # fmt: skip
    problems = {p.path: p.hint for p in refused(load.validate, Nested, content).problems}
    assert problems == {
        "side.sise": "size",
        "named.left.size": "",
        "named.right.size": "",
        "named.size.kind": "right",
        "named.other.lenght": "length",
        "several.1.length": "",
        "several.2": "",
        "inner.size": "",
    }


def test_contradictions_come_with_the_path_of_their_part():
    noise = {"kind": "mixture", "parts": [
        {"noise": {"kind": "gaussian"}},
        {"noise": {"kind": "blur", "min_sigma": 4, "max_sigma": 2}},
    ]}  # fmt: skip
    probes = {"noise": {"blur": {"kind": "patches", "min_size": 0.5, "max_size": 0.4}}}
    content = PRETRAIN | {"noise": noise, "probes": probes}
    problems = refused(load.validate, PretrainConfig, content).problems
    assert [(p.path, p.value) for p in problems] == [
        ("noise.parts.1.noise.max_sigma", 2.0),
        ("probes.noise.blur.max_size", 0.4),
    ]


def test_a_section_that_is_no_mapping():
    several = {
        "probes": 3, "model": "resnet18", "noise": {"kind": "mixture", "parts": [1]},
        "promote": 5, "duration": None,
    }  # fmt: skip
    problems = refused(load.validate, PretrainConfig, PRETRAIN | several).problems
    assert {str(problem) for problem in problems} == {
        "probes: 3: must be a mapping",
        "model: 'resnet18': needs a kind",
        "noise.parts.0: 1: must be a mapping",
        "promote: 5: must be a mapping",
        "duration: None: must be a mapping",
    }


@pytest.mark.parametrize("value", [3, "a", [1], None, {"kind": None}, {"kind": 3}, {"kind": ["a"]}])
@pytest.mark.parametrize("field", ["model", "noise", "labels", "optimizer", "schedule", "probes"])
def test_no_message_speaks_of_python(field, value):
    text = str(refused(load.validate, PretrainConfig, PRETRAIN | {field: value}))
    assert text.startswith(field)
    for foreign in ("instance", "object", "dataclass", "ArgsKwargs", "dictionary"):
        assert foreign not in text


def test_a_message_is_a_line_of_sane_length():
    problem = Problem("a\n" * 500, "b" * 9000, "c" * 9000, "hint")
    assert len(str(problem)) < 1500
    assert str(problem).isprintable()
    assert str(problem).endswith("ccc (did you mean hint?)")


@pytest.mark.parametrize("before", [*range(80, 110, 3), 185])
def test_a_shortened_message_shows_no_part_of_a_password(before):
    value = "x" * before + " http://bob:sesame@host/" + "y" * 200
    for text in (value, value[::-1].replace("tsoh@emases:bob//:ptth", "http://bob:sesame@host")):
        for told in (str(Problem("uri", text, "is wrong")), one_line(ValueError(text), 200)):
            assert not any(part in redact(told) for part in ("ses", "ame", "bob"))


def test_an_instance_is_checked_as_plain_data_is():
    """What Python builds has its fields checked against each other, not against their bounds."""
    config = load.validate(PretrainConfig, PRETRAIN | {"model": RESNET})
    object.__setattr__(config, "seed", -1)
    assert str(refused(load.validate, PretrainConfig, config)) == (
        "seed: -1: must be greater than or equal to 0"
    )
